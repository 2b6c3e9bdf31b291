# SPDX-License-Identifier: Apache-2.0
"""The decode step on a GPU: a CUDA graph; its result is read on demand."""

from __future__ import annotations

import logging
from typing import Any

import torch

from lampo import _C
from lampo.engine.decode_step import DecodeStep, Drawn, HostResult
from lampo.engine.kv_pool import KVPool
from lampo.engine.request import Sequence
from lampo.models.decoder import Decoder
from lampo.ops._registry import keep_arguments
from lampo.runtime.transfer import pinned

logger = logging.getLogger("lampo")


class DrawnLater:
    """The draws of a step; reading them waits for the device.

    Args:
        drawn: the draws on the device.
        host: pinned memory for them, unused until they are read.
        logits: [count, vocab_size].
        counted: as in :class:`HostResult`.
    """

    def __init__(
        self, drawn: torch.Tensor, host: torch.Tensor, logits: torch.Tensor, counted: bool
    ) -> None:
        self.logits = logits
        self._host, self._counted = host, counted
        self._host.copy_(drawn, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(drawn.device))
        self._read: Drawn | None = None

    @property
    def token_ids(self) -> list[int]:
        return self._wait().token_ids

    @property
    def status(self) -> list[int]:
        return self._wait().status

    @property
    def num_kept(self) -> list[int] | None:
        return self._wait().num_kept

    def _wait(self) -> Drawn:
        if self._read is None:
            self._arrived.synchronize()
            self._read = HostResult(self._host.numpy(), self._counted).read(
                self.logits, len(self.logits)
            )
        return self._read


class CudaDecodeStep(DecodeStep):
    """As :class:`DecodeStep`; its ops are captured, by :meth:`capture` or in the first run.

    A step that cannot be captured calls its ops in every run.

    Args:
        memory_pool: from ``torch.cuda.graph_pool_handle()``, for all graphs of a model: they run
            one at a time and share temporary memory.

    Attributes:
        captured: whether a graph is replayed.
    """

    def __init__(
        self,
        model: Decoder,
        pool: KVPool,
        logits: torch.Tensor,
        max_pages_per_seq: int,
        workspace: torch.Tensor,
        memory_pool: Any,
        *,
        counted: bool = False,
    ) -> None:
        super().__init__(model, pool, logits, max_pages_per_seq, workspace, counted=counted)
        self._memory_pool = memory_pool
        # Two results alternate: a step is launched before the previous one has been read.
        nbytes, device = self._drawn.nbytes, logits.device
        self._results = [pinned(nbytes, device).view(torch.int32) for _ in range(2)]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False
        self._kept: list[object] = []  # arguments: the graph holds pointers only

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def run(self, sequences: list[Sequence], *, ahead: bool = False) -> DrawnLater:  # type: ignore[override]
        """As :meth:`DecodeStep.run`; returns before the device has finished. A result is valid for
        one more run after its own."""
        self._write_inputs(sequences, ahead)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._call_ops()
        host, _ = self._results
        self._results.reverse()
        result = DrawnLater(self._drawn, host, self._logits[: len(sequences)], self._counted)
        if self._graph is None and not self._failed:
            self._capture()
        return result

    def capture(self) -> None:
        """Captures the ops, after a run without sequences, which loads kernels and libraries."""
        self._write_inputs([], ahead=False)
        self._call_ops()
        self._capture()

    def _capture(self) -> None:
        device = self._logits.device
        graph = torch.cuda.CUDAGraph()
        kept: list[object] = []
        try:
            # torch's own stream for captures is one of the device that was first used for one.
            with (
                torch.cuda.device(device),
                torch.cuda.graph(
                    graph,
                    pool=self._memory_pool,
                    stream=torch.cuda.Stream(device),
                    # Other threads may use other models meanwhile.
                    capture_error_mode="thread_local",
                ),
                keep_arguments(kept),
            ):
                self._call_ops()
                num_nodes = _C.captured_nodes(device.index)
            if num_nodes < len(kept):
                raise RuntimeError(f"{len(kept)} ops gave {num_nodes} nodes of the graph")
        except Exception as error:
            self._failed = True
            logger.warning(
                "the decode step of %d sequences could not be captured, its ops are called one by "
                "one: %s",
                len(self._logits),
                error,
            )
            return
        self._kept, self._graph = kept, graph  # last: an interrupted capture is never replayed
