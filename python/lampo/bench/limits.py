# SPDX-License-Identifier: Apache-2.0
"""Limits of the machine, measured in the same run: bytes and operations per second.

A limit is the best of its samples: other processes can only lower a sample. On CPU the rate of
operations is that of the kernels' own multiplying instruction on registers alone, which no kernel
of that instruction set can exceed. On CUDA it is the rate of torch's bfloat16 product of large
matrices, a practical limit.
"""

from __future__ import annotations

import math

import torch

from lampo import _C, profiling
from lampo.bench import timing
from lampo.bench.cost import Cost

SAMPLES = 5
_LARGEST_BUFFER = 1 << 30
_COPIED = 128 << 20
_MATMUL = 8192


def peak_rate(products: str, samples: int = SAMPLES) -> float:
    """Operations per second of the CPU's threads; 0: no instruction for these products.

    products: "f32", "bf16" or "int8".
    """
    return max(_C.peak_rate(products) for _ in range(samples))


def copy_rate(device: torch.device, nbytes: int, samples: int = SAMPLES) -> float:
    """Bytes per second, read plus written, of torch's copy of a buffer of `nbytes`."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    series = timing.measure(lambda: target.copy_(source), repeats=samples, device=device.type)
    return 2 * nbytes / min(series.values)


def matmul_rate(device: torch.device, samples: int = SAMPLES) -> float:
    """Operations per second of torch's product of random bfloat16 matrices."""
    size = _MATMUL
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    series = timing.measure(lambda: torch.mm(a, b), repeats=samples, device=device.type)
    return 2 * size**3 / min(series.values)


class Limits:
    """The limits of a device, measured where they are first needed, and better with every sample.

    Args:
        device: of the buffers.
        threads: that compute, on CPU.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device, self._threads = device, threads
        self._bandwidth: dict[int, float] = {}  # by the size of the buffer
        self._rates: dict[str, float] = {}
        self._copy = 0.0  # on CPU, for comparison: reads alone are faster, so it bounds nothing

    def measure(self, nbytes: int, products: tuple[str, ...]) -> None:
        """Takes samples of the limits of a case that reads buffers of `nbytes` in total."""
        size = self._size(nbytes)
        if self._device.type == "cpu":
            self._copy = self._copy or copy_rate(self._device, _COPIED)
            found = max(profiling.read_bandwidth(size, self._threads, SAMPLES))
            rates = {name: peak_rate(name) for name in products}
        else:
            found = self._bandwidth.get(size) or copy_rate(self._device, _LARGEST_BUFFER)
            rates = {"matmul": self._rates.get("matmul") or matmul_rate(self._device)}
        self._bandwidth[size] = max(found, self._bandwidth.get(size, 0.0))
        for name, rate in rates.items():
            self._rates[name] = max(rate, self._rates.get(name, 0.0))

    def bandwidth(self, nbytes: int) -> float:
        return self._bandwidth[self._size(nbytes)]

    def rate(self, products: tuple[str, ...]) -> float:
        """The fastest of some products; infinite where there is none."""
        if self._device.type != "cpu":
            products = ("matmul",)
        return max((self._rates[name] for name in products), default=0.0) or math.inf

    def least(
        self, cost: Cost, nbytes: int, products: tuple[str, ...], passes: float = 1.0
    ) -> tuple[float, str]:
        """The roofline: the least seconds of some work, and what bounds it, "memory" or "compute".

        nbytes: of the buffers in total. passes: times that a product is done.
        """
        memory = cost.nbytes / self.bandwidth(nbytes)
        compute = cost.flops * passes / self.rate(products)
        return max((memory, "memory"), (compute, "compute"))

    def report(self) -> dict[str, float]:
        """All limits by name, in GB/s and TFLOP/s."""
        kind = "read" if self._device.type == "cpu" else "copy (read plus written)"
        found = {
            f"{kind} bandwidth, {size / 2**20:.0f} MiB, GB/s": rate / 1e9
            for size, rate in sorted(self._bandwidth.items())
        }
        if self._copy:
            found[f"copy (read plus written), {_COPIED / 2**20:.0f} MiB, GB/s"] = self._copy / 1e9
        for name, rate in self._rates.items():
            if rate:
                what = f"{name} instructions of {_C.cpu_isa()}"
                if name == "matmul":
                    what = "torch's bf16 product"
                found[f"{what}, TFLOP/s"] = rate / 1e12
        return found

    @staticmethod
    def _size(nbytes: int) -> int:
        """A power of two, for cases with about as many bytes to share a limit."""
        return int(min(max(1 << (nbytes - 1).bit_length(), 1 << 20), _LARGEST_BUFFER))
