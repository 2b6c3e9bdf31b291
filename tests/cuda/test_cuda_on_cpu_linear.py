# SPDX-License-Identifier: Apache-2.0
"""linear of csrc/cuda/ on the CPU, under sanitizers. No GPU needed."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from compare import assert_close
from quantized_weights import (
    CUDA_FORMATS,
    blocks_of_byte,
    dequantized,
    quantized,
    random_blocks,
    whole_blocks,
    with_scales,
)

from cuda_on_cpu.client import Client, Refused
from cuda_on_cpu.fixtures import assert_gaps_untouched, blank, padded
from lampo import ops
from lampo.bench import reference

pytestmark = pytest.mark.long

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def linear(
    client: Client,
    x: torch.Tensor,
    weight: ops.Weight,
    bias: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
    silu_mul: bool = False,
    accumulate: bool = False,
    bits: int = 16,
    order: str = "forward",
) -> torch.Tensor:
    optional = {"bias": bias, "norm_weight": norm_weight}
    given = {name: tensor for name, tensor in optional.items() if tensor is not None}
    options = {"silu_mul": silu_mul, "accumulate": accumulate, "activation_bits": bits}
    if isinstance(weight, torch.Tensor):
        client.call("linear", order=order, x=x, weight=weight, out=out, **given, **options)
        return out
    given |= {"weight": weight.data, "workspace": torch.empty(0, dtype=torch.uint8)}
    options["format"] = ops.weight_formats().index(weight.format)
    client.call("linear_packed", order=order, x=x, out=out, **given, **options)
    return out


# in_features: none, parts of a chunk of 32, and more than a round of 16 chunks; out_features:
# around a strip of 16 rows, and more of them than the four blocks take at once.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(0, 3, 8), (1, 1, 1), (2, 32, 0), (1, 33, 40), (3, 67, 130),
     (5, 16, 552), (8, 170, 64), (16, 15, 1001), (17, 16, 1032), (33, 5, 32), (130, 270, 200)],
    ids=str,
)  # fmt: skip
def test_dense(client, dtype, weight_dtype, shape):
    tokens, rows, columns = shape
    for pad, weight_pad in ((0, 0), (3, 8)):
        x = padded((tokens, columns), pad, dtype)
        weight = padded((rows, columns), weight_pad, weight_dtype)
        bias = padded((rows,), 0, dtype if tokens % 2 else torch.float32)
        results = []
        for order in ("forward", "backward")[: 2 if dtype == weight_dtype and not pad else 1]:
            out = blank((tokens, rows), pad, dtype)
            linear(client, x, weight, bias, out=out, order=order)
            assert_gaps_untouched(out)
            results.append(out)
        assert torch.equal(results[0], results[-1]), "depends on which thread is first"
        if out.numel():
            if weight_dtype == torch.bfloat16:
                x = reference.bfloat16_terms(x, 16)
            plain = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
            # A product of floats is added as six, each with a rounding of the sum.
            assert_close(out, reference.linear(x, weight, bias), plain, factor=6, floor=1e-6)


def test_activation_bits(client):
    """Floats beside bfloat16 weights: rounded to one bfloat16, or to two."""
    x, weight = padded((3, 96), 0, torch.float32), padded((40, 96), 0, torch.bfloat16)
    for bits in (8, 16):
        out = linear(client, x, weight, bits=bits, out=blank((3, 40), 0, torch.float32))
        expected = reference.linear(reference.bfloat16_terms(x, bits), weight, None)
        assert_close(out, expected, floor=5e-6)
    with pytest.raises(Refused, match="activation_bits: expected 8 or 16, got 4"):
        linear(client, x, weight, bits=4, out=out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 9, 70])
@pytest.mark.parametrize(("norm", "silu_mul", "accumulate"), list(product([False, True], repeat=3)))
def test_fused(client, dtype, tokens, norm, silu_mul, accumulate):
    """Norm before; gate and addition after: as the ops one by one in float64."""
    rows, columns = 96, 584
    width = rows // 2 if silu_mul else rows
    x = padded((tokens, columns), 8, dtype).mul_(3)
    weight, bias = padded((rows, columns), 0, torch.bfloat16), padded((rows,), 0, torch.float32)
    norm_weight = padded((columns,), 0, dtype if tokens == 3 else torch.float32) if norm else None
    before = padded((tokens, width), 1, dtype)
    for out_dtype in {dtype, torch.float32}:
        out = blank((tokens, width), 1, out_dtype)
        if accumulate:
            out.copy_(before)
        linear(
            client, x, weight, bias, norm_weight, out=out, silu_mul=silu_mul, accumulate=accumulate
        )
        assert_gaps_untouched(out)
        y = x.double()
        if norm_weight is not None:
            y = reference.rms_norm(x, norm_weight, 1e-5)
        y = reference.bfloat16_terms(y, 16)
        y = reference.linear(y, weight, bias)
        if silu_mul:
            y = reference.gate_columns(y)
        if accumulate:
            y = y + before.double()
        # A normed row of bfloat16 is rounded, as rms_norm would; else the sums are float32's, of
        # rows that are rounded to 16 bits, perhaps to their other side.
        floor = (8e-3 if norm and dtype == torch.bfloat16 else 2e-5 if norm else 4e-6) * float(
            y.abs().max()
        )
        assert_close(out, y, floor=floor)


def test_normed_row_is_what_rms_norm_gives(client):
    """To the rounding: the product with a normed row is that of rms_norm's output."""
    x, weight = padded((5, 512), 0, torch.bfloat16), padded((16, 512), 0, torch.bfloat16)
    norm_weight = padded((512,), 0, torch.bfloat16)
    normed, apart, fused = blank((5, 512), 0, x.dtype), blank((5, 16), 0, x.dtype), None
    client.call("rms_norm", eps=1e-5, x=x, weight=norm_weight, out=normed)
    linear(client, normed, weight, out=apart)
    fused = linear(client, x, weight, None, norm_weight, out=blank((5, 16), 0, x.dtype))
    # The order of the sum of squares may differ, and with it a rounding here and there.
    assert_close(fused, apart.double(), floor=4e-3 * float(apart.abs().max()))


