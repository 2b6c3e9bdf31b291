# SPDX-License-Identifier: Apache-2.0
"""Writing the paged KV cache."""

from __future__ import annotations

import torch

from lampo import _C
from lampo.ops._registry import register

_append_kv = register(
    "append_kv(Tensor(a!)? q, Tensor k, Tensor v, Tensor(b!) k_cache, Tensor(c!) v_cache, "
    "Tensor slot_mapping, Tensor? positions, Tensor? cos_sin, bool interleaved, "
    "bool hadamard, Tensor? q_norm_weight, Tensor? k_norm_weight, float eps, Tensor(d!)? k_scale, "
    "Tensor(e!)? v_scale) -> ()",
    _C.append_kv,
)


def append_kv(
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    cos_sin: torch.Tensor | None = None,
    interleaved: bool = False,
    hadamard: bool = False,
    q_norm_weight: torch.Tensor | None = None,
    k_norm_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Norm and rotate q and k per head; write k and v into their pages. ``q`` changes in place.

    Args:
        q: [num_tokens, num_qo_heads, head_dim] float32 or bfloat16 (on CUDA also float16), any
            outer strides; or None.
        k, v: [num_tokens, num_kv_heads, head_dim] as ``q``; not changed.
        k_cache, v_cache: [num_pages, num_kv_heads, page_size, head_dim] float32, float16, bfloat16,
            float8_e4m3fn or int8, any strides with a contiguous head_dim; written.
        slot_mapping: [num_tokens] int64, page * page_size + offset; -1 writes nothing (padding).
        positions: [num_tokens] int32 or int64, rows of ``cos_sin``.
        cos_sin: [max_positions, rotary_dim] float32: cosines, then sines. None: no rotation.
        interleaved: rotate the pairs (2i, 2i + 1), else (i, i + rotary_dim / 2).
        hadamard: then multiply q and k by an orthonormal Hadamard matrix (Sylvester's), in blocks
            of the largest power of two that divides head_dim. Scores stay the same, but no channel
            of the keys is much larger than the others, so that an int8 cache loses less. ``q``
            and the cache belong together then.
        q_norm_weight, k_norm_weight: [head_dim] float32 or as ``q``: root-mean-square norm first.
        k_scale, v_scale: [num_pages, num_kv_heads, page_size] float32, written: the largest
            magnitude of a head's vector over 127 (int8, required) or 448 (float8, optional).

    Raises:
        ValueError, TypeError: an argument that does not fit, by name; nothing has been written
            then. On CUDA values are checked with LAMPO_CHECK_VALUES=1 only: a slot out of range
            writes nothing, a position is clamped.

    Source: Su et al., "RoFormer" (2021); Kwon et al., "PagedAttention" (2023).
    """
    _append_kv(
        q,
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        positions,
        cos_sin,
        interleaved,
        hadamard,
        q_norm_weight,
        k_norm_weight,
        eps,
        k_scale,
        v_scale,
    )
