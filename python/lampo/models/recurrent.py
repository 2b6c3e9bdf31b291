# SPDX-License-Identifier: Apache-2.0
"""Mixers that keep a state per sequence instead of keys and values per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lampo import ops
from lampo.models.config import GatedDeltaConfig, ShortConvConfig
from lampo.models.projection import Norm, Projection
from lampo.models.step import PagedCache, Rows, State, StateCache, Step


def _sequences(step: Step, cache: PagedCache | StateCache) -> tuple[torch.Tensor, ...]:
    """The arguments that say which sequences an op with a state computes."""
    assert isinstance(cache, StateCache) and step.state_slots is not None
    return step.state_slots, step.seq_lens, step.cu_seqlens_q


@dataclass(frozen=True)
class ShortConv:
    """A short convolution between two gates: ``x += (c * conv(b * u)) W^T``, with b, c and u three
    products of the normed x.

    Attributes:
        config: sizes.
        projection: hidden_size -> b, c and u, one after the other.
        weight: [width, hidden_size] float32, the taps.
        bias: [hidden_size] float32, of the convolution; None: none.
        out: back to hidden_size.
    """

    passed_buffer: ClassVar[str] = "mixed"

    config: ShortConvConfig
    projection: Projection
    weight: torch.Tensor
    bias: torch.Tensor | None
    out: Projection

    @property
    def keeps(self) -> State:
        return State(((self.config.width - 1, self.config.size),))

    @property
    def widths(self) -> dict[str, int]:
        return {"conv": 3 * self.config.size, "mixed": self.config.size}

    def write(
        self, x: torch.Tensor, norm: Norm, step: Step, cache: PagedCache | StateCache, rows: Rows
    ) -> None:
        """As :meth:`lampo.models.layers.Mixer.write`: the convolution's output to rows' "mixed"."""
        size = self.config.size
        sequences = _sequences(step, cache)
        assert isinstance(cache, StateCache)
        x, fused = norm(x, rows)
        b, c, u = self.projection(x, rows.get("conv", 3 * size), rows.workspace, norm=fused).split(
            size, dim=1
        )
        ops.causal_conv(
            *(u, self.weight, cache.tensors[0], *sequences),
            bias=self.bias,
            gate_in=b,
            gate_out=c,
            out=rows.get("mixed", size),
        )

    def read(self, x: torch.Tensor, step: Step, cache: PagedCache | StateCache, rows: Rows) -> None:
        """As :meth:`lampo.models.layers.Mixer.read`."""
        self.out(rows.get("mixed", self.config.size), x, rows.workspace, accumulate=True)


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention by the gated delta rule, a convolution before it and a gated norm after.

    Attributes:
        config: sizes.
        projection: hidden_size -> q, k and v of all heads, the gate, b and a.
        weight: [width, q, k and v] float32, the convolution's taps.
        decay: [num_value_heads] float32, negative: the rate at which a state is forgotten.
        dt_bias: [num_value_heads] float32.
        norm_weight: [value_dim] float32.
        eps: of that norm.
        out: all value heads -> hidden_size.
    """

    passed_buffer: ClassVar[str] = "mixed"

    config: GatedDeltaConfig
    projection: Projection
    weight: torch.Tensor
    decay: torch.Tensor
    dt_bias: torch.Tensor
    norm_weight: torch.Tensor
    eps: float
    out: Projection

    @property
    def keeps(self) -> State:
        c = self.config
        return State(
            ((c.width - 1, c.conv_size), (c.num_value_heads, c.key_dim, c.value_dim)),
        )

    @property
    def widths(self) -> dict[str, int]:
        c = self.config
        return {"delta": sum(self._parts), "mixed": c.value_size}

    @property
    def _parts(self) -> tuple[int, ...]:
        c = self.config
        return c.conv_size, c.value_size, c.num_value_heads, c.num_value_heads

    def write(
        self, x: torch.Tensor, norm: Norm, step: Step, cache: PagedCache | StateCache, rows: Rows
    ) -> None:
        """As :meth:`lampo.models.layers.Mixer.write`: the normed heads to rows' "mixed"."""
        c = self.config
        sequences = _sequences(step, cache)
        assert isinstance(cache, StateCache)
        past, state = cache.tensors
        x, fused = norm(x, rows)
        qkv, gate, b, a = self.projection(
            x, rows.get("delta", sum(self._parts)), rows.workspace, norm=fused
        ).split(self._parts, dim=1)
        ops.causal_conv(qkv, self.weight, past, *sequences, silu=True, out=qkv)
        q, k, v = qkv.split((c.key_size, c.key_size, c.value_size), dim=1)
        keys, values = (-1, c.key_dim), (-1, c.value_dim)
        ops.gated_delta(
            *(q.unflatten(1, keys), k.unflatten(1, keys), v.unflatten(1, values), a, b),
            *(self.decay, self.dt_bias, state, *sequences),
            scale=c.key_dim**-0.5,
            tiled=c.tiled,
            gate=gate.unflatten(1, values),
            norm_weight=self.norm_weight,
            eps=self.eps,
            out=rows.get("mixed", c.value_size).unflatten(1, values),
        )

    def read(self, x: torch.Tensor, step: Step, cache: PagedCache | StateCache, rows: Rows) -> None:
        """As :meth:`lampo.models.layers.Mixer.read`."""
        self.out(rows.get("mixed", self.config.value_size), x, rows.workspace, accumulate=True)
