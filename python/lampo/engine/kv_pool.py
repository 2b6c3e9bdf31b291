# SPDX-License-Identifier: Apache-2.0
"""The per-sequence memory of models: keys and values in pages, states in slots."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

import torch

from lampo.checks import check_integer
from lampo.models.config import ModelConfig
from lampo.models.step import (
    Cache,
    Kept,
    PagedCache,
    PagedKV,
    State,
    StateCache,
    StepLimits,
)
from lampo.runtime.huge_pages import Prefaulter, reserve

logger = logging.getLogger("lampo")

_DEFAULT_MEMORY = 4 << 30
_READY_MEMORY = 32 << 20
_SAVED_STATES = 1 << 30  # bytes
_CPU = torch.device("cpu")


class KVPool:
    """A fixed number of pages, of `page_size` tokens in every layer, and of slots for states.

    A page is one block with the keys and values of all layers. On the CPU it takes physical memory
    once it is written or prefaulted (:meth:`idle`).

    Args:
        keeps: per layer, the kind of its per-sequence data.
        num_pages, page_size: number of pages, tokens per page.
        dtype: of keys and values.
        device: of the memory.
        num_slots: states at the same time, of sequences and saved ones; unused by a model without
            states.

    Attributes:
        device: as given.
        cache: the tensors.
        bytes_per_page: over all layers, keys and values.
        window: the layers' largest, in positions with the current one; None: unlimited.
        num_slots: 0 if no layer keeps a state.
    """

    def __init__(
        self,
        keeps: Sequence[Kept],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device = _CPU,
        num_slots: int = 1,
    ) -> None:
        self.device = device
        self.num_pages = num_pages
        self.page_size = page_size
        self.bytes_per_page = page_bytes(keeps, page_size, dtype)
        self.window = window_of(keeps)
        self.num_slots = num_slots if any(isinstance(kept, State) for kept in keeps) else 0
        memory = _memory(num_pages * self.bytes_per_page, device)
        self._prefaulter = Prefaulter(memory, _READY_MEMORY) if device.type == "cpu" else None
        pages = memory.view(num_pages, self.bytes_per_page)
        # NumPy copies in this thread; torch's threads would compete with lampo's.
        self._pages = pages.numpy() if device.type == "cpu" else pages
        taken = 0

        def take(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            nonlocal taken
            start, taken = taken, taken + math.prod(shape) * dtype.itemsize
            part: torch.Tensor = pages[:, start:taken].view(dtype).unflatten(1, shape)
            return part

        def take_scales(kept: PagedKV) -> torch.Tensor | None:
            if not has_scales(dtype):
                return None
            return take(torch.float32, kept.num_kv_heads, page_size)

        # Keys and values of a head are adjacent: attention reads one stream.
        paged = [kept for kept in keeps if isinstance(kept, PagedKV)]
        vectors = [take(dtype, kv.num_kv_heads, 2, page_size, kv.head_dim) for kv in paged]
        scales = [(take_scales(kv), take_scales(kv)) for kv in paged]
        caches = iter(
            PagedCache(both[:, :, 0], both[:, :, 1], *scale)
            for both, scale in zip(vectors, scales, strict=True)
        )
        states = iter(self._states([kept for kept in keeps if isinstance(kept, State)]))
        self.cache = Cache(
            tuple(next(caches) if isinstance(kept, PagedKV) else next(states) for kept in keeps)
        )

    def _states(self, keeps: Sequence[State]) -> list[StateCache]:
        """The states of all layers; those of a slot are one block of memory."""
        size = state_bytes(keeps)
        slots = _memory(self.num_slots * size, self.device).view(self.num_slots, size)
        self._slots = slots.numpy() if self.device.type == "cpu" else slots
        taken = 0

        def take(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
            nonlocal taken
            start, taken = taken, taken + _aligned(math.prod(shape) * dtype.itemsize)
            end = start + math.prod(shape) * dtype.itemsize
            part: torch.Tensor = slots[:, start:end].view(dtype).unflatten(1, shape)
            return part

        return [StateCache(tuple(take(kept.dtype, s) for s in kept.shapes)) for kept in keeps]

    def idle(self, num_used: int) -> None:
        """Prefaults some pages after the first `num_used`, until :meth:`busy`."""
        if self._prefaulter is not None:
            self._prefaulter.idle(num_used * self.bytes_per_page)

    def busy(self) -> None:
        if self._prefaulter is not None:
            self._prefaulter.busy()

    def copy_page(self, source: int, target: int) -> None:
        self._pages[target] = self._pages[source]

    def copy_state(self, source: int, target: int) -> None:
        """Copies the states of slot `source` to `target`."""
        self._slots[target] = self._slots[source]

    def fill_randomly(self, pages: list[int]) -> None:
        """Fills pages with random keys and values, for measurements."""
        for tensor in self.cache.paged_tensors():
            for page in pages:
                tensor[page] = torch.randn(tensor.shape[1:]).to(tensor.dtype)


def has_scales(dtype: torch.dtype) -> bool:
    """Whether key and value vectors have scales, computed from their largest elements.

    Scales are optional for float8: SmolLM2's mean divergence from its bfloat16 cache is 2.7e-2
    without and 1.2e-2 with them, for a sixteenth more memory. int8 has 5.8e-3.
    """
    return dtype.itemsize == 1


def page_bytes(keeps: Sequence[Kept], page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of all layers and KV heads, with their scales."""
    per_scale = 4 if has_scales(dtype) else 0
    vectors = sum(
        2 * kept.num_kv_heads * (kept.head_dim * int(dtype.itemsize) + per_scale)
        for kept in keeps
        if isinstance(kept, PagedKV)
    )
    return -(-vectors * page_size // 64) * 64  # every page begins with a cache line


def state_bytes(keeps: Sequence[Kept]) -> int:
    """Bytes of the states of one sequence, all layers."""
    states = [kept for kept in keeps if isinstance(kept, State)]
    return sum(
        _aligned(math.prod(shape) * kept.dtype.itemsize) for kept in states for shape in kept.shapes
    )


def _aligned(nbytes: int) -> int:
    """Every state begins with a cache line."""
    return -(-nbytes // 64) * 64


def saved_distance(page_size: int, max_num_batched_tokens: int) -> int:
    """Tokens from one saved state of a sequence to the next: as many whole pages as a step takes,
    so that no step of a long prompt is cut short for them."""
    return max(max_num_batched_tokens // page_size, 1) * page_size


def num_state_slots(keeps: Sequence[Kept], limits: StepLimits, *, prefix_caching: bool) -> int:
    """Slots for the states of all sequences that run, and for saved states of the prefix cache:
    those of a GiB, but no more than the longest sequences have."""
    nbytes = state_bytes(keeps)
    if nbytes == 0 or not prefix_caching:
        return limits.max_num_seqs
    distance = saved_distance(limits.page_size, limits.max_num_batched_tokens)
    most = limits.max_num_seqs * (limits.max_pages_per_seq * limits.page_size // distance)
    return limits.max_num_seqs + max(min(_SAVED_STATES // nbytes, most), 1)


def _memory(nbytes: int, device: torch.device) -> torch.Tensor:
    """[nbytes] uint8; on the CPU address space alone, until it is written."""
    if device.type == "cpu" and nbytes:
        return reserve(nbytes)
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


def window_of(keeps: Sequence[Kept]) -> int | None:
    """The layers' largest window, in positions with the current one; None: unlimited."""
    windows = [kept.window for kept in keeps if isinstance(kept, PagedKV)]
    known = [window for window in windows if window is not None]
    return max(known) if known and len(known) == len(windows) else None


def default_max_model_len(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """The model's context, or the tokens that the memory of the whole device could hold, if fewer.

    Args:
        config: of the model; windows count as full attention.
        dtype: of keys and values.
        device: the model's.
    """
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[1]
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    context = config.max_position_embeddings
    most = max(memory // max(config.kv_size * int(dtype.itemsize), 1), 1)
    if most < context:
        logger.warning(
            "max_model_len: %d, as no more tokens fit into the device's memory, of the model's "
            "context of %d",
            most,
            context,
        )
    return min(context, most)


def pages_per_sequence(
    max_model_len: int, page_size: int, window: int | None, max_num_batched_tokens: int
) -> int:
    """Largest number of pages that a sequence holds.

    With a window, pages outside of it are freed after every step: a sequence holds the window
    before a step and the tokens of the step.
    """
    pages = -(-max_model_len // page_size)
    if window is None:
        return pages
    return min(pages, -(-(window + max_num_batched_tokens) // page_size) + 1)


def plan_num_pages(
    page_nbytes: int, *, pages_per_seq: int, max_num_seqs: int, memory: int | None
) -> int:
    """Pages of a pool: at least those of one longest sequence, at most those of `max_num_seqs`.

    Args:
        page_nbytes: bytes of one page.
        pages_per_seq: pages of the longest sequence.
        max_num_seqs: sequences that hold pages at the same time.
        memory: limit in bytes; None: half of the free memory, but no more than 4 GiB unless one
            sequence needs it.

    Raises:
        ValueError: `memory` is too little for the longest sequence.
    """
    most = pages_per_seq * max_num_seqs
    if memory is None:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(max(min(free // 2, _DEFAULT_MEMORY) // page_nbytes, pages_per_seq), most)
    return pages_within(memory, page_nbytes, pages_per_seq=pages_per_seq, max_num_seqs=max_num_seqs)


def pages_within(memory: int, page_nbytes: int, *, pages_per_seq: int, max_num_seqs: int) -> int:
    """Pages that fit into `memory` bytes, at most those of `max_num_seqs` longest sequences.

    Raises:
        ValueError: they are too few for the longest sequence.
    """
    check_integer("kv_cache_memory", memory, 1, 1 << 50)
    if memory < pages_per_seq * page_nbytes:
        raise ValueError(
            f"kv_cache_memory: {memory} bytes hold {memory // page_nbytes} pages, but a sequence "
            f"of max_model_len needs {pages_per_seq}: give at least "
            f"{pages_per_seq * page_nbytes} bytes or a shorter max_model_len"
        )
    return min(memory // page_nbytes, pages_per_seq * max_num_seqs)
