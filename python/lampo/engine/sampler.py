# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: the requests' sampling parameters as the tensors of ops.sample."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lampo import ops
from lampo.engine.request import Sequence
from lampo.outputs import Logprob, LogprobTable

NO_FINITE_LOGIT = "the model gave no finite logit (or the request's masks left none)"


class Sampler:
    """Draws one token for each sequence and collects the log-probabilities asked for."""

    def __init__(self, token_text: Callable[[int], str]) -> None:
        self._token_text = token_text

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        """Appends a token to each sequence, or fails it.

        Args:
            logits: [len(sequences), vocab_size] float32.
            sequences: whose next tokens the rows predict.
        """
        token_ids = torch.full((len(sequences),), -1, device=logits.device)
        status = torch.ones(len(sequences), dtype=torch.int32, device=logits.device)
        if not all(s.changes_logits for s in sequences):
            ops.sample(
                logits, **_settings(sequences, logits.device), token_ids=token_ids, status=status
            )
        self.accept(logits, sequences, token_ids.tolist(), status.tolist())

    def accept(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        chosen: list[int],
        failed: list[int],
    ) -> None:
        """Appends tokens that a step drew by temperature and cuts alone.

        Rows that need more than that (:attr:`Sequence.changes_logits`) are drawn again.
        """
        errors: dict[int, str] = {}
        tables: dict[int, LogprobTable] = {}
        if rows := [i for i, s in enumerate(sequences) if s.changes_logits]:
            draw = _Draw(take_rows(logits, rows), [sequences[i] for i in rows])
            for i, token_id, error in zip(rows, draw.token_ids, draw.errors, strict=True):
                chosen[i], failed[i] = token_id, error is not None
                if error is not None:
                    errors[i] = error
            processed = [
                j
                for j, i in enumerate(rows)
                if sequences[i].params.logprobs_mode == "processed" and not failed[i]
            ]
            if wanted := [j for j in processed if draw.sequences[j].params.logprobs is not None]:
                found = self._chosen_tables(
                    draw.processed_logits(wanted),
                    [draw.token_ids[j] for j in wanted],
                    [draw.sequences[j] for j in wanted],
                )
                tables.update(zip([rows[j] for j in wanted], found, strict=True))
        if raw := [
            i
            for i, s in enumerate(sequences)
            if s.output.logprobs is not None and not failed[i] and i not in tables
        ]:
            found = self._chosen_tables(
                take_rows(logits, raw), [chosen[i] for i in raw], [sequences[i] for i in raw]
            )
            tables.update(zip(raw, found, strict=True))
        now = time.perf_counter()
        for i, sequence in enumerate(sequences):
            if failed[i]:
                sequence.fail(errors.get(i, NO_FINITE_LOGIT))
            else:
                sequence.append(chosen[i], tables.get(i), now)

    def tables(
        self, logits: torch.Tensor, token_ids: list[int], num_top: int
    ) -> list[LogprobTable]:
        """For each row the given token's log-probability and the `num_top` best ones'."""
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

    def _chosen_tables(
        self, logits: torch.Tensor, chosen: list[int], sequences: list[Sequence]
    ) -> list[LogprobTable]:
        """Tables of the chosen tokens, each of the size that its request wants."""
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


