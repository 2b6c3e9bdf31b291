# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of CUDA kernels on the CPU."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from compare import SENTINEL

from cuda_on_cpu.build import EXTENSION, PLAIN, PROGRAMS, build, compiler, ninja, nvcc
from cuda_on_cpu.client import Client
from cuda_on_cpu.device import GPU, cuda_on_cpu
from cuda_on_cpu.extension import import_extension
from cuda_on_cpu.ptx.build import build_kernels

ROOT = Path(__file__).resolve().parent.parent.parent


# The fixtures that run what is built, and what builds it for each of them; the argument is the
# architecture of the kernels that run from PTX.
NEEDED: dict[str, Callable[[str], object]] = {
    "clients": lambda _: build(*PROGRAMS.values()),
    "cuda_kernels": lambda _: build(EXTENSION),
    "ptx_client": build_kernels,
    "ptx_program": lambda _: build(PLAIN),
}
_failures: dict[str, RuntimeError] = {}


def obstacle(name: str) -> str | None:
    """Why the executor, or what this fixture needs, cannot be built or run here."""
    if not (ROOT / "csrc").is_dir():
        return "needs the sources"
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        return "the executor switches stacks on x86-64 Linux only"
    if shutil.which(compiler()) is None or ninja() is None:
        return "needs g++ and ninja"
    if name.startswith("ptx") and nvcc() is None:
        return "needs nvcc"
    return None


def build_for(fixtures: set[str], architecture: str) -> None:
    """Builds what these fixtures need, before the first test: no test's time limit counts it."""
    for name in NEEDED:
        if name in fixtures and obstacle(name) is None:
            print(f"\ntests/cuda_on_cpu: {name}", flush=True)
            try:
                NEEDED[name](architecture)
            except RuntimeError as error:
                _failures[name] = error


def _require(name: str) -> None:
    why = obstacle(name)
    if why is not None:
        pytest.skip(why)
    if name in _failures:
        raise _failures[name]


@pytest.fixture(scope="session")
def clients(request: pytest.FixtureRequest) -> Iterator[dict[str, Client]]:
    """One for each sanitizer, and "both"."""
    if request.config.getoption("ptx"):
        pytest.skip("is about the sanitizers")
    _require("clients")
    clients = {name: Client(program) for name, program in PROGRAMS.items()}
    clients["both"] = Client(*PROGRAMS.values())
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture(scope="session")
def cuda_kernels() -> ModuleType:
    """The kernels as a Python module."""
    _require("cuda_kernels")
    return import_extension()


@pytest.fixture
def simulated_gpu(cuda_kernels: ModuleType) -> Iterator[torch.device]:
    """A GPU in name, whose kernels run on the CPU."""
    with cuda_on_cpu(cuda_kernels):
        yield GPU


@pytest.fixture(scope="session")
def ptx_client(request: pytest.FixtureRequest) -> Iterator[Client]:
    """The kernels as g++ compiles them and, beside it, as translated from PTX: they must agree."""
    _require("ptx_client")
    kernels = build_kernels(request.config.getoption("ptx") or "sm_90a")
    client = Client(PLAIN, [PLAIN, kernels], any_nan=True)
    yield client
    client.close()


@pytest.fixture(scope="session")
def ptx_program() -> Iterator[Client]:
    """The program that runs translated kernels, for small ones (ptx/small.py)."""
    _require("ptx_program")
    client = Client(PLAIN)
    yield client
    client.close()


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Client:
    """The client that tests of an op call: under the sanitizers, or with --ptx from PTX."""
    if request.config.getoption("ptx"):
        client: Client = request.getfixturevalue("ptx_client")
        return client
    both: Client = request.getfixturevalue("clients")["both"]
    return both


def padded(shape: tuple[int, ...], pad: int, dtype: torch.dtype) -> torch.Tensor:
    """Random rows, `pad` elements apart; pad 3 makes them unaligned."""
    generator = torch.Generator().manual_seed(sum(shape) * 131 + pad)
    data = torch.randn(*shape[:-1], shape[-1] + pad, generator=generator)
    return data.to(dtype)[..., : shape[-1]]


def sentinel(dtype: torch.dtype) -> torch.Tensor:
    """SENTINEL, or infinity where the type ends before."""
    return torch.tensor(SENTINEL).to(dtype)


def blank(shape: tuple[int, ...], pad: int, dtype: torch.dtype) -> torch.Tensor:
    return sentinel(dtype).repeat(*shape[:-1], shape[-1] + pad)[..., : shape[-1]]


def assert_gaps_untouched(out: torch.Tensor) -> None:
    backing = out.as_strided((out.shape[0], out.stride(0)), (out.stride(0), 1))
    assert (backing[:, out.shape[1] :] == sentinel(out.dtype)).all(), "wrote past a row"
