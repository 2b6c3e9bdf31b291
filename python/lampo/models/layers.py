# SPDX-License-Identifier: Apache-2.0
"""The parts of architectures: mixers, feed-forwards, blocks. They call ops and are independent of
devices and requests."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from lampo import ops
from lampo.models.config import AttentionConfig
from lampo.models.experts import MixtureOfExperts
from lampo.models.projection import Norm, Projection, RMSNorm
from lampo.models.rope import RotaryTable
from lampo.models.step import Kept, PagedCache, PagedKV, Rows, StateCache, Step

_T = TypeVar("_T")


class Mixer(Protocol):
    """The half of a block that mixes information between tokens, such as attention.

    It has two phases, :meth:`write` and :meth:`read`. In a prompt's last block the second phase
    processes only the tokens with a wanted output.

    Attributes:
        keeps: its kind of cache; the only property of a mixer that the pool, the prefix cache and
            the scheduler use.
        widths: name -> elements per token of the buffers that it writes.
        passed_buffer: the name of the buffer that :meth:`write` passes to :meth:`read`.
    """

    @property
    def keeps(self) -> Kept: ...
    @property
    def widths(self) -> dict[str, int]: ...

    passed_buffer: ClassVar[str]

    def write(
        self, x: torch.Tensor, norm: Norm, step: Step, cache: PagedCache | StateCache, rows: Rows
    ) -> None:
        """Reads x, the residual stream, and writes the new tokens' cache entries."""

    def read(self, x: torch.Tensor, step: Step, cache: PagedCache | StateCache, rows: Rows) -> None:
        """Adds the mixer's output to x."""


def _output_widths(projection: Projection, norm: RMSNorm | None) -> dict[str, int]:
    return {} if norm is None else {"output": projection.out_features}


def _add_output(
    projection: Projection, y: torch.Tensor, norm: RMSNorm | None, x: torch.Tensor, rows: Rows
) -> None:
    """``x += norm(y W^T)``, x the residual stream."""
    if norm is None:
        projection(y, x, rows.workspace, accumulate=True)
        return
    output = projection(y, rows.get("output", x.shape[1]), rows.workspace)
    ops.rms_norm(output, norm.weight, norm.eps, out=output)
    # The op adds its input to the residual stream; the norm of the sum is not used.
    ops.rms_norm(output, norm.weight, norm.eps, residual=x, out=output)


