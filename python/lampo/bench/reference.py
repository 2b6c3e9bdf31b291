# SPDX-License-Identifier: Apache-2.0
"""Every op in plain PyTorch, in float64, written to be read: the reference of tests and
benchmarks."""

from __future__ import annotations

import math

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    return x * weight / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    x, weight = x.double(), weight.double()
    centred = x - x.mean(-1, keepdim=True)
    out = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + eps) * weight
    return out if bias is None else out + bias.double()


def silu(x: torch.Tensor) -> torch.Tensor:
    return x.double() / (1 + torch.exp(-x.double()))


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    history: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    with_silu: bool = False,
) -> torch.Tensor:
    """One sequence: x [n, channels], weight [width, channels], history the width - 1 inputs before.

    Returns:
        [n, channels].
    """
    inputs = torch.cat([history, x]).double()
    width = len(weight)
    y = torch.zeros_like(x, dtype=torch.float64)
    for t in range(len(x)):
        y[t] = (weight.double() * inputs[t : t + width]).sum(0)
    y = y if bias is None else y + bias.double()
    return silu(y) if with_silu else y


def gated_delta(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One value head of one sequence: q, k [n, key_dim], v [n, value_dim], a, b [n], the rest of
    the head; state [key_dim, value_dim].

    Returns:
        o [n, value_dim], and the state after the last token.
    """
    q, k, v, a, b = (t.double() for t in (q, k, v, a, b))
    q = scale * q / torch.sqrt((q * q).sum(-1, keepdim=True) + 1e-6)
    k = k / torch.sqrt((k * k).sum(-1, keepdim=True) + 1e-6)
    keep = torch.exp(decay.double() * torch.nn.functional.softplus(a + dt_bias.double()))
    beta = torch.sigmoid(b)
    state, out = state.double(), torch.empty_like(v)
    for t in range(len(v)):
        state = keep[t] * state
        state = state + torch.outer(k[t], beta[t] * (v[t] - k[t] @ state))
        out[t] = q[t] @ state
    return out, state


def gate_columns(y: torch.Tensor, limit: float = 0.0) -> torch.Tensor:
    """silu(gate) * up in y's dtype; columns of y alternate between gate and up in groups of 16.

    With a limit both are clamped, and it is (up + 1) * gate * sigmoid(1.702 gate).
    """
    gate, up = y.unflatten(1, (-1, 2, 16)).unbind(2)
    product: torch.Tensor = gate / (1 + torch.exp(-gate)) * up
    if limit > 0:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        product = (up + 1) * gate / (1 + torch.exp(-1.702 * gate))
    return product.flatten(1)


def gelu(x: torch.Tensor, tanh_approximation: bool) -> torch.Tensor:
    x = x.double()
    if tanh_approximation:
        return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return x / 2 * (1 + torch.erf(x / 2**0.5))


def scale(x: torch.Tensor, factor: float, soft_cap: float | None) -> torch.Tensor:
    x = factor * x.double()
    return x if soft_cap is None else soft_cap * torch.tanh(x / soft_cap)


def scale_by_position(
    x: torch.Tensor, positions: torch.Tensor, beta: float, length: int
) -> torch.Tensor:
    factors = 1 + beta * torch.log1p((positions.double() / length).floor())
    return factors[:, None] * x.double()


def rope(x: torch.Tensor, cos_sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """x [num_tokens, heads, head_dim]; cos_sin [num_tokens, rotary_dim], one row per token."""
    half = cos_sin.shape[-1] // 2
    cos, sin = cos_sin.double()[:, None].split(half, -1)
    x = x.double().clone()
    if interleaved:
        a, b = x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]
        rotated = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
        rotated = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    x[..., : 2 * half] = rotated
    return x


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """x times Sylvester's Hadamard matrix over the root of its size, which divides x.shape[-1]."""
    size = x.shape[-1] & -x.shape[-1]
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    blocks = x.double().reshape(-1, size) @ matrix / math.sqrt(size)
    return blocks.reshape(x.shape)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softmax_scale: float,
    *,
    causal: bool = True,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence: q [n, num_qo_heads, head_dim] are its last n tokens.

    k, v: [seq_len, num_kv_heads, head_dim]. Returns (out, lse) in float64; rows that see no key
    are 0 and -inf.
    """
    num_tokens, num_qo_heads, _ = q.shape
    seq_len, num_kv_heads, _ = k.shape
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(num_qo_heads // num_kv_heads, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    key = torch.arange(seq_len)
    query = torch.arange(num_tokens)[:, None] + seq_len - num_tokens
    visible = torch.ones(num_tokens, seq_len, dtype=torch.bool)
    if causal:
        visible = visible & (key <= query)
    if sliding_window is not None:
        visible = visible & (key > query - sliding_window)
    scores = scores.masked_fill(~visible, -torch.inf)
    empty = ~visible.any(-1)
    if sinks is not None:
        sink = sinks.double()[:, None, None].expand(-1, num_tokens, 1)
        lse = torch.cat([scores, sink], -1).logsumexp(-1)
    else:
        lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(empty, 0)[..., None])
    out = torch.einsum("hqk,khd->qhd", weights.masked_fill(~visible, 0), v)
    return out, lse.masked_fill(empty, -torch.inf).T.contiguous()


def merge_states(
    out_partial: torch.Tensor, lse_partial: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    lse = lse_partial.double().logsumexp(0)
    weights = torch.exp(lse_partial.double() - lse.masked_fill(lse == -torch.inf, 0))
    used = (weights > 0)[..., None]
    terms = torch.where(used, out_partial.double() * weights[..., None], 0.0)
    return terms.sum(0), lse


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = x.double() @ weight.double().T
    return out if bias is None else out + bias.double()


def route_tokens(
    logits: torch.Tensor, top_k: int, normalized: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of every token, and their weights: [num_tokens, top_k] each."""
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices
    experts = order[:, :top_k]
    logits = logits.double()
    if normalized:
        return experts, logits.gather(1, experts).softmax(1)
    return experts, logits.softmax(1).gather(1, experts)


def expert_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, expert_of: torch.Tensor
) -> torch.Tensor:
    """Row i of x times weight[expert_of[i]]; weight [num_experts, out_features, in_features]."""
    out = torch.einsum("ik,ink->in", x.double(), weight.double()[expert_of])
    return out if bias is None else out + bias.double()[expert_of]


