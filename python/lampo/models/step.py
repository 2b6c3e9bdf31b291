# SPDX-License-Identifier: Apache-2.0
"""The data of a model step besides weights: tokens, caches, activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from lampo import ops


@dataclass(frozen=True)
class Step:
    """One step of the model: new tokens of one or more sequences, ragged.

    Attributes:
        token_ids: [num_tokens] int64, the new tokens of all sequences, one after the other.
        positions: [num_tokens] int64, positions of the tokens in their sequences.
        slot_mapping: [num_tokens] int64, page * page_size + offset of the tokens' keys and values.
        cu_seqlens_q: [batch_size + 1] int32, offsets of the sequences' tokens.
        seq_lens: [batch_size] int32, lengths including the new tokens.
        page_table: [batch_size, max_pages_per_seq] int32; entries of pages behind the windows of
            all layers may hold anything.
        state_slots: [batch_size] int64, the sequences' slots in a :class:`StateCache`; None: the
            model has no states.
        last_of: [num_wanted] int64, ascending: the sequences for which the output of the last new
            token is wanted, and no other output. None: the outputs of all tokens are wanted.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    page_table: torch.Tensor
    state_slots: torch.Tensor | None = None
    last_of: torch.Tensor | None = None

    def narrowed(self) -> tuple[Step, torch.Tensor]:
        """A step of the wanted tokens and their sequences alone, and the indices of the tokens."""
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
            state_slots=None if self.state_slots is None else self.state_slots[self.last_of],
            last_of=None,
        )
        return narrow, tokens


@dataclass(frozen=True)
class StepLimits:
    """The largest step.

    Attributes:
        max_num_seqs: sequences of a step; each decodes one token or has a part of its prompt.
        max_num_batched_tokens: tokens of prompts, beside those of sequences that decode.
        max_pages_per_seq, page_size: pages of the longest sequence, and their tokens.
        device: the device that computes it.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_pages_per_seq: int
    page_size: int
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return self.max_num_seqs + self.max_num_batched_tokens


@dataclass(frozen=True)
class PagedKV:
    """A cache of keys and values per token, in pages.

    Attributes:
        num_kv_heads, head_dim: shape of a token's key, and of its value.
        window: number of positions that a token sees, its own included; None: all.
    """

    num_kv_heads: int
    head_dim: int
    window: int | None = None


@dataclass(frozen=True)
class State:
    """A cache per sequence, independent of its length: tensors of these shapes.

    A mixer with a state computes a sequence's tokens in order, each once. The state is taken as
    zeros if the first new token of a sequence is at position 0.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Bytes per sequence."""
        return sum(math.prod(shape) for shape in self.shapes) * int(self.dtype.itemsize)


Kept = PagedKV | State


class PagedCache(NamedTuple):
    """Keys and values of one layer.

    Attributes:
        k, v: [num_pages, num_kv_heads, page_size, head_dim].
        k_scale, v_scale: [num_pages, num_kv_heads, page_size] float32 if the cache has 8 bits, else
            None.
    """

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None
    v_scale: torch.Tensor | None


class StateCache(NamedTuple):
    """The states of one layer: one tensor [num_slots, ...] per shape."""

    tensors: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Cache:
    """The caches of all layers, a :class:`PagedCache` or a :class:`StateCache` per layer."""

    layers: tuple[PagedCache | StateCache, ...]

    def paged_tensors(self) -> Iterator[torch.Tensor]:
        """The paged tensors of all layers; their first dimension is the page."""
        for layer in self.layers:
            if isinstance(layer, PagedCache):
                yield from (tensor for tensor in layer if tensor is not None)

    def state_tensors(self) -> Iterator[torch.Tensor]:
        """The state tensors of all layers; their first dimension is the slot."""
        for layer in self.layers:
            if isinstance(layer, StateCache):
                yield from layer.tensors


class AttentionKind(NamedTuple):
    """A kind of attention; all layers of one kind share a plan and a workspace.

    Attributes:
        num_qo_heads: query heads.
        keys: the cache.
    """

    num_qo_heads: int
    keys: PagedKV


class Buffers:
    """Preallocated activations, by name: all buffers that blocks write.

    All steps share the memory of the largest one, and all layers that of the widest: a view is the
    first elements of a name's memory.

    Args:
        widths: name -> elements per token in the widest layer.
        num_tokens: number of tokens of the largest step.
        linear_width: the widest input of a linear.
        attention_bytes: the first sizes of the workspaces of attention, which grow on demand.
        workspaces_of: buffers that provide the workspaces; None: allocate them.

    Attributes:
        num_tokens: as given.
        workspace: of linears.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        num_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        linear_width: int,
        attention_bytes: Mapping[AttentionKind, int] | None = None,
        workspaces_of: Buffers | None = None,
    ) -> None:
        self.num_tokens = num_tokens
        self._memory = {
            name: torch.empty(num_tokens * width, dtype=dtype, device=device)
            for name, width in widths.items()
        }
        self._workspaces_of = workspaces_of
        if workspaces_of is None:
            on_cpu = device.type == "cpu"  # linears of a GPU have their workspace on the chip
            size = ops.linear_workspace_size(num_tokens, linear_width) if on_cpu else 0
            self.workspace = torch.empty(size, dtype=torch.uint8, device=device)
            self._device = device
            self._attention: dict[AttentionKind, torch.Tensor] = {}
            for kind, nbytes in (attention_bytes or {}).items():
                self.attention_workspace(kind, nbytes)
        else:
            self.workspace = workspaces_of.workspace

    @property
    def nbytes(self) -> int:
        """Bytes of the memory that is these buffers' own."""
        own = sum(t.nbytes for t in self._memory.values())
        if self._workspaces_of is None:
            own += self.workspace.nbytes + sum(t.nbytes for t in self._attention.values())
        return own

    def attention_workspace(self, kind: AttentionKind, nbytes: int) -> torch.Tensor:
        """[at least `nbytes`] uint8, of all layers of this kind."""
        if self._workspaces_of is not None:
            return self._workspaces_of.attention_workspace(kind, nbytes)
        if kind not in self._attention or self._attention[kind].numel() < nbytes:
            self._attention[kind] = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        return self._attention[kind]

    def rows(self, num_tokens: int) -> Rows:
        """The activations of a step of `num_tokens` tokens."""
        return Rows(self, num_tokens)

    def view(self, name: str, num_tokens: int, width: int) -> torch.Tensor:
        """[num_tokens, width], not initialised."""
        return self._memory[name][: num_tokens * width].view(num_tokens, width)


