# SPDX-License-Identifier: Apache-2.0
"""Random weights in GGUF's blocks, and their values."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

CUDA_FORMATS = ["q4_0", "q4_1", "q8_0"]
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
FORMATS = {name: GGMLQuantizationType[name.upper()] for name in _FACTORS}
# Of types without kernels; iq1_m's factor is spread over its scales.
_FACTORS |= {f"iq{name}": [0] for name in ("1_s", "2_xxs", "2_xs", "2_s", "3_xxs", "3_s")}
_FACTORS |= {"iq1_m": []}
# One of each kind: factors, scales of 16 and of 32, minima, tables, planes of bits.
KINDS = ["q4_0", "q4_1", "q8_0", "q5_1", "q2_k", "q3_k", "q4_k", "q6_k", "iq4_xs", "nvfp4"]


def whole_blocks(columns: int, format: str) -> int:
    """The columns, rounded up to whole blocks of a format."""
    size = GGML_QUANT_SIZES[GGMLQuantizationType[format.upper()]][0]
    return -(-columns // size) * size


def random_blocks(
    rows: int, columns: int, format: str, generator: torch.Generator, scale: float = 0.01
) -> torch.Tensor:
    """[rows, row_bytes] uint8: blocks of random codes and scales, the f16 factors near `scale`."""
    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[format.upper()]]
    shape = rows, columns // size
    blocks = torch.randint(0, 256, (*shape, nbytes), dtype=torch.uint8, generator=generator)
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
    """Their values in float32, by the `gguf` package."""
    with np.errstate(all="ignore"):
        return torch.from_numpy(quants.dequantize(blocks.numpy(), FORMATS[format]))


def quantized(
    rows: int, columns: int, format: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random GGUF blocks, and their values; the first row's are larger."""
    if format in CUDA_FORMATS:
        weight = torch.randn(rows, columns, generator=generator)
        weight[0] *= 100
        blocks = torch.from_numpy(quants.quantize(weight.numpy(), FORMATS[format]).copy())
    else:
        spread = float(dequantized(random_blocks(16, 512, format, generator), format).std())
        blocks = random_blocks(rows, columns, format, generator, scale=0.01 / spread)
    return blocks, dequantized(blocks, format)
