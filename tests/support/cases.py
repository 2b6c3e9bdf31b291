# SPDX-License-Identifier: Apache-2.0
"""Shapes that tests and benchmarks share."""

from __future__ import annotations

from lampo.bench.axes import Heads

MODEL_HEADS = {
    "SmolLM2-135M": Heads(9, 3, 64),
    "Llama-3-8B": Heads(32, 8, 128),
    "Llama-2-7B": Heads(32, 32, 128),
    "Qwen3-MoE-235B": Heads(64, 4, 128),
    "Gemma-2-9B": Heads(16, 8, 256),
}

# Heads and page sizes: every group size, head_dim and page size with a kernel variant.
PAGED_SHAPES = [
    (Heads(4, 2, 16), 8),
    (Heads(4, 4, 32), 1),
    (Heads(9, 3, 64), 256),
    (Heads(4, 1, 80), 64),
    (Heads(6, 2, 72), 4),
    (Heads(16, 2, 128), 16),
    (Heads(16, 1, 256), 16),
    (Heads(64, 1, 32), 16),
]


def page_edges(page_size: int, longest: int) -> list[int]:
    """Sequence lengths around a page, with zero and a long one."""
    return [0, 1, max(page_size - 1, 1), page_size, page_size + 1, longest]


def query_lens(kind: str, seq_lens: list[int]) -> list[int]:
    """Number of queries per sequence.

    kind: "prefill" all, "decode" the last, "chunk" up to 37, "mixed" one after the other.
    """
    counts = {
        "prefill": lambda n: n,
        "decode": lambda n: min(n, 1),
        "chunk": lambda n: min(n, 37),
    }
    kinds = list(counts) if kind == "mixed" else [kind]
    return [counts[kinds[i % len(kinds)]](n) for i, n in enumerate(seq_lens)]


# Rows of norms and gates, for every layout of the CUDA kernels: one warp per row in 1, 2 and 4
# rounds, one block in 2, rows that are read twice.
ROWS = [
    (0, 64), (1, 1), (3, 5), (2, 16), (5, 128), (7, 500), (4, 576), (9, 1024), (7, 1003),
    (130, 2048), (3, 4096), (2, 20000), (2, 70000), (1, 70001),
]  # fmt: skip

# num_splits, num_tokens, num_heads, head_dim of merged attention states.
MERGES = [
    (1, 1, 1, 32), (3, 5, 4, 64), (7, 33, 3, 20), (2, 0, 4, 64), (2, 3, 2, 1000), (0, 2, 3, 32),
    (9, 2, 5, 1),
]  # fmt: skip
