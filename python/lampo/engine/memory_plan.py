# SPDX-License-Identifier: Apache-2.0
"""The division of a device's memory: weights, workspace of a step, and pages with the rest."""

from __future__ import annotations

from dataclasses import dataclass

from lampo import ops
from lampo.engine.decode_step import drawn_bytes
from lampo.engine.kv_pool import pages_within, state_bytes
from lampo.engine.runner import decode_buckets
from lampo.engine.sampler import SAMPLER_BYTES
from lampo.engine.step_inputs import prompt_bytes, step_input_bytes
from lampo.models.decoder import Decoder
from lampo.models.step import StepLimits

# Memory for CUDA (kernels, cuBLAS, graphs) and fragmentation of the allocator.
_RESERVE = 768 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one GPU, before a model is on it.

    Attributes:
        free: available to the plan.
        weights: of the model, with its rotary tables.
        held: memory of steps, allocated at load: activations, workspaces, logits, inputs.
        temporary: allocated by some steps and freed again: around products of cuBLAS, and for the
            draws of prompts.
        reserve: left to CUDA.
        page_bytes, num_pages: of the KV cache.
        page_size: tokens of a page.
    """

    free: int
    weights: int
    held: int
    temporary: int
    reserve: int
    page_bytes: int
    num_pages: int
    page_size: int

    def describe(self) -> str:
        """The plan in one line, for the log."""
        cache = self.num_pages * self.page_bytes
        return (
            f"GPU memory: weights {_gb(self.weights)}, workspace {_gb(self.held + self.temporary)},"
            f" KV cache {_gb(cache)} ({self.num_pages} pages of {self.page_size} tokens), reserve "
            f"{_gb(self.reserve)}; {_gb(self.free)} were free"
        )


def held_bytes(model: Decoder, limits: StepLimits) -> int:
    """Bytes that a :class:`lampo.engine.runner.ModelRunner` allocates at load.

    Decode steps that return log-probabilities, made on demand, are counted too.
    """
    vocab_size = model.config.vocab_size
    decode_steps = sum(
        2 * (step_input_bytes(rows, limits.max_pages_per_seq) + drawn_bytes(rows))
        for rows in decode_buckets(limits.max_num_seqs)
    )
    return (
        model.reserved_bytes(limits)
        + limits.max_num_seqs * vocab_size * 4
        + _sampling_bytes(model, limits)
        + decode_steps
        + prompt_bytes(limits)
        + SAMPLER_BYTES
    )


def temporary_bytes(model: Decoder, limits: StepLimits) -> int:
    """Bytes of the largest temporary memory of a step: of a linear by cuBLAS, or of a draw."""
    draw = _sampling_bytes(model, limits) + limits.max_num_seqs * model.config.vocab_size * 4
    return max(model.temporary_bytes(limits), draw)


def _sampling_bytes(model: Decoder, limits: StepLimits) -> int:
    return ops.sampling_workspace_size(
        model.config.vocab_size, limits.device, batch_size=limits.max_num_seqs
    )


def plan_memory(
    model: Decoder,
    limits: StepLimits,
    *,
    free: int,
    page_bytes: int,
    pages_per_seq: int,
    num_slots: int = 0,
    kv_cache_memory: int | None = None,
) -> MemoryPlan:
    """Fits a model into the free memory of a GPU.

    Args:
        model: the model, its weights not yet on the GPU.
        limits: of its steps.
        free: free bytes.
        page_bytes: bytes of a page of the KV cache.
        pages_per_seq: pages that the longest sequence holds at the same time.
        num_slots: slots for states, of sequences and saved ones.
        kv_cache_memory: limit of the cache in bytes; None: all that is left.

    Raises:
        ValueError: it does not fit; with the sizes of all parts, and remedies.
    """
    weights = model.nbytes + model.table_bytes
    held = held_bytes(model, limits) + num_slots * state_bytes(model.keeps)
    temporary = temporary_bytes(model, limits)
    workspace = held + temporary
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
        within, page_bytes, pages_per_seq=pages_per_seq, max_num_seqs=limits.max_num_seqs
    )
    return MemoryPlan(
        free, weights, held, temporary, _RESERVE, page_bytes, num_pages, limits.page_size
    )


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
