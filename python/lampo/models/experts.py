# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: feed-forwards of which each token takes a few."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lampo import ops
from lampo.models.config import FeedForwardConfig
from lampo.models.projection import INNER, ActivationBits, Norm, Projection, RMSNorm
from lampo.models.step import Rows


@dataclass
class ExpertProjection:
    """``out[i] = x[x_rows[i]] W_e^T + b_e`` for the rows i of every expert e, as ops.expert_linear.

    Attributes:
        weights: [num_experts * out_features_i, in_features] each; several write side by side.
        num_experts: their number.
        biases: [num_experts * out_features_i] float32 for each weight; None: no biases.
        activation_bits: precision of x.
    """

    weights: list[ops.Weight]
    num_experts: int
    biases: list[torch.Tensor] | None = None
    activation_bits: ActivationBits = INNER

    @property
    def out_features(self) -> int:
        return sum(weight.shape[0] for weight in self.weights) // self.num_experts

    def __call__(
        self,
        x: torch.Tensor,
        routing: ops.Routing,
        x_rows: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor,
        *,
        norm: RMSNorm | None = None,
        silu_mul: bool = False,
        swiglu_limit: float = 0.0,
    ) -> None:
        """Writes ``out``; options as in ops.expert_linear."""
        start = 0
        for i, weight in enumerate(self.weights):
            end = start + weight.shape[0] // self.num_experts
            bits, packed = self.activation_bits, isinstance(weight, ops.PackedWeight)
            ops.expert_linear(
                x,
                weight,
                routing.offsets,
                x_rows,
                None if self.biases is None else self.biases[i],
                norm_weight=None if norm is None else norm.weight,
                norm_eps=0.0 if norm is None else norm.eps,
                silu_mul=silu_mul,
                swiglu_limit=swiglu_limit,
                activation_bits=bits.packed if packed else bits.dense,
                out=out if len(self.weights) == 1 else out[:, start:end],
                workspace=workspace,
            )
            start = end


@dataclass(frozen=True)
class MixtureOfExperts:
    """``x += sum over a token's experts e of w_e F_e(norm(x))``, F_e gated feed-forwards.

    Attributes:
        config: number of experts, experts per token, their size.
        router: hidden_size -> a logit per expert.
        gate_up: interleaved by ops.gate_and_up for every expert; or two, if their formats differ.
        down: back to hidden_size.
    """

    config: FeedForwardConfig
    router: Projection
    gate_up: ExpertProjection
    down: ExpertProjection

    @property
    def widths(self) -> dict[str, int]:
        assert self.config.experts is not None
        c, size = self.config.experts, self.config.size

        def rows(width: int) -> int:  # workspaces take whole groups of 32
            return c.top_k * (-(-width // 32) * 32)

        apart = {"expert_gate_up": rows(2 * size)} if len(self.gate_up.weights) > 1 else {}
        return apart | {
            "router_logits": Rows.width_of_32_bits(c.num_experts),
            "routing": Rows.width_of_32_bits(ops.Routing.size(1, c.top_k, c.num_experts)),
            "activated": rows(size),
            "expert_output": rows(self.down.out_features),
        }

    def __call__(self, x: torch.Tensor, norm: Norm, rows: Rows) -> None:
        assert self.config.experts is not None
        c, size = self.config.experts, self.config.size
        normed, fused = norm(x, rows)
        logits = rows.floats("router_logits", c.num_experts)
        self.router(normed, logits, rows.workspace, norm=fused)
        routing = rows.routing("routing", c.top_k, c.num_experts)
        ops.route_tokens(logits, c.top_k, normalized=c.normalized, out=routing)

        activated = rows.of_experts("activated", c.top_k, size)
        if len(self.gate_up.weights) == 1:
            self.gate_up(
                normed,
                routing,
                routing.x_rows,
                activated,
                rows.workspace,
                norm=fused,
                silu_mul=True,
                swiglu_limit=c.swiglu_limit,
            )
        else:
            gate_up = rows.of_experts("expert_gate_up", c.top_k, 2 * size)
            self.gate_up(normed, routing, routing.x_rows, gate_up, rows.workspace, norm=fused)
            ops.silu_mul(gate_up, out=activated)
        output = rows.of_experts("expert_output", c.top_k, x.shape[1])
        self.down(activated, routing, None, output, rows.workspace)
        ops.combine_experts(output, routing, accumulate=True, out=x)
