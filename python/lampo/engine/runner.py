# SPDX-License-Identifier: Apache-2.0
"""Runners: steps of a model on sequences."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch

from lampo import _C
from lampo.engine.cuda_decode_step import CudaDecodeStep
from lampo.engine.decode_step import DecodeStep
from lampo.engine.kv_pool import KVPool
from lampo.engine.request import Sequence
from lampo.engine.step_inputs import prompt_step
from lampo.models.decoder import Decoder
from lampo.runtime.program import OpTiming


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
        self, work: list[tuple[Sequence, int]], last_of: list[int] | None = None
    ) -> torch.Tensor:
        """Computes the next `count` tokens of every sequence.

        Args:
            work: sequences and counts.
            last_of: indices into `work`, ascending: only outputs of these sequences' last tokens
                are returned. None: those of all tokens.

        Returns:
            [sum of counts or len(last_of), hidden_size], for :meth:`logits`, valid until the next
            step.
        """

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] -> [num_rows, vocab_size] float32."""

    def profile(self, sequences: list[Sequence], repeats: int) -> list[list[OpTiming]]:
        """Decodes, then replays and times it `repeats` times: the ops per replay."""


class ModelRunner:
    """Builds the inputs of a step and runs the model on them.

    Prefill calls the ops one by one. Decode steps, where calls would cost time, are recorded: one
    :class:`DecodeStep` per batch size in use, up to `max_num_seqs`. On a GPU sizes are rounded
    up to powers of two, and results are read later: see `LLMEngine`'s `run_ahead`.
    """

    def __init__(
        self, model: Decoder, pool: KVPool, *, max_num_seqs: int, max_pages_per_seq: int
    ) -> None:
        self.model = model
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.device = model.device
        # Shared by all recordings, which run one at a time; unused rows take no memory.
        logits = torch.empty(
            max_num_seqs, model.config.vocab_size, dtype=torch.float32, device=self.device
        )
        self._on_gpu = self.device.type == "cuda"
        graph_pool = torch.cuda.graph_pool_handle() if self._on_gpu else None

        # A recording is valid for the threads and kernels it was made with.
        @lru_cache(maxsize=max(max_num_seqs, 32))
        def decode_step(
            batch_size: int, counted: bool, num_threads: int, cpu_isa: str
        ) -> DecodeStep:
            rows = logits[:batch_size]
            if graph_pool is not None:
                return CudaDecodeStep(
                    model, pool, rows, max_pages_per_seq, graph_pool, counted=counted
                )
            return DecodeStep(model, pool, rows, max_pages_per_seq, counted=counted)

        self._decode_step = decode_step

    def decode_step(self, batch_size: int, counted: bool = False) -> DecodeStep:
        """The step that :meth:`decode` runs for `batch_size` sequences.

        Args:
            batch_size: rows; a GPU's step may have more.
            counted: whether a row returns log-probabilities.
        """
        if self._on_gpu:
            batch_size = decode_bucket(batch_size, self.max_num_seqs)
        return self._decode_step(batch_size, counted, _C.num_threads(), _C.cpu_isa())

    def decode(self, sequences: list[Sequence], after: DecodeResult | None = None) -> DecodeResult:
        """As :meth:`Runner.decode`."""
        counted = any(s.output.logprobs is not None for s in sequences)
        return self.decode_step(len(sequences), counted).run(sequences, ahead=after is not None)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As :meth:`Runner.logits`."""
        return self.model.logits(hidden)

    def profile(self, sequences: list[Sequence], repeats: int) -> list[list[OpTiming]]:
        """As :meth:`Runner.profile`."""
        if self._on_gpu:
            raise ValueError("profile: times single ops on the CPU only; on a GPU use nsys")
        step = self.decode_step(len(sequences))
        step.run(sequences)
        return [step.program.profile() for _ in range(repeats)]

    def run(
        self, work: list[tuple[Sequence, int]], last_of: list[int] | None = None
    ) -> torch.Tensor:
        """As :meth:`Runner.run`."""
        self.model.reach(max(sequence.num_computed + count for sequence, count in work))
        step = prompt_step(work, last_of, self.pool.page_size, self.device)
        return self.model.forward(step, self.pool.cache)


def decode_bucket(batch_size: int, max_num_seqs: int) -> int:
    """Rows of the captured step that serves `batch_size` sequences: the next power of two."""
    return min(1 << (batch_size - 1).bit_length(), max_num_seqs)
