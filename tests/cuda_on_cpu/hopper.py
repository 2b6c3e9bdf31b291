# SPDX-License-Identifier: Apache-2.0
"""Calls of kernels/hopper.cu, small kernels of mbarrier, TMA and wgmma: on the executor, or on a
GPU of compute capability 9.0, where nvcc compiles them into a library of their own."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from cuda_on_cpu.build import HERE, NVCC_FLAGS, ROOT, nvcc
from cuda_on_cpu.client import Client

# Name of the kernel, its tensors, which it changes in place, and its numbers: kernels/hopper.h.
Run = Callable[[str, list[torch.Tensor], list[int]], None]

SOURCES = [HERE / "kernels/hopper.cu", ROOT / "csrc/cuda/runtime/tensor_map.cpp"]


def on_executor(client: Client, order: str = "forward") -> Run:
    def run(name: str, tensors: list[torch.Tensor], numbers: list[int]) -> None:
        arguments: dict[str, torch.Tensor | float] = {}
        arguments |= {f"t{i:02}": tensor for i, tensor in enumerate(tensors)}
        arguments |= {f"n{i:02}": number for i, number in enumerate(numbers)}
        client.call(f"hopper_{name}", order=order, **arguments)

    return run


def on_gpu(device: torch.device, folder: Path) -> Run:
    """Compiles the kernels in `folder`. Raises RuntimeError with nvcc's messages."""
    library = folder / "hopper.so"
    flags = ["-shared", "-Xcompiler=-fPIC", "-arch=sm_90a", *NVCC_FLAGS]
    command = [nvcc() or "nvcc", *flags, *map(str, SOURCES), "-o", str(library)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(ran.stdout + ran.stderr)
    functions = ctypes.CDLL(str(library))

    def run(name: str, tensors: list[torch.Tensor], numbers: list[int]) -> None:
        there = [tensor.to(device) for tensor in tensors]
        torch.cuda.synchronize(device)
        addresses = (ctypes.c_void_p * len(there))(*(tensor.data_ptr() for tensor in there))
        with torch.cuda.device(device):
            error = functions[f"hopper_{name}"](addresses, (ctypes.c_int * len(numbers))(*numbers))
            torch.cuda.synchronize()
        assert error == 0, f"CUDA error {error}"
        for tensor, result in zip(tensors, there, strict=True):
            tensor.copy_(result)

    return run
