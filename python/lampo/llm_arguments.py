# SPDX-License-Identifier: Apache-2.0
"""The arguments of `LLM` that need no model to be checked, and so neither torch."""

from __future__ import annotations

from lampo.checks import check_integer
from lampo.error_text import shown

MAX_NUM_SEQS = 4096
DTYPES = ("auto", "float32", "bfloat16")
QUANTIZATIONS = (
    *("q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0"),
    *("iq4_nl", "iq4_xs"),
)
ACTIVATION_BITS = (8, 9, 16)

# Names of kv_cache_dtype, and torch's; "auto" depends on the model's dtype.
KV_CACHE_DTYPES = {
    "auto": None,
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "int8": "int8",
}


def check_llm_arguments(
    *,
    dtype: str,
    quantize: str | None,
    activation_bits: int | None,
    kv_cache_dtype: str,
    page_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> None:
    """Checks the arguments of `LLM` that need no model. Raises: ValueError, TypeError, by name."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {shown(dtype)}")
    if quantize is not None and quantize not in QUANTIZATIONS:
        names = ", ".join(QUANTIZATIONS)
        raise ValueError(f"quantize: expected one of {names}, got {shown(quantize)}")
    if quantize is not None and dtype != "auto":
        raise ValueError(f"quantize: needs dtype 'auto', got {dtype!r}")
    if activation_bits not in (None, *ACTIVATION_BITS):
        bits = ", ".join(map(str, ACTIVATION_BITS))
        raise ValueError(f"activation_bits: expected one of {bits}, got {shown(activation_bits)}")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        names = ", ".join(KV_CACHE_DTYPES)
        raise ValueError(f"kv_cache_dtype: expected one of {names}, got {shown(kv_cache_dtype)}")
    if page_size not in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        raise ValueError(f"page_size: expected a power of two up to 256, got {shown(page_size)}")
    check_integer("max_num_seqs", max_num_seqs, 1, MAX_NUM_SEQS)
    check_integer("max_num_batched_tokens", max_num_batched_tokens, 1, 1 << 20)
