# SPDX-License-Identifier: Apache-2.0
"""The division of a device's memory: weights, workspace of a step, and pages with the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lampo.engine.kv_pool import pages_within, state_bytes
from lampo.models.decoder import Decoder

_META = torch.device("meta")
# Memory for CUDA (kernels, cuBLAS, graphs), fragmentation of the allocator, and workspaces that
# depend on the device: those of attention and sampling are below 100 MB.
_RESERVE = 768 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU, before a model is on it.

    Attributes:
        free: available to the plan.
        weights: of the model.
        workspace: activations, logits and temporary memory of the largest step.
        reserve: left to CUDA.
        page_bytes, num_pages: of the KV cache.
        page_size: tokens of a page.
    """

    free: int
    weights: int
    workspace: int
    reserve: int
    page_bytes: int
    num_pages: int
    page_size: int

    def describe(self) -> str:
        """The plan in one line, for the log."""
        cache = self.num_pages * self.page_bytes
        return (
            f"GPU memory: weights {_gb(self.weights)}, workspace {_gb(self.workspace)}, KV cache "
            f"{_gb(cache)} ({self.num_pages} pages of {self.page_size} tokens), reserve "
            f"{_gb(self.reserve)}; {_gb(self.free)} were free"
        )


def workspace_bytes(model: Decoder, *, num_tokens: int, max_num_seqs: int) -> int:
    """Bytes of a step of `num_tokens` tokens beside weights and cache.

    The logits count twice: prompt steps have their own. The activations count twice: a product of
    cuBLAS is stored before its epilogue. cuBLAS also needs the largest matrix of a layer
    dequantized. The rotary tables are of the workspace too.
    """
    config = model.config
    activations = 2 * model.new_buffers(num_tokens, _META).nbytes
    logits = 2 * max_num_seqs * config.vocab_size * 4
    widest = max(layer.feed_forward.size for layer in config.layers)
    matrix = 2 * widest * config.hidden_size * int(model.dtype.itemsize)
    return activations + logits + matrix + model.table_bytes


def plan_memory(
    model: Decoder,
    *,
    free: int,
    page_bytes: int,
    page_size: int,
    pages_per_seq: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    kv_cache_memory: int | None = None,
) -> MemoryPlan:
    """Fits a model into the free memory of a GPU.

    Args:
        model: the model, its weights not yet on the GPU.
        free: free bytes.
        page_bytes, page_size: bytes and tokens of a page of the KV cache.
        pages_per_seq: pages of the longest sequence.
        max_num_seqs: sequences that decode together.
        max_num_batched_tokens: prompt tokens of a step, beside decoded ones.
        kv_cache_memory: limit of the cache in bytes; None: all that is left.

    Raises:
        ValueError: it does not fit; with the sizes of all parts, and remedies.
    """
    weights = model.nbytes
    workspace = workspace_bytes(
        model,
        num_tokens=max_num_batched_tokens + max_num_seqs,
        max_num_seqs=max_num_seqs,
    )
    workspace += max_num_seqs * state_bytes(model.keeps)
    left = free - weights - workspace - _RESERVE
    if left < pages_per_seq * page_bytes:
        raise ValueError(
            f"the model does not fit into the GPU's free memory of {_gb(free)}: weights "
            f"{_gb(weights)}, workspace {_gb(workspace)}, reserve {_gb(_RESERVE)}, and "
            f"{_gb(pages_per_seq * page_bytes)} of KV cache for one sequence of max_model_len: "
            "take a smaller max_model_len, max_num_seqs or max_num_batched_tokens, an 8-bit "
            "kv_cache_dtype, a quantized model, or device='cpu'"
        )
    within = left if kv_cache_memory is None else kv_cache_memory
    if within > left:
        raise ValueError(
            f"kv_cache_memory: {_gb(within)} do not fit beside weights and workspace, at most "
            f"{_gb(left)} do"
        )
    num_pages = pages_within(
        within, page_bytes, pages_per_seq=pages_per_seq, max_num_seqs=max_num_seqs
    )
    return MemoryPlan(free, weights, workspace, _RESERVE, page_bytes, num_pages, page_size)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
