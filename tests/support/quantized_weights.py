# SPDX-License-Identifier: Apache-2.0
"""Random weights in GGUF's blocks and in those of safetensors, and their values."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

# Formats, and where their blocks have f16 factors.
_FACTORS: dict[str, list[int]] = {
    "q4_0": [0],
    "q4_1": [0, 2],
    "q8_0": [0],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q2_k": [80, 82],
    "q3_k": [108],
    "q4_k": [0, 2],
    "q5_k": [0, 2],
    "q6_k": [208],
    "iq4_nl": [0],
    "iq4_xs": [0],
    "mxfp4": [],
    "nvfp4": [],
}
_GGUF_FORMATS = {name: GGMLQuantizationType[name.upper()] for name in _FACTORS}
# Formats of quantized safetensors: weights and bytes of a block, bits of a code.
SAFETENSORS_FORMATS = {
    "int4_g32": (32, 19, 4),
    "int4_g64": (64, 35, 4),
    "int4_g128": (128, 69, 4),
    "int8_g128": (128, 133, 8),
    "nvfp4_g128": (128, 76, 4),
    "fp8_g128": (128, 132, 8),
}
FORMATS = [*_GGUF_FORMATS, *SAFETENSORS_FORMATS]
CUDA_FORMATS = FORMATS  # of CUDA's kernels
# Of types without kernels; iq1_m's factor is spread over its scales.
_FACTORS |= {f"iq{name}": [0] for name in ("1_s", "2_xxs", "2_xs", "2_s", "3_xxs", "3_s")}
_FACTORS |= {"iq1_m": []}
# One of each kind: factors, scales of 16 and of 32, minima, tables, planes of bits.
KINDS = ["q4_0", "q4_1", "q8_0", "q5_1", "q2_k", "q3_k", "q4_k", "q6_k", "iq4_xs", "nvfp4"]
KINDS += ["int4_g64", "int8_g128", "nvfp4_g128", "fp8_g128"]


def _block_sizes(format: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    if format in SAFETENSORS_FORMATS:
        return SAFETENSORS_FORMATS[format][:2]
    return GGML_QUANT_SIZES[GGMLQuantizationType[format.upper()]]


def whole_blocks(columns: int, format: str) -> int:
    """The columns, rounded up to whole blocks of a format."""
    size = _block_sizes(format)[0]
    return -(-columns // size) * size


def blocks_of_byte(rows: int, columns: int, format: str, byte: int) -> torch.Tensor:
    """[rows, row_bytes] uint8: every code and integer scale at an end of its range, factors 1.0
    (minima of Q4_1 and Q5_1, too), MXFP4's and NVFP4's scales 1.0 or near it, zero points far from
    the codes."""
    size, nbytes = _block_sizes(format)
    blocks = torch.full((rows, columns // size, nbytes), byte, dtype=torch.uint8)
    if format in SAFETENSORS_FORMATS:
        factor = torch.ones(1, dtype=_factor_type(format)).view(torch.uint8)
        blocks[..., : len(factor)] = factor
    if format.startswith("int"):
        blocks[..., len(factor)] ^= 0xFF
    if format == "fp8_g128":
        blocks[..., 4:] = byte & 0xFE  # no NaN
    if format == "nvfp4_g128":
        blocks[..., 4:12] = 0x38
        return blocks.flatten(1)
    for at in _FACTORS.get(format, []):
        blocks[..., at : at + 2] = torch.tensor([0x00, 0x3C], dtype=torch.uint8)
    if format == "mxfp4":
        blocks[..., 0] = 127
    if format == "nvfp4":
        blocks[..., :4] = 0x38
    return blocks.flatten(1)


def with_scales(blocks: torch.Tensor, format: str, row: int, kind: str) -> None:
    """Gives a row's blocks the factor or scale "zero", "largest" or "nan", where there is one.

    MXFP4 has no zero and no NaN, and GGUF's NVFP4 no NaN: they get the smallest one and zero.
    """
    of_row = blocks[row].view(-1, _block_sizes(format)[1])
    if format in SAFETENSORS_FORMATS:
        value = {"zero": 0.0, "largest": 65504.0, "nan": float("nan")}[kind]
        factor = torch.tensor([value], dtype=_factor_type(format)).view(torch.uint8)
        of_row[:, : len(factor)] = factor
        return
    half = {"zero": 0x0000, "largest": 0x7BFF, "nan": 0x7E01}[kind]
    for at in _FACTORS[format]:
        of_row[:, at], of_row[:, at + 1] = half & 255, half >> 8
    if format == "mxfp4":
        of_row[:, 0] = {"zero": 0, "largest": 200, "nan": 0}[kind]
    if format == "nvfp4":
        of_row[:, :4] = {"zero": 0, "largest": 0x7E, "nan": 0x7F}[kind]


def random_blocks(
    rows: int, columns: int, format: str, generator: torch.Generator, scale: float = 0.01
) -> torch.Tensor:
    """[rows, row_bytes] uint8: blocks of random codes and scales, the f16 factors near `scale`."""
    size, nbytes = _block_sizes(format)
    shape = rows, columns // size
    blocks = torch.randint(0, 256, (*shape, nbytes), dtype=torch.uint8, generator=generator)
    if format in SAFETENSORS_FORMATS:
        # Factors of few bits, as files have them: products with zero points are exact.
        factors = (torch.randn(shape, generator=generator) * scale).bfloat16()
        wide = _factor_type(format)
        factor_bytes = factors[..., None].to(wide).view(torch.uint8)
        blocks[..., : factor_bytes.shape[-1]] = factor_bytes
        if format == "fp8_g128":
            codes = blocks[..., 4:]
            codes[codes & 0x7F == 0x7F] = 0x7E  # no NaN
        if format.startswith("int4"):
            at = factor_bytes.shape[-1]
            blocks[..., at] = torch.randint(0, 16, shape, generator=generator)
        if format == "nvfp4_g128":
            blocks[..., 4:12] = torch.randint(0, 32, (*shape, 8), generator=generator)
        return blocks.flatten(1)
    for at in _FACTORS[format]:
        factors = (torch.randn(shape, generator=generator) * scale).half()
        blocks[..., at : at + 2] = factors[..., None].view(torch.uint8)
    if format == "iq1_m":
        blocks[..., 49:56:2] = blocks[..., 49:56:2] & 15 | 0x10
    if format == "mxfp4":
        blocks[..., 0] = torch.randint(115, 125, shape, generator=generator)
    if format == "nvfp4":
        blocks[..., :4] = torch.randint(0, 32, (*shape, 4), generator=generator)
    return blocks.flatten(1)


def dequantized(blocks: torch.Tensor, format: str) -> torch.Tensor:
    """Their values in float32, by the `gguf` package where it knows the format."""
    if format in SAFETENSORS_FORMATS:
        return _safetensors_values(blocks, format)
    with np.errstate(all="ignore"):
        return torch.from_numpy(quants.dequantize(blocks.numpy(), _GGUF_FORMATS[format]))


def _factor_type(format: str) -> torch.dtype:
    return torch.float16 if format in ("int4_g32", "int4_g64") else torch.float32


def _safetensors_values(blocks: torch.Tensor, format: str) -> torch.Tensor:
    size, nbytes, bits = SAFETENSORS_FORMATS[format]
    parts = blocks.view(len(blocks), -1, nbytes)
    wide = _factor_type(format)
    at = wide.itemsize
    scales = parts[..., :at].reshape(-1).view(wide).view(len(blocks), -1, 1).double()
    codes = parts[..., nbytes - size * bits // 8 :]
    if bits == 4:
        pairs = codes.unflatten(2, (-1, 16))
        codes = torch.stack([pairs & 15, pairs >> 4], 3).flatten(2)
    if format == "nvfp4_g128":
        e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
        exact = torch.cat([e2m1, -e2m1])[codes.int()]
        each = parts[..., 4:12].contiguous().view(torch.float8_e4m3fn).double()
        exact = exact * (scales * each).repeat_interleave(16, 2)
    elif format == "fp8_g128":
        exact = codes.contiguous().view(torch.float8_e4m3fn).double() * scales
    else:
        zeros = parts[..., at : at + 1].contiguous().view(torch.int8).double()
        exact = ((codes.view(torch.int8) if bits == 8 else codes).double() - zeros) * scales
    return exact.float().flatten(1)


def quantized(
    rows: int, columns: int, format: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random GGUF blocks, and their values; the first row's are larger."""
    if format in ("q4_0", "q4_1", "q8_0"):
        weight = torch.randn(rows, columns, generator=generator)
        weight[0] *= 100
        blocks = torch.from_numpy(quants.quantize(weight.numpy(), _GGUF_FORMATS[format]).copy())
    else:
        spread = float(dequantized(random_blocks(16, 512, format, generator), format).std())
        blocks = random_blocks(rows, columns, format, generator, scale=0.01 / spread)
    return blocks, dequantized(blocks, format)