@pytest.mark.parametrize(
    ("weight_dtype", "columns", "rows", "silu_mul"),
    [
        (torch.bfloat16, 6700, 48, False),
        (torch.bfloat16, 6704, 144, False),
        (torch.bfloat16, 6704, 64, True),
        (torch.float32, 2600, 32, False),
    ],
)
def test_few_rows_do_not_depend_on_the_batch(client, weight_dtype, columns, rows, silu_mul):
    """To the bit: in one strip at a time or two, with x in shared memory whole (a few tokens) or
    slab by slab (16)."""
    width = rows // 2 if silu_mul else rows
    x = padded((16, columns), 0, torch.bfloat16)
    weight = padded((rows, columns), 0, weight_dtype)
    norm_weight = padded((columns,), 0, torch.bfloat16)

    def call(part: torch.Tensor) -> torch.Tensor:
        out = blank((len(part), width), 0, torch.float32)
        return linear(client, part, weight, None, norm_weight, out=out, silu_mul=silu_mul)

    batch = call(x)
    normed = reference.rms_norm(x, norm_weight, 1e-5).bfloat16()
    y = reference.linear(normed, weight, None)
    if silu_mul:
        y = reference.gate_columns(y)
    assert_close(batch, y, floor=2e-3 * float(y.abs().max()))
    for first, end in ((0, 1), (3, 5), (15, 16)):
        assert torch.equal(call(x[first:end]), batch[first:end])


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("silu_mul", [False, True])
def test_many_rows_do_not_depend_on_the_batch(client, norm, silu_mul):
    """In small tiles (17 and 40 tokens) and in large ones, of which 300 tokens need more."""
    rows, columns = 288, 136
    width = rows // 2 if silu_mul else rows
    x = padded((300, columns), 0, torch.bfloat16)
    weight = padded((rows, columns), 0, torch.bfloat16)
    norm_weight = padded((columns,), 0, torch.bfloat16) if norm else None

    def call(part: torch.Tensor) -> torch.Tensor:
        out = blank((len(part), width), 0, torch.float32)
        return linear(client, part, weight, None, norm_weight, out=out, silu_mul=silu_mul)

    batch = call(x)
    y = reference.rms_norm(x, norm_weight, 1e-5).bfloat16() if norm_weight is not None else x
    y = reference.linear(y, weight, None)
    if silu_mul:
        y = reference.gate_columns(y)
    assert_close(batch, y, floor=(2e-3 if norm else 2e-6) * float(y.abs().max()))
    for first, end in ((0, 17), (100, 140), (150, 300)):
        assert torch.equal(call(x[first:end]), batch[first:end])


