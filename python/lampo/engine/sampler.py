# SPDX-License-Identifier: Apache-2.0
"""Draws of tokens from logits, and their log-probabilities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lampo import ops
from lampo.engine.request import Sequence
from lampo.engine.sample_rows import sample_inputs
from lampo.outputs import Logprob, LogprobTable

NO_FINITE_LOGIT = "the model gave no finite logit (or the request's masks left none)"


@dataclass(slots=True)
class _Draw:
    """One row's token, or the error for which it has none."""

    token_id: int
    error: str | None
    table: LogprobTable | None = None
    num_kept: int = 0


class Sampler:
    """Draws one token per sequence and collects the requested log-probabilities."""

    def __init__(self, token_text: Callable[[int], str]) -> None:
        self._token_text = token_text

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        """Appends a token to each sequence, or fails it.

        Args:
            logits: [len(sequences), vocab_size] float32, a row for each sequence's next token.
            sequences: the rows.
        """
        _append(sequences, self._draw(logits, sequences))

    def accept(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        chosen: list[int],
        failed: list[int],
        num_kept: list[int] | None = None,
    ) -> None:
        """Appends tokens that a step drew by temperature and cuts alone.

        Rows with :attr:`Sequence.needs_own_draw` are drawn here.

        Args:
            logits, sequences: as in :meth:`sample`.
            chosen, failed: token and status per row.
            num_kept: tokens left by the cuts, per row; None: not counted.
        """
        draws = [
            _Draw(token_id, NO_FINITE_LOGIT if status else None)
            for token_id, status in zip(chosen, failed, strict=True)
        ]
        if rows := [i for i, s in enumerate(sequences) if s.needs_own_draw]:
            own = self._draw(take_rows(logits, rows), [sequences[i] for i in rows])
            for i, draw in zip(rows, own, strict=True):
                draws[i] = draw
        scored = [
            i
            for i, s in enumerate(sequences)
            if s.params.logprobs is not None and not s.needs_own_draw and draws[i].error is None
        ]
        if scored:
            members = [sequences[i] for i in scored]
            self._add_tables(take_rows(logits, scored), members, [draws[i] for i in scored], "raw")
            for i in scored:
                draws[i].num_kept = 0 if num_kept is None else num_kept[i]
        _append(sequences, draws)

    def tables(
        self,
        logits: torch.Tensor,
        token_ids: list[int],
        num_top: int,
        *,
        normalized: bool = False,
    ) -> list[LogprobTable]:
        """Per row, the log-probabilities of the given token and of the `num_top` best ones.

        Args:
            logits: [len(token_ids), vocab_size] float32.
            token_ids: one per row.
            num_top: best tokens per row.
            normalized: the rows are log-probabilities already.
        """
        chosen = torch.tensor(token_ids, device=logits.device)
        logprob, rank, top_ids, top_logprobs = ops.token_logprobs(logits, chosen, num_top)
        if normalized:
            logprob = logits.gather(1, chosen[:, None])[:, 0]
            top_logprobs = logits.gather(1, top_ids.long())
        rows = zip(
            token_ids,
            logprob.tolist(),
            rank.tolist(),
            top_ids.tolist(),
            top_logprobs.tolist(),
            strict=True,
        )
        tables: list[LogprobTable] = []
        for token_id, own, own_rank, ids, values in rows:
            table = {token_id: self._logprob(token_id, own, own_rank)}
            for i, (other, value) in enumerate(zip(ids, values, strict=True)):
                table.setdefault(other, self._logprob(other, value, i + 1))
            tables.append(table)
        return tables

    def num_kept(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """The number of tokens left by temperature and cuts, per row of logits.

        Args:
            logits: [len(sequences), vocab_size] float32.
            sequences: the rows; no penalties, biases or masks apply.
        """
        inputs, _ = sample_inputs(sequences, logits.shape[1], logits.device)
        num_kept = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
        ops.sample(logits, inputs, num_kept=num_kept)
        found: list[int] = num_kept.tolist()
        return found

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[_Draw]:
        """A draw by all rules of the sequences, with their log-probabilities."""
        inputs, errors = sample_inputs(sequences, logits.shape[1], logits.device)
        modes = [None if s.params.logprobs is None else s.params.logprobs_mode for s in sequences]
        count, device = len(sequences), logits.device
        status = torch.empty(count, dtype=torch.int32, device=device)
        num_kept = processed = None
        if any(modes):
            num_kept = torch.empty(count, dtype=torch.int32, device=device)
        if "processed" in modes:
            processed = torch.empty(logits.shape, dtype=torch.float32, device=device)
        token_ids = ops.sample(
            logits, inputs, status=status, num_kept=num_kept, processed_logprobs=processed
        )
        draws = [
            _Draw(token_id, error or (NO_FINITE_LOGIT if bad else None))
            for token_id, bad, error in zip(
                token_ids.tolist(), status.tolist(), errors, strict=True
            )
        ]
        if num_kept is not None:
            for draw, kept in zip(draws, num_kept.tolist(), strict=True):
                draw.num_kept = kept
        for mode, source in (("raw", logits), ("processed", processed)):
            rows = [i for i, m in enumerate(modes) if m == mode and draws[i].error is None]
            if rows and source is not None:
                members, drawn = [sequences[i] for i in rows], [draws[i] for i in rows]
                self._add_tables(take_rows(source, rows), members, drawn, mode)
        return draws

    def _add_tables(
        self, source: torch.Tensor, sequences: list[Sequence], draws: list[_Draw], mode: str
    ) -> None:
        """Sets the tables of draws.

        Args:
            source: [len(draws), vocab_size] float32: logits, or with mode "processed" the
                log-probabilities of the distributions that were drawn from.
            sequences, draws: the rows.
            mode: "raw" or "processed".
        """
        wanted = [s.params.logprobs or 0 for s in sequences]
        found = self.tables(
            source,
            [draw.token_id for draw in draws],
            min(max(wanted), source.shape[1]),
            normalized=mode == "processed",
        )
        for draw, table, keep in zip(draws, found, wanted, strict=True):
            draw.table = _cut_table(table, draw.token_id, keep, mode)

    def _logprob(self, token_id: int, logprob: float, rank: int) -> Logprob:
        return Logprob(logprob, rank, self._token_text(token_id))


def _append(sequences: list[Sequence], draws: list[_Draw]) -> None:
    now = time.perf_counter()
    for sequence, draw in zip(sequences, draws, strict=True):
        if draw.error is not None:
            sequence.fail(draw.error)
        else:
            sequence.append(draw.token_id, draw.table, now, draw.num_kept)


def _cut_table(table: LogprobTable, own: int, keep: int, mode: str) -> LogprobTable:
    """The `keep` best entries and the chosen token's; of processed ones, those not cut."""
    return {
        token: entry
        for token, entry in table.items()
        if token == own or (entry.rank <= keep and (mode == "raw" or math.isfinite(entry.logprob)))
    }


def take_rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Some rows; a view if they are contiguous.

    NumPy copies in this thread: torch's threads would compete with those of the ops for
    milliseconds.
    """
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return logits[rows[0] : rows[-1] + 1]
    if logits.is_cpu:
        return torch.from_numpy(logits.numpy()[rows])
    return logits[rows]
