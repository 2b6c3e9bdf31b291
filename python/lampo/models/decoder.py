# SPDX-License-Identifier: Apache-2.0
"""A decoder of the Llama family, over lampo.ops. It knows neither devices nor requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import NamedTuple

import torch

from lampo import ops
from lampo.models.config import ModelConfig
from lampo.models.projection import GatedProjection, Norm, Projection


@dataclass(frozen=True)
class Step:
    """One step of the model: some new tokens of each of some sequences, ragged.

    Attributes:
        token_ids: [num_tokens] int64, the new tokens of all sequences, one after the other.
        positions: [num_tokens] int64, where each stands in its sequence.
        slot_mapping: [num_tokens] int64, page * page_size + offset: where its key and value go.
        cu_seqlens_q: [batch_size + 1] int32, where each sequence's tokens begin and end.
        seq_lens: [batch_size] int32, lengths counting the new tokens.
        page_table: [batch_size, max_pages_per_seq] int32.
        last_of: [num_wanted] int64, ascending: whose last new token's output is wanted, and nobody
            else's. None: that of all tokens.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    page_table: torch.Tensor
    last_of: torch.Tensor | None = None

    def narrowed(self) -> tuple[Step, torch.Tensor]:
        """A step of the wanted tokens alone, of those sequences, and which tokens these are."""
        assert self.last_of is not None
        tokens = self.cu_seqlens_q[self.last_of + 1].long() - 1
        narrow = replace(
            self,
            token_ids=self.token_ids[tokens],
            positions=self.positions[tokens],
            slot_mapping=self.slot_mapping[tokens],
            cu_seqlens_q=torch.arange(len(tokens) + 1, dtype=torch.int32, device=tokens.device),
            seq_lens=self.seq_lens[self.last_of],
            page_table=self.page_table[self.last_of],
            last_of=None,
        )
        return narrow, tokens


@dataclass(frozen=True)
class KVCache:
    """Keys and values of all layers, in pages.

    Attributes:
        k, v: per layer, [num_pages, num_kv_heads, page_size, head_dim].
        k_scale, v_scale: per layer, [num_pages, num_kv_heads, page_size] float32 where the cache
            has 8 bits, else None.
    """

    k: list[torch.Tensor]
    v: list[torch.Tensor]
    k_scale: list[torch.Tensor | None]
    v_scale: list[torch.Tensor | None]

    def layers(self) -> list[LayerCache]:
        parts = zip(self.k, self.v, self.k_scale, self.v_scale, strict=True)
        return [LayerCache(*part) for part in parts]

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them; the first dimension of each is the page."""
        for tensors in (self.k, self.v, self.k_scale, self.v_scale):
            yield from (tensor for tensor in tensors if tensor is not None)


class LayerCache(NamedTuple):
    """One layer of a :class:`KVCache`."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None


class Buffers:
    """The activations of a step of `num_tokens` tokens, all that a layer writes.

    Fixed memory: a step allocates nothing. Smaller steps use the first rows of a larger one's.

    Args:
        of: whose first rows and workspaces these are.
        workspaces_of: whose workspaces alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        of: Buffers | None = None,
        workspaces_of: Buffers | None = None,
    ) -> None:
        c = config
        q_size, kv_size = c.num_qo_heads * c.head_dim, c.num_kv_heads * c.head_dim

        def rows(name: str, *shape: int) -> torch.Tensor:
            if of is not None:
                larger: torch.Tensor = getattr(of, name)
                return larger[:num_tokens]
            return torch.empty(num_tokens, *shape, dtype=dtype, device=device)

        self.x = rows("x", c.hidden_size)
        self.qkv = rows("qkv", q_size + 2 * kv_size)
        q, k, v = torch.split(self.qkv, [q_size, kv_size, kv_size], dim=1)
        self.q = q.unflatten(1, (c.num_qo_heads, c.head_dim))
        self.k = k.unflatten(1, (c.num_kv_heads, c.head_dim))
        self.v = v.unflatten(1, (c.num_kv_heads, c.head_dim))
        self.attended = rows("attended", c.num_qo_heads, c.head_dim)
        self.attended_rows = self.attended.flatten(1)
        self.activated = rows("activated", c.intermediate_size)
        widest = max(c.hidden_size, q_size, c.intermediate_size)
        if shared := of or workspaces_of:
            self.workspace: torch.Tensor = shared.workspace
            self.attention_workspace: torch.Tensor = shared.attention_workspace
        else:
            size = ops.linear_workspace_size(num_tokens, widest)
            self.workspace = torch.empty(size, dtype=torch.uint8, device=device)
            self.attention_workspace = torch.empty(0, dtype=torch.uint8, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        tensors = (self.x, self.qkv, self.attended, self.activated)
        return sum(t.nbytes for t in tensors) + self.workspace.nbytes

    def attention_workspace_for(
        self, config: ModelConfig, step: Step, page_size: int
    ) -> torch.Tensor:
        """Memory for attention over sequences as long as the step's page table allows."""
        size = ops.paged_attention_workspace_size(
            config.num_qo_heads,
            config.num_kv_heads,
            config.head_dim,
            step.page_table.shape[1] * page_size,
            batch_size=step.page_table.shape[0],
            num_tokens=step.token_ids.shape[0],
            device=step.page_table.device,
        )
        if self.attention_workspace.numel() < size:
            self.attention_workspace = self.attention_workspace.new_empty(size)
        return self.attention_workspace


