# SPDX-License-Identifier: Apache-2.0
"""A decoder: embedding, blocks, final norm and LM head, over lampo.ops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from lampo import ops
from lampo.models.config import ModelConfig
from lampo.models.layers import Attention, Block, moved, parts_of
from lampo.models.projection import LayerNorm, Norm, Projection
from lampo.models.step import AttentionKind, Buffers, Cache, Kept, Rows, Step, StepLimits

_META = torch.device("meta")

# Called with the number of blocks computed so far, from 0, the residual stream [num_tokens,
# hidden_size], the step and its activations; all are valid during the call.
Observer = Callable[[int, torch.Tensor, Step, Rows], None]


@dataclass(frozen=True)
class Embedding:
    """The token embedding, which begins the residual stream.

    Attributes:
        tokens: [vocab_size, hidden_size].
        positions: [max_position_embeddings, hidden_size], added; None: no learned positions.
        scale: factor of the sum.
    """

    tokens: ops.Weight
    positions: ops.Weight | None = None
    scale: float = 1.0

    def __call__(self, step: Step, out: torch.Tensor) -> None:
        """Writes the new tokens' rows: [num_tokens, hidden_size]."""
        ops.embedding(step.token_ids, self.tokens, out=out)
        if self.positions is not None:
            ops.embedding(step.positions, self.positions, out=out, accumulate=True)
        if self.scale != 1.0:
            ops.scale(out, self.scale, out=out)


