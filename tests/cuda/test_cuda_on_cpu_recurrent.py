# SPDX-License-Identifier: Apache-2.0
"""Ops with a state of csrc/cuda/ on the CPU, under sanitizers. No GPU needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compare import assert_close

from cuda_on_cpu.fixtures import blank, padded
from lampo import ops

pytestmark = pytest.mark.long

DTYPES = [torch.float32, torch.bfloat16]
# New tokens of sequences, and the position of the first. More blocks than a grid has here.
RAGGED = [(1, 0), (4, 3), (0, 7), (9, 0), (1, 100)]


def batch(lengths: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    counts = torch.tensor([count for count, _ in lengths])
    return {
        "state_slots": torch.arange(len(lengths), 0, -1),
        "seq_lens": torch.tensor([sum(pair) for pair in lengths], dtype=torch.int32),
        "cu_seqlens_q": torch.cat([torch.zeros(1), counts.cumsum(0)]).to(torch.int32),
    }


def in_both_orders(client: Any, name: str, given: dict[str, Any], out: torch.Tensor) -> Any:
    """The output and the state, which may not depend on which thread is first."""
    results = []
    for order in ("forward", "backward"):
        written = blank(out.shape, 0, out.dtype), given["state"].clone()
        arguments = given | {"out": written[0], "state": written[1]}
        client.call(name, order=order, **arguments)
        results.append(written)
    (first, second) = results
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    return first


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 3, 4])
def test_causal_conv(client, dtype, width):
    """As the CPU's kernel, with gates or silu; sums have the same order."""
    gated, channels = width == 3, 131
    total = sum(count for count, _ in RAGGED)
    given = {
        "x": padded((total, channels), 3, dtype),
        "weight": padded((width, channels), 0, torch.float32),
        "state": padded((7, width - 1, channels), 0, torch.float32),
        **batch(RAGGED),
    }
    if gated:
        given |= {"gate_in": padded((total, channels), 1, dtype)}
        given |= {"gate_out": padded((total, channels), 2, dtype)}
    else:
        given |= {"bias": padded((channels,), 0, torch.float32)}
    expected_state = given["state"].clone()
    expected = ops.causal_conv(**given | {"state": expected_state}, silu=not gated)
    out, state = in_both_orders(client, "causal_conv", given | {"silu": not gated}, given["x"])
    assert torch.equal(state, expected_state)
    assert_close(out, expected.double(), floor=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "dims", "tiled"), [((1, 2), (16, 40), False), ((2, 4), (40, 16), True)]
)
@pytest.mark.parametrize("gated", [False, True])
def test_gated_delta(client, dtype, heads, dims, tiled, gated):
    (key_heads, value_heads), (key_dim, value_dim) = heads, dims
    total = sum(count for count, _ in RAGGED)
    given: dict[str, Any] = {
        "q": padded((total, key_heads, key_dim), 3, dtype),
        "k": padded((total, key_heads, key_dim), 5, dtype),
        "v": padded((total, value_heads, value_dim), 3, dtype),
        "a": padded((total, value_heads), 3, dtype),
        "b": padded((total, value_heads), 5, dtype),
        "decay": -padded((value_heads,), 0, torch.float32).abs(),
        "dt_bias": padded((value_heads,), 0, torch.float32),
        "state": padded((7, value_heads, key_dim, value_dim), 0, torch.float32),
        **batch(RAGGED),
    }
    if gated:
        given |= {"gate": padded((total, value_heads, value_dim), 1, dtype)}
        given |= {"norm_weight": padded((value_dim,), 0, torch.float32)}
    options: dict[str, Any] = {"tiled": tiled, "scale": key_dim**-0.5, "eps": 1e-6}
    expected_state = given["state"].clone()
    expected = ops.gated_delta(**given | {"state": expected_state}, **options)
    out, state = in_both_orders(client, "gated_delta", given | options, given["v"])
    assert_close(state, expected_state.double(), floor=2e-5)
    assert_close(out, expected.double(), floor=1e-4)


def test_split_calls_give_the_same_bits(client):
    """Nine tokens in one call, and in calls of four, one and four."""
    shape = {"q": (9, 1, 16), "k": (9, 1, 16), "v": (9, 2, 24), "a": (9, 2), "b": (9, 2)}
    tokens = {name: padded(size, 0, torch.float32) for name, size in shape.items()}
    given: dict[str, Any] = {
        "decay": torch.tensor([-1.0, -0.1]),
        "dt_bias": torch.tensor([0.5, -1.0]),
        **{"tiled": False, "scale": 0.25, "eps": 1e-6},
    }
    parts = []
    state = torch.full((1, 2, 16, 24), float("nan"))
    for first, count in ((0, 4), (4, 1), (5, 4)):
        part = {name: t[first : first + count].clone() for name, t in tokens.items()}
        out = blank(part["v"].shape, 0, torch.float32)
        lengths = batch([(count, first)]) | {"state_slots": torch.tensor([0])}
        client.call("gated_delta", **given, **part, **lengths, state=state, out=out)
        parts.append(out)
    whole, at_once = blank((9, 2, 24), 0, torch.float32), torch.zeros(1, 2, 16, 24)
    lengths = batch([(9, 0)]) | {"state_slots": torch.tensor([0])}
    client.call("gated_delta", **given, **tokens, **lengths, state=at_once, out=whole)
    assert torch.equal(torch.cat(parts), whole) and torch.equal(state, at_once)


def test_slots_out_of_range_are_skipped(client):
    """On a GPU values are not checked: nothing is written for such a sequence."""
    given = {
        "x": padded((2, 8), 0, torch.float32),
        "weight": padded((3, 8), 0, torch.float32),
        "state": padded((2, 2, 8), 0, torch.float32),
        **batch([(1, 5), (1, 5)]),
        "silu": False,
    }
    given["state_slots"] = torch.tensor([-1, 2])
    before, out = given["state"].clone(), blank((2, 8), 0, torch.float32)
    client.call("causal_conv", **given, out=out)
    assert torch.equal(given["state"], before) and torch.equal(out, blank(out.shape, 0, out.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_mul(client, dtype):
    x, gate = padded((3, 5, 70), 3, dtype), padded((3, 5, 70), 1, dtype)
    out = blank((3, 5, 70), 0, dtype)
    client.call("sigmoid_mul", x=x, gate=gate, out=out)
    assert_close(out, x.double() * torch.sigmoid(gate.double()), floor=1e-6)
