# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from compare import SENTINEL, assert_close
from quantized_weights import FORMATS, quantized, whole_blocks

from lampo import _C, ops
from lampo.bench import reference
from lampo.runtime.program import Program

DTYPES = [torch.float32, torch.bfloat16]
# Rows per expert: one expert, some without rows, all rows at one, more than a block, many experts.
COUNTS = {
    "one": [5],
    "empty": [3, 0, 1, 0],
    "last": [0, 0, 0, 21],
    "ragged": [17, 1, 0, 40, 2],
    "many": [i % 3 for i in range(128)],
}


def offsets_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def weight_of(
    num_experts: int, rows: int, columns: int, kind: str | torch.dtype, generator: torch.Generator
) -> tuple[ops.Weight, list[ops.Weight], torch.Tensor]:
    """Weights of all experts: as one, one by one, and [num_experts, rows, columns] float32."""
    if isinstance(kind, torch.dtype):
        dense = torch.randn(num_experts * rows, columns, generator=generator).to(kind)
        return dense, list(dense.split(rows)), dense.float().view(num_experts, rows, columns)
    blocks, values = quantized(num_experts * rows, columns, kind, generator)
    parts = [ops.pack_weight(part, kind) for part in blocks.split(rows)]
    return ops.pack_weight(blocks, kind), parts, values.view(num_experts, rows, columns)


