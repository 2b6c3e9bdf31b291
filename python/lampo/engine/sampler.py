# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens and their log-probabilities."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from lampo import ops
from lampo.engine.request import Sequence
from lampo.engine.sample_rows import sample_inputs
from lampo.ops import SampleInputs
from lampo.outputs import Logprob, LogprobTable

NO_FINITE_LOGIT = "the model gave no finite logit (or the request's masks left none)"


@dataclass(slots=True)
class _Draw:
    """One row's token, or the error for which it has none."""

    token_id: int
    error: str | None
    table: LogprobTable | None = None


class Sampler:
    """Draws one token for each sequence and collects the log-probabilities asked for."""

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
    ) -> None:
        """Appends tokens that a step drew by temperature and cuts alone.

        Rows that need more than that (:attr:`Sequence.needs_own_draw`) are drawn here.

        Args:
            logits, sequences: as in :meth:`sample`.
            chosen, failed: token and status of each row.
        """
        draws = [
            _Draw(token_id, NO_FINITE_LOGIT if status else None)
            for token_id, status in zip(chosen, failed, strict=True)
        ]
        if rows := [i for i, s in enumerate(sequences) if s.needs_own_draw]:
            own = self._draw(take_rows(logits, rows), [sequences[i] for i in rows])
            for i, draw in zip(rows, own, strict=True):
                draws[i] = draw
        _append(sequences, draws)

    def tables(
        self, logits: torch.Tensor, token_ids: list[int], num_top: int
    ) -> list[LogprobTable]:
        """For each row the log-probabilities of the given token and of the `num_top` best ones."""
        logprob, rank, top_ids, top_logprobs = ops.token_logprobs(
            logits, torch.tensor(token_ids, device=logits.device), num_top
        )
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

    def _draw(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[_Draw]:
        """A draw with all that the sequences ask for, log-probabilities too."""
        inputs, errors = sample_inputs(sequences, logits.shape[1], logits.device)
        wants = [None if s.params.logprobs is None else s.params.logprobs_mode for s in sequences]
        kept = None
        if "processed" in wants:
            kept = torch.empty(logits.shape, dtype=torch.bool, device=logits.device)
        status = torch.empty(len(sequences), dtype=torch.int32, device=logits.device)
        token_ids = ops.sample(logits, inputs, kept=kept, status=status).tolist()
        draws = [
            _Draw(token_id, error or (NO_FINITE_LOGIT if bad else None))
            for token_id, bad, error in zip(token_ids, status.tolist(), errors, strict=True)
        ]
        for mode in ("raw", "processed"):
            rows = [i for i, want in enumerate(wants) if want == mode and draws[i].error is None]
            if not rows:
                continue
            if mode == "raw":
                taken = take_rows(logits, rows)
            else:
                assert kept is not None
                taken = _processed_logits(logits, kept, inputs, sequences, rows)
            chosen = [draws[i].token_id for i in rows]
            tables = self._chosen_tables(taken, chosen, [sequences[i] for i in rows])
            for i, table in zip(rows, tables, strict=True):
                draws[i].table = table
        return draws

    def _chosen_tables(
        self, logits: torch.Tensor, chosen: list[int], sequences: list[Sequence]
    ) -> list[LogprobTable]:
        """Tables of the chosen tokens, each of the size that its request asks for."""
        wanted = [s.params.logprobs or 0 for s in sequences]
        found = self.tables(logits, chosen, min(max(wanted), logits.shape[1]))
        return [
            {
                token: entry
                for token, entry in table.items()
                if token == own
                or (entry.rank <= keep and (mode == "raw" or math.isfinite(entry.logprob)))
            }
            for own, keep, table, mode in zip(
                chosen, wanted, found, [s.params.logprobs_mode for s in sequences], strict=True
            )
        ]

    def _logprob(self, token_id: int, logprob: float, rank: int) -> Logprob:
        return Logprob(logprob, rank, self._token_text(token_id))


def _append(sequences: list[Sequence], draws: list[_Draw]) -> None:
    now = time.perf_counter()
    for sequence, draw in zip(sequences, draws, strict=True):
        if draw.error is not None:
            sequence.fail(draw.error)
        else:
            sequence.append(draw.token_id, draw.table, now)


def _processed_logits(
    logits: torch.Tensor,
    kept: torch.Tensor,
    inputs: SampleInputs,
    sequences: list[Sequence],
    rows: list[int],
) -> torch.Tensor:
    """Logits of the distribution that was drawn from, -inf where tokens were cut."""
    out = logits.float().cpu().numpy()[rows]
    out[np.isnan(out)] = -np.inf
    for values, row in zip(out, rows, strict=True):
        sequence = sequences[row]
        params = sequence.params
        if sequence.penalties is not None:
            ids, counts = sequence.penalties.ids, sequence.penalties.counts
            repetition = np.float32(params.repetition_penalty or 1.0)
            old = values[ids]
            values[ids] = np.where(old > 0, old / repetition, old * repetition) - (counts > 0) * (
                params.presence_penalty + params.frequency_penalty * counts
            )
        ids, biases = sequence.rules.biases(sequence.output.token_ids, sequence.stop_tokens_banned)
        values[ids] += biases
        if params.temperature:
            values /= params.temperature
        values[~kept[row].cpu().numpy()] = -np.inf
        if inputs.allowed_mask is not None:
            mask = inputs.allowed_mask[row].cpu().numpy()
            bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
            values[bits[: len(values)] == 0] = -np.inf
    return torch.from_numpy(out).to(logits.device)


def take_rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Some rows; a view where they are neighbours.

    NumPy copies in this thread: torch's threads would take the cores from those of the ops for
    milliseconds.
    """
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return logits[rows[0] : rows[-1] + 1]
    if logits.is_cpu:
        return torch.from_numpy(logits.numpy()[rows])
    return logits[rows]
