# SPDX-License-Identifier: Apache-2.0
"""Checks of paged_attention's CUDA kernels, on a GPU and on the CPU."""

from __future__ import annotations

from typing import Any

import paging
import torch
from attention_inputs import cumulative, plain_attention
from compare import assert_close

from lampo.bench import reference


def as_multiplied(k: torch.Tensor, q_dtype: torch.dtype, cache_dtype: torch.dtype) -> torch.Tensor:
    """K or V as inputs of the products, rounded to q's type.

    8-bit codes fit into bfloat16, and their scales are applied to scores and weights; for float16
    queries they are dequantized first.
    """
    if cache_dtype.itemsize == 1 and q_dtype == torch.bfloat16:
        return k
    return k.to(q_dtype).float()


def check(
    q: torch.Tensor,
    pages: paging.Pages,
    query: list[int],
    out: torch.Tensor,
    lse: torch.Tensor,
    **options: Any,
) -> None:
    """Compares all sequences with the reference, and their errors with plain PyTorch's."""
    scale = options.pop("softmax_scale", q.shape[-1] ** -0.5)
    options = {"causal": True, "sliding_window": None, "soft_cap": None, "sinks": None} | options
    starts = cumulative(query).tolist()
    out, lse, q = out.cpu(), lse.cpu(), q.cpu()
    for seq, dense in enumerate(zip(pages.k, pages.v, strict=True)):
        rows = slice(starts[seq], starts[seq + 1])
        if query[seq] == 0:
            continue
        k, v = (as_multiplied(x, q.dtype, pages.k_cache.dtype) for x in dense)
        expected, expected_lse = reference.attention(q[rows], k, v, scale, **options)
        plain = plain_attention(q[rows], k, v, scale, **options)
        # Weights are rounded to q's type: by up to half a unit of themselves.
        magnitude, _ = reference.attention(q[rows], k, v.abs(), scale, **options)
        floor = torch.finfo(q.dtype).eps * magnitude + 1e-6
        assert_close(out[rows], expected, plain.nan_to_num(), floor=floor)
        # The rounding of a dot product grows with the scores; lse is about the largest of them.
        seen = expected_lse > -torch.inf
        assert bool((lse[rows][~seen] == -torch.inf).all())
        if seen.any():
            floor = 4e-6 * max(1.0, float(expected_lse[seen].abs().max()))
            assert_close(lse[rows][seen], expected_lse[seen], floor=floor)
