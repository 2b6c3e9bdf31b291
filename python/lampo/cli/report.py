# SPDX-License-Identifier: Apache-2.0
"""Results for people and for machines: statistics, tables of candidates, JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lampo.cli.nucleus import num_kept
from lampo.outputs import Logprob, LogprobTable, RequestMetrics
from lampo.sampling_params import MAX_LOGPROBS, SamplingParams

_REASONS = {
    "stop": "the answer ended",
    "length": "stopped at the length limit",
    "interrupted": "interrupted",
    "error": "failed",
}


def bytes_text(count: float) -> str:
    """Decimal units: 2.8 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def tokens_per_second(metrics: RequestMetrics) -> float | None:
    """Of the tokens after the first."""
    each = metrics.time_per_output_token
    return 1.0 / each if each else None


def statistics_line(metrics: RequestMetrics, finish_reason: str | None) -> str:
    """Sizes and times of a request: prompt, first token, output, rate, cache, how it ended."""
    parts = [plural(metrics.num_prompt_tokens, "prompt token")]
    if metrics.time_to_first_token is not None:
        parts.append(f"first token after {metrics.time_to_first_token * 1e3:.0f} ms")
    parts.append(plural(metrics.num_output_tokens, "output token"))
    rate = tokens_per_second(metrics)
    if rate is not None:
        parts.append(f"{rate:.1f} tokens/s")
    if metrics.cache_bytes:
        parts.append(f"{bytes_text(metrics.cache_bytes)} of KV cache")
    if finish_reason is not None:
        parts.append(_REASONS.get(finish_reason, finish_reason))
    return ", ".join(parts)


def metrics_json(metrics: RequestMetrics, load_time: float) -> dict[str, Any]:
    values = dataclasses.asdict(metrics)
    return values | {"tokens_per_second": tokens_per_second(metrics), "load_time": load_time}


class Candidates:
    """The candidates of every token, the `num_shown` best ones, and how many could be drawn.

    Args:
        num_shown: candidates for each token, as the user asked.
        params: resolved sampling parameters.
        vocab_size: tokens of the model.
    """

    def __init__(self, num_shown: int, params: SamplingParams, vocab_size: int) -> None:
        self._num_shown = num_shown
        self._params = params
        self._vocab_size = vocab_size

    @staticmethod
    def num_needed(num_shown: int | None, params: SamplingParams) -> int | None:
        """Log-probabilities to ask for: as many as possible where top-p or min-p need them."""
        cuts = params.top_p not in (None, 1.0) or bool(params.min_p)
        return MAX_LOGPROBS if num_shown is not None and cuts else num_shown

    def json(self, table: LogprobTable, token_id: int) -> dict[str, Any]:
        """One token; `num_kept` is null where it is not certain."""
        low, high = self._kept(table) or (0, 1)
        return {
            **_entry(token_id, table[token_id]),
            "num_kept": low if low == high else None,
            "candidates": [_entry(other, entry) for other, entry in self._best(table)],
        }

    def table(self, tables: Sequence[tuple[int, LogprobTable | None]], title: str) -> Any:
        """A rich table: token, probability, rank, number kept, candidates with a bar behind them.

        tables: for each token its id and its candidates, None where there is no prediction.
        """
        from rich.table import Table
        from rich.text import Text

        shown = Table(title=Text(title), title_justify="left", caption=Text(self._caption()))
        shown.caption_justify = "left"
        for name in ("#", "token", "probability", "rank", "kept"):
            shown.add_column(name, justify="left" if name == "token" else "right", no_wrap=True)
        shown.add_column("candidates", overflow="fold")
        for position, (token_id, table) in enumerate(tables):
            if table is None:
                continue
            own = table[token_id]
            cells = [str(position), repr(own.decoded_token), _percent(own.logprob), str(own.rank)]
            cells.append(self._kept_text(table))
            shown.add_row(*map(Text, cells), self._candidates_text(table))
        return shown

    def _candidates_text(self, table: LogprobTable) -> Any:
        from rich.text import Text

        kept = self._kept(table)
        text = Text()
        for rank, (_, entry) in enumerate(self._best(table), 1):
            cut = kept is not None and rank > kept[0]
            if kept is not None and rank == kept[0] + 1:
                text.append("| ", "bold")
            cell = f"{entry.decoded_token!r} {_percent(entry.logprob)}"
            text.append(cell.replace(" ", "\u00a0"), "dim" if cut else "")
            text.append("  ")
        text.rstrip()
        return text

    def _caption(self) -> str:
        p = self._params
        if p.temperature == 0.0:
            cuts = ["temperature 0 (the best one)"]
        else:
            cuts = [f"temperature {p.temperature:g}"]
            cuts += [f"top-k {p.top_k}"] if p.top_k and p.top_k > 0 else []
            cuts += [f"top-p {p.top_p:g}"] if p.top_p not in (None, 1.0) else []
            cuts += [f"min-p {p.min_p:g}"] if p.min_p else []
        return (
            "probability: the model's own, before temperature and cuts; kept: how many tokens could"
            f" be drawn with {', '.join(cuts)}; they stand before the bar"
        )

    def _kept(self, table: LogprobTable) -> tuple[int, int] | None:
        ordered = sorted(table.values(), key=lambda entry: entry.rank)
        best = [e.logprob for i, e in enumerate(ordered, 1) if e.rank <= i]
        return num_kept(best, self._params, self._vocab_size) if best else None

    def _kept_text(self, table: LogprobTable) -> str:
        kept = self._kept(table)
        if kept is None:
            return "?"
        low, high = kept
        if low == self._vocab_size:
            return "all"
        if low == high:
            return str(low)
        return f"{low}-{high}" if high <= len(table) else f">={low}"

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


def _percent(logprob: float) -> str:
    value = 100.0 * math.exp(logprob)
    return f"{value:.1f} %" if value >= 0.05 else f"{value:.1g} %"
