# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: the choice of experts, linears with a weight per expert, the sum of their
results."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lampo import _C
from lampo.error_text import shown
from lampo.ops._arguments import check_size, tensor
from lampo.ops._registry import register
from lampo.ops.linear import PackedWeight, Weight, linear_workspace_size

_route_tokens = register(
    "route_tokens(Tensor logits, bool normalized, Tensor(a!) experts, Tensor(b!) weights, "
    "Tensor(c!) rows, Tensor(d!) x_rows, Tensor(e!) offsets) -> ()",
    _C.route_tokens,
)
_expert_linear = register(
    "expert_linear(Tensor x, Tensor weight, str? format, int activation_bits, Tensor? bias, "
    "Tensor offsets, Tensor? x_rows, Tensor? norm_weight, float norm_eps, bool silu_mul, "
    "float swiglu_limit, Tensor(a!) out, Tensor(b!) workspace) -> ()",
    _C.expert_linear,
)
_combine_experts = register(
    "combine_experts(Tensor y, Tensor rows, Tensor weights, bool accumulate, Tensor(a!) out) -> ()",
    _C.combine_experts,
)

_MAX_TOP_K = 64


@dataclass(frozen=True)
class Routing:
    """The experts of every token, and the order of their rows.

    A row is a pair of a token and one of its experts. Rows are sorted by expert, then by token.

    Attributes:
        experts: [num_tokens, top_k] int32, by descending logit, then ascending number.
        weights: [num_tokens, top_k] float32, factors of the experts' results.
        rows: [num_tokens, top_k] int32, the rows of the pairs.
        x_rows: [num_tokens * top_k] int32, the token of every row.
        offsets: [num_experts + 1] int32, the first row of every expert, then the number of rows.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    rows: torch.Tensor
    x_rows: torch.Tensor
    offsets: torch.Tensor

    @staticmethod
    def in_memory(memory: torch.Tensor, num_tokens: int, top_k: int, num_experts: int) -> Routing:
        """A routing in the first :meth:`size` elements of `memory`, [...] int32, contiguous."""
        num_rows = num_tokens * top_k
        pairs = memory[: 4 * num_rows].view(4, num_rows)
        experts, weights, rows = (pairs[i].view(num_tokens, top_k) for i in range(3))
        offsets = memory[4 * num_rows : Routing.size(num_tokens, top_k, num_experts)]
        return Routing(experts, weights.view(torch.float32), rows, pairs[3], offsets)

    @staticmethod
    def size(num_tokens: int, top_k: int, num_experts: int) -> int:
        """Number of int32 of a routing."""
        return 4 * num_tokens * top_k + num_experts + 1


def route_tokens(
    logits: torch.Tensor, top_k: int, *, normalized: bool = True, out: Routing | None = None
) -> Routing:
    """The experts with the largest router logits, and their weights, by a softmax in float32.

    Args:
        logits: [num_tokens, num_experts] float32. A NaN counts as -inf, and makes all weights of
            its token NaN.
        top_k: experts per token, 1 to 64.
        normalized: whether the softmax is over the chosen experts alone, so that the weights sum
            to 1; else over all experts.
        out: written; allocated if absent.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.

    Source: Shazeer et al., "Outrageously Large Neural Networks" (2017).
    """
    num_tokens, num_experts = tensor("logits", logits, 2).shape
    top_k = check_size("top_k", top_k, high=_MAX_TOP_K)
    if out is None:
        size = Routing.size(num_tokens, top_k, num_experts)
        memory = torch.empty(size, dtype=torch.int32, device=logits.device)
        out = Routing.in_memory(memory, num_tokens, top_k, num_experts)
    elif not isinstance(out, Routing):
        raise TypeError(f"out: expected a Routing, got {shown(out)}")
    elif out.experts.shape[1:] != (top_k,):
        raise ValueError(f"out: expected {top_k} experts per token, got {out.experts.shape[1:]}")
    _route_tokens(logits, normalized, out.experts, out.weights, out.rows, out.x_rows, out.offsets)
    return out


def expert_linear(
    x: torch.Tensor,
    weight: Weight,
    offsets: torch.Tensor,
    x_rows: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
    silu_mul: bool = False,
    swiglu_limit: float = 0.0,
    activation_bits: int | None = None,
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """``out[i] = norm(x[x_rows[i]]) @ weight[e].T + bias[e]`` for the rows i of every expert e.

    Expert e has the rows [offsets[e], offsets[e + 1]). A row is that of :func:`linear` with its
    expert's weight, to the bit. Only weights of experts with rows are read. Values out of range in
    `offsets` and `x_rows` are clamped; rows of no expert are not written.

    Args:
        x: [num_x_rows, in_features] float32 or bfloat16; on CUDA also float16.
        weight: [num_experts * out_features, in_features], the experts one after the other, as of
            :func:`linear`; out_features a multiple of 16.
        offsets: [num_experts + 1] int32, ascending: :attr:`Routing.offsets`.
        x_rows: [num_rows] int32: :attr:`Routing.x_rows`; absent: row i of out takes row i of x.
        bias: [num_experts * out_features] float32 or as ``x``.
        norm_weight, norm_eps, activation_bits: as in :func:`linear`.
        silu_mul: as in :func:`linear`, gate and up interleaved for each expert.
        swiglu_limit: beside silu_mul: if positive, the result is ``(up + 1) * gate * sigmoid(1.702
            gate)`` with gate clamped to at most, and up to plus or minus this value.
        out: [num_rows, out_features] (half of that with ``silu_mul``) float32 or as ``x``,
            written; as ``x`` if absent.
        workspace: uint8, at least ``linear_workspace_size(num_rows, in_features)`` bytes;
            allocated if absent.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.
    """
    packed = weight if isinstance(weight, PackedWeight) else None
    matrix = tensor("weight", weight, 2) if packed is None else packed.data
    num_x_rows, in_features = tensor("x", x, 2).shape
    num_rows = num_x_rows if x_rows is None else len(tensor("x_rows", x_rows, 1))
    num_experts = len(tensor("offsets", offsets, 1)) - 1
    if num_experts < 1 or weight.shape[0] % num_experts:
        raise ValueError(
            f"weight: expected a multiple of the {num_experts} experts of offsets as rows, got "
            f"{weight.shape[0]}"
        )
    columns = weight.shape[0] // num_experts // (2 if silu_mul is True else 1)
    if out is None:
        out = x.new_empty(num_rows, columns)
    elif tensor("out", out, 2).shape[1] != columns:
        raise ValueError(f"out: expected {columns} columns, got shape {tuple(out.shape)}")
    if activation_bits is None:
        activation_bits = 16 if packed is None else 8
    if workspace is None:
        size = linear_workspace_size(num_rows, in_features)
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    fused = (norm_weight, norm_eps, silu_mul, swiglu_limit)
    format = None if packed is None else packed.format
    _expert_linear(
        x, matrix, format, activation_bits, bias, offsets, x_rows, *fused, out, workspace
    )
    return out


def combine_experts(
    y: torch.Tensor,
    routing: Routing,
    *,
    accumulate: bool = False,
    out: torch.Tensor,
) -> torch.Tensor:
    """``out[t] = sum over i of weights[t, i] * y[rows[t, i]]``, i ascending, in float32.

    Args:
        y: [num_rows, size] float32 or as ``out``: the experts' results.
        routing: weights and rows; rows out of range are clamped.
        accumulate: whether the sum is added to ``out`` in place of replacing it.
        out: [num_tokens, size] float32 or bfloat16, written.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.
    """
    if not isinstance(routing, Routing):
        raise TypeError(f"routing: expected a Routing, got {shown(routing)}")
    _combine_experts(y, routing.rows, routing.weights, accumulate, out)
    return out
