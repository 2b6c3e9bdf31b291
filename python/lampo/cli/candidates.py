# SPDX-License-Identifier: Apache-2.0
"""The candidates for every token: their probabilities, and the number that the cuts left."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lampo.outputs import Logprob, LogprobTable
from lampo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_COLUMNS = ("#", "token", "probability", "rank", "kept")
_LEAST_WIDTH = 24


class Candidates:
    """The candidates of every token, the `num_shown` best ones, and the number left by the cuts.

    Args:
        num_shown: candidates per token.
        params: resolved sampling parameters.
        vocab_size: tokens of the model.
        token_bytes: the bytes of a token, shown if they are part of a character.
    """

    def __init__(
        self,
        num_shown: int,
        params: SamplingParams,
        vocab_size: int,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._num_shown = num_shown
        self._params = params
        self._vocab_size = vocab_size
        self._token_bytes = token_bytes

    def json(self, table: LogprobTable, token_id: int, num_kept: int | None) -> dict[str, Any]:
        """One token; `num_kept` is null if unknown."""
        return {
            **_entry(token_id, table[token_id]),
            "num_kept": num_kept,
            "candidates": [_entry(other, entry) for other, entry in self._best(table)],
        }

    def table(
        self, tables: Sequence[tuple[int, LogprobTable | None, int | None]], title: str, width: int
    ) -> Table:
        """A table for people: token, probability, rank, number kept, candidates.

        Args:
            tables: per token its id, its candidates (None without a prediction) and the number of
                tokens that the cuts left (None: unknown).
            title: above it.
            width: columns of the terminal.
        """
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        rows = []
        for position, (token_id, table, num_kept) in enumerate(tables):
            if table is not None:
                own = table[token_id]
                cells = [str(position), self._token(token_id, own), _percent(own), str(own.rank)]
                rows.append(([*cells, self._kept_text(num_kept)], table, num_kept))
        shown = Table(title=Text(title), title_justify="left")
        shown.caption, shown.caption_justify = Text(self._caption()), "left"
        left = width - 3 * len(_COLUMNS) - 4
        for i, name in enumerate(_COLUMNS):
            justify = "left" if name == "token" else "right"
            shown.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
            left -= max(cell_len(text) for text in [name, *(cells[i] for cells, *_ in rows)])
        shown.add_column("candidates", no_wrap=True)
        for cells, table, num_kept in rows:
            candidates = self._candidates_text(table, num_kept, max(left, _LEAST_WIDTH))
            shown.add_row(*map(Text, cells), candidates)
        return shown

    def _candidates_text(self, table: LogprobTable, num_kept: int | None, width: int) -> Text:
        """Lines of candidates, those that cannot be drawn behind a bar."""
        from rich.text import Text

        if num_kept is None or not self._drawn_in_this_order:
            num_kept = self._vocab_size
        text, used = Text(), 0
        for rank, (token_id, entry) in enumerate(self._best(table), 1):
            bar = "| " if rank == num_kept + 1 else ""
            cell = Text(
                f"{self._token(token_id, entry)} {_percent(entry)}",
                "dim" if rank > num_kept else "",
            )
            size = len(bar) + cell.cell_len
            if used and used + 2 + size > width:
                text.append("\n")
                used = 0
            elif used:
                text.append("  ")
                used += 2
            text.append(bar).append_text(cell)
            used += size
        return text

    def _token(self, token_id: int, entry: Logprob) -> str:
        text = entry.decoded_token
        return repr(self._token_bytes(token_id) if "\ufffd" in text else text)

    def _caption(self) -> str:
        p = self._params
        if p.temperature == 0.0:
            cuts = ["temperature 0 (the best one)"]
        else:
            cuts = [f"temperature {p.temperature:g}"]
            cuts += [f"top-k {p.top_k}"] if p.top_k and p.top_k > 0 else []
            cuts += [f"top-p {p.top_p:g}"] if p.top_p not in (None, 1.0) else []
            cuts += [f"min-p {p.min_p:g}"] if p.min_p else []
        own = "the model's own, before temperature and cuts"
        if p.logprobs_mode == "processed":
            own = "of the distribution drawn from, after temperature and cuts"
        return (
            f"probability: {own}; kept: how many tokens could be drawn with {', '.join(cuts)}; "
            "they stand before the bar"
        )

    @property
    def _drawn_in_this_order(self) -> bool:
        """Whether the tokens kept are the first ones: nothing has changed the logits' order."""
        p = self._params
        return p.logprobs_mode == "processed" or not (
            p.repetition_penalty not in (None, 1.0)
            or p.presence_penalty
            or p.frequency_penalty
            or p.logit_bias
            or p.allowed_token_ids
            or p.bad_words
            or p.min_tokens
        )

    def _kept_text(self, num_kept: int | None) -> str:
        if num_kept is None:
            return "?"
        return "all" if num_kept == self._vocab_size else str(num_kept)

    def _best(self, table: LogprobTable) -> list[tuple[int, Logprob]]:
        ordered = sorted(table.items(), key=lambda item: item[1].rank)
        return [item for item in ordered if item[1].rank <= self._num_shown]


def _entry(token_id: int, entry: Logprob) -> dict[str, Any]:
    finite = math.isfinite(entry.logprob)
    return {
        "token_id": token_id,
        "token": entry.decoded_token,
        "logprob": entry.logprob if finite else None,
        "probability": math.exp(entry.logprob) if finite else 0.0,
        "rank": entry.rank,
    }


def _percent(entry: Logprob) -> str:
    value = 100.0 * math.exp(entry.logprob)
    return f"{value:.1f} %" if value >= 0.05 else f"{value:.1g} %"
