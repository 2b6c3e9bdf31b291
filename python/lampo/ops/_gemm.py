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


# Whether torch.mm returns sums in float32 for factors in 16 bits.
_SUMS_REMAIN = "dtype" in torch.ops.aten.mm.overloads()


def takes_gemm(
    device: str, num_tokens: int, dtype: torch.dtype, weight: torch.dtype | None, out: torch.dtype
) -> bool:
    """Whether cuBLAS multiplies: a function of shapes and types alone.

    cuBLAS requires x and weight to have one type, which the ops around it must support too, and out
    to have that type, or float32 if torch can ask for that (2.8 and later). All other products go
    to the kernel, which takes any number of rows and rounds no intermediate result.

    Args:
        weight: the weight's type; None: packed.
    """
    rows = KERNEL_ROWS_PACKED if weight is None else KERNEL_ROWS
    alike = weight in (None, dtype) and (out == dtype or (out == torch.float32 and _SUMS_REMAIN))
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
    """linear with a dense weight of x's type; intermediate results are rounded to out's type."""
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
    if out.dtype == x.dtype:
        y = torch.mm(x, weight.T)
    elif bias is None and not silu_mul and not accumulate and out.is_contiguous():
        torch.mm(x, weight.T, out_dtype=out.dtype, out=out)
        return
    else:
        y = torch.mm(x, weight.T, out_dtype=out.dtype)
    if bias is not None:
        y.add_(bias)
    if silu_mul:
        gate, up = y.unflatten(1, (-1, 2, STRIP_ROWS)).unbind(2)
        y = torch.nn.functional.silu(gate).mul_(up).flatten(1)
    if accumulate:
        out.add_(y)
    else:
        out.copy_(y)


def gemm_temporary_elements(num_tokens: int, out_features: int, in_features: int) -> int:
    """Elements that :func:`linear_by_gemm` allocates at most: normed x, product, activation."""
    return num_tokens * (in_features + 2 * out_features)
