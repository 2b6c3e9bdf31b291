# SPDX-License-Identifier: Apache-2.0
"""Ops with a state: against float64, and the same bits however tokens are divided into calls."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from compare import SENTINEL, assert_close

from lampo import _C, ops
from lampo.bench import reference
from lampo.runtime.program import Program

DTYPES = [torch.float32, torch.bfloat16]
# Of sequences in a batch: new tokens, and the position of the first.
RAGGED = [(1, 0), (5, 3), (0, 7), (33, 0), (1, 100), (16, 1)]
Arguments = dict[str, Any]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = _C.num_threads()
    _C.set_num_threads(request.param)
    yield request.param
    _C.set_num_threads(before)


def batch(lengths: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """The sequences' slots, in reverse order, and lengths."""
    counts = torch.tensor([count for count, _ in lengths])
    return {
        "state_slots": torch.arange(len(lengths), 0, -1),
        "seq_lens": torch.tensor([sum(pair) for pair in lengths], dtype=torch.int32),
        "cu_seqlens_q": torch.cat([torch.zeros(1), counts.cumsum(0)]).to(torch.int32),
    }


def strided(*shape: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Random rows that lie further apart than they are long."""
    values = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator)
    return values.to(dtype)[..., : shape[-1]]


def conv_arguments(
    lengths: list[tuple[int, int]],
    width: int,
    channels: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    gated: bool,
    biased: bool,
) -> Arguments:
    total = sum(count for count, _ in lengths)

    def tokens() -> torch.Tensor:
        return strided(total, channels, dtype=dtype, generator=generator)

    return {
        "x": tokens(),
        "weight": torch.randn(width, channels, generator=generator),
        "state": torch.randn(len(lengths) + 2, width - 1, channels, generator=generator),
        **batch(lengths),
        "bias": torch.randn(channels, generator=generator) if biased else None,
        "gate_in": tokens() if gated else None,
        "gate_out": tokens() if gated else None,
        "silu": not gated,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "channels"), [(2, 1), (3, 70), (4, 131)])
@pytest.mark.parametrize("gated", [False, True])
def test_causal_conv(isa, generator, dtype, width, channels, gated):
    args = conv_arguments(
        RAGGED, width, channels, dtype, generator, gated=gated, biased=channels != 131
    )
    before = args["state"].clone()
    out = torch.full_like(args["x"], SENTINEL)
    assert ops.causal_conv(**args, out=out) is out
    for i, (count, start) in enumerate(RAGGED):
        first, end = args["cu_seqlens_q"][i : i + 2].tolist()
        slot = args["state_slots"][i]
        history = before[slot] if start else torch.zeros_like(before[slot])
        x = args["x"][first:end].float()
        x = x if not gated else x * args["gate_in"][first:end].float()
        y = reference.causal_conv(
            x, args["weight"], history, bias=args["bias"], with_silu=args["silu"]
        )
        expected = y * args["gate_out"][first:end].double() if gated else y
        if count:
            floor = 4e-6 * (1 + float(expected.abs().max()))  # a sum of up to five products
            assert_close(out[first:end], expected, floor=floor)
            assert torch.equal(args["state"][slot], torch.cat([history, x])[-(width - 1) :])
        else:
            assert torch.equal(args["state"][slot], before[slot])
    unused = [0, len(RAGGED) + 1]
    assert torch.equal(args["state"][unused], before[unused])


def delta_arguments(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    dims: tuple[int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    gated: bool = True,
) -> Arguments:
    total, (key_heads, value_heads), (key_dim, value_dim) = (
        sum(count for count, _ in lengths),
        heads,
        dims,
    )

    def tokens(*shape: int) -> torch.Tensor:
        return strided(total, *shape, dtype=dtype, generator=generator)

    state = torch.randn(len(lengths) + 2, value_heads, key_dim, value_dim, generator=generator)
    return {
        "q": tokens(key_heads, key_dim),
        "k": tokens(key_heads, key_dim),
        "v": tokens(value_heads, value_dim),
        "a": tokens(value_heads),
        "b": tokens(value_heads),
        "decay": -torch.rand(value_heads, generator=generator) * 4,
        "dt_bias": torch.randn(value_heads, generator=generator),
        "state": state / 4,
        **batch(lengths),
        "scale": key_dim**-0.5,
        "gate": tokens(value_heads, value_dim) if gated else None,
        "norm_weight": torch.randn(value_dim, generator=generator) if gated else None,
    }


def expected_delta(args: Arguments, before: torch.Tensor, tiled: bool) -> torch.Tensor:
    """The outputs in float64; checks the states on the way."""
    out = torch.zeros(args["v"].shape, dtype=torch.float64)
    num_heads, key_heads = args["v"].shape[1], args["q"].shape[1]
    cu = args["cu_seqlens_q"].tolist()
    for i, (first, end) in enumerate(pairwise(cu)):
        slot = args["state_slots"][i]
        begins = args["seq_lens"][i] == end - first
        for h in range(num_heads):
            key_head = h % key_heads if tiled else h // (num_heads // key_heads)
            state = before[slot, h] * (0 if begins and end > first else 1)
            out[first:end, h], state = reference.gated_delta(
                *(args[name][first:end, key_head] for name in ("q", "k")),
                *(args[name][first:end, h] for name in ("v", "a", "b")),
                *(args[name][h] for name in ("decay", "dt_bias")),
                *(state, args["scale"]),
            )
            # Every token adds some roundings to a state of this size.
            floor = 3e-6 * (1 + float(state.abs().max()))
            assert_close(args["state"][slot, h], state, floor=floor)
    if args["gate"] is not None:
        rms = torch.sqrt((out * out).mean(-1, keepdim=True) + 1e-6)
        out = out / rms * args["norm_weight"].double() * reference.silu(args["gate"])
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "dims", "tiled"),
    [((1, 1), (1, 1), False), ((2, 4), (33, 70), False), ((2, 6), (16, 128), True)],
)
@pytest.mark.parametrize("gated", [False, True])
def test_gated_delta(isa, generator, dtype, heads, dims, tiled, gated):
    args = delta_arguments(RAGGED, heads, dims, dtype, generator, gated=gated)
    before = args["state"].clone()
    out = torch.full_like(args["v"], SENTINEL)
    assert ops.gated_delta(**args, tiled=tiled, out=out) is out
    expected = expected_delta(args, before, tiled)
    # The norm divides by the root of eps at least where an output is near zero.
    floor = 1e-5 * (1 + float(expected.abs().max())) * (20 if gated and dims[1] == 1 else 1)
    assert_close(out, expected, floor=floor)


def test_extreme_decays(isa, generator):
    """A state that is forgotten at once, one that is kept for ever, gates at their ends."""
    args = delta_arguments([(40, 9)], (1, 4), (8, 16), torch.float32, generator, gated=False)
    args["decay"] = torch.tensor([-1e30, -1e-30, -1.0, -20.0])
    args["dt_bias"] = torch.tensor([50.0, 0.0, -1e4, 1e4])
    args["b"][:, 2:] = torch.tensor([100.0, -100.0])
    before = args["state"].clone()
    out = ops.gated_delta(**args)
    assert_close(out, expected_delta(args, before, False), floor=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["causal_conv", "gated_delta"])
def test_bits_do_not_depend_on_calls(isa, threads, generator, dtype, op):
    """In one call, token by token, in ragged chunks, beside others: the same bits."""
    function = getattr(ops, op)
    lengths = [(37, 0), (37, 5), (3, 0)]
    if op == "causal_conv":
        args = conv_arguments(lengths, 4, 70, dtype, generator, gated=False, biased=True)
    else:
        args = delta_arguments(lengths, (2, 4), (16, 24), dtype, generator)
    per_token = [n for n in ("x", "q", "k", "v", "a", "b", "gate") if args.get(n) is not None]
    start = args.pop("state")
    together = start.clone()
    out = function(**args, state=together)
    for chunks in ([1] * 37, [16, 16, 5], [7, 1, 29]):
        state = start.clone()
        done = lengths[1][1]
        parts = []
        for count in chunks:
            first = 37 + done - lengths[1][1]
            part = args | {name: args[name][first : first + count] for name in per_token}
            part |= {
                "state_slots": args["state_slots"][1:2],
                "seq_lens": torch.tensor([done + count], dtype=torch.int32),
                "cu_seqlens_q": torch.tensor([0, count], dtype=torch.int32),
            }
            parts.append(function(**part, state=state))
            done += count
        assert torch.equal(torch.cat(parts), out[37:74])
        slot = args["state_slots"][1]
        assert torch.equal(state[slot], together[slot])


@pytest.mark.parametrize("op", ["causal_conv", "gated_delta"])
def test_begins_with_zeros_whatever_the_slot_holds(isa, generator, op):
    function = getattr(ops, op)
    if op == "causal_conv":
        args = conv_arguments([(2, 0)], 3, 5, torch.float32, generator, gated=False, biased=False)
    else:
        args = delta_arguments([(2, 0)], (1, 1), (4, 8), torch.float32, generator)
    expected = function(**args)
    args["state"].fill_(float("nan"))
    assert torch.equal(function(**args), expected)


def test_in_place_and_padding(isa, generator):
    """Outputs over inputs; rows after the last sequence's stay."""
    args = delta_arguments([(3, 0)], (1, 2), (8, 8), torch.float32, generator)
    expected = ops.gated_delta(**args)
    assert torch.equal(ops.gated_delta(**args, out=args["v"]), expected)
    conv = conv_arguments([(3, 0)], 3, 9, torch.float32, generator, gated=True, biased=False)
    expected = ops.causal_conv(**conv)
    assert torch.equal(ops.causal_conv(**conv, out=conv["gate_in"]), expected)
    out = torch.full((3, 9), SENTINEL)
    conv |= {"cu_seqlens_q": torch.tensor([0, 2], dtype=torch.int32)}
    conv |= {"seq_lens": torch.tensor([2], dtype=torch.int32)}
    ops.causal_conv(**conv, out=out)
    assert (out[2] == SENTINEL).all() and (out[:2] != SENTINEL).all()


def test_recorded(isa, generator):
    """A program replays with new lengths and slots, and checks them."""
    args = delta_arguments([(1, 4), (1, 0)], (1, 2), (8, 8), torch.float32, generator)
    start, out = args["state"].clone(), torch.zeros(2, 2, 8)
    program = Program()
    with program.record():
        ops.gated_delta(**args, out=out)
    args["state_slots"].copy_(torch.tensor([3, 0]))
    args["seq_lens"].copy_(torch.tensor([1, 9]))
    args["state"].copy_(start)
    program.replay()
    args["state"] = start
    assert torch.equal(out, ops.gated_delta(**args))
    args["state_slots"][0] = 4
    with pytest.raises(ValueError, match=r"state_slots: sequence 0: expected a slot in \[0, 4\)"):
        program.replay()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_mul(isa, threads, generator, dtype):
    both = strided(5, 3, 38, dtype=dtype, generator=generator)
    x, gate = both[..., :19], both[..., 19:] * 8
    expected = x.double() * torch.sigmoid(gate.double())
    assert_close(ops.sigmoid_mul(x, gate), expected, floor=1e-6)
    ops.sigmoid_mul(x, gate, out=x)
    assert_close(x, expected, floor=1e-6)


def test_opcheck(generator):
    conv = conv_arguments([(3, 2)], 3, 8, torch.float32, generator, gated=True, biased=True)
    out = torch.zeros(3, 8)
    names = "x weight bias state state_slots seq_lens cu_seqlens_q gate_in gate_out silu"
    arguments = (*(conv[name] for name in names.split()), out)
    torch.library.opcheck(torch.ops.lampo.causal_conv.default, arguments)
    delta = delta_arguments([(3, 2)], (1, 2), (8, 8), torch.float32, generator)
    delta |= {"tiled": False, "eps": 1e-6}
    names = "q k v a b decay dt_bias state state_slots seq_lens cu_seqlens_q tiled scale"
    arguments = (
        *(delta[name] for name in f"{names} gate norm_weight eps".split()),
        torch.zeros(3, 2, 8),
    )
    torch.library.opcheck(torch.ops.lampo.gated_delta.default, arguments)
    x = torch.randn(2, 3, 4)
    torch.library.opcheck(torch.ops.lampo.sigmoid_mul.default, (x, x + 1, torch.zeros(2, 3, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, dtype=torch.float16)}, "x: expected float32 or bfloat16, got f"),
        ({"weight": torch.zeros(5, 4)}, "weight: expected 2, 3 or 4 taps per channel, got 5"),
        ({"weight": torch.zeros(3, 5)}, r"weight: expected shape \[\*, 4\], got \[3, 5\]"),
        ({"bias": torch.zeros(3)}, r"bias: expected shape \[4\]"),
        ({"state": torch.zeros(2, 3, 4)}, r"state: expected shape \[\*, 2, 4\]"),
        ({"state": torch.zeros(2, 4, 2).mT}, "state: expected contiguous states"),
        ({"state": torch.zeros(2, 2, 4, dtype=torch.bfloat16)}, "state: expected float32"),
        ({"state_slots": torch.tensor([2])}, r"state_slots: sequence 0: expected a slot in"),
        ({"state_slots": torch.tensor([0], dtype=torch.int32)}, "state_slots: expected int64"),
        (
            {
                "state_slots": torch.tensor([1, 1]),
                "seq_lens": torch.tensor([1, 1], dtype=torch.int32),
                "cu_seqlens_q": torch.tensor([0, 1, 2], dtype=torch.int32),
            },
            "state_slots: sequence 1: slot 1 is another sequence's too",
        ),
        ({"seq_lens": torch.tensor([1], dtype=torch.int32)}, "seq_lens: sequence 0: expected at"),
        ({"cu_seqlens_q": torch.tensor([0, 3], dtype=torch.int32)}, "cu_seqlens_q: sequence 0: "),
        ({"cu_seqlens_q": torch.tensor([1, 2], dtype=torch.int32)}, "cu_seqlens_q: expected 0 f"),
        ({"gate_in": torch.zeros(2, 3)}, r"gate_in: expected shape \[2, 4\]"),
        ({"gate_out": torch.zeros(2, 4, dtype=torch.bfloat16)}, "gate_out: expected float32"),
        ({"out": torch.zeros(1, 4).expand(2, 4)}, "out: is written, so every stride"),
    ],
)
def test_bad_arguments_of_causal_conv(change, message):
    arguments: Arguments = {
        "x": torch.zeros(2, 4),
        "weight": torch.zeros(3, 4),
        "state": torch.zeros(2, 2, 4),
        "state_slots": torch.tensor([0]),
        "seq_lens": torch.tensor([2], dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, 2], dtype=torch.int32),
    } | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.causal_conv(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(2, 2, 257)}, "v: expected a value_dim of 1 to 256, got 257"),
        ({"q": torch.zeros(2, 1, 300)}, "q: expected a key_dim of 1 to 256, got 300"),
        ({"q": torch.zeros(2, 3, 8)}, r"q: expected a divisor of 2 heads \(those of v\)"),
        ({"k": torch.zeros(2, 2, 8)}, r"k: expected shape \[2, 1, 8\]"),
        ({"a": torch.zeros(2, 1)}, r"a: expected shape \[2, 2\]"),
        ({"b": torch.zeros(2, 2, dtype=torch.bfloat16)}, "b: expected float32, got bfloat16"),
        ({"decay": torch.zeros(1)}, r"decay: expected shape \[2\]"),
        ({"dt_bias": torch.zeros(2, dtype=torch.bfloat16)}, "dt_bias: expected float32"),
        ({"state": torch.zeros(1, 2, 8, 4)}, r"state: expected shape \[\*, 2, 8, 8\]"),
        ({"norm_weight": torch.zeros(8)}, "norm_weight: expected with a gate, and only with one"),
        ({"gate": torch.zeros(2, 2, 8)}, "norm_weight: expected with a gate, and only with one"),
        ({"scale": float("nan")}, "scale: expected a value in"),
        ({"out": torch.zeros(2, 2, 4)}, r"out: expected shape \[2, 2, 8\]"),
    ],
)
def test_bad_arguments_of_gated_delta(change, message):
    arguments: Arguments = {
        "q": torch.zeros(2, 1, 8),
        "k": torch.zeros(2, 1, 8),
        "v": torch.zeros(2, 2, 8),
        "a": torch.zeros(2, 2),
        "b": torch.zeros(2, 2),
        "decay": -torch.ones(2),
        "dt_bias": torch.zeros(2),
        "state": torch.zeros(1, 2, 8, 8),
        "state_slots": torch.tensor([0]),
        "seq_lens": torch.tensor([2], dtype=torch.int32),
        "cu_seqlens_q": torch.tensor([0, 2], dtype=torch.int32),
        "scale": 1.0,
    } | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.gated_delta(**arguments)


def test_bad_arguments_of_sigmoid_mul():
    with pytest.raises(ValueError, match=r"gate: expected shape \[2, 3, 4\]"):
        ops.sigmoid_mul(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"x: expected shape \[\*, \*, \*\]"):
        ops.sigmoid_mul(torch.zeros(2, 3), torch.zeros(2, 3))
