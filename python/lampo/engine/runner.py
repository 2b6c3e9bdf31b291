# SPDX-License-Identifier: Apache-2.0
"""Runners: steps of a model on sequences."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch

from lampo import _C, ops
from lampo.engine.cuda_decode_step import CudaDecodeStep
from lampo.engine.decode_step import DecodeStep
from lampo.engine.kv_pool import KVPool
from lampo.engine.request import Sequence
from lampo.engine.step_inputs import prompt_arrays, prompt_bytes
from lampo.models.decoder import Decoder, Observer
from lampo.models.step import Step, StepLimits
from lampo.runtime.program import OpTiming
from lampo.runtime.transfer import Transfer

logger = logging.getLogger("lampo")


class DecodeResult(Protocol):
    """The results of a decode step; reading the draws waits for them.

    logits: [batch_size, vocab_size] float32, valid until the next step.
    token_ids: drawn by temperature, top-k, top-p and min-p.
    status: 0, or 1: no finite logit.
    num_kept: tokens left by the cuts; None if no row returns log-probabilities.
    """

    @property
    def logits(self) -> torch.Tensor: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def status(self) -> list[int]: ...
    @property
    def num_kept(self) -> list[int] | None: ...


class Runner(Protocol):
    """The engine's interface to a model; a stack may bring its own, or use :class:`ModelRunner`
    under its own scheduler. Pages are reserved and `num_computed` advanced by the caller.
    """

    def decode(self, sequences: list[Sequence], after: DecodeResult | None = None) -> DecodeResult:
        """Computes the one pending token of every sequence and draws the next.

        Args:
            sequences: the rows.
            after: the previous step of the same rows, if its tokens have not been read: they are
                the input, one position further.
        """

    def run(
        self,
        work: list[tuple[Sequence, int]],
        last_of: list[int] | None = None,
        observer: Observer | None = None,
    ) -> torch.Tensor:
        """Computes the next `count` tokens of every sequence.

        Args:
            work: sequences and counts.
            last_of: indices into `work`, ascending: only outputs of these sequences' last tokens
                are returned. None: those of all tokens.
            observer: is shown the residual stream, see :data:`lampo.models.decoder.Observer`.

        Returns:
            [sum of counts or len(last_of), hidden_size], for :meth:`logits`, valid until the next
            step.
        """

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> [num_rows, vocab_size] float32."""

    def profile(self, sequences: list[Sequence], repeats: int) -> list[list[OpTiming]]:
        """Decodes, then replays and times it `repeats` times: the ops per replay."""


class SamplingWorkspace:
    """Memory for ops.sample, shared by all decode steps: they run one at a time."""

    def __init__(self, limits: StepLimits, vocab_size: int) -> None:
        self._limits, self._vocab_size = limits, vocab_size
        self._memory = torch.empty(0, dtype=torch.uint8, device=limits.device)

    def get(self) -> torch.Tensor:
        """For any step within the limits, with the current number of threads."""
        limits = self._limits
        size = ops.sampling_workspace_size(
            self._vocab_size, limits.device, batch_size=limits.max_num_seqs
        )
        if self._memory.numel() < size:
            self._memory = self._memory.new_empty(size)
        return self._memory


