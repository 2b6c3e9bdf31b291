# SPDX-License-Identifier: Apache-2.0
"""The decode step of a batch, over fixed tensors: recorded in the first run, then replayed.

Between two steps Python runs with cold caches (the weights have evicted its data), so the draw is
part of the recording.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lampo import ops
from lampo.engine.kv_pool import KVPool
from lampo.engine.request import Sequence
from lampo.engine.step_inputs import StepInputs
from lampo.models.decoder import Decoder
from lampo.runtime.program import Program


@dataclass(slots=True)
class Drawn:
    """The results of a step, as :class:`lampo.engine.runner.DecodeResult`."""

    logits: torch.Tensor
    token_ids: list[int]
    status: list[int]
    num_kept: list[int] | None


class HostResult:
    """The draws of a step in host memory; as NumPy views, which cost less than torch's.

    Args:
        drawn: [4 * batch_size] int32: the ids as int64, the status, the numbers of kept tokens.
        counted: whether the numbers of kept tokens are written.
    """

    def __init__(self, drawn: NDArray[np.int32], counted: bool) -> None:
        rows = len(drawn) // 4
        self._token_ids = drawn[: 2 * rows].view(np.int64)
        self._status = drawn[2 * rows : 3 * rows]
        self._num_kept = drawn[3 * rows :] if counted else None

    def read(self, logits: torch.Tensor, count: int) -> Drawn:
        """The first `count` rows."""
        token_ids, status = self._token_ids.tolist(), self._status.tolist()
        num_kept = None if self._num_kept is None else self._num_kept[:count].tolist()
        if count == len(status):
            return Drawn(logits, token_ids, status, num_kept)
        return Drawn(logits[:count], token_ids[:count], status[:count], num_kept)


def drawn_bytes(batch_size: int) -> int:
    """Bytes of the draws of a step: see :class:`HostResult`."""
    return 4 * 4 * batch_size


class DecodeStep:
    """A decode step of up to `batch_size` sequences, from embedding to draw.

    Args:
        model, pool: the model and its KV pool.
        logits: [batch_size, vocab_size] float32 on their device, written by every run.
        max_pages_per_seq: pages of the longest sequence.
        workspace: of ops.sample.
        counted: whether a run counts the tokens left by temperature and cuts.

    Attributes:
        program: the recorded step, empty before the first run.
    """

    def __init__(
        self,
        model: Decoder,
        pool: KVPool,
        logits: torch.Tensor,
        max_pages_per_seq: int,
        workspace: torch.Tensor,
        *,
        counted: bool = False,
    ) -> None:
        batch_size, device = logits.shape[0], logits.device
        self.program = Program()
        self._model, self._pool, self._logits = model, pool, logits
        self._inputs = StepInputs(batch_size, max_pages_per_seq, device)
        # Token ids, status and counts of the last run, contiguous: one copy reads them.
        self._drawn = torch.zeros(4 * batch_size, dtype=torch.int32, device=device)
        self._token_ids = self._drawn[: 2 * batch_size].view(torch.int64)
        self._status = self._drawn[2 * batch_size : 3 * batch_size]
        self._counted = counted
        self._num_kept = self._drawn[3 * batch_size :] if counted else None
        self._host = HostResult(self._drawn.numpy(), counted) if device.type == "cpu" else None
        self._workspace = workspace

    def run(self, sequences: list[Sequence], *, ahead: bool = False) -> Drawn:
        """Computes one token per sequence.

        Args:
            sequences: at most `batch_size`, with their pages reserved.
            ahead: the inputs are the tokens drawn by the last run, of the same sequences.
        """
        self._write_inputs(sequences, ahead)
        if len(self.program):
            self.program.replay()
        else:
            program = Program()
            with program.record():
                self._call_ops()
            self.program = program  # last: an interrupted recording is never replayed
        assert self._host is not None
        return self._host.read(self._logits, len(sequences))

    def _write_inputs(self, sequences: list[Sequence], ahead: bool) -> None:
        self._model.reach(max((s.num_computed for s in sequences), default=0) + int(ahead) + 1)
        self._inputs.write(sequences, self._pool.page_size, ahead=int(ahead))
        if ahead:
            self._inputs.tensors["token_ids"].copy_(self._token_ids)

    def _call_ops(self) -> None:
        hidden = self._model.forward(self._inputs.step, self._pool.cache)
        self._model.logits(hidden, out=self._logits)
        ops.sample(
            self._logits,
            self._inputs.sample,
            token_ids=self._token_ids,
            status=self._status,
            num_kept=self._num_kept,
            workspace=self._workspace,
        )
