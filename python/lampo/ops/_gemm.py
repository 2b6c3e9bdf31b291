# SPDX-License-Identifier: Apache-2.0
"""Large products on CUDA, by cuBLAS: what :func:`lampo.ops.linear` does with many rows."""

from __future__ import annotations

import torch

from lampo.ops.norm import rms_norm

STRIP_ROWS = 16
# csrc/cuda/linear/linear.cu reads the weight once per so many rows.
KERNEL_ROWS = 16
# A packed weight that is dequantized is written and read in 16 bits: by the bytes, 4.5 bits for
# every 16 rows are less up to about 8 times as many rows. To be measured on a GPU.
KERNEL_ROWS_PACKED = 128


def takes_gemm(
    device: str, num_tokens: int, dtype: torch.dtype, weight: torch.dtype | None, out: torch.dtype
) -> bool:
    """Whether cuBLAS multiplies, a function of shapes and types alone.

    It does where x, weight and out have one type that the ops around it know too. All else stays
    with the kernel, which takes any number of rows and rounds nothing in between.

    Args:
        weight: its type; None: packed.
    """
    rows = KERNEL_ROWS_PACKED if weight is None else KERNEL_ROWS
    alike = weight in (None, dtype) and out == dtype
    return (
        device == "cuda"
        and num_tokens > rows
        and alike
        and dtype in (torch.float32, torch.bfloat16)
    )


def linear_by_gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_eps: float,
    silu_mul: bool,
    accumulate: bool,
    out: torch.Tensor,
) -> None:
    """linear with a dense weight of x's type, step by step, each rounded to that type."""
    columns = weight.shape[0] // 2 if silu_mul else weight.shape[0]
    for name, tensor, shape in (
        ("weight", weight, (weight.shape[0], x.shape[1])),
        ("out", out, (x.shape[0], columns)),
        ("bias", bias, (weight.shape[0],)),
    ):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if norm_weight is not None:
        x = rms_norm(x, norm_weight, norm_eps)
    y = torch.mm(x, weight.T)
    if bias is not None:
        y.add_(bias)
    if silu_mul:
        gate, up = y.unflatten(1, (-1, 2, STRIP_ROWS)).unbind(2)
        y = torch.nn.functional.silu(gate).mul_(up).flatten(1)
    if accumulate:
        out.add_(y)
    else:
        out.copy_(y)