class Decoder:
    """Embedding, blocks, final norm and LM head.

    Attributes:
        config: sizes and constants.
        dtype: of the activations.
        device: where the weights are.
        max_model_len: positions that the model's tables cover.
        nbytes: bytes of all weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Embedding,
        blocks: list[Block],
        norm: Norm,
        lm_head: Projection,
        *,
        dtype: torch.dtype,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.blocks = blocks
        self.norm = norm
        self.lm_head = lm_head
        self.dtype = dtype
        self.max_model_len = max_model_len
        self.device = device
        mixers = [block.mixer for block in blocks]
        tables = [m.rotary for m in mixers if isinstance(m, Attention) and m.rotary is not None]
        self._rotary_tables = list(dict.fromkeys(tables))
        self._widths = _widest([{"x": config.hidden_size}, *(b.widths for b in blocks)])
        if any(isinstance(norm, LayerNorm) for norm in self._norms()):
            self._widths["normed"] = config.hidden_size
        self._rows = lru_cache(maxsize=16)(self._first_rows)
        self._buffers = self._new_buffers(0, device)
        self._wanted_buffers = self._new_buffers(0, device, workspaces_of=self._buffers)

    @property
    def keeps(self) -> tuple[Kept, ...]:
        """The kind of cache of every block."""
        return tuple(block.mixer.keeps for block in self.blocks)

    @property
    def nbytes(self) -> int:
        parts = [self.embedding, self.blocks, self.norm, self.lm_head]
        return sum(tensor.nbytes for tensor in parts_of(parts, torch.Tensor))

    @property
    def table_bytes(self) -> int:
        """Bytes of the rotary tables at their full length."""
        return sum(table.cos_sin.nbytes for table in self._rotary_tables)

    def temporary_bytes(self, limits: StepLimits) -> int:
        """Bytes of temporary memory of the largest step on a GPU: of one product by cuBLAS."""
        found = [
            part.temporary_bytes(limits.num_tokens, self.dtype)
            for part in parts_of(self.blocks, Projection)
        ]
        return max([*found, self.lm_head.temporary_bytes(limits.max_num_seqs, self.dtype)])

    def reach(self, num_positions: int) -> None:
        """Prepares the rotary tables for steps with positions below `num_positions`."""
        for table in self._rotary_tables:
            table.reach(num_positions)

    def reserve(self, limits: StepLimits) -> None:
        """Allocates the activations and workspaces of the largest step, so that no step does."""
        self._buffers, self._wanted_buffers = self._buffers_within(limits, self.device)
        self._rows.cache_clear()

    def reserved_bytes(self, limits: StepLimits) -> int:
        """Bytes that :meth:`reserve` allocates."""
        return sum(buffers.nbytes for buffers in self._buffers_within(limits, _META))

    def forward(self, step: Step, cache: Cache, observer: Observer | None = None) -> torch.Tensor:
        """Runs the blocks and writes the new tokens' keys, values and states into the cache.

        The rotary tables must :meth:`reach` the step's positions. An observer is called after the
        embedding and after every block.

        Returns:
            [num_tokens or num_wanted, hidden_size], the residual stream, for :meth:`logits`; valid
            until the next step.
        """
        rows = self._rows(step.token_ids.shape[0])
        rows.begin_step()
        x = rows.get("x", self.config.hidden_size)
        self.embedding(step, x)
        if observer is not None:
            observer(0, x, step, rows)
        for i, (block, layer) in enumerate(zip(self.blocks, cache.layers, strict=True)):
            block.write(x, step, layer, rows)
            if block is self.blocks[-1] and step.last_of is not None:
                if len(step.last_of) == 0:
                    return x[:0]
                step, rows = self._narrow(step, rows)
                x = rows.get("x", self.config.hidden_size)
            block.read(x, step, layer, rows)
            if observer is not None:
                observer(i + 1, x, step, rows)
        return x

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Final norm, LM head, factor and soft cap of the logits.

        [num_rows, hidden_size] -> [num_rows, vocab_size] float32.
        """
        if out is None:
            shape = hidden.shape[0], self.config.vocab_size
            out = hidden.new_empty(shape, dtype=torch.float32)
        rows = self._rows(hidden.shape[0])
        normed, fused = self.norm(hidden, rows)
        self.lm_head(normed, out, rows.workspace, norm=fused)
        c = self.config
        if c.logit_scale != 1.0 or c.logit_soft_cap is not None:
            ops.scale(out, c.logit_scale, soft_cap=c.logit_soft_cap, out=out)
        return out

    def to(self, device: torch.device) -> Decoder:
        """The same model with its weights on `device`."""
        if device == self.device:
            return self
        memo: dict[int, Any] = {}
        return Decoder(
            config=self.config,
            embedding=moved(self.embedding, device, memo),
            blocks=moved(self.blocks, device, memo),
            norm=moved(self.norm, device, memo),
            lm_head=moved(self.lm_head, device, memo),
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            device=device,
        )

    def _norms(self) -> list[Norm]:
        blocks = [norm for b in self.blocks for norm in (b.mixer_norm, b.feed_forward_norm)]
        return [self.norm, *blocks]

    def _buffers_within(self, limits: StepLimits, device: torch.device) -> tuple[Buffers, Buffers]:
        """For all tokens of the largest step, and for those with a wanted output."""
        buffers = self._new_buffers(
            limits.num_tokens, device, attention_bytes=self._attention_bytes(limits)
        )
        wanted = self._new_buffers(limits.max_num_seqs, device, workspaces_of=buffers)
        return buffers, wanted

    def _attention_bytes(self, limits: StepLimits) -> dict[AttentionKind, int]:
        """Bytes of the largest workspace of every kind of attention."""
        mixers = [block.mixer for block in self.blocks]
        kinds = dict.fromkeys(
            AttentionKind(mixer.config.num_qo_heads, mixer.keeps)
            for mixer in mixers
            if isinstance(mixer, Attention)
        )
        return {
            kind: max(
                ops.paged_attention_workspace_size(
                    kind.num_qo_heads,
                    kind.keys.num_kv_heads,
                    kind.keys.head_dim,
                    limits.max_pages_per_seq * limits.page_size,
                    batch_size=limits.max_num_seqs,
                    num_tokens=limits.max_num_seqs * tokens_per_seq,
                    device=limits.device,
                )
                # Of a decode step, and of prompts: more tokens per sequence than a tile has rows.
                for tokens_per_seq in (1, 256)
            )
            for kind in kinds
        }

    def _new_buffers(
        self,
        num_tokens: int,
        device: torch.device,
        *,
        attention_bytes: dict[AttentionKind, int] | None = None,
        workspaces_of: Buffers | None = None,
    ) -> Buffers:
        """Activations of a step of up to `num_tokens` tokens."""
        return Buffers(
            self._widths,
            num_tokens,
            self.dtype,
            device,
            linear_width=max(self._widths.values()),
            attention_bytes=attention_bytes,
            workspaces_of=workspaces_of,
        )

    def _narrow(self, step: Step, rows: Rows) -> tuple[Step, Rows]:
        """The step and the rows after the last mixer's writes: those of the wanted tokens."""
        step, tokens = step.narrowed()
        if self._wanted_buffers.num_tokens < len(tokens):
            self._wanted_buffers = self._new_buffers(
                len(tokens), self.device, workspaces_of=self._buffers
            )
        wanted = self._wanted_buffers.rows(len(tokens))
        mixer = self.blocks[-1].mixer
        name = mixer.passed_buffer
        passed = {"x": self.config.hidden_size, name: mixer.widths[name]}
        for name, width in passed.items():
            ops.embedding(tokens, rows.get(name, width), out=wanted.get(name, width))
        return step, wanted

    def _first_rows(self, num_tokens: int) -> Rows:
        """The rows of a step; steps of all sizes share memory."""
        if self._buffers.num_tokens < num_tokens:
            self._buffers = self._new_buffers(num_tokens, self.device)
            self._wanted_buffers = self._new_buffers(0, self.device, workspaces_of=self._buffers)
            self._rows.cache_clear()  # their memory is no longer the largest step's
        return self._buffers.rows(num_tokens)


def _widest(widths: Iterable[dict[str, int]]) -> dict[str, int]:
    """The largest width per name."""
    widest: dict[str, int] = {}
    for found in widths:
        for name, width in found.items():
            widest[name] = max(widest.get(name, 0), width)
    return widest