class _Draw:
    """A draw from rows whose logits are changed first.

    token_ids, errors: per row; an error says why there is no token.
    """

    def __init__(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        self._logits = logits
        self.sequences = sequences
        self.errors: list[str | None] = [None] * len(sequences)
        self._mask = self._masks()
        self._penalties = [
            (s.penalties.ids, s.penalties.counts) if s.penalties is not None else _NOTHING
            for s in sequences
        ]
        self._biases = [s.rules.biases(s.output.token_ids, s.stop_tokens_banned) for s in sequences]
        device = logits.device
        options: dict[str, Any] = {}
        if self._mask is not None:
            options["allowed_mask"] = torch.from_numpy(self._mask).to(device)
        if any(len(ids) for ids, _ in self._penalties):
            ids, counts, cu = _ragged(self._penalties, device)
            options |= {"penalty_ids": ids, "penalty_counts": counts, "cu_penalties": cu}
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
                values = [getattr(s.params, name) for s in sequences]
                options[name] = torch.tensor(values, dtype=torch.float32, device=device)
        if any(len(ids) for ids, _ in self._biases):
            ids, biases, cu = _ragged(self._biases, device)
            options |= {"bias_ids": ids, "bias_values": biases, "cu_bias": cu}
        self._kept: torch.Tensor | None = None
        if any(s.params.logprobs_mode == "processed" for s in sequences):
            self._kept = options["kept"] = torch.empty(
                logits.shape, dtype=torch.bool, device=device
            )
        status = torch.empty(len(sequences), dtype=torch.int32, device=device)
        token_ids = ops.sample(logits, **_settings(sequences, device), **options, status=status)
        self.token_ids: list[int] = token_ids.tolist()
        for i, bad in enumerate(status.tolist()):
            if bad and self.errors[i] is None:
                self.errors[i] = NO_FINITE_LOGIT

    def processed_logits(self, rows: list[int]) -> torch.Tensor:
        """Logits of the distribution that was drawn from, -inf where tokens were cut."""
        assert self._kept is not None
        kept = self._kept.cpu().numpy()
        out = self._logits.float().cpu().numpy()[rows]
        out[np.isnan(out)] = -np.inf
        for logits, row in zip(out, rows, strict=True):
            params = self.sequences[row].params
            ids, counts = self._penalties[row]
            repetition = np.float32(params.repetition_penalty or 1.0)
            old = logits[ids]
            logits[ids] = np.where(old > 0, old / repetition, old * repetition) - (counts > 0) * (
                params.presence_penalty + params.frequency_penalty * counts
            )
            ids, values = self._biases[row]
            logits[ids] += values
            if params.temperature:
                logits /= params.temperature
            logits[~kept[row]] = -np.inf
            if self._mask is not None:
                bits = np.unpackbits(self._mask[row].view(np.uint8), bitorder="little")
                logits[bits[: len(logits)] == 0] = -np.inf
        return torch.from_numpy(out).to(self._logits.device)

    def _masks(self) -> NDArray[np.int32] | None:
        """The rows' allowed tokens; None if that is all of them for every row."""
        if all(s.grammar is None and s.rules.allowed is None for s in self.sequences):
            return None
        words = -(-self._logits.shape[1] // 32)
        masks = np.full((len(self.sequences), words), -1, dtype=np.int32)
        for i, sequence in enumerate(self.sequences):
            if sequence.grammar is not None:
                self.errors[i] = sequence.grammar.fill(masks[i])
            if sequence.rules.allowed is not None:
                masks[i] &= sequence.rules.allowed
        return masks


_NOTHING = (np.zeros(0, np.int32), np.zeros(0, np.int32))


def take_rows(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Some rows; a view where they are neighbours.

    Copies are made by NumPy, in this thread: torch's threads would take the cores from those of
    the ops for milliseconds.
    """
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return logits[rows[0] : rows[-1] + 1]
    if logits.is_cpu:
        return torch.from_numpy(logits.numpy()[rows])
    return logits[rows]


def _settings(sequences: list[Sequence], device: torch.device) -> dict[str, torch.Tensor]:
    params = [s.params for s in sequences]
    settings = {
        "temperature": torch.tensor([p.temperature for p in params], dtype=torch.float32),
        "seeds": torch.tensor([s.seed for s in sequences], dtype=torch.int64),
        "positions": torch.tensor([len(s.token_ids) for s in sequences], dtype=torch.int64),
    }
    if any(p.top_k and p.top_k > 0 for p in params):
        top_k = [max(p.top_k or 0, 0) for p in params]
        settings["top_k"] = torch.tensor(top_k, dtype=torch.int32)
    if any(p.top_p != 1.0 for p in params):
        settings["top_p"] = torch.tensor([p.top_p for p in params], dtype=torch.float32)
    if any(p.min_p for p in params):
        settings["min_p"] = torch.tensor([p.min_p for p in params], dtype=torch.float32)
    return {name: values.to(device) for name, values in settings.items()}


def _ragged(
    rows: Iterable[tuple[NDArray[Any], NDArray[Any]]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of ids and values one after the other, and where each begins."""
    columns = tuple(zip(*rows, strict=True))
    ids, values = map(np.concatenate, columns)
    cu = np.array([0, *accumulate(map(len, columns[0]))], dtype=np.int32)
    return tuple(torch.from_numpy(array).to(device) for array in (ids, values, cu))  # type: ignore[return-value]
