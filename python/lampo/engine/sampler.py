# SPDX-License-Identifier: Apache-2.0
"""Draws of tokens from logits, and their log-probabilities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lampo import ops
from lampo.engine.decode_step import HostResult
from lampo.engine.request import Sequence
from lampo.engine.sample_rows import sample_arrays
from lampo.ops import SampleInputs
from lampo.outputs import Logprob, LogprobTable
from lampo.runtime.transfer import Transfer

# Memory of a GPU for the parameters of a draw; more of them, such as masks, make it grow.
SAMPLER_BYTES = 256 << 10
NO_FINITE_LOGIT = "the model gave no finite logit (or the request's masks left none)"


@dataclass(slots=True)
class _Draw:
    """One row's token, or the error for which it has none."""

    token_id: int
    error: str | None
    table: LogprobTable | None = None
    num_kept: int = 0


class Sampler:
    """Draws one token per sequence and collects the requested log-probabilities.

    Args:
        token_text: the text of a token.
        device: of the logits.
    """

    def __init__(self, token_text: Callable[[int], str], device: torch.device) -> None:
        self._token_text = token_text
        self._transfer = Transfer(device, SAMPLER_BYTES)

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
            num_top: best tokens per row; -1: all.
            normalized: the rows are log-probabilities already.
        """
        count, vocab_size = len(token_ids), logits.shape[1]
        num_top = vocab_size if num_top < 0 else min(num_top, vocab_size)
        chosen = self._transfer.upload({"token_ids": np.array(token_ids, np.int64)})["token_ids"]
        # All results in one block, for one copy: of a row its own log-probability and rank, then
        # the log-probabilities and ids of the best tokens.
        block = torch.empty(2 * count * (1 + num_top), dtype=torch.int32, device=logits.device)
        own, ranks, best = torch.split(block, [count, count, 2 * count * num_top])
        values, ids = best.view(2, count, num_top)
        ops.token_logprobs(
            logits,
            chosen,
            num_top,
            logprob=own.view(torch.float32),
            rank=ranks,
            top_ids=ids,
            top_logprobs=values.view(torch.float32),
        )
        if normalized:
            own.view(torch.float32).copy_(logits.gather(1, chosen[:, None])[:, 0])
            values.view(torch.float32).copy_(logits.gather(1, ids.long()))
        found = self._transfer.download(block)
        values_read, ids_read = found[2 * count :].reshape(2, count, num_top)
        rows = zip(
            token_ids,
            found[:count].view(np.float32).tolist(),
            found[count : 2 * count].tolist(),
            ids_read.tolist(),
            values_read.view(np.float32).tolist(),
            strict=True,
        )
        tables: list[LogprobTable] = []
        for token_id, logprob, own_rank, top_ids, top_values in rows:
            table = {token_id: self._logprob(token_id, logprob, own_rank)}
            for i, (other, value) in enumerate(zip(top_ids, top_values, strict=True)):
                table.setdefault(other, self._logprob(other, value, i + 1))
            tables.append(table)
        return tables

    def num_kept(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """The number of tokens left by temperature and cuts, per row of logits.

        Args:
            logits: [len(sequences), vocab_size] float32.
            sequences: the rows; no penalties, biases or masks apply.
        """
        arrays, _ = sample_arrays(sequences, logits.shape[1])
        num_kept = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
        ops.sample(logits, SampleInputs(**self._transfer.upload(arrays)), num_kept=num_kept)
        found: list[int] = self._transfer.download(num_kept).tolist()
        return found

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[_Draw]:
        """A draw by all rules of the sequences, with their log-probabilities."""
        arrays, errors = sample_arrays(sequences, logits.shape[1])
        modes = [None if s.params.logprobs is None else s.params.logprobs_mode for s in sequences]
        count, device = len(sequences), logits.device
        processed = None
        if "processed" in modes:
            processed = torch.empty(logits.shape, dtype=torch.float32, device=device)
        # Ids, status and counts in one block, for one copy.
        block = torch.empty(4 * count, dtype=torch.int32, device=device)
        counted = any(modes)
        ops.sample(
            logits,
            SampleInputs(**self._transfer.upload(arrays)),
            token_ids=block[: 2 * count].view(torch.int64),
            status=block[2 * count : 3 * count],
            num_kept=block[3 * count :] if counted else None,
            processed_logprobs=processed,
        )
        drawn = HostResult(self._transfer.download(block), counted).read(logits, count)
        draws = [
            _Draw(token_id, error or (NO_FINITE_LOGIT if bad else None))
            for token_id, bad, error in zip(drawn.token_ids, drawn.status, errors, strict=True)
        ]
        if drawn.num_kept is not None:
            for draw, kept in zip(draws, drawn.num_kept, strict=True):
                draw.num_kept = kept
        for mode, source in (("raw", logits), ("processed", processed)):
            rows = [i for i, m in enumerate(modes) if m == mode and draws[i].error is None]
            if rows and source is not None:
                members, chosen = [sequences[i] for i in rows], [draws[i] for i in rows]
                self._add_tables(take_rows(source, rows), members, chosen, mode)
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
        counts = [s.params.logprobs or 0 for s in sequences]
        wanted = [source.shape[1] if count < 0 else count for count in counts]
        found = self.tables(
            source,
            [draw.token_id for draw in draws],
            max(wanted),
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