def combine_experts(y: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sums of the rows of y [num_rows, size], weighted: rows, weights [num_tokens, top_k]."""
    return (weights.double()[..., None] * y.double()[rows.long()]).sum(1)


def quantize_activations(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Inputs of packed linears, rounded in groups of 32, as float64: to 8 bits, to 16, or (9) to 16
    in the word of four inputs with the largest, and to 8, on the others' scale, elsewhere.
    """
    groups = x.float().unflatten(-1, (-1, 32))
    words = groups.abs().unflatten(-1, (8, 4)).amax(-1)
    unit, largest = words.amax(-1, keepdim=True), 127.0  # value of code 127, and the largest code
    if bits > 8:
        others = words.scatter(-1, words.argmax(-1, keepdim=True), 0.0).amax(-1, keepdim=True)
        unit, largest = unit / 256, largest * 256
        if bits == 9:
            unit = torch.maximum(unit, others)
    # One rounding: `127.0 / unit` would be a reciprocal and a product.
    inverse = torch.where(unit > 0, torch.full_like(unit, 127.0) / unit, 0.0)
    quants = torch.round(groups * inverse).clamp(-largest, largest)
    values: torch.Tensor = quants.double() * (unit / 127.0).double()
    return values.flatten(-2)


def bfloat16_terms(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x rounded to bfloat16, or with 16 bits to the sum of two of them; as float64."""
    high: torch.Tensor = x.bfloat16().double()
    return high if bits == 8 else high + (x.double() - high).float().bfloat16().double()


def ragged_row(cu: torch.Tensor, row: int, *values: torch.Tensor) -> list[torch.Tensor]:
    """Row ``row`` of ragged tensors."""
    return [v[int(cu[row]) : int(cu[row + 1])].long() for v in values]


def processed_logits(
    logits: torch.Tensor,
    *,
    penalty_ids: torch.Tensor | None = None,
    penalty_counts: torch.Tensor | None = None,
    cu_penalties: torch.Tensor | None = None,
    repetition_penalty: torch.Tensor | None = None,
    presence_penalty: torch.Tensor | None = None,
    frequency_penalty: torch.Tensor | None = None,
    bias_ids: torch.Tensor | None = None,
    bias_values: torch.Tensor | None = None,
    cu_bias: torch.Tensor | None = None,
    allowed_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Step (1) of ``sample``, defined in float32; NaN becomes -inf."""
    out = logits.float().masked_fill(logits.isnan(), -torch.inf)
    zeros = torch.zeros(len(out))
    repetition = zeros + 1 if repetition_penalty is None else repetition_penalty
    presence = zeros if presence_penalty is None else presence_penalty
    frequency = zeros if frequency_penalty is None else frequency_penalty
    for b, row in enumerate(out):
        if cu_penalties is not None:
            assert penalty_ids is not None and penalty_counts is not None
            ids, counts = ragged_row(cu_penalties, b, penalty_ids, penalty_counts)
            values = torch.where(row[ids] > 0, row[ids] / repetition[b], row[ids] * repetition[b])
            generated = values - (presence[b] + frequency[b] * counts.float())
            row[ids] = torch.where(counts > 0, generated, values)
        if cu_bias is not None:
            assert bias_ids is not None and bias_values is not None
            span = slice(int(cu_bias[b]), int(cu_bias[b + 1]))
            row[bias_ids[span].long()] += bias_values[span]
    if allowed_mask is not None:
        bits = allowed_mask.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32) & 1
        out[bits.flatten(1)[:, : out.shape[1]] == 0] = -torch.inf
    return out.masked_fill(out.isnan(), -torch.inf)


def probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Softmax of one row at a temperature, in float64; +inf logits share all probability."""
    if (logits == torch.inf).any():
        top = (logits == torch.inf).double()
        return top / top.sum()
    return torch.softmax((logits.double() - logits.double().max()) / temperature, dim=-1)


def kept_tokens(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1, min_p: float = 0
) -> torch.Tensor:
    """Steps (2) to (5) of ``sample`` on one row of processed logits, by sorting: a bool mask."""
    p = probabilities(logits, temperature)
    order = torch.sort(logits, descending=True, stable=True).indices
    possible = logits == torch.inf if (logits == torch.inf).any() else logits > -torch.inf
    order = order[possible[order]]
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1 and len(order) > 0:
        mass = p[order].cumsum(0)
        order = order[: int((mass < top_p * mass[-1]).sum()) + 1]
    kept = torch.zeros_like(possible)
    kept[order] = True
    return kept & (p >= min_p * p.max())


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax at the tokens, their ranks, and all tokens by descending logit."""
    logits = logits.float().masked_fill(logits.isnan(), -torch.inf)
    log_p = torch.log_softmax(logits.double(), dim=-1)
    chosen = logits.gather(1, token_ids[:, None])
    rank = (logits > chosen).sum(1) + 1
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices
    return log_p, rank, order
