# SPDX-License-Identifier: Apache-2.0
"""Attention over the paged KV cache."""

from __future__ import annotations

import torch

from lampo import _C
from lampo.error_text import shown
from lampo.ops._arguments import check_size, cuda_index, tensor
from lampo.ops._registry import register

_paged_attention = register(
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor page_table, Tensor seq_lens, "
    "Tensor cu_seqlens_q, float softmax_scale, bool causal, int sliding_window, float soft_cap, "
    "bool deterministic, bool planned, Tensor? sinks, Tensor? k_scale, Tensor? v_scale, "
    "Tensor(a!)? lse, Tensor(b!) out, Tensor(c!) workspace) -> ()",
    _C.paged_attention,
)
_merge_states = register(
    "merge_states(Tensor out_partial, Tensor lse_partial, Tensor(a!) out, Tensor(b!)? lse) -> ()",
    _C.merge_states,
)


def paged_attention_workspace_size(
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_seq_len: int,
    *,
    batch_size: int = 0,
    num_tokens: int = 0,
    deterministic: bool = False,
    device: str | torch.device = "cpu",
) -> int:
    """Bytes of workspace that :func:`paged_attention` needs, for any sequence lengths.

    Args:
        max_seq_len: the page table's columns times page_size; used on CPU, where the size also
            grows with the number of threads (``LAMPO_NUM_THREADS``).
        batch_size, num_tokens, deterministic: of the call; used on CUDA.
    """
    if not isinstance(deterministic, bool):
        raise TypeError(f"deterministic: expected a bool, got {shown(deterministic)}")
    return int(
        _C.paged_attention_workspace_size(
            check_size("num_qo_heads", num_qo_heads, 1),
            check_size("num_kv_heads", num_kv_heads, 1),
            check_size("head_dim", head_dim),
            check_size("max_seq_len", max_seq_len),
            check_size("batch_size", batch_size),
            check_size("num_tokens", num_tokens),
            deterministic,
            cuda_index("device", device),
        )
    )


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    page_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    deterministic: bool = False,
    planned: bool = False,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """``softmax(softmax_scale * q k^T + mask) v`` per query head; prefill, decode, or both mixed.

    Token i of a sequence's n tokens is at position ``seq_len - n + i``. On CPU, and on CUDA with
    ``deterministic=True``, a row's result does not depend, to the bit, on the batch, the threads or
    the split of a prompt into calls. Otherwise equal calls give equal results.

    Args:
        q: [num_tokens, num_qo_heads, head_dim] float32 or bfloat16 (CUDA: bfloat16 or float16),
            ragged by ``cu_seqlens_q``.
        k_cache, v_cache: [num_pages, num_kv_heads, page_size, head_dim], see :func:`append_kv`;
            num_kv_heads divides num_qo_heads; head_dim is at most 256, a multiple of 4, on CUDA
            of 8.
        page_table: [batch_size, max_pages_per_seq] int32; unneeded entries may hold anything.
        seq_lens: [batch_size] int32, counting the current tokens.
        cu_seqlens_q: [batch_size + 1] int32, from 0; tokens past its end are padding.
        softmax_scale: by default 1 / sqrt(head_dim). soft_cap: scores become ``c tanh(s / c)``.
        sliding_window: position p sees (p - window, p]; causal only.
        planned: on CUDA, ``workspace`` holds the plan of the last call with it: of equal shapes,
            dtypes, lengths, window, ``causal`` and ``deterministic``, as in the layers of a model.
            Saves a launch. Wrong where that is untrue.
        sinks: [num_qo_heads] float32, an extra logit in the softmax, without a value.
        k_scale, v_scale: [num_pages, num_kv_heads, page_size] float32, of int8 or float8 caches.
        lse: [num_tokens, num_qo_heads] float32, written: log of the softmax's denominator.
        out: as ``q``, written. workspace: uint8, see :func:`paged_attention_workspace_size`.

    Returns:
        ``out``; rows that see no key (padding among them) are 0, their lse -inf.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name, and on CPU by sequence and
            entry. On CUDA lengths and pages are checked with LAMPO_CHECK_VALUES=1 only; values out
            of range are clamped.
    """
    if softmax_scale is None or out is None or workspace is None:
        num_tokens, num_qo_heads, head_dim = tensor("q", q, 3).shape
        if softmax_scale is None:
            softmax_scale = max(head_dim, 1) ** -0.5
        if out is None:
            out = torch.empty_like(q)
    if workspace is None:
        _, num_kv_heads, page_size, _ = tensor("k_cache", k_cache, 4).shape
        batch_size, max_pages = tensor("page_table", page_table, 2).shape
        cuda_index("q", q.device)
        try:
            size = paged_attention_workspace_size(
                num_qo_heads,
                num_kv_heads,
                head_dim,
                max_pages * page_size,
                batch_size=batch_size,
                num_tokens=num_tokens,
                deterministic=deterministic,
                device=q.device,
            )
        except ValueError as error:  # of the shapes
            raise ValueError(f"q, k_cache, page_table: {error}") from None
        workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
    _paged_attention(
        q,
        k_cache,
        v_cache,
        page_table,
        seq_lens,
        cu_seqlens_q,
        softmax_scale,
        causal,
        0 if sliding_window is None else sliding_window,
        0.0 if soft_cap is None else soft_cap,
        deterministic,
        planned,
        sinks,
        k_scale,
        v_scale,
        lse,
        out,
        workspace,
    )
    return out


def merge_states(
    out_partial: torch.Tensor,
    lse_partial: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge attention over disjoint sets of keys: ``sum_i e^(lse_i - lse) out_i``.

    Args:
        out_partial: [num_splits, num_tokens, num_heads, head_dim] float32.
        lse_partial: [num_splits, num_tokens, num_heads] float32, natural logarithms; where it is
            -inf, out_partial is not read.
        out: [num_tokens, num_heads, head_dim] float32 or bfloat16, written.
        lse: [num_tokens, num_heads] float32, written.

    Returns:
        ``(out, lse)``; rows without any key are 0 and -inf.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.
    """
    if out is None:
        shape = tensor("out_partial", out_partial, 4).shape
        out = out_partial.new_empty(shape[1:])
    if lse is None:
        shape = tensor("lse_partial", lse_partial, 3).shape
        lse = lse_partial.new_empty(shape[1:])
    _merge_states(out_partial, lse_partial, out, lse)
    return out, lse