@dataclass(frozen=True)
class Block:
    """x += Attention(norm(x)); x += FeedForward(norm(x)); norms and additions are the linears'."""

    input_norm: Norm
    qkv: Projection
    attention_out: Projection
    post_attention_norm: Norm
    gate_up: GatedProjection
    down: Projection

    def to(self, device: torch.device) -> Block:
        """The same layer with its weights on `device`."""
        parts = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return Block(**parts)

    def project(
        self, step: Step, cache: LayerCache, cos_sin: torch.Tensor, config: ModelConfig, b: Buffers
    ) -> None:
        """Queries to b.q; keys and values to the cache."""
        self.qkv(b.x, b.qkv, b.workspace, norm=self.input_norm)
        ops.append_kv(
            b.q,
            b.k,
            b.v,
            cache.k,
            cache.v,
            step.slot_mapping,
            positions=step.positions,
            cos_sin=cos_sin,
            interleaved=config.rope.interleaved,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
        )

    def attend(self, step: Step, cache: LayerCache, config: ModelConfig, b: Buffers) -> None:
        """What follows: updates b.x, the residual stream."""
        ops.paged_attention(
            b.q,
            cache.k,
            cache.v,
            step.page_table,
            step.seq_lens,
            step.cu_seqlens_q,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
            out=b.attended,
            workspace=b.attention_workspace_for(config, step, cache.k.shape[2]),
        )
        self.attention_out(b.attended_rows, b.x, b.workspace, accumulate=True)

        self.gate_up(b.x, b.activated, b.workspace, norm=self.post_attention_norm)
        self.down(b.activated, b.x, b.workspace, accumulate=True)


class Decoder:
    """Embedding, blocks, final norm and LM head.

    Attributes:
        config: shape and constants.
        dtype: of the activations.
        device: where the weights are.
        nbytes: bytes of all weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed_tokens: ops.Weight,
        blocks: list[Block],
        norm: Norm,
        lm_head: Projection,
        cos_sin: torch.Tensor,
        dtype: torch.dtype,
        nbytes: int,
    ) -> None:
        self.config = config
        self.embed_tokens = embed_tokens
        self.blocks = blocks
        self.norm = norm
        self.lm_head = lm_head
        self.cos_sin = cos_sin
        self.dtype = dtype
        self.nbytes = nbytes
        self.device = cos_sin.device
        self._buffers = lru_cache(maxsize=16)(self._first_rows)
        self._largest_buffers = Buffers(config, 0, dtype, self.device)

    @property
    def max_model_len(self) -> int:
        """Positions that the rotary tables cover."""
        return int(self.cos_sin.shape[0])

    def forward(self, step: Step, cache: KVCache) -> torch.Tensor:
        """Runs the blocks and writes the new tokens' keys and values into the cache.

        Returns:
            [num_tokens or num_wanted, hidden_size], the residual stream, for :meth:`logits`; valid
            until the next step.
        """
        b = self._buffers(step.token_ids.shape[0])
        ops.embedding(step.token_ids, self.embed_tokens, out=b.x)
        for block, layer in zip(self.blocks, cache.layers(), strict=True):
            block.project(step, layer, self.cos_sin, self.config, b)
            if block is self.blocks[-1] and step.last_of is not None:
                if len(step.last_of) == 0:
                    return b.x[:0]
                step, b = self._narrow(step, b)
            block.attend(step, layer, self.config, b)
        return b.x

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Final norm and LM head: [num_rows, hidden_size] -> [num_rows, vocab_size] float32."""
        if out is None:
            shape = hidden.shape[0], self.config.vocab_size
            out = hidden.new_empty(shape, dtype=torch.float32)
        size = ops.linear_workspace_size(hidden.shape[0], self.config.hidden_size)
        workspace = hidden.new_empty(size, dtype=torch.uint8)
        return self.lm_head(hidden, out, workspace, norm=self.norm)

    def to(self, device: torch.device) -> Decoder:
        """The same model with its weights on `device`."""
        if device == self.device:
            return self
        embed_tokens = self.embed_tokens.to(device)
        tied = self.lm_head.weights[0] is self.embed_tokens
        return Decoder(
            config=self.config,
            embed_tokens=embed_tokens,
            blocks=[block.to(device) for block in self.blocks],
            norm=self.norm.to(device),
            lm_head=self.lm_head.with_weights([embed_tokens]) if tied else self.lm_head.to(device),
            cos_sin=self.cos_sin.to(device),
            dtype=self.dtype,
            nbytes=self.nbytes,
        )

    def _narrow(self, step: Step, b: Buffers) -> tuple[Step, Buffers]:
        """What is left to do behind the last keys and values: the tokens that are wanted."""
        step, tokens = step.narrowed()
        few = Buffers(self.config, len(tokens), self.dtype, self.device, workspaces_of=b)
        ops.embedding(tokens, b.x, out=few.x)  # the rows of these tokens
        ops.embedding(tokens, b.qkv, out=few.qkv)
        return step, few

    def _first_rows(self, num_tokens: int) -> Buffers:
        """Steps come in many sizes and one after the other, so they share memory."""
        if len(self._largest_buffers.x) < num_tokens:
            self._largest_buffers = Buffers(self.config, num_tokens, self.dtype, self.device)
        return Buffers(self.config, num_tokens, self.dtype, self.device, of=self._largest_buffers)