class ModelRunner:
    """Builds the inputs of a step and runs the model on them.

    Prefill calls the ops one by one. Decode steps, where calls would cost time, are recorded: one
    :class:`DecodeStep` per batch size in use, up to `max_num_seqs`. On a GPU sizes are rounded
    up to powers of two, and results are read later: see `LLMEngine`'s `run_ahead`. There all memory
    of the largest step is allocated here, as :func:`lampo.engine.memory_plan.plan_memory` counts
    it.

    Args:
        model, pool: the model and its KV pool, on one device.
        limits: of a step.
    """

    def __init__(self, model: Decoder, pool: KVPool, limits: StepLimits) -> None:
        self.model = model
        self.pool = pool
        self.limits = limits
        self._on_gpu = limits.device.type == "cuda"
        # Shared by all steps, which run one at a time; unused rows take no memory on the CPU.
        shape = limits.max_num_seqs, model.config.vocab_size
        self._logits = logits = torch.empty(shape, dtype=torch.float32, device=limits.device)
        workspace = SamplingWorkspace(limits, model.config.vocab_size)
        self._transfer = Transfer(limits.device, prompt_bytes(limits))
        graph_pool = None
        if self._on_gpu:
            model.reserve(limits)
            workspace.get()
            graph_pool = torch.cuda.graph_pool_handle()

        # A recording is valid for the threads and kernels it was made with.
        @lru_cache(maxsize=max(limits.max_num_seqs, 32))
        def decode_step(
            batch_size: int, counted: bool, num_threads: int, cpu_isa: str
        ) -> DecodeStep:
            rows, pages, scratch = logits[:batch_size], limits.max_pages_per_seq, workspace.get()
            if graph_pool is not None:
                return CudaDecodeStep(
                    model, pool, rows, pages, scratch, graph_pool, counted=counted
                )
            return DecodeStep(model, pool, rows, pages, scratch, counted=counted)

        self._decode_step = decode_step

    def capture(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Captures the decode steps of all sizes on a GPU, so that no request waits for that.

        Steps that return log-probabilities are captured in their first run.

        Args:
            progress: called with the number of captured sizes and of all, after each.
        """
        if not self._on_gpu:
            return
        begin = time.perf_counter()
        sizes = decode_buckets(self.limits.max_num_seqs)
        for done, size in enumerate(reversed(sizes), 1):  # smaller ones reuse the largest's memory
            step = self.decode_step(size)
            assert isinstance(step, CudaDecodeStep)
            step.capture()
            if progress is not None:
                progress(done, len(sizes))
        logger.info(
            "captured the decode steps of %s sequences in %.2f s",
            ", ".join(map(str, sizes)),
            time.perf_counter() - begin,
        )

    def decode_step(self, batch_size: int, counted: bool = False) -> DecodeStep:
        """The step that :meth:`decode` runs for `batch_size` sequences.

        Args:
            batch_size: rows; a GPU's step may have more.
            counted: whether a row returns log-probabilities.
        """
        if self._on_gpu:
            batch_size = decode_bucket(batch_size, self.limits.max_num_seqs)
        return self._decode_step(batch_size, counted, _C.num_threads(), _C.cpu_isa())

    def decode(self, sequences: list[Sequence], after: DecodeResult | None = None) -> DecodeResult:
        """As :meth:`Runner.decode`."""
        counted = any(s.output.logprobs is not None for s in sequences)
        return self.decode_step(len(sequences), counted).run(sequences, ahead=after is not None)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As :meth:`Runner.logits`; valid until the next call or step."""
        fits = len(hidden) <= len(self._logits)
        return self.model.logits(hidden, out=self._logits[: len(hidden)] if fits else None)

    def profile(self, sequences: list[Sequence], repeats: int) -> list[list[OpTiming]]:
        """As :meth:`Runner.profile`."""
        if self._on_gpu:
            raise ValueError("profile: times single ops on the CPU only; on a GPU use nsys")
        step = self.decode_step(len(sequences))
        step.run(sequences)
        return [step.program.profile() for _ in range(repeats)]

    def run(
        self,
        work: list[tuple[Sequence, int]],
        last_of: list[int] | None = None,
        observer: Observer | None = None,
    ) -> torch.Tensor:
        """As :meth:`Runner.run`."""
        self.model.reach(max(sequence.num_computed + count for sequence, count in work))
        step = Step(**self._transfer.upload(prompt_arrays(work, last_of, self.pool.page_size)))
        return self.model.forward(step, self.pool.cache, observer)


def decode_bucket(batch_size: int, max_num_seqs: int) -> int:
    """Rows of the captured step that serves `batch_size` sequences: the next power of two."""
    return min(1 << (batch_size - 1).bit_length(), max_num_seqs)


def decode_buckets(max_num_seqs: int) -> list[int]:
    """The rows of all captured steps, ascending."""
    return sorted({decode_bucket(n, max_num_seqs) for n in range(1, max_num_seqs + 1)})
