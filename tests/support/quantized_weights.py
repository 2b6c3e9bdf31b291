# SPDX-License-Identifier: Apache-2.0
"""Random weights in GGUF's blocks, and their values."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants

FORMATS = {
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
    "q8_0": GGMLQuantizationType.Q8_0,
}


def quantized(
    rows: int, columns: int, format: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random GGUF blocks, and their values."""
    weight = torch.randn(rows, columns, generator=generator)
    weight[0] *= 100
    blocks = quants.quantize(weight.numpy(), FORMATS[format])
    dense = quants.dequantize(blocks, FORMATS[format])
    return torch.from_numpy(np.ascontiguousarray(blocks)), torch.from_numpy(dense)