@pytest.mark.parametrize("num_experts", [1, 7, 8, 128])
@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 100])
def test_route(isa, generator, num_experts, top_k, normalized, num_tokens):
    top_k = min(top_k, num_experts)
    logits = (torch.randn(num_tokens, num_experts + 3, generator=generator) * 4)[:, :num_experts]
    logits[::3] = logits[::3].round()  # equal ones: the lower number goes first
    routing = ops.route_tokens(logits, top_k, normalized=normalized)
    experts, weights = reference.route_tokens(logits, top_k, normalized)
    assert torch.equal(routing.experts.long(), experts)
    if num_tokens:
        assert_close(routing.weights, weights, floor=1e-6)
    # Rows are the pairs in the order of experts, then of tokens.
    order = experts.flatten().sort(stable=True).indices
    assert torch.equal(routing.x_rows.long(), order // top_k)
    assert torch.equal(routing.rows.flatten()[order].long(), torch.arange(len(order)))
    counts = experts.flatten().bincount(minlength=num_experts).tolist()
    assert torch.equal(routing.offsets, offsets_of(counts))


def test_what_is_not_finite_makes_weights_nan_and_experts_remain_distinct(isa):
    logits = torch.randn(4, 6)
    logits[0, 2], logits[1] = torch.nan, torch.nan
    logits[2] = -torch.inf
    routing = ops.route_tokens(logits, 3)
    assert routing.weights[:3].isnan().all() and routing.weights[3].isfinite().all()
    for experts in routing.experts.tolist():
        assert len(set(experts)) == 3 and all(0 <= e < 6 for e in experts)
    assert 2 not in routing.experts[0]


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, "q8_0"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_against_the_reference(isa, generator, counts, kind, dtype):
    weight, _, dense = weight_of(len(counts), 32, 96, kind, generator)
    x = torch.randn(sum(counts), 99, generator=generator).to(dtype)[:, :96]
    bias = torch.randn(len(counts) * 32, generator=generator)
    out = torch.full((len(x), 35), SENTINEL, dtype=dtype)[:, :32]
    ops.expert_linear(x, weight, offsets_of(counts), bias=bias, activation_bits=16, out=out)
    expert_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    expected = reference.expert_linear(x, dense, bias.view(-1, 32), expert_of)
    # 16-bit activations: 4e-5 of each group's largest.
    assert_close(out, expected, expected.to(dtype), floor=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", [*FORMATS, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("counts", ["empty", "ragged"])
def test_a_row_is_that_of_linear_with_its_experts_weight(isa, generator, kind, counts):
    """To the bit: gathered or not, with a norm, a gate and biases, for any number of threads."""
    counts = COUNTS[counts]
    columns = whole_blocks(96, kind) if isinstance(kind, str) else 100
    weight, parts, _ = weight_of(len(counts), 64, columns, kind, generator)
    offsets, num_rows = offsets_of(counts), sum(counts)
    x = torch.randn(9, columns, generator=generator)
    x_rows = torch.randint(9, (num_rows,), generator=generator, dtype=torch.int32)
    bias = torch.randn(len(counts) * 64, generator=generator)
    for bits in (8, 9, 16) if isinstance(kind, str) else (8, 16):
        fused = {
            "norm_weight": torch.randn(columns, generator=generator),
            "silu_mul": True,
            "activation_bits": bits,
        }
        calls: list[tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]] = [
            (x, x_rows, fused),
            (x[x_rows], None, fused),
            (x[x_rows], None, {"activation_bits": bits}),
        ]
        for rows, gathered, options in calls:
            expected = torch.cat(
                [
                    ops.linear(x[own], part, part_of_bias, **options)
                    for own, part, part_of_bias in zip(
                        x_rows.split(counts), parts, bias.split(64), strict=True
                    )
                ]
            )
            for threads in (1, 2, 3):
                out = with_threads(
                    threads, ops.expert_linear, rows, weight, offsets, gathered, bias, **options
                )
                assert torch.equal(out, expected)


def with_threads(count: int, fn: Any, *args: Any, **options: Any) -> Any:
    before = _C.num_threads()
    _C.set_num_threads(count)
    try:
        return fn(*args, **options)
    finally:
        _C.set_num_threads(before)


@pytest.mark.parametrize("kind", ["q4_k", "mxfp4", torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 30])
@pytest.mark.parametrize("limit", [0.0, 1.5])
def test_layer(isa, generator, kind, num_tokens, limit):
    """A whole layer, with experts of a token in any batch: the same bits."""
    hidden, size, num_experts, top_k = 256, 256, 12, 3
    logits = torch.randn(num_tokens, num_experts, generator=generator)
    x = torch.randn(num_tokens, hidden, generator=generator) * 3
    gate_up, _, gate_up_values = weight_of(num_experts, 2 * size, hidden, kind, generator)
    down, _, down_values = weight_of(num_experts, hidden, size, kind, generator)
    norm = torch.rand(hidden, generator=generator) / gate_up_values.std() / hidden**0.5

    def layer(rows: slice) -> torch.Tensor:
        routing = ops.route_tokens(logits[rows], top_k)
        options: dict[str, Any] = {"silu_mul": True, "swiglu_limit": limit, "activation_bits": 16}
        activated = ops.expert_linear(
            x[rows], gate_up, routing.offsets, routing.x_rows, norm_weight=norm, **options
        )
        y = ops.expert_linear(activated, down, routing.offsets, activation_bits=16)
        return ops.combine_experts(y, routing, accumulate=True, out=x[rows].clone())

    found = layer(slice(None))
    experts, weights = reference.route_tokens(logits, top_k, True)
    expected = x.double()
    normed = reference.rms_norm(x, norm, 1e-6)
    for rank in range(top_k):
        y = reference.expert_linear(normed, gate_up_values, None, experts[:, rank])
        y = reference.gate_columns(y, limit)
        y = reference.expert_linear(y, down_values, None, experts[:, rank])
        expected = expected + weights[:, rank, None] * y
    # 16-bit activations, and in a product of two bfloat16 2^-16 of the largest.
    assert_close(found, expected, floor=1e-3 * float((expected - x).abs().max()))
    for i in range(num_tokens):
        assert torch.equal(layer(slice(i, i + 1)), found[i : i + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("y_dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_combine(isa, generator, dtype, y_dtype, accumulate):
    if y_dtype == torch.bfloat16 and dtype == torch.float32:
        pytest.skip("y is float32 or as out")
    routing = ops.route_tokens(torch.randn(7, 9, generator=generator), 4)
    y = torch.randn(28, 700, generator=generator).to(y_dtype)
    before = torch.randn(7, 700, generator=generator).to(dtype)
    out = before.clone()
    assert ops.combine_experts(y, routing, accumulate=accumulate, out=out) is out
    expected = reference.combine_experts(y, routing.rows, routing.weights)
    expected = expected + (before.double() if accumulate else 0)
    assert_close(out, expected, floor=1e-6)


def test_programs_choose_experts_anew(isa, generator):
    """The choice is data of a step: a recorded layer follows new logits."""
    logits, x = torch.randn(2, 8, generator=generator), torch.randn(2, 64, generator=generator)
    weight, _, _ = weight_of(8, 64, 64, "q8_0", generator)
    routing = ops.route_tokens(logits, 2)
    y, out = torch.empty(4, 64), torch.empty(2, 64)
    workspace = torch.empty(ops.linear_workspace_size(4, 64), dtype=torch.uint8)

    def layer() -> None:
        ops.route_tokens(logits, 2, out=routing)
        ops.expert_linear(x, weight, routing.offsets, routing.x_rows, out=y, workspace=workspace)
        ops.combine_experts(y, routing, out=out)

    program = Program()
    with program.record():
        layer()
    for _ in range(3):
        logits.copy_(torch.randn(2, 8, generator=generator))
        program.replay()
        found = out.clone()
        layer()
        assert torch.equal(found, out)
    assert any("expert_linear [8, 64, 64] q8_0" in op.name for op in program.profile())


def test_values_out_of_range_are_clamped(isa, generator):
    """Offsets and rows come from other ops: wrong ones never lead out of a tensor."""
    weight, _, _ = weight_of(3, 32, 64, "q8_0", generator)
    x = torch.randn(2, 64, generator=generator)
    for offsets in ([0, 2**31 - 1, -(2**31), 9], [5, 4, 3, 2], [-1, 4, 4, 99]):
        for x_rows in ([0, 1, 2, 3], [-7, 2**31 - 1, 5, -(2**31)]):
            ops.expert_linear(
                x, weight, torch.tensor(offsets).int(), torch.tensor(x_rows).int(), silu_mul=True
            )
            ops.expert_linear(
                x[:1], weight, torch.tensor(offsets).int(), torch.tensor(x_rows).int()
            )
    routing = ops.route_tokens(torch.randn(2, 3, generator=generator), 2)
    routing.rows.fill_(99)
    out = ops.combine_experts(x, routing, out=torch.empty(2, 64))
    assert torch.allclose(out, x[1].expand(2, 64), atol=1e-5)


def test_bad_arguments(generator):
    weight, _, _ = weight_of(4, 32, 64, "q8_0", generator)
    x, offsets = torch.zeros(6, 64), offsets_of([1, 2, 0, 3])
    with pytest.raises(ValueError, match="top_k: expected 1 to 64, and no more than the 4 experts"):
        ops.route_tokens(torch.zeros(2, 4), 5)
    with pytest.raises(TypeError, match="logits: expected float32, got bfloat16"):
        ops.route_tokens(torch.zeros(2, 4, dtype=torch.bfloat16), 2)
    with pytest.raises(ValueError, match="weight: expected a multiple of the 3 experts"):
        ops.expert_linear(x, weight, offsets[1:])
    with pytest.raises(ValueError, match="offsets"):
        ops.expert_linear(x, weight, offsets[:0])
    with pytest.raises(TypeError, match="offsets: expected int32, got int64"):
        ops.expert_linear(x, weight, offsets.long())
    with pytest.raises(ValueError, match=r"bias: expected shape \[128\], got \[32\]"):
        ops.expert_linear(x, weight, offsets, bias=torch.zeros(32))
    with pytest.raises(ValueError, match=r"x: expected shape \[5, \*\], got \[6, 64\]"):
        ops.expert_linear(x, weight, offsets, out=torch.zeros(5, 32))
    with pytest.raises(ValueError, match="x: expected at least one row, got none"):
        ops.expert_linear(x[:0], weight, offsets, torch.zeros(6, dtype=torch.int32))
    with pytest.raises(ValueError, match="swiglu_limit: expected 0 without silu_mul"):
        ops.expert_linear(x, weight, offsets, swiglu_limit=7.0)
    with pytest.raises(ValueError, match="out: expected a multiple of 16 rows of weight"):
        ops.expert_linear(x, torch.zeros(4 * 24, 64), offsets)
    with pytest.raises(ValueError, match="activation_bits: expected 8 or 16, got 9"):
        ops.expert_linear(x, torch.zeros(4 * 32, 64), offsets, activation_bits=9)
    with pytest.raises(ValueError, match="workspace: expected at least"):
        ops.expert_linear(x, weight, offsets, workspace=torch.empty(3, dtype=torch.uint8))
    routing = ops.route_tokens(torch.zeros(3, 4), 2)
    with pytest.raises(ValueError, match=r"y: expected shape \[\*, 64\], got \[6, 32\]"):
        ops.combine_experts(torch.zeros(6, 32), routing, out=torch.zeros(3, 64))
    with pytest.raises(ValueError, match=r"rows: expected shape \[2, \*\], got \[3, 2\]"):
        ops.combine_experts(x, routing, out=torch.zeros(2, 64))
    with pytest.raises(TypeError, match="routing: expected a Routing"):
        ops.combine_experts(x, None, out=torch.zeros(3, 64))  # type: ignore[arg-type]


def test_opcheck(generator):
    weight, _, _ = weight_of(4, 32, 64, "q8_0", generator)
    logits = torch.randn(3, 4, generator=generator)
    r = ops.route_tokens(logits, 2)
    x, memory = torch.randn(3, 64), torch.empty(1 << 12, dtype=torch.uint8)
    assert isinstance(weight, ops.PackedWeight)
    torch.library.opcheck(
        torch.ops.lampo.route_tokens.default,
        (logits, True, r.experts, r.weights, r.rows, r.x_rows, r.offsets),
    )
    fused = (None, 0.0, True, 7.0)
    for matrix, format in ((weight.data, "q8_0"), (torch.randn(128, 64), None)):
        torch.library.opcheck(
            torch.ops.lampo.expert_linear.default,
            (
                x,
                matrix,
                format,
                16,
                None,
                r.offsets,
                r.x_rows,
                *fused,
                torch.zeros(6, 16),
                memory,
            ),
        )
    torch.library.opcheck(
        torch.ops.lampo.combine_experts.default,
        (torch.randn(6, 64), r.rows, r.weights, True, torch.randn(3, 64)),
    )
