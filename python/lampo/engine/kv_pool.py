# SPDX-License-Identifier: Apache-2.0
"""The memory of the KV cache, in pages."""

from __future__ import annotations

import torch

from lampo.models.config import ModelConfig
from lampo.models.decoder import KVCache


class KVPool:
    """A fixed number of pages, each of `page_size` tokens in every layer.

    The tensors are reserved as address space: a page costs memory once it has been written.

    Attributes:
        cache: the tensors.
        bytes_per_page: over all layers, keys and values.
    """

    def __init__(
        self, config: ModelConfig, num_pages: int, page_size: int, dtype: torch.dtype
    ) -> None:
        shape = (num_pages, config.num_kv_heads, page_size, config.head_dim)
        layers = range(config.num_layers)
        self.cache = KVCache(
            k=[torch.empty(shape, dtype=dtype) for _ in layers],
            v=[torch.empty(shape, dtype=dtype) for _ in layers],
        )
        self.num_pages = num_pages
        self.page_size = page_size
        self.bytes_per_page = page_bytes(config, page_size, dtype)
        # Last in, first out: a new sequence gets pages that are in memory already.
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        if count > len(self._free):
            raise MemoryError(f"KV cache: {count} pages wanted, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    def free(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))


def page_bytes(config: ModelConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of one page: keys and values of all layers and KV heads."""
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    return per_token * page_size