def packed_reference(
    x: torch.Tensor, dense: torch.Tensor, format: str, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product with x of 16 bits in float64, and in float32."""
    floats = format == "fp8_g128"
    rounded = (reference.bfloat16_terms if floats else reference.quantize_activations)(x, 16)
    plain = torch.nn.functional.linear(
        rounded.float(), dense, None if bias is None else bias.float()
    )
    return reference.linear(rounded, dense, bias), plain


# in_features, rounded up to whole blocks: one group, parts of a round of 16, and more than one.
@pytest.mark.parametrize("format", CUDA_FORMATS)
@pytest.mark.parametrize(
    "shape",
    [(0, 16, 32), (1, 1, 32), (2, 40, 96), (3, 16, 544), (8, 170, 64), (16, 17, 1088),
     (17, 100, 160), (33, 5, 32)],
    ids=str,
)  # fmt: skip
def test_packed(client, generator, format, shape):
    """Exactly the product with quantized activations, but for the rounding of float32 sums."""
    tokens, rows, columns = shape
    columns = whole_blocks(columns, format)
    dtype = DTYPES[(tokens + list(CUDA_FORMATS).index(format)) % 3]
    blocks, dense = quantized(rows, columns, format, generator)
    x = padded((tokens, columns), 7 if tokens == 3 else 8, dtype)
    if tokens > 1:
        x[1] = 0
    bias = padded((rows,), 0, dtype) if rows == 40 else None
    results = []
    for order in ("forward", "backward"):
        out = blank((tokens, rows), 3, torch.float32 if dtype == torch.float16 else dtype)
        weight = ops.pack_weight(blocks, format)
        linear(client, x, weight, bias, out=out, order=order)
        assert_gaps_untouched(out)
        results.append(out)
    assert torch.equal(*results), "depends on which thread is first"
    if tokens:
        expected, plain = packed_reference(x, dense, format, bias)
        assert_close(out, expected, plain, factor=4)


@pytest.mark.parametrize("format", CUDA_FORMATS)
def test_packed_as_on_the_cpu(client, generator, format):
    """With a norm, a gate and a sum; the same integers, groups added in another order."""
    tokens, rows, columns = 5, 96, whole_blocks(1600, format)
    dtype = DTYPES[list(CUDA_FORMATS).index(format) % 2]
    blocks, _ = quantized(rows, columns, format, generator)
    weight = ops.pack_weight(blocks, format)
    x, before = padded((tokens, columns), 0, dtype), padded((tokens, rows // 2), 0, torch.float32)
    norm_weight, bias = padded((columns,), 0, dtype), padded((rows,), 0, torch.float32)
    fused = {"norm_weight": norm_weight, "silu_mul": True, "accumulate": True}
    expected = before.clone()
    ops.linear(x, weight, bias, norm_eps=1e-5, activation_bits=16, out=expected, **fused)
    for bits in (8, 16):  # here both mean 16
        out = before.clone()
        linear(client, x, weight, bias, out=out, bits=bits, **fused)
        # The norm's sum runs in another order, so a quant may be rounded to its other side.
        # A normed row beside FP8 is rounded to x's type, as beside a dense weight.
        normed = 8e-3 if format == "fp8_g128" and dtype == torch.bfloat16 else 0
        floor = (2e-2 / (127 * 256) + 8e-6 + normed) * float(expected.abs().max())
        assert_close(out, expected.double(), floor=floor)


@pytest.mark.parametrize("format", CUDA_FORMATS)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x7F, 0x80])
def test_integer_sums_do_not_overflow(client, format, byte):
    """Every code and every activation at the end of its range, both signs."""
    columns = whole_blocks(512, format)
    blocks = blocks_of_byte(16, columns, format, byte)
    dense = dequantized(blocks, format)
    x = torch.full((4, columns), 127.0)
    x[1], x[2, ::2], x[3] = -127.0, -127.0, 126.99
    weight = ops.pack_weight(blocks, format)
    out = linear(client, x, weight, out=blank((4, 16), 0, torch.float32))
    expected, _ = packed_reference(x, dense, format)
    floor = 2e-6 * float((x.abs().double() @ dense.abs().double().T).max())
    assert_close(out, expected, floor=floor)


@pytest.mark.parametrize("format", CUDA_FORMATS)
def test_scales_at_their_ends(client, generator, format):
    """A row's alone: the others stay finite, and are what they are without it."""
    columns = whole_blocks(64, format)
    blocks = random_blocks(19, columns, format, generator, scale=0.01)
    for row, kind in ((2, "zero"), (5, "largest"), (17, "nan")):
        with_scales(blocks, format, row, kind)
    dense = dequantized(blocks, format)
    x = padded((3, columns), 0, torch.float32)
    weight = ops.pack_weight(blocks, format)
    out = linear(client, x, weight, out=blank((3, 19), 0, torch.float32))
    finite = dense.isfinite().all(1)
    assert finite.sum() >= 18
    expected, plain = packed_reference(x, dense[finite], format)
    for i, row in enumerate(finite.nonzero().flatten().tolist()):
        # MXFP4's smallest scale times that of x is a subnormal number, which is rounded.
        assert_close(out[:, row], expected[:, i], plain[:, i], factor=8, floor=1e-38)
    assert not out[:, ~finite].isfinite().any()


@pytest.mark.parametrize("format", CUDA_FORMATS)
def test_packed_rows_of_any_batch(client, generator, format):
    """To the bit, for each number of tokens of a launch, and one more."""
    columns = whole_blocks(96, format)
    blocks, _ = quantized(35, columns, format, generator)
    weight = ops.pack_weight(blocks, format)
    x = padded((17, columns), 0, torch.float32)
    batch = linear(client, x, weight, out=blank((17, 35), 0, torch.float32))
    for tokens in range(1, 17):
        part = linear(client, x[-tokens:], weight, out=blank((tokens, 35), 0, torch.float32))
        assert torch.equal(part, batch[-tokens:])


@pytest.mark.parametrize(
    ("format", "columns", "rows", "silu_mul"),
    [
        ("q4_0", 4096, 144, False),
        ("q4_1", 6400, 48, False),
        ("q8_0", 6400, 32, True),
        ("q4_k", 6400, 32, True),
        ("q6_k", 5632, 48, False),
    ],
)
def test_packed_rows_do_not_depend_on_the_batch(client, generator, format, columns, rows, silu_mul):
    """To the bit, with x in shared memory whole (a few tokens) or slab by slab (16)."""
    blocks, _ = quantized(rows, columns, format, generator)
    weight = ops.pack_weight(blocks, format)
    x, norm_weight = padded((17, columns), 0, torch.bfloat16), padded((columns,), 0, torch.float32)

    def call(part: torch.Tensor) -> torch.Tensor:
        out = blank((len(part), rows // 2 if silu_mul else rows), 0, torch.float32)
        return linear(client, part, weight, None, norm_weight, out=out, silu_mul=silu_mul)

    batch = call(x)
    assert torch.isfinite(batch).all()
    for first, end in ((0, 1), (3, 5), (16, 17)):
        assert torch.equal(call(x[first:end]), batch[first:end])


@pytest.mark.parametrize(
    ("format", "silu_mul"),
    [*((format, False) for format in CUDA_FORMATS), ("q4_0", True), ("q5_k", True)],
)
def test_many_rows_beside_a_packed_weight(client, generator, format, silu_mul):
    """Dequantized to x's type, x as it is; a row's bits do not depend on the others."""
    rows, columns = 96 if silu_mul else 75, whole_blocks(160, format)
    dtype = (torch.bfloat16, torch.float16)[list(CUDA_FORMATS).index(format) % 2]
    width = rows // 2 if silu_mul else rows
    blocks, dense = quantized(rows, columns, format, generator)
    weight, x = ops.pack_weight(blocks, format), padded((150, columns), 3, dtype)
    norm_weight = padded((columns,), 0, dtype) if silu_mul else None

    def call(part: torch.Tensor) -> torch.Tensor:
        out = blank((len(part), width), 3, torch.float32)
        linear(client, part, weight, None, norm_weight, out=out, silu_mul=silu_mul)
        assert_gaps_untouched(out)
        return out

    batch = call(x)
    y = x if norm_weight is None else reference.rms_norm(x, norm_weight, 1e-5).to(dtype)
    y = reference.linear(y, dense.to(dtype), None)
    if silu_mul:
        y = reference.gate_columns(y)
    assert_close(batch, y, floor=(2e-3 if silu_mul else 2e-6) * float(y.abs().max()))
    assert torch.equal(call(x[10:140]), batch[10:140])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_packed_rows_with_what_is_not_finite(client, generator, bad):
    blocks, _ = quantized(16, 64, "q4_1", generator)
    x = padded((3, 64), 0, torch.float32)
    x[1, 5] = bad
    weight = ops.pack_weight(blocks, "q4_1")
    out = linear(client, x, weight, out=blank((3, 16), 0, torch.float32))
    assert not torch.isfinite(out[1]).any()
    assert torch.isfinite(out[[0, 2]]).all()


def test_not_a_number_stays(client):
    x, weight = padded((3, 64), 0, torch.float32), padded((16, 64), 0, torch.bfloat16)
    x[1, 5] = torch.nan
    out = linear(client, x, weight, out=blank((3, 16), 0, torch.float32))
    assert out[1].isnan().all()
    assert torch.isfinite(out[[0, 2]]).all()


def test_refuses_what_does_not_fit(client):
    x, weight = padded((2, 64), 0, torch.float16), padded((16, 64), 0, torch.float16)
    with pytest.raises(Refused, match=r"out: expected shape \[2, 16\], got \[2, 8\]"):
        linear(client, x, weight, out=blank((2, 8), 0, torch.float16))
    with pytest.raises(Refused, match="weight: silu_mul wants an even number of strips"):
        linear(client, x, weight, out=blank((2, 8), 0, torch.float16), silu_mul=True)
    blocks, _ = quantized(16, 64, "q4_0", torch.Generator())
    weight = ops.pack_weight(blocks, "q4_0")
    moved = torch.empty(weight.data.numel() + 1, dtype=torch.uint8)[1:].view(weight.data.shape)
    weight = ops.PackedWeight(moved, weight.format, weight.shape)
    with pytest.raises(Refused, match="weight: expected data aligned to 16 bytes on CUDA"):
        linear(client, x, weight, out=blank((2, 16), 0, torch.float16))
