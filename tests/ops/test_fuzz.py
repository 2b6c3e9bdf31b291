# SPDX-License-Identifier: Apache-2.0
"""Fuzzed calls of all ops.

Calls of arbitrary shapes and options are compared with the float64 reference. Valid calls with one
to three arguments replaced by arbitrary ones either compute, or raise a ValueError or TypeError
that begins with an argument's name. A wrong access would end the process; sanitizers run the same
kernels (test_sanitizers.py).
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import paging
import pytest
import torch
from compare import assert_close

from lampo import ops
from lampo.bench import reference

Arguments = dict[str, Any]


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def ints(values: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def packed(rows: int, columns: int, weight_format: str = "q4_0") -> ops.PackedWeight:
    width = {"q4_0": 18, "q4_1": 20, "q8_0": 34}[weight_format] * columns // 32
    return ops.pack_weight(torch.zeros(rows, width, dtype=torch.uint8), weight_format)


def attention_call() -> Arguments:
    return {
        "q": floats(5, 4, 32),
        "k_cache": floats(4, 2, 16, 32),
        "v_cache": floats(4, 2, 16, 32),
        "page_table": ints([0, 1, 2, 3]).view(2, 2),
        "seq_lens": ints([20, 17]),
        "cu_seqlens_q": ints([0, 4, 5]),
        "softmax_scale": 0.2,
        "causal": True,
        "sliding_window": None,
        "soft_cap": None,
        "deterministic": False,
        "planned": False,
        "sinks": None,
        "k_scale": None,
        "v_scale": None,
        "lse": None,
        "out": None,
        "workspace": None,
    }


def append_call() -> Arguments:
    return {
        "q": floats(3, 4, 32),
        "k": floats(3, 2, 32),
        "v": floats(3, 2, 32),
        "k_cache": floats(4, 2, 16, 32),
        "v_cache": floats(4, 2, 16, 32),
        "slot_mapping": ints([0, 17, -1], torch.int64),
        "positions": ints([0, 1, 2]),
        "cos_sin": floats(8, 32),
        "interleaved": False,
        "hadamard": False,
        "q_norm_weight": floats(32),
        "k_norm_weight": floats(32),
        "eps": 1e-6,
        "k_scale": None,
        "v_scale": None,
    }


def linear_call() -> Arguments:
    return {
        "x": floats(3, 64),
        "weight": floats(32, 64),
        "bias": floats(32),
        "norm_weight": floats(64),
        "norm_eps": 1e-6,
        "silu_mul": False,
        "accumulate": False,
        "activation_bits": None,
        "out": None,
        "workspace": None,
    }


def expert_linear_call() -> Arguments:
    return {
        "x": floats(3, 64),
        "weight": floats(96, 64),
        "offsets": ints([0, 2, 2, 4]),
        "x_rows": ints([0, 1, 1, 2]),
        "bias": floats(96),
        "norm_weight": floats(64),
        "norm_eps": 1e-6,
        "silu_mul": True,
        "swiglu_limit": 7.0,
        "activation_bits": None,
        "out": None,
        "workspace": None,
    }


def sample_call() -> Arguments:
    return {
        "logits": floats(2, 50),
        "token_ids": None,
        "status": None,
        "logprobs": None,
        "kept": None,
        "num_kept": None,
        "processed_logprobs": None,
        "workspace": None,
        "temperature": floats(2).abs(),
        "top_k": ints([3, 0]),
        "top_p": torch.tensor([0.5, 1.0]),
        "min_p": torch.tensor([0.0, 0.1]),
        "seeds": ints([1, 2], torch.int64),
        "positions": ints([0, 9], torch.int64),
        "penalty_ids": ints([1, 2, 3]),
        "penalty_counts": ints([1, 0, 2]),
        "cu_penalties": ints([0, 2, 3]),
        "repetition_penalty": torch.tensor([1.1, 1.0]),
        "presence_penalty": torch.tensor([0.1, 0.0]),
        "frequency_penalty": torch.tensor([0.1, 0.0]),
        "bias_ids": ints([4]),
        "bias_values": torch.tensor([1.5]),
        "cu_bias": ints([0, 1, 1]),
        "allowed_mask": ints([-1, -1, -1, -1]).view(2, 2),
    }


CALLS: dict[str, Callable[[], Arguments]] = {
    "paged_attention": attention_call,
    "append_kv": append_call,
    "linear": linear_call,
    "linear packed": lambda: linear_call() | {"weight": packed(32, 64), "activation_bits": 9},
    "route_tokens": lambda: {"logits": floats(3, 6), "top_k": 2, "normalized": True, "out": None},
    "expert_linear": expert_linear_call,
    "expert_linear packed": lambda: (
        expert_linear_call() | {"weight": packed(96, 64), "activation_bits": 9}
    ),
    "combine_experts": lambda: {
        "y": floats(6, 64),
        "routing": ops.route_tokens(floats(3, 4), 2),
        "accumulate": True,
        "out": floats(3, 64),
    },
    "sample": sample_call,
    "merge_states": lambda: {
        "out_partial": floats(2, 3, 4, 32),
        "lse_partial": floats(2, 3, 4),
        "out": None,
        "lse": None,
    },
    "rms_norm": lambda: {
        "x": floats(3, 64),
        "weight": floats(64),
        "eps": 1e-6,
        "residual": floats(3, 64),
        "out": None,
    },
    "layer_norm": lambda: {
        "x": floats(3, 64),
        "weight": floats(64),
        "bias": floats(64),
        "eps": 1e-5,
        "residual": None,
        "out": None,
    },
    "silu_mul": lambda: {"gate_up": floats(3, 64), "out": None},
    "gelu_mul": lambda: {"gate_up": floats(3, 64), "tanh_approximation": True, "out": None},
    "gelu": lambda: {"x": floats(3, 64), "tanh_approximation": False, "out": None},
    "embedding": lambda: {
        "token_ids": ints([1, 3, 5]),
        "table": floats(8, 64),
        "dtype": None,
        "accumulate": False,
        "out": None,
    },
    "embedding packed": lambda: {
        "token_ids": ints([1, 3, 5], torch.int64),
        "table": packed(8, 64, "q8_0"),
        "dtype": torch.bfloat16,
        "accumulate": False,
        "out": None,
    },
    "token_logprobs": lambda: {
        "logits": floats(2, 50),
        "token_ids": ints([3, -1], torch.int64),
        "num_top": 5,
        "logprob": None,
        "rank": None,
        "top_ids": None,
        "top_logprobs": None,
        "workspace": None,
    },
    "quantize_weight": lambda: {"weight": floats(3, 64), "format": "q4_0", "blocks": None},
    "weight_formats": lambda: {},
    "pack_weight": lambda: {
        "blocks": torch.zeros(16, 36, dtype=torch.uint8),
        "format": "q4_0",
        "out": None,
    },
    "gate_and_up": lambda: {"gate": floats(32, 64), "up": floats(32, 64)},
    "packed_strip_bytes": lambda: {"format": "q4_1", "in_features": 64},
    "linear_workspace_size": lambda: {"num_tokens": 3, "in_features": 64},
    "sampling_workspace_size": lambda: {"vocab_size": 50, "device": "cpu", "batch_size": 2},
    "paged_attention_workspace_size": lambda: {
        "num_qo_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "max_seq_len": 64,
        "batch_size": 2,
        "num_tokens": 3,
        "deterministic": False,
        "device": "cpu",
    },
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.int32]
DTYPES += [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
SCALARS = [0, 1, -1, 2, 3, 7, 8, 9, 16, 33, 2**31, 2**40, -(2**63), 2**64, 10**30, True, False]
SCALARS += [0.0, 0.5, 1e-6, -1.0, 1e308, float("nan"), float("inf"), "q4_0", "q5_k", "", "cpu", "x"]
OTHERS = [None, [], [1.0, 2.0], {}, object(), b"bytes", 1j, torch.float32, torch.int64]


def change_tensor(t: torch.Tensor, r: random.Random) -> Any:
    """Another dtype, shape, layout, device, or other values."""
    kind = r.randrange(11)
    if kind == 0:
        return t.to(r.choice(DTYPES))
    if kind == 1:
        return t.reshape(-1)[0] if t.numel() else t
    if kind == 2:
        return t.unsqueeze(r.randrange(t.ndim + 1))
    if kind == 3 and t.ndim:
        return t.select(r.randrange(t.ndim), 0) if t.numel() else t
    if kind == 4 and t.ndim:
        dim = r.randrange(t.ndim)
        return t.narrow(dim, 0, r.randrange(t.shape[dim] + 1))
    if kind == 5 and t.ndim:
        dim = r.randrange(t.ndim)
        return torch.cat([t, t], dim)
    if kind == 6 and t.ndim > 1:
        return t.transpose(0, -1).contiguous().transpose(0, -1)
    if kind == 7:
        return t.flatten()[:1].expand(t.shape) if t.numel() else t
    if kind == 8:
        values = [0, -1, 1, 3, 2**31 - 1, -(2**31)]
        if t.is_floating_point() and t.element_size() > 1:
            values = [0, -1.0, 1e30, float("nan"), float("inf"), -float("inf")]
        if t.dtype in (torch.bool, torch.uint8):
            values = [0, 1]
        return torch.full_like(t, r.choice(values))
    if kind == 9:
        return t.to("meta")
    return t.repeat_interleave(2, -1)[..., ::2] if t.ndim else t


def arbitrary(value: Any, r: random.Random) -> Any:
    if isinstance(value, torch.Tensor) and r.random() < 0.8:
        return change_tensor(value, r)
    if isinstance(value, ops.PackedWeight) and r.random() < 0.6:
        shapes = [value.shape, (33, 64), (32, 32), (0, 64), (32, 0), (-1, 64), (32,), None]
        formats = [value.format, "q4_1", "q9", "", None]
        data = arbitrary(value.data, r)
        return lambda: ops.PackedWeight(data, r.choice(formats), r.choice(shapes))
    kind = r.randrange(4)
    if kind == 0:
        return r.choice(OTHERS)
    if kind == 1:
        return r.choice(SCALARS)
    if kind == 2:
        shape = [r.choice([0, 1, 2, 3, 5, 32, 64]) for _ in range(r.randrange(4))]
        return torch.zeros(shape, dtype=r.choice(DTYPES))
    return np.zeros((3, 64), np.float32)


def shown(arguments: Arguments) -> str:
    def text(value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{value.dtype}{list(value.shape)}, strides {value.stride()}, {value.device}"
        return repr(value)[:200]

    return "\n".join(f"    {name}: {text(value)}" for name, value in arguments.items())


def problem(name: str, seed: int) -> str:
    """A description of what went wrong; empty: nothing."""
    r = random.Random(f"{name} {seed}")
    torch.manual_seed(seed)
    arguments = CALLS[name]()
    for changed in r.sample(list(arguments), min(r.choice([1, 1, 1, 2, 3]), len(arguments))):
        arguments[changed] = arbitrary(arguments[changed], r)
    before = shown(arguments)
    call = getattr(ops, name.split()[0])
    names = {*arguments, *inspect.signature(call).parameters}
    if "routing" in arguments:
        names |= {"rows", "weights"}
    try:
        for changed, value in arguments.items():
            if callable(value):  # a packed weight, which checks its own fields
                names |= {"data", "format", "shape"}
                arguments[changed] = value()
        call(**arguments)
    except (ValueError, TypeError) as error:
        first = str(error).split(":")[0]
        if {part.strip() for part in first.split(",")} <= names:
            return ""
        return f"{name}({seed}): {type(error).__name__} names no argument: {error}\n{before}"
    except Exception as error:
        return f"{name}({seed}): {type(error).__name__}: {error}\n{before}"
    return ""


def problems(name: str, seeds: range) -> list[str]:
    return [found for seed in seeds if (found := problem(name, seed))]


@pytest.mark.parametrize("name", CALLS)
def test_the_call_itself_is_valid(name):
    getattr(ops, name.split()[0])(**CALLS[name]())


@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_named(name):
    found = problems(name, range(300))
    assert not found, "\n".join([f"{len(found)} calls", *found[:5]])


def check_close(actual: torch.Tensor, expected: torch.Tensor, floor: float) -> None:
    """floor: a bound for the rounding of sums in float32."""
    assert actual.shape == expected.shape
    if expected.numel():
        assert_close(actual, expected, floor=floor)


def check_linear(r: random.Random) -> None:
    num_tokens, in_features = r.choice([0, 1, 2, 5, 9, 33, 130]), r.randrange(1, 300)
    out_features = r.randrange(1, 130)
    gated = r.random() < 0.3
    if gated:
        out_features = 32 * r.randrange(1, 5)
    x, w = floats(num_tokens, in_features), floats(out_features, in_features)
    bias = floats(out_features) if r.random() < 0.5 else None
    norm = floats(in_features) if r.random() < 0.5 else None
    out = ops.linear(x, w, bias, norm_weight=norm, norm_eps=1e-5, silu_mul=gated)
    exact = x if norm is None else reference.rms_norm(x, norm, 1e-5)
    expected = reference.linear(exact, w, bias)
    if gated:
        gate, up = expected.unflatten(1, (-1, 2, 16)).unbind(2)
        expected = (reference.silu(gate) * up).flatten(1)
    check_close(out, expected, floor=2e-6 * max(in_features, 16) * (20 if gated else 1))


def check_norms(r: random.Random) -> None:
    num_tokens, size = r.choice([0, 1, 3, 40]), r.randrange(1, 700)
    x, weight, bias = floats(num_tokens, size), floats(size), floats(size)
    expected = reference.rms_norm(x, weight, 1e-5)
    check_close(ops.rms_norm(x, weight, 1e-5), expected, floor=1e-5)
    expected = reference.layer_norm(x, weight, bias, 1e-5)
    check_close(ops.layer_norm(x, weight, bias, 1e-5), expected, floor=3e-5)


def check_activations(r: random.Random) -> None:
    num_tokens, size = r.choice([0, 1, 3, 40]), r.randrange(1, 300)
    gate, up = floats(num_tokens, size), floats(num_tokens, size)
    both = torch.cat([gate, up], 1)
    check_close(ops.silu_mul(both), reference.silu(gate) * up.double(), floor=1e-5)
    for tanh in (False, True):
        expected = reference.gelu(gate, tanh)
        check_close(ops.gelu(gate, tanh_approximation=tanh), expected, floor=1e-5)


def check_attention(r: random.Random) -> None:
    num_kv_heads, page_size = r.randrange(1, 4), r.choice([1, 2, 8, 16, 64])
    heads, head_dim = num_kv_heads * r.randrange(1, 6), 4 * r.randrange(1, 65)
    seq_lens = [r.randrange(0, 400) for _ in range(r.randrange(1, 5))]
    query = [r.choice([0, min(n, 1), n, r.randrange(n + 5)]) for n in seq_lens]
    pages = paging.build(
        seq_lens, num_kv_heads, head_dim, page_size, torch.float32, torch.Generator()
    )
    q = floats(sum(query), heads, head_dim)
    options: Arguments = {"causal": r.random() < 0.8}
    options["soft_cap"] = r.choice([None, 5.0])
    options["sliding_window"] = r.choice([None, 1, 37, 300]) if options["causal"] else None
    cu = torch.tensor([0, *query]).cumsum(0).int()
    out = ops.paged_attention(
        q, pages.k_cache, pages.v_cache, pages.page_table, pages.seq_lens, cu, **options
    )
    for seq, (k, v) in enumerate(zip(pages.k, pages.v, strict=True)):
        rows = slice(int(cu[seq]), int(cu[seq + 1]))
        expected, _ = reference.attention(q[rows], k, v, head_dim**-0.5, **options)
        check_close(out[rows], expected, floor=2e-5)


CHECKS = [check_linear, check_norms, check_activations, check_attention]


@pytest.mark.parametrize("check", CHECKS)
def test_arbitrary_shapes(isa, check):
    for seed in range(20):
        torch.manual_seed(seed)
        check(random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_arbitrary_shapes_long(isa, check):
    for seed in range(20, 3000):
        torch.manual_seed(seed)
        check(random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_are_named_long(name):
    found = problems(name, range(300, 20_000))
    assert not found, "\n".join([f"{len(found)} calls", *found[:5]])
