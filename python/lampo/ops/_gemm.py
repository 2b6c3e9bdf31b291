# SPDX-License-Identifier: Apache-2.0
"""Large products on CUDA by cuBLAS: :func:`lampo.ops.linear` with many rows."""

from __future__ import annotations

import torch

from lampo.ops.norm import rms_norm

STRIP_ROWS = 16
# Number of rows per read of the weight in csrc/cuda/linear/linear.cu.
KERNEL_ROWS = 16
# Number of rows up to which the kernel moves fewer bytes: it reads a packed weight (4.5 bits) per
# 16 rows, cuBLAS needs it written and read in 16 bits once. To be measured on a GPU.
KERNEL_ROWS_PACKED = 128


def takes_gemm(
    device: str, num_tokens: int, dtype: torch.dtype, weight: torch.dtype | None, out: torch.dtype
) -> bool:
    """Whether cuBLAS multiplies: a function of shapes and types alone.

    cuBLAS requires x, weight and out to have one type, which the ops around it must support too.
    All other products go to the kernel, which takes any number of rows and rounds no intermediate
    result.

    Args:
        weight: the weight's type; None: packed.
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
    """linear with a dense weight of x's type; intermediate results are rounded to that type."""
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
