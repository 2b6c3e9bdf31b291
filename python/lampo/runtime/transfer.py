# SPDX-License-Identifier: Apache-2.0
"""Small arrays between host and device: many of them in one copy, through pinned memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNMENT = 64  # bytes


def offsets_of(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Aligned offsets for parts of these many bytes, one after the other, and the end."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def part_of(
    memory: torch.Tensor, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> torch.Tensor:
    """A part of [nbytes] uint8 memory as a tensor."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return memory[offset : offset + math.prod(shape) * dtype.itemsize].view(kind).view(shape)


def pinned(nbytes: int, device: torch.device) -> torch.Tensor:
    """[nbytes] uint8 zeros of the host, which a GPU copies while the host goes on.

    Memory is pinned by the context of a device; that of another one would be started for it.
    """
    with torch.cuda.device(device):
        return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)


class Transfer:
    """Copies of arrays to one device, and back. On the CPU tensors and arrays share memory.

    Args:
        device: the device.
        nbytes: the arrays of an upload, with their alignment; larger ones make it grow.

    Attributes:
        memory: [nbytes] uint8 of the device, which holds the last upload.
    """

    def __init__(self, device: torch.device, nbytes: int = 0) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self.memory = torch.empty(0, dtype=torch.uint8, device=device)
        self._hosts: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        self._landing = torch.empty(0, dtype=torch.uint8)
        if self._on_gpu:
            self._reserve(nbytes)

    def upload(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        """The arrays on the device, valid for work that is enqueued before the next upload."""
        if not self._on_gpu:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}
        offsets, size = offsets_of(array.nbytes for array in arrays.values())
        if size > self.memory.numel():
            self._reserve(size)
        # Two blocks alternate: the copy of the previous upload may still be pending.
        (host, copied), _ = self._hosts
        self._hosts.reverse()
        copied.synchronize()
        placed = list(zip(arrays.items(), offsets, strict=True))
        for (_, array), offset in placed:
            part_of(host, offset, array.dtype, array.shape).numpy()[...] = array
        self.memory[:size].copy_(host[:size], non_blocking=True)
        copied.record(torch.cuda.current_stream(self._device))
        return {
            name: part_of(self.memory, offset, array.dtype, array.shape)
            for (name, array), offset in placed
        }

    def download(self, block: torch.Tensor) -> NDArray[Any]:
        """A contiguous tensor of the device in host memory; waits for it."""
        if not self._on_gpu:
            return block.numpy()
        nbytes = block.nbytes
        if nbytes > self._landing.numel():
            self._landing = pinned(2 * nbytes, self._device)
        landed = self._landing[:nbytes].view(block.dtype).view(block.shape)
        landed.copy_(block, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return landed.numpy().copy()

    def _reserve(self, nbytes: int) -> None:
        self.memory = self.memory.new_empty(nbytes)
        self._hosts = [(pinned(nbytes, self._device), torch.cuda.Event()) for _ in range(2)]