class Rows:
    """Cached views of :class:`Buffers` for a step of `num_tokens` tokens.

    Attributes:
        workspace: the workspace of linears.
    """

    def __init__(self, buffers: Buffers, num_tokens: int) -> None:
        self._buffers = buffers
        self.num_tokens = num_tokens
        self.workspace = buffers.workspace
        self._views: dict[tuple[str, int], torch.Tensor] = {}
        self._heads: dict[
            tuple[str, int, int, int, bool],
            tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None],
        ] = {}
        self._routings: dict[tuple[int, int], ops.Routing] = {}
        self._planned: set[AttentionKind] = set()

    def begin_step(self) -> None:
        """The lengths of the sequences are new: plans of attention are out of date."""
        self._planned.clear()

    def get(self, name: str, width: int) -> torch.Tensor:
        """[num_tokens, width]."""
        key = name, width
        if key not in self._views:
            self._views[key] = self._buffers.view(name, self.num_tokens, width)
        return self._views[key]

    @staticmethod
    def width_of_32_bits(count: int) -> int:
        """Elements per token, of any type of the activations, that hold `count` 32-bit numbers."""
        return 2 * count

    def floats(self, name: str, width: int) -> torch.Tensor:
        """[num_tokens, width] float32, in a buffer of :meth:`width_of_32_bits`."""
        key = name, width
        if key not in self._views:
            memory = self._buffers.view(name, 1, self.num_tokens * self.width_of_32_bits(width))
            found = memory.view(torch.float32).flatten()[: self.num_tokens * width]
            self._views[key] = found.view(self.num_tokens, width)
        return self._views[key]

    def of_experts(self, name: str, top_k: int, width: int) -> torch.Tensor:
        """[num_tokens * top_k, width]: a row for each of a token's experts."""
        return self.get(name, top_k * width).view(-1, width)

    def routing(self, name: str, top_k: int, num_experts: int) -> ops.Routing:
        """A routing, in a buffer of :meth:`width_of_32_bits`."""
        key = top_k, num_experts
        if key not in self._routings:
            memory = self.floats(name, ops.Routing.size(1, top_k, num_experts))
            self._routings[key] = ops.Routing.in_memory(
                memory.view(torch.int32).flatten(), self.num_tokens, top_k, num_experts
            )
        return self._routings[key]

    def heads(
        self, name: str, num_qo_heads: int, num_kv_heads: int, head_dim: int, *, gated: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """q, k and v, side by side in `name`: [num_tokens, heads, head_dim] each; and the gates if
        the heads of q and of the gates take turns."""
        key = name, num_qo_heads, num_kv_heads, head_dim, gated
        if key not in self._heads:
            heads = [num_qo_heads * (2 if gated else 1), num_kv_heads, num_kv_heads]
            all_heads = self.get(name, sum(heads) * head_dim).unflatten(1, (-1, head_dim))
            q, k, v = torch.split(all_heads, heads, dim=1)
            self._heads[key] = (q[:, ::2], k, v, q[:, 1::2]) if gated else (q, k, v, None)
        return self._heads[key]

    def attention_workspace(
        self, num_qo_heads: int, keys: PagedKV, step: Step, page_size: int
    ) -> tuple[torch.Tensor, bool]:
        """Memory for attention over sequences as long as the step's page table allows, and whether
        it holds the plan of an earlier layer."""
        kind = AttentionKind(num_qo_heads, keys)
        planned = kind in self._planned
        self._planned.add(kind)
        size = ops.paged_attention_workspace_size(
            num_qo_heads,
            keys.num_kv_heads,
            keys.head_dim,
            step.page_table.shape[1] * page_size,
            batch_size=step.page_table.shape[0],
            num_tokens=step.token_ids.shape[0],
            device=step.page_table.device,
        )
        return self._buffers.attention_workspace(kind, size), planned
