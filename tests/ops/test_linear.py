# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from compare import SENTINEL, assert_close
from quantized_weights import (
    FORMATS,
    KINDS,
    dequantized,
    quantized,
    random_blocks,
    whole_blocks,
)

from lampo import _C, ops
from lampo.bench import reference

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "shape", [(0, 3, 8), (1, 1, 1), (1, 5, 17), (7, 64, 96), (13, 67, 130), (101, 33, 577)]
)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("bits", [8, 16, None])
def test_dense(isa, generator, dtype, weight_dtype, shape, with_bias, bits):
    tokens, rows, columns = shape
    x = torch.randn(tokens, columns + 5, generator=generator).to(dtype)[:, :columns]
    weight = torch.randn(rows, columns + 2, generator=generator).to(weight_dtype)[:, :columns]
    bias = torch.randn(rows, generator=generator) if with_bias else None
    out = torch.full((tokens, rows + 3), SENTINEL, dtype=dtype)[:, :rows]
    assert ops.linear(x, weight, bias, activation_bits=bits, out=out) is out
    if tokens:
        if isa == "avx512" and weight_dtype == torch.bfloat16:
            rounded = reference.bfloat16_terms(x, bits or 16)
            assert (rounded - x).abs().max() <= 2.0 ** -(bits or 16) * x.abs().max()
            x = rounded
        plain = torch.nn.functional.linear(x.float(), weight.float(), bias)
        assert_close(out, reference.linear(x, weight, bias), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "shape", [(0, 16, 32), (1, 1, 32), (1, 16, 64), (3, 40, 96), (29, 100, 576)]
)
@pytest.mark.parametrize("bits", [8, 9, 16])
def test_packed(isa, generator, dtype, format, shape, bits):
    tokens, rows, columns = shape
    columns = whole_blocks(columns, format)
    blocks, dense = quantized(rows, columns, format, generator)
    weight = ops.pack_weight(blocks, format)
    assert weight.shape == (rows, columns)
    x = torch.randn(tokens, columns + 7, generator=generator).to(dtype)[:, :columns]
    if tokens > 1:
        x[1] = 0
        x[2:, columns // 2] *= 20  # 9 bits: the word with what stands out gets 16
        x[2::3, 0] *= 100
        x[-1, :32] = torch.nn.functional.one_hot(torch.tensor(7), 32)  # the others' largest is 0
    bias = torch.randn(rows, generator=generator).to(dtype) if rows == 40 else None
    out = torch.full((tokens, rows), SENTINEL, dtype=dtype)
    ops.linear(x, weight, bias, activation_bits=bits, out=out)
    if tokens:
        # Exactly the product on quantized activations, but for the rounding of float32 sums ...
        exact = format == "fp8_g128"
        rounded = x.double() if exact else reference.quantize_activations(x, bits)
        expected = reference.linear(rounded, dense, bias)
        plain = torch.nn.functional.linear(
            rounded.float(), dense, None if bias is None else bias.float()
        )
        # (of a single output, torch's may be small by chance)
        floor = 2.0**-23 * float((rounded.double().abs() @ dense.double().abs().T).max())
        assert_close(out, expected, plain, factor=4, floor=floor)
        # ... and near the product on the real ones: 1/254 of the group's largest, per factor.
        error = (rounded - x.double()).norm() / x.double().norm()
        assert error <= (0.0001 if bits == 16 else 0.02)


@pytest.mark.parametrize("format", ["q4_0", "q4_1", "q8_0"])
def test_integer_sums_do_not_overflow(isa, format):
    """Every quant and every activation at the end of its range, both signs."""
    size = {"q4_0": 18, "q4_1": 20, "q8_0": 34}[format]
    blocks = torch.zeros(16, 4 * size, dtype=torch.uint8).view(16, 4, size)
    blocks[:, :, 1] = 0x3C  # d = 1.0
    blocks[:8, :, size - (32 if format == "q8_0" else 16) :] = 0xFF
    blocks[8:, :, size - (32 if format == "q8_0" else 16) :] = 0x80 if format == "q8_0" else 0
    blocks = blocks.view(16, -1)
    dense = dequantized(blocks, format)
    x = torch.cat([torch.full((1, 128), 127.0), torch.full((1, 128), -127.0)])
    for bits in (8, 9, 16):
        out = ops.linear(x, ops.pack_weight(blocks, format), activation_bits=bits)
        assert torch.equal(out, x @ dense.T)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("codes", [0x00, 0xFF, 0x80, 0x77])
def test_codes_and_inputs_at_the_ends_of_their_ranges(isa, format, codes):
    """Integer sums do not overflow in any format: codes all alike, x at +-127 in each half."""
    columns = whole_blocks(512, format)
    generator = torch.Generator().manual_seed(codes)
    blocks = random_blocks(16, columns, format, generator)
    ends = torch.full_like(blocks, codes & 0xFE if format == "fp8_g128" else codes)  # no NaN
    scales = dequantized(blocks, format).abs().amax(1, keepdim=True)
    assert scales.isfinite().all()
    # Only the codes: bytes that hold scales stay as they are.
    layout = {"q2_k": (16, 80), "q3_k": (0, 96), "q4_k": (16, 144), "q5_k": (16, 176)}
    layout |= {"q6_k": (0, 192), "iq4_xs": (8, 136), "mxfp4": (1, 17), "nvfp4": (4, 36)}
    layout |= {"q4_0": (2, 18), "q4_1": (4, 20), "q8_0": (2, 34), "q5_0": (2, 22)}
    layout |= {"q5_1": (4, 24), "iq4_nl": (2, 18), "int4_g32": (3, 19), "int4_g64": (3, 35)}
    layout |= {"int4_g128": (5, 69), "int8_g128": (5, 133), "nvfp4_g128": (12, 76)}
    layout |= {"fp8_g128": (4, 132)}
    first, last = layout[format]
    size = _C.packed_block_bytes(format)
    blocks.view(16, -1, size)[..., first:last] = ends.view(16, -1, size)[..., first:last]
    dense = dequantized(blocks, format).double()
    signs = torch.tensor([1.0, -1.0])
    x = 127.0 * torch.cat([signs[:, None].expand(2, columns), signs.repeat(2, columns // 2)])
    x[3] = -x[3].roll(1)
    weight = ops.pack_weight(blocks, format)
    for bits in (8, 9, 16):
        out = ops.linear(x, weight, activation_bits=bits).double()
        expected = x.double() @ dense.T
        assert (out - expected).abs().max() <= 1e-5 * (x.abs().double() @ dense.abs().T).max()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bits", [8, 9, 16])
def test_what_is_not_finite_stays_so(isa, generator, format, bits):
    """Wherever in a group it is, for its own token alone."""
    columns = whole_blocks(64, format)
    blocks, _ = quantized(16, columns, format, generator)
    weight = ops.pack_weight(blocks, format)
    x = torch.randn(1, columns, generator=generator).repeat(34, 1)
    x[range(32), range(32)] = torch.nan
    x[32, 5], x[33, 40] = torch.inf, -torch.inf
    out = ops.linear(torch.cat([x, x.nan_to_num(1, 1, 1)]), weight, activation_bits=bits)
    assert not out[:34].isfinite().any()
    assert out[34:].isfinite().all()


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_codes_that_are_not_numbers(isa, generator, code):
    """Their block is NaN, and so is its row's product."""
    blocks, _ = quantized(17, 256, "fp8_g128", generator)
    blocks[5, 132 + 4 + 77] = code
    weight = ops.pack_weight(blocks, "fp8_g128")
    out = ops.linear(torch.randn(2, 256, generator=generator), weight)
    assert out[:, 5].isnan().all()
    assert out[:, [*range(5), *range(6, 17)]].isfinite().all()
    rows = ops.embedding(torch.arange(17), weight)
    assert rows[5, 128:].isnan().all()
    assert rows.isnan().sum() == 128


@pytest.mark.parametrize("bits", [8, 9, 16])
@pytest.mark.parametrize("format", FORMATS)
def test_instruction_sets_agree(generator, format, bits):
    """Integer sums are exact and groups are added in one order: the same bits, given fused adds."""
    isas = [name for name in _C.runnable_isas() if name != "baseline"]
    if len(isas) < 2:
        pytest.skip(f"this CPU runs only {isas or ['baseline']}")
    columns = whole_blocks(160, format)
    blocks, _ = quantized(48, columns, format, generator)
    weight = ops.pack_weight(blocks, format)
    x = torch.randn(21, columns, generator=generator)
    before = _C.cpu_isa()
    results = []
    for name in isas:
        _C.set_cpu_isa(name)
        results.append(ops.linear(x, weight, activation_bits=bits))
    _C.set_cpu_isa(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", [*KINDS, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize(("norm", "silu_mul", "accumulate"), list(product([False, True], repeat=3)))
def test_fused(isa, generator, dtype, format, tokens, norm, silu_mul, accumulate):
    """Norm before; gate and addition after: as the ops one by one in float64."""
    rows, columns = 96, whole_blocks(160, format) if isinstance(format, str) else 160
    if isinstance(format, str):
        blocks, dense = quantized(rows, columns, format, generator)
        weight = ops.pack_weight(blocks, format)
    else:
        weight = torch.randn(rows, columns, generator=generator).to(format)
        dense = weight.float()
    x = (torch.randn(tokens, columns + 3, generator=generator) * 3).to(dtype)[:, :columns]
    bias = torch.randn(rows, generator=generator)
    norm_weight = torch.randn(columns, generator=generator) if norm else None
    width = rows // 2 if silu_mul else rows
    before = torch.randn(tokens, width + 1, generator=generator).to(dtype)[:, :width]
    out = before.clone()
    ops.linear(
        x,
        weight,
        bias,
        norm_weight=norm_weight,
        norm_eps=1e-5,
        silu_mul=silu_mul,
        accumulate=accumulate,
        activation_bits=16,
        out=out,
    )

    def chain(x: torch.Tensor, cast: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if norm_weight is not None:
            x = reference.rms_norm(cast(x), cast(norm_weight), 1e-5)
        y = torch.nn.functional.linear(cast(x), cast(dense), cast(bias))
        if silu_mul:
            y = reference.gate_columns(y)
        return y + cast(before) if accumulate else y

    expected = chain(x, torch.Tensor.double)
    plain = chain(x, lambda t: t.to(torch.float32))
    # 16-bit activations: 4e-5 of each group's largest; a normed BF16 row is rounded once more.
    floor = (2e-4 if dtype == torch.float32 else 8e-3) * float(expected.abs().max())
    assert_close(out, expected, plain, factor=4, floor=floor)


@pytest.mark.parametrize("format", ["q4_1", torch.bfloat16])
def test_gate_and_up(generator, format):
    """Strips of 16 rows by turns; packed where they belong is the same."""
    if isinstance(format, str):
        parts = [quantized(32, 64, format, generator)[0] for _ in range(2)]
        gate, up = (ops.pack_weight(blocks, format) for blocks in parts)
        both = ops.gate_and_up(gate, up)
        assert both.shape == (64, 64) and both.format == format
        data = torch.empty_like(both.data)
        for i, blocks in enumerate(parts):
            ops.pack_weight(blocks, format, out=data.view(2, 2, -1)[:, i])
        assert torch.equal(data, both.data)
        rows = ops.embedding(torch.arange(64), both)
        gate, up = (ops.embedding(torch.arange(32), part) for part in (gate, up))
    else:
        gate, up = (torch.randn(32, 64, generator=generator).to(format) for _ in range(2))
        rows = ops.gate_and_up(gate, up)
    assert torch.equal(rows, torch.cat([gate[:16], up[:16], gate[16:], up[16:]]))


def test_gate_and_up_bad_arguments(generator):
    with pytest.raises(ValueError, match=r"expected one shape .* got \(16, 4\) and \(32, 4\)"):
        ops.gate_and_up(torch.zeros(16, 4), torch.zeros(32, 4))
    with pytest.raises(ValueError, match="a multiple of 16 rows"):
        ops.gate_and_up(torch.zeros(24, 4), torch.zeros(24, 4))
    gate, up = (
        ops.pack_weight(quantized(16, 64, format, generator)[0], format)
        for format in ("q4_0", "q4_1")
    )
    with pytest.raises(ValueError, match="expected one format, got q4_0 and q4_1"):
        ops.gate_and_up(gate, up)


def test_fused_bad_arguments():
    x, weight = torch.zeros(2, 64), torch.zeros(64, 64)
    with pytest.raises(ValueError, match=r"norm_weight: expected shape \[64\], got \[32\]"):
        ops.linear(x, weight, norm_weight=torch.zeros(32))
    with pytest.raises(ValueError, match="norm_eps: expected a value in"):
        ops.linear(x, weight, norm_weight=torch.zeros(64), norm_eps=-1.0)
    with pytest.raises(ValueError, match="weight: silu_mul wants an even number of strips"):
        ops.linear(x, weight[:48], silu_mul=True)
    with pytest.raises(ValueError, match="out: expected a tensor to accumulate into, got None"):
        ops.linear(x, weight, accumulate=True)
    with pytest.raises(ValueError, match=r"out: expected shape \[2, 32\], got \[2, 64\]"):
        ops.linear(x, weight, silu_mul=True, out=torch.zeros(2, 64))


@pytest.mark.parametrize(
    ("format", "bits"),
    [*product(FORMATS, (8, 9, 16)), *product((torch.float32, torch.bfloat16), (8, 16))],
)
def test_rows_do_not_depend_on_the_batch_or_the_threads(isa, generator, format, bits):
    packed = isinstance(format, str)
    columns = whole_blocks(160, format) if packed else 160
    blocks, dense = quantized(96, columns, format if packed else "q8_0", generator)
    norm = torch.randn(columns, generator=generator)
    weight = ops.pack_weight(blocks, format) if packed else dense.to(format)
    x = torch.randn(110, columns, generator=generator)
    x[::5, 40] *= 30
    threads = _C.num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            _C.set_num_threads(count)
            fused = {"norm_weight": norm, "silu_mul": True, "activation_bits": bits}
            results.append(ops.linear(x, weight, **fused))
            for tokens in (1, 2, 3, 4, 5, 7, 9, 17, 33):
                for part in (slice(tokens), slice(-tokens, None)):
                    out = ops.linear(x[part], weight, **fused)
                    assert torch.equal(out, results[0][part])
        assert all(torch.equal(results[0], other) for other in results[1:])
    finally:
        _C.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("table", [*FORMATS, torch.float32, torch.bfloat16, torch.float16])
def test_embedding(isa, generator, dtype, id_dtype, table):
    rows, columns = 50, whole_blocks(96, table) if isinstance(table, str) else 96
    if isinstance(table, str):
        blocks, dense = quantized(rows, columns, table, generator)
        weight = ops.pack_weight(blocks, table)
    else:
        weight = torch.randn(rows, columns, generator=generator).to(table)
        dense = weight.float()
    ids = torch.tensor([0, 49, 15, 16, 17, 0, 31], dtype=id_dtype)
    out = ops.embedding(ids, weight, dtype=dtype)
    assert torch.equal(out, dense[ids.long()].to(dtype))
    added_to = torch.randn(len(ids), columns, generator=generator).to(dtype)
    expected = (added_to.float() + dense[ids.long()]).to(dtype)
    ops.embedding(ids, weight, accumulate=True, out=added_to)
    assert torch.equal(added_to, expected)
    assert ops.embedding(ids[:0], weight).shape == (0, columns)


@pytest.mark.parametrize("bad", [-1, 50, 2**31 - 1])
def test_embedding_refuses_ids_out_of_range(bad):
    with pytest.raises(ValueError, match=rf"token_ids: expected ids in \[0, 50\), got {bad} at 1"):
        ops.embedding(torch.tensor([3, bad]), torch.zeros(50, 8))


@pytest.mark.parametrize("columns", [0, 1, 33])
def test_embedding_of_packed_rows_refuses_other_widths(generator, columns):
    weight = ops.pack_weight(quantized(16, 64, "q4_1", generator)[0], "q4_1")
    with pytest.raises(ValueError, match=f"out: expected a positive multiple of 32.*got {columns}"):
        ops.embedding(torch.arange(3), weight, out=torch.empty(3, columns))


def test_bad_arguments(generator):
    blocks, _ = quantized(16, 64, "q4_1", generator)
    weight = ops.pack_weight(blocks, "q4_1")
    with pytest.raises(ValueError, match=r"format: expected q4_0, .* or fp8_g128, got 'q9'"):
        ops.pack_weight(blocks, "q9")
    with pytest.raises(ValueError, match=r"blocks: expected \[rows, n \* 18\] for q4_0"):
        ops.pack_weight(blocks, "q4_0")
    with pytest.raises(ValueError, match="x: expected a positive multiple of 32 columns"):
        ops.linear(torch.zeros(1, 40), weight)
    with pytest.raises(
        ValueError, match=r"weight: expected shape \[1, 640\], got \[1, 320\]|weight"
    ):
        ops.linear(torch.zeros(1, 96), weight)
    with pytest.raises(ValueError, match="activation_bits: expected 8, 9 or 16, got 4"):
        ops.linear(torch.zeros(1, 64), weight, activation_bits=4)
    with pytest.raises(ValueError, match="activation_bits: expected 8 or 16, got 9"):
        ops.linear(torch.zeros(1, 64), torch.zeros(3, 64), activation_bits=9)
    with pytest.raises(
        TypeError, match=r"weight: expected float32 or bfloat16 or float16, got int8"
    ):
        ops.linear(torch.zeros(1, 64), torch.zeros(3, 64, dtype=torch.int8))
    x, dense, out = torch.zeros(1, 64), torch.zeros(3, 64, dtype=torch.bfloat16), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="workspace: expected a tensor beside a bfloat16 weight"):
        _C.linear(x, dense, 16, None, None, 0.0, False, False, out, None)
    with pytest.raises(ValueError, match="workspace: expected at least"):
        ops.linear(torch.zeros(1, 64), weight, workspace=torch.empty(3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"weight: expected shape \[\*, 64\], got \[3, 65\]"):
        ops.linear(torch.zeros(1, 64), torch.zeros(3, 65))
    with pytest.raises(TypeError, match="out: expected float32, got bfloat16"):
        ops.linear(
            torch.zeros(1, 64), torch.zeros(3, 64), out=torch.empty(1, 3, dtype=torch.bfloat16)
        )
