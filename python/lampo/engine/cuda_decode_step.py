# SPDX-License-Identifier: Apache-2.0
"""The decode step on a GPU: a CUDA graph; its result is read on demand."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from lampo.engine.decode_step import DecodeStep, Drawn, HostResult
from lampo.engine.kv_pool import KVPool
from lampo.engine.request import Sequence
from lampo.models.decoder import Decoder
from lampo.ops._registry import keep_arguments

logger = logging.getLogger("lampo")


class DrawnLater:
    """The draws of a step; reading them waits for the device."""

    def __init__(
        self, drawn: torch.Tensor, logits: torch.Tensor, count: int, counted: bool
    ) -> None:
        self._host = torch.empty_like(drawn, device="cpu", pin_memory=True)
        self._host.copy_(drawn, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(drawn.device))
        self._logits, self._count, self._counted = logits, count, counted
        self._read: Drawn | None = None

    @property
    def logits(self) -> torch.Tensor:
        return self._logits[: self._count]

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
            self._read = HostResult(self._host, self._counted).read(self._logits, self._count)
        return self._read


class CudaDecodeStep(DecodeStep):
    """As :class:`DecodeStep`; the first run calls the ops and captures them for later runs.

    Args:
        memory_pool: from ``torch.cuda.graph_pool_handle()``, for all graphs of a model: they run
            one at a time and share temporary memory.
    """

    def __init__(
        self,
        model: Decoder,
        pool: KVPool,
        logits: torch.Tensor,
        max_pages_per_seq: int,
        memory_pool: Any,
        *,
        counted: bool = False,
    ) -> None:
        super().__init__(model, pool, logits, max_pages_per_seq, counted=counted)
        self._memory_pool = memory_pool
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kept: list[object] = []  # arguments: the graph holds pointers only

    def run(self, sequences: list[Sequence], *, ahead: bool = False) -> DrawnLater:  # type: ignore[override]
        """As :meth:`DecodeStep.run`; returns before the device has finished."""
        self._write_inputs(sequences, ahead)
        if self._graph is not None:
            self._graph.replay()
        else:
            self._call_ops()
        result = DrawnLater(self._drawn, self._logits, len(sequences), self._counted)
        if self._graph is None:
            self._capture()
        return result

    def _capture(self) -> None:
        begin = time.perf_counter()
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._logits.device),
            torch.cuda.graph(graph, pool=self._memory_pool),
            keep_arguments(self._kept),
        ):
            self._call_ops()
        self._graph = graph  # last: an interrupted capture is never replayed
        logger.info(
            "captured the decode step of up to %d sequences in %.2f s",
            len(self._logits),
            time.perf_counter() - begin,
        )
