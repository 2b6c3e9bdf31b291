# SPDX-License-Identifier: Apache-2.0
"""The memory of the KV cache, in pages."""

from __future__ import annotations

import math
import os

import torch

from lampo.checks import check_integer
from lampo.models.config import ModelConfig
from lampo.models.decoder import KVCache
from lampo.runtime.huge_pages import Prefaulter, reserve

_DEFAULT_MEMORY = 4 << 30
_READY_MEMORY = 32 << 20
_CPU = torch.device("cpu")


class KVPool:
    """A fixed number of pages, each of `page_size` tokens in every layer.

    A page is one piece of memory with its keys and values of all layers, which costs memory on the
    CPU once it has been written, or soon will be (:meth:`idle`).

    Attributes:
        cache: the tensors.
        bytes_per_page: over all layers, keys and values.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device = _CPU,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.bytes_per_page = page_bytes(config, page_size, dtype)
        nbytes = num_pages * self.bytes_per_page
        if device.type == "cpu":
            memory = reserve(nbytes)
        else:
            memory = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._prefaulter = Prefaulter(memory, _READY_MEMORY) if device.type == "cpu" else None
        pages = memory.view(num_pages, self.bytes_per_page)
        # NumPy copies in this thread: torch's own would take the cores from ours.
        self._pages = pages.numpy() if device.type == "cpu" else pages
        taken = 0

        def take(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            nonlocal taken
            start, taken = taken, taken + math.prod(shape) * dtype.itemsize
            part: torch.Tensor = pages[:, start:taken].view(dtype).unflatten(1, shape)
            return part

        heads, layers = config.num_kv_heads, range(config.num_layers)
        # A head's keys and its values are neighbours, as attention reads them: one stream.
        vectors = [take(dtype, heads, 2, page_size, config.head_dim) for _ in layers]
        scales: list[list[torch.Tensor | None]] = [
            [take(torch.float32, heads, page_size) if has_scales(dtype) else None for _ in "kv"]
            for _ in layers
        ]
        k, v = ([part[:, :, i] for part in vectors] for i in range(2))
        k_scale, v_scale = map(list, zip(*scales, strict=True))
        self.cache = KVCache(k, v, k_scale, v_scale)

    def idle(self, num_used: int) -> None:
        """Until :meth:`busy`, memory is made ready for some pages after the first `num_used`."""
        if self._prefaulter is not None:
            self._prefaulter.idle(num_used * self.bytes_per_page)

    def busy(self) -> None:
        if self._prefaulter is not None:
            self._prefaulter.busy()

    def copy_page(self, source: int, target: int) -> None:
        self._pages[target] = self._pages[source]

    def fill_randomly(self, pages: list[int]) -> None:
        """Gives pages keys and values that mean nothing, for measurements."""
        for tensor in self.cache.tensors():
            for page in pages:
                tensor[page] = torch.randn(tensor.shape[1:]).to(tensor.dtype)


def has_scales(dtype: torch.dtype) -> bool:
    """Whether each key and value has a scale, which its largest element sets when it is written.

    float8 could do without: SmolLM2's mean divergence from its bfloat16 cache is 2.7e-2 then, and
    1.2e-2 with scales, for a sixteenth more memory. int8 has 5.8e-3.
    """
    return dtype.itemsize == 1


def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of all layers and KV heads, with their scales."""
    per_vector = config.head_dim * dtype.itemsize + (4 if has_scales(dtype) else 0)
    size = 2 * config.num_layers * config.num_kv_heads * page_size * per_vector
    return -(-size // 64) * 64  # every page begins with a cache line


def plan_num_pages(
    page_nbytes: int, *, pages_per_seq: int, max_num_seqs: int, memory: int | None
) -> int:
    """Pages of a pool: no more than are ever used, no fewer than one longest sequence needs.

    Args:
        page_nbytes: bytes of one page.
        pages_per_seq: of the longest sequence.
        max_num_seqs: sequences that hold pages at the same time.
        memory: bytes to stay within; half of the free memory, but no more than 4 GiB unless one
            sequence needs it, if absent.

    Raises:
        ValueError: `memory` is too little for the longest sequence.
    """
    most = pages_per_seq * max_num_seqs
    if memory is None:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(max(min(free // 2, _DEFAULT_MEMORY) // page_nbytes, pages_per_seq), most)
    return pages_within(memory, page_nbytes, pages_per_seq=pages_per_seq, max_num_seqs=max_num_seqs)


def pages_within(memory: int, page_nbytes: int, *, pages_per_seq: int, max_num_seqs: int) -> int:
    """Pages that `memory` bytes hold, no more than are ever used.

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