@dataclass(frozen=True)
class Attention:
    """Causal attention over the paged cache.

    Attributes:
        config: heads, scale, window.
        qkv: hidden_size -> q, k and v of all heads, one after the other.
        out: all heads -> hidden_size.
        rotary: cosines and sines of the positions; None: no rotation.
        q_norm, k_norm: norms per head, before the rotation; or over all heads, if the
            configuration has `joint_qk_norm`.
        post_norm: of the output, before it is added to the residual stream.
        sinks: [num_qo_heads] float32, logits that take a share of the softmax; None: none.
    """

    passed_buffer: ClassVar[str] = "qkv"

    config: AttentionConfig
    qkv: Projection
    out: Projection
    rotary: RotaryTable | None = None
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None
    post_norm: RMSNorm | None = None
    sinks: torch.Tensor | None = None

    @property
    def keeps(self) -> PagedKV:
        c = self.config
        return PagedKV(c.num_kv_heads, c.head_dim, c.window)

    @property
    def widths(self) -> dict[str, int]:
        c = self.config
        own = {"qkv": c.q_rows + 2 * c.kv_size, "attended": c.q_size}
        return own | _output_widths(self.out, self.post_norm)

    def write(
        self, x: torch.Tensor, norm: Norm, step: Step, cache: PagedCache | StateCache, rows: Rows
    ) -> None:
        """As :meth:`Mixer.write`: keys and values to the cache, queries to rows' "qkv"."""
        assert isinstance(cache, PagedCache)
        c = self.config
        x, fused = norm(x, rows)
        qkv = self.qkv(x, rows.get("qkv", self.widths["qkv"]), rows.workspace, norm=fused)
        q, k, v, _ = self._heads(rows)
        q_norm, k_norm = self.q_norm, self.k_norm
        if c.joint_qk_norm:
            assert q_norm is not None and k_norm is not None
            all_q, all_k = qkv[:, : c.q_size], qkv[:, c.q_size : c.q_size + c.kv_size]
            ops.rms_norm(all_q, q_norm.weight, q_norm.eps, out=all_q)
            ops.rms_norm(all_k, k_norm.weight, k_norm.eps, out=all_k)
            q_norm = k_norm = None
        ops.append_kv(
            q,
            k,
            v,
            cache.k,
            cache.v,
            step.slot_mapping,
            positions=None if self.rotary is None else step.positions,
            cos_sin=None if self.rotary is None else self.rotary.cos_sin,
            interleaved=c.rope is not None and c.rope.interleaved,
            hadamard=cache.k.dtype == torch.int8,
            q_norm_weight=None if q_norm is None else q_norm.weight,
            k_norm_weight=None if k_norm is None else k_norm.weight,
            eps=0.0 if q_norm is None else q_norm.eps,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
        )
        if c.growth is not None:
            beta, length = c.growth
            all_q = qkv[:, : c.q_size]
            ops.scale_by_position(all_q, step.positions, beta=beta, length=length, out=all_q)

    def read(self, x: torch.Tensor, step: Step, cache: PagedCache | StateCache, rows: Rows) -> None:
        """As :meth:`Mixer.read`."""
        assert isinstance(cache, PagedCache)
        c = self.config
        q, _, _, gate = self._heads(rows)
        attended = rows.get("attended", c.q_size)
        heads = attended.view(-1, c.num_qo_heads, c.head_dim)
        workspace, planned = rows.attention_workspace(
            c.num_qo_heads, self.keeps, step, cache.k.shape[2]
        )
        ops.paged_attention(
            q,
            cache.k,
            cache.v,
            step.page_table,
            step.seq_lens,
            step.cu_seqlens_q,
            softmax_scale=c.scale,
            sliding_window=c.window,
            soft_cap=c.soft_cap,
            planned=planned,
            sinks=self.sinks,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
            out=heads,
            workspace=workspace,
        )
        if gate is not None:
            ops.sigmoid_mul(heads, gate, out=heads)
        _add_output(self.out, attended, self.post_norm, x, rows)

    def _heads(
        self, rows: Rows
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """q, k, v and the gates: [num_tokens, heads, head_dim] each."""
        c = self.config
        return rows.heads("qkv", c.num_qo_heads, c.num_kv_heads, c.head_dim, gated=c.gated)

    def weights(self, step: Step, cache: PagedCache, rows: Rows) -> torch.Tensor:
        """The attention weights of a step of one sequence, for inspection; sinks take the rest.

        They are computed again, in float32, from the queries that :meth:`write` left in `rows` and
        the keys in the cache.

        Returns:
            [num_qo_heads, num_tokens, seq_len] float32: a row is a distribution over the keys.
        """
        c = self.config
        seq_len, page_size = int(step.seq_lens[0]), cache.k.shape[2]
        pages = step.page_table[0, : -(-seq_len // page_size)].long()
        keys = cache.k[pages].float()
        if cache.k_scale is not None:
            keys *= cache.k_scale[pages][..., None]
        keys = keys.transpose(0, 1).flatten(1, 2)[:, :seq_len]
        q, _, _, _ = self._heads(rows)
        groups = q.float().transpose(0, 1).unflatten(0, (c.num_kv_heads, -1))
        scores = torch.einsum("hgtd,hsd->hgts", groups, keys) * c.scale
        if c.soft_cap is not None:
            scores = c.soft_cap * torch.tanh(scores / c.soft_cap)
        behind = step.positions[:, None] - torch.arange(seq_len, device=q.device)
        seen = behind >= 0 if c.window is None else (behind >= 0) & (behind < c.window)
        scores = scores.masked_fill(~seen, -math.inf)
        if self.sinks is None:
            return scores.softmax(dim=-1).flatten(0, 1)
        sinks = self.sinks.view(c.num_kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sinks], -1).softmax(dim=-1)[..., :-1].flatten(0, 1)


@dataclass(frozen=True)
class GatedFeedForward:
    """``x += norm((silu(g) * u) W^T)`` with g and u two products of the normed x.

    Attributes:
        gate_up: one weight, interleaved by ops.gate_and_up if silu follows; or two, if their
            formats or sizes do not allow that.
        down: back to hidden_size.
        gelu_tanh: GELU, by its approximation with tanh, in place of silu.
        post_norm: None: none.
    """

    gate_up: Projection
    down: Projection
    gelu_tanh: bool = False
    post_norm: RMSNorm | None = None

    @property
    def widths(self) -> dict[str, int]:
        size = self.gate_up.out_features
        apart = {} if self._is_fused else {"gate_up": size}
        return {"activated": size // 2} | apart | _output_widths(self.down, self.post_norm)

    @property
    def _is_fused(self) -> bool:
        return len(self.gate_up.weights) == 1 and not self.gelu_tanh

    def __call__(self, x: torch.Tensor, norm: Norm, rows: Rows) -> None:
        size = self.gate_up.out_features
        activated = rows.get("activated", size // 2)
        normed, fused = norm(x, rows)
        if self._is_fused:
            self.gate_up(normed, activated, rows.workspace, norm=fused, silu_mul=True)
        else:
            gate_up = rows.get("gate_up", size)
            self.gate_up(normed, gate_up, rows.workspace, norm=fused)
            if self.gelu_tanh:
                ops.gelu_mul(gate_up, tanh_approximation=True, out=activated)
            else:
                ops.silu_mul(gate_up, out=activated)
        _add_output(self.down, activated, self.post_norm, x, rows)


@dataclass(frozen=True)
class FeedForward:
    """``x += gelu(u) W^T`` with u a product of the normed x.

    Attributes:
        up, down: to the feed-forward's size and back.
        tanh_approximation: as in ops.gelu.
    """

    up: Projection
    down: Projection
    tanh_approximation: bool

    @property
    def widths(self) -> dict[str, int]:
        return {"activated": self.up.out_features}

    def __call__(self, x: torch.Tensor, norm: Norm, rows: Rows) -> None:
        activated = rows.get("activated", self.up.out_features)
        normed, fused = norm(x, rows)
        self.up(normed, activated, rows.workspace, norm=fused)
        ops.gelu(activated, tanh_approximation=self.tanh_approximation, out=activated)
        self.down(activated, x, rows.workspace, accumulate=True)


@dataclass(frozen=True)
class Block:
    """``x += Mixer(norm(x)); x += FeedForward(norm(x))``."""

    mixer_norm: Norm
    mixer: Mixer
    feed_forward_norm: Norm
    feed_forward: GatedFeedForward | FeedForward | MixtureOfExperts

    @property
    def widths(self) -> dict[str, int]:
        """Name -> elements per token of the buffers that the block writes."""
        return self.mixer.widths | self.feed_forward.widths

    def write(
        self, x: torch.Tensor, step: Step, cache: PagedCache | StateCache, rows: Rows
    ) -> None:
        """The phase for all new tokens: see :meth:`Mixer.write`."""
        self.mixer.write(x, self.mixer_norm, step, cache, rows)

    def read(self, x: torch.Tensor, step: Step, cache: PagedCache | StateCache, rows: Rows) -> None:
        """The second phase: updates x, the residual stream."""
        self.mixer.read(x, step, cache, rows)
        self.feed_forward(x, self.feed_forward_norm, rows)


def moved(part: _T, device: torch.device, memo: dict[int, Any]) -> _T:
    """The same part of a model with its tensors on `device`; shared ones stay shared.

    Args:
        part: a tensor, a packed weight, a rotary table, a dataclass, or a list or tuple of such.
        device: the target.
        memo: moved objects by id: one dictionary for the whole model.
    """
    if id(part) in memo:
        found: _T = memo[id(part)]
        return found
    result: Any = part
    if isinstance(part, torch.Tensor | ops.PackedWeight | RotaryTable):
        result = part.to(device)
    elif isinstance(part, list | tuple):
        result = type(part)(moved(item, device, memo) for item in part)
    elif is_dataclass(part) and not isinstance(part, type):
        result = replace(
            part, **{f.name: moved(getattr(part, f.name), device, memo) for f in fields(part)}
        )
    memo[id(part)] = result
    return result  # type: ignore[no-any-return]


def parts_of(part: object, kind: type[_T]) -> list[_T]:
    """The parts of a part of a model that are of this type; shared ones occur once."""
    found: dict[int, _T] = {}

    def search(part: object) -> None:
        if isinstance(part, kind):
            found[id(part)] = part
        elif isinstance(part, list | tuple):
            for item in part:
                search(item)
        elif is_dataclass(part) and not isinstance(part, type):
            for field in fields(part):
                search(getattr(part, field.name))

    search(part)
    return list(found.values())
