# SPDX-License-Identifier: Apache-2.0
"""Ops with a state per sequence, and the gate of hybrid models' attention.

A state is updated in place and exact: outputs and states are the same bits however the tokens of a
sequence are divided into calls, whatever the batch and the number of threads.
"""

from __future__ import annotations

import torch

from lampo import _C
from lampo.ops._arguments import tensor
from lampo.ops._registry import register

_sigmoid_mul = register("sigmoid_mul(Tensor x, Tensor gate, Tensor(a!) out) -> ()", _C.sigmoid_mul)
_causal_conv = register(
    "causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) state, Tensor state_slots, "
    "Tensor seq_lens, Tensor cu_seqlens_q, Tensor? gate_in, Tensor? gate_out, bool silu, "
    "Tensor(b!) out) -> ()",
    _C.causal_conv,
)
_gated_delta = register(
    "gated_delta(Tensor q, Tensor k, Tensor v, Tensor a, Tensor b, Tensor decay, Tensor dt_bias, "
    "Tensor(a!) state, Tensor state_slots, Tensor seq_lens, Tensor cu_seqlens_q, bool tiled, "
    "float scale, Tensor? gate, Tensor? norm_weight, float eps, Tensor(b!) out) -> ()",
    _C.gated_delta,
)


def sigmoid_mul(
    x: torch.Tensor, gate: torch.Tensor, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """``x * sigmoid(gate)``, elementwise, computed in float32.

    Args:
        x: [num_tokens, num_heads, head_dim] float32 or bfloat16.
        gate: as ``x``.
        out: as ``x``, written; may be ``x`` itself.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.

    Source: Qiu et al., "Gated Attention for Large Language Models" (2025).
    """
    if out is None:
        out = torch.empty_like(tensor("x", x, 3))
    _sigmoid_mul(x, gate, out)
    return out


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    gate_in: torch.Tensor | None = None,
    gate_out: torch.Tensor | None = None,
    silu: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal depthwise convolution over time of ragged sequences.

    ``y_t = bias + sum_j weight[j] u_{t - width + 1 + j}`` with ``u = gate_in * x``, in float32;
    then ``out = gate_out * silu(y)``.

    Args:
        x: [num_tokens, num_channels] float32 or bfloat16: the new tokens of all sequences, one
            after the other.
        weight: [width, num_channels] float32, width 2 to 4; the last tap is the token's own.
        state: [num_slots, width - 1, num_channels] float32, written: the last ``u`` of every
            sequence, oldest first. A sequence whose first new token is at position 0 begins with
            zeros instead.
        state_slots: [batch_size] int64, the sequences' slots, each once.
        seq_lens: [batch_size] int32, lengths including the new tokens.
        cu_seqlens_q: [batch_size + 1] int32, offsets of the sequences' tokens. A sequence without
            new tokens keeps its state.
        bias: [num_channels] float32.
        gate_in, gate_out: as ``x``; None: 1.
        silu: whether silu follows the sum.
        out: as ``x``, written; may be ``x`` itself. Rows after the last sequence's stay.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name; on the
            CPU also a slot or length.
    """
    if out is None:
        out = torch.empty_like(tensor("x", x, 2))
    _causal_conv(
        x, weight, bias, state, state_slots, seq_lens, cu_seqlens_q, gate_in, gate_out, silu, out
    )
    return out


def gated_delta(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    state_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *,
    scale: float,
    tiled: bool = False,
    gate: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The gated delta rule over ragged sequences, token by token, in float32.

    Per value head, with its state S, ``k' = k / |k|`` and ``q' = scale * q / |q|`` (lengths of
    ``sqrt(sum(x^2) + 1e-6)``), ``keep = exp(decay * softplus(a + dt_bias))`` and
    ``beta = sigmoid(b)``: ``S = keep * S; S += k' (beta * (v - S^T k'))^T; o = S^T q'``. With a
    gate, ``out = norm_weight * o / sqrt(mean(o^2) + eps) * silu(gate)``.

    Args:
        q, k: [num_tokens, num_key_heads, key_dim] float32 or bfloat16, key_dim at most 256.
        v: [num_tokens, num_value_heads, value_dim] as ``q``, value_dim at most 256.
        a, b: [num_tokens, num_value_heads] as ``q``.
        decay: [num_value_heads] float32, negative; a state never grows by it.
        dt_bias: [num_value_heads] float32.
        state: [num_slots, num_value_heads, key_dim, value_dim] float32, written; as in
            :func:`causal_conv`, with the next three.
        scale: of the normed queries.
        tiled: whether value head h reads key head ``h % num_key_heads``; otherwise a key head
            serves consecutive value heads.
        gate: as ``v``; None: ``out = o``.
        norm_weight: [value_dim] float32, with a gate.
        eps: of that norm, in [0, 1].
        out: as ``v``, written; may be ``v`` itself.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: as :func:`causal_conv`.

    Source: Yang, Kautz and Hatamizadeh, "Gated Delta Networks" (2024).
    """
    if out is None:
        out = torch.empty_like(tensor("v", v, 3))
    _gated_delta(
        *(q, k, v, a, b, decay, dt_bias, state, state_slots, seq_lens, cu_seqlens_q),
        *(tiled, scale, gate, norm_weight, eps, out),
    )
    return out
