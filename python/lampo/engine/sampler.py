# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: the requests' sampling parameters as the tensors of ops.sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lampo import ops
from lampo.engine.sequence import Sequence
from lampo.outputs import Logprob, LogprobTable

NO_FINITE_LOGIT = "the model gave no finite logit (or the request's masks left none)"


class Sampler:
    """Draws one token for each sequence and collects the log-probabilities asked for.

    The tensors of a batch are kept until its members change.
    """

    def __init__(self, token_text: Callable[[int], str]) -> None:
        self._token_text = token_text
        self._members: list[Sequence] = []
        self._settings: dict[str, torch.Tensor] = {}

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        """Appends a token to each sequence, or fails it.

        Args:
            logits: [len(sequences), vocab_size] float32.
            sequences: whose next tokens the rows predict.
        """
        if sequences != self._members:
            self._members = list(sequences)
            self._settings = _settings(sequences)
        position = np.array([len(s.token_ids) for s in sequences], dtype=np.int64)
        status = torch.empty(len(sequences), dtype=torch.int32)
        token_ids = ops.sample(
            logits,
            positions=torch.from_numpy(position),
            status=status,
            **self._settings,
            **_penalties(sequences),
            **_biases(sequences),
        )
        self.accept(logits, sequences, token_ids, status)

    def accept(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        token_ids: torch.Tensor,
        status: torch.Tensor,
    ) -> None:
        """Appends drawn tokens to the sequences, with the log-probabilities asked for."""
        chosen = token_ids.tolist()
        tables = self._tables(logits, chosen, [s.params.logprobs for s in sequences])
        for sequence, token_id, bad, table in zip(
            sequences, chosen, status.tolist(), tables, strict=True
        ):
            if bad:
                sequence.fail(NO_FINITE_LOGIT)
            else:
                sequence.append(token_id, table)

    def tables(
        self, logits: torch.Tensor, token_ids: list[int], num_top: int
    ) -> list[LogprobTable]:
        """For each row the given token's log-probability and the `num_top` best ones'."""
        logprob, rank, top_ids, top_logprobs = ops.token_logprobs(
            logits, torch.tensor(token_ids), num_top
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

    def _tables(
        self, logits: torch.Tensor, chosen: list[int], wanted: list[int | None]
    ) -> list[LogprobTable | None]:
        rows = [i for i, num_top in enumerate(wanted) if num_top is not None and chosen[i] >= 0]
        tables: list[LogprobTable | None] = [None] * len(chosen)
        if not rows:
            return tables
        num_top = max(num for num in wanted if num is not None)
        found = self.tables(logits[rows], [chosen[i] for i in rows], num_top)
        for i, table in zip(rows, found, strict=True):
            keep = wanted[i] or 0
            tables[i] = {
                token: entry
                for token, entry in table.items()
                if token == chosen[i] or entry.rank <= keep
            }
        return tables

    def _logprob(self, token_id: int, logprob: float, rank: int) -> Logprob:
        return Logprob(logprob, rank, self._token_text(token_id))


def _settings(sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    params = [s.params for s in sequences]
    settings = {
        "temperature": torch.tensor([p.temperature for p in params], dtype=torch.float32),
        "seeds": torch.tensor([s.seed for s in sequences], dtype=torch.int64),
    }
    if any(p.top_k and p.top_k > 0 for p in params):
        top_k = [max(p.top_k or 0, 0) for p in params]
        settings["top_k"] = torch.tensor(top_k, dtype=torch.int32)
    if any(p.top_p != 1.0 for p in params):
        settings["top_p"] = torch.tensor([p.top_p for p in params], dtype=torch.float32)
    if any(p.min_p for p in params):
        settings["min_p"] = torch.tensor([p.min_p for p in params], dtype=torch.float32)
    return settings


def _penalties(sequences: list[Sequence]) -> dict[str, torch.Tensor]:
    params = [s.params for s in sequences]
    if not any(
        p.repetition_penalty != 1.0 or p.presence_penalty or p.frequency_penalty for p in params
    ):
        return {}
    ids: list[int] = []
    counts: list[int] = []
    cu = [0]
    for sequence in sequences:
        p = sequence.params
        listed = dict(sequence.output_counts)
        if p.repetition_penalty != 1.0:
            listed = dict.fromkeys(sequence.token_ids[: sequence.num_prompt_tokens], 0) | listed
        ids += listed.keys()
        counts += listed.values()
        cu.append(len(ids))

    def floats(name: str) -> torch.Tensor:
        return torch.tensor([getattr(p, name) for p in params], dtype=torch.float32)

    return {
        "penalty_ids": torch.tensor(ids, dtype=torch.int32),
        "penalty_counts": torch.tensor(counts, dtype=torch.int32),
        "cu_penalties": torch.tensor(cu, dtype=torch.int32),
        "repetition_penalty": floats("repetition_penalty"),
        "presence_penalty": floats("presence_penalty"),
        "frequency_penalty": floats("frequency_penalty"),
    }


def _biases(sequences: list[Sequence]) -> dict[str, Any]:
    if not any(s.params.logit_bias or s.stop_tokens_banned for s in sequences):
        return {}
    ids: list[int] = []
    values: list[float] = []
    cu = [0]
    for sequence in sequences:
        bias: dict[int, float] = dict(sequence.params.logit_bias)
        if sequence.stop_tokens_banned:
            bias |= dict.fromkeys(sequence.stop_ids, -float("inf"))
        ids += bias.keys()
        values += bias.values()
        cu.append(len(ids))
    return {
        "bias_ids": torch.tensor(ids, dtype=torch.int32),
        "bias_values": torch.tensor(values, dtype=torch.float32),
        "cu_bias": torch.tensor(cu, dtype=torch.int32),
    }
