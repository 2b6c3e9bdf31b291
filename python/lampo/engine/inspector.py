# SPDX-License-Identifier: Apache-2.0
"""Looks into a model: hidden states, attention weights, and decoding done the slow ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch

from lampo import ops
from lampo.checks import check_integer
from lampo.engine.llm_engine import LLMEngine
from lampo.engine.page_allocator import FREED
from lampo.engine.request import Request, Sequence
from lampo.engine.runner import ModelRunner
from lampo.engine.shared_engine import SharedEngine
from lampo.models.layers import Attention
from lampo.models.outline import Part, outline
from lampo.models.step import PagedCache, Rows, Step
from lampo.outputs import RequestOutput
from lampo.runtime.program import OpTiming
from lampo.sampling_params import SamplingParams

# Bytes of attention weights that one inspection returns, at most.
MAX_WEIGHT_BYTES = 1 << 30
_ROWS = 4096  # of the embedding, read at once


@dataclass(frozen=True)
class Inspection:
    """One pass of a model over a sequence.

    Attributes:
        token_ids: the sequence, n tokens.
        logits: [n - logits_from, vocab_size] float32; the row of token i predicts token i + 1.
            They are the bits from which a generation over the same tokens draws.
        hidden: number of blocks computed -> [n, hidden_size], the residual stream there, in the
            activations' dtype: 0 is the embedding, num_layers the input of the final norm.
        attention: layer, from 0 -> [num_qo_heads, n, n] float32: row i is the distribution of token
            i over the keys; those that it does not see have 0.
    """

    token_ids: list[int]
    logits: torch.Tensor
    hidden: dict[int, torch.Tensor]
    attention: dict[int, torch.Tensor]


class Inspector:
    """Runs single sequences beside the schedule: made by :meth:`lampo.LLM.inspector`.

    A call takes the engine for its whole time, and pages of the cache that it returns at its end.
    Nothing here is used by a request, which pays nothing for it. All tensors returned are on the
    CPU.

    Args:
        shared: the engine; its runner is a :class:`ModelRunner`.
        request: makes a checked request from token ids or a text.
    """

    def __init__(
        self,
        shared: SharedEngine,
        request: Callable[[str | list[int], SamplingParams], Request],
    ) -> None:
        self._shared = shared
        self._request = request
        runner = shared.engine.runner
        assert isinstance(runner, ModelRunner)
        self._runner = runner
        self._num_layers = len(runner.model.blocks)

    def outline(self) -> list[Part]:
        """The model's weights in order of use, with shapes, formats and numbers of parameters."""
        return outline(self._runner.model)

    def inspect(
        self,
        prompt: str | list[int],
        *,
        hidden: Collection[int] = (),
        attention: Collection[int] = (),
        logits_from: int = 0,
    ) -> Inspection:
        """Computes a sequence in one pass, as a prompt, and returns what is inside.

        Args:
            prompt: a text or token ids, as in :meth:`lampo.LLM.generate`.
            hidden: numbers of blocks after which the residual stream is wanted, 0 to num_layers.
            attention: layers with wanted attention weights, 0 to num_layers - 1.
            logits_from: the first token with wanted logits; those before it have none.

        Raises:
            ValueError, TypeError: a prompt or layer that does not fit, by name; the weights would
                take more than MAX_WEIGHT_BYTES; the cache has too few pages available.
        """
        model = self._runner.model
        sequence = self._sequence(prompt)
        count = len(sequence.token_ids)
        check_integer("logits_from", logits_from, 0, count - 1)
        states: dict[int, list[torch.Tensor]] = {
            check_integer(f"hidden[{i}]", layer, 0, self._num_layers): []
            for i, layer in enumerate(hidden)
        }
        weights: dict[int, torch.Tensor] = {}
        for i, layer in enumerate(attention):
            check_integer(f"attention[{i}]", layer, 0, self._num_layers - 1)
            mixer = model.blocks[layer].mixer
            if not isinstance(mixer, Attention):
                raise ValueError(f"attention[{i}]: layer {layer} has no attention")
            weights[layer] = torch.zeros(mixer.config.num_qo_heads, count, count)
        nbytes = sum(tensor.nbytes for tensor in weights.values())
        if nbytes > MAX_WEIGHT_BYTES:
            raise ValueError(
                f"attention: the weights of {count} tokens in {len(weights)} layers take {nbytes} "
                f"bytes, expected at most {MAX_WEIGHT_BYTES}: name fewer layers"
            )

        def observe(num_blocks: int, x: torch.Tensor, step: Step, rows: Rows) -> None:
            if num_blocks in states:
                states[num_blocks].append(x.to("cpu", copy=True))
            layer = num_blocks - 1
            if layer in weights:
                mixer, cache = model.blocks[layer].mixer, self._runner.pool.cache.layers[layer]
                assert isinstance(mixer, Attention) and isinstance(cache, PagedCache)
                found = mixer.weights(step, cache, rows)
                first, end = sequence.num_computed, int(step.seq_lens[0])
                weights[layer][:, first:end, :end] = found.cpu()

        logits = []
        with self._engine() as engine, self._pages(engine, sequence):
            for size in _chunks(count, self._runner.limits.max_num_batched_tokens):
                states_of_chunk = self._runner.run([(sequence, size)], observer=observe)
                skipped = max(logits_from - sequence.num_computed, 0)
                if skipped < size:
                    logits.append(self._logits(states_of_chunk[skipped:]))
                sequence.num_computed += size
        return Inspection(
            list(sequence.token_ids),
            torch.cat(logits),
            {layer: torch.cat(parts) for layer, parts in states.items()},
            weights,
        )

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the final norm and the LM head say of any residual stream.

        Args:
            hidden: [num_rows, hidden_size], a tensor of :attr:`Inspection.hidden`.

        Returns:
            [num_rows, vocab_size] float32.
        """
        model = self._runner.model
        with self._engine():
            return self._logits(hidden.to(model.device, model.dtype).contiguous())

    def token_embeddings(self, token_ids: list[int] | None = None) -> torch.Tensor:
        """Rows of the token embedding, dequantized: [number of ids, hidden_size] float32.

        Args:
            token_ids: the rows; None: all of the vocabulary.
        """
        model = self._runner.model
        size = model.config.vocab_size
        ids = torch.arange(size) if token_ids is None else torch.tensor(token_ids)
        out = torch.empty(len(ids), model.config.hidden_size)
        for first in range(0, len(ids), _ROWS):
            rows = ids[first : first + _ROWS].to(model.device)
            found = torch.empty(len(rows), out.shape[1], dtype=model.dtype, device=model.device)
            ops.embedding(rows, model.embedding.tokens, out=found)
            out[first : first + _ROWS] = found.float().cpu()
        return out

    def time_prefill(self, prompt: str | list[int], chunk_size: int | None = None) -> list[float]:
        """Computes a prompt and measures the seconds per chunk; nothing is kept.

        Args:
            prompt: as in :meth:`inspect`.
            chunk_size: tokens computed at once; 1: one token after the other, by the step that
                generates; None: as many as a step takes.

        Raises: as :meth:`inspect`.
        """
        sequence = self._sequence(prompt)
        most = self._runner.limits.max_num_batched_tokens
        size = most if chunk_size is None else check_integer("chunk_size", chunk_size, 1, most)
        with self._engine() as engine, self._pages(engine, sequence):
            sizes = _chunks(len(sequence.token_ids), size)
            self._compute(sequence, sizes[0])  # the first step of a size is recorded, or cold
            times = [time.perf_counter()]
            for size in sizes:
                self._compute(sequence, size)
                sequence.num_computed += size
                times.append(time.perf_counter())
        return [end - start for start, end in pairwise(times)]

    def generate_uncached(
        self, request: Request, on_token: Callable[[int], None] | None = None
    ) -> RequestOutput:
        """Completes a request without a KV cache: every step computes the whole sequence.

        Args:
            request: of :meth:`lampo.LLM.request`.
            on_token: called after every token with its number, from 1.
        """
        with self._engine() as engine:
            for sequence in request.sequences:
                while not sequence.done:
                    with self._pages(engine, sequence):
                        hidden = self._whole(sequence)
                        engine.sampler.sample(self._runner.logits(hidden), [sequence])
                    if on_token is not None:
                        on_token(sequence.num_output_tokens)
            return request.result(engine.scheduler.allocator, 0)

    def replay_decode(self, batch_size: int, depth: int, repeats: int) -> list[list[OpTiming]]:
        """Replays and times one decode step, for :func:`lampo.profile`.

        Args:
            batch_size: of the step.
            depth: tokens per sequence in the cache: random numbers.
            repeats: replays.

        Returns:
            the ops per replay, in order.

        Raises:
            ValueError: the cache has too few pages available.
        """
        sequences = [self._sequence([0] * (depth + 1)) for _ in range(batch_size)]
        with self._engine() as engine, self._pages(engine, *sequences, computed=depth):
            held = {page for s in sequences for page in s.pages if page != FREED}
            self._runner.pool.fill_randomly(sorted(held))
            return self._runner.profile(sequences, repeats)

    def _sequence(self, prompt: str | list[int]) -> Sequence:
        params = SamplingParams(temperature=0, max_tokens=0, ignore_eos=True)
        return self._request(prompt, params).sequences[0]

    @contextmanager
    def _engine(self) -> Iterator[LLMEngine]:
        """The engine, between two steps."""
        with self._shared.lock:
            engine = self._shared.engine
            engine.settle()
            yield engine

    @contextmanager
    def _pages(self, engine: LLMEngine, *sequences: Sequence, computed: int = 0) -> Iterator[None]:
        """Pages for the sequences, of which `computed` tokens count as computed."""
        allocator, states = engine.scheduler.allocator, engine.scheduler.states
        if states is not None and states.num_available < len(sequences):
            raise ValueError(
                f"model: needs {len(sequences)} slots for states, and {states.num_available} are "
                "available"
            )
        unseen = allocator.first_seen(computed)
        counts = [allocator.pages_for(len(s.token_ids)) - unseen for s in sequences]
        try:
            pages = allocator.allocate(sum(counts))
        except MemoryError:
            raise ValueError(
                f"prompt: needs {sum(counts)} pages of the KV cache, and "
                f"{allocator.num_available} are available"
            ) from None
        try:
            first = 0
            for sequence, count in zip(sequences, counts, strict=True):
                sequence.pages = [FREED] * unseen + pages[first : first + count]
                sequence.num_computed = computed
                first += count
                if states is not None:
                    sequence.state_slot = states.take()
            yield
        finally:
            for sequence in sequences:
                sequence.pages = []
                sequence.num_computed = 0
                if states is not None and sequence.state_slot is not None:
                    states.release(sequence.state_slot)
                    sequence.state_slot = None
            allocator.release(pages)

    def _compute(self, sequence: Sequence, size: int) -> None:
        """Computes the next tokens, and waits for them."""
        if size == 1:
            _ = self._runner.decode([sequence]).token_ids
        else:
            self._runner.run([(sequence, size)], last_of=[0]).cpu()

    def _whole(self, sequence: Sequence) -> torch.Tensor:
        """Computes all tokens: [1, hidden_size], of the last."""
        sizes = _chunks(len(sequence.token_ids), self._runner.limits.max_num_batched_tokens)
        for size in sizes[:-1]:
            self._runner.run([(sequence, size)], last_of=[])
            sequence.num_computed += size
        hidden = self._runner.run([(sequence, sizes[-1])], last_of=[0])
        sequence.num_computed += sizes[-1]
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, vocab_size] on the CPU, by as many rows as the runner has memory for."""
        rows = self._runner.limits.max_num_seqs
        parts = [
            self._runner.logits(hidden[first : first + rows]).to("cpu", copy=True)
            for first in range(0, len(hidden), rows)
        ]
        return torch.cat(parts)


def _chunks(count: int, size: int) -> list[int]:
    """`count` in parts of `size`, the last one smaller."""
    return [min(size, count - first) for first in range(0, count, size)]
