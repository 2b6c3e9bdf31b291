# SPDX-License-Identifier: Apache-2.0
"""What tests of the CUDA kernels on the CPU share."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from compare import SENTINEL

from cuda_on_cpu.build import build, compiler
from cuda_on_cpu.client import Client
from cuda_on_cpu.device import GPU, cuda_on_cpu
from cuda_on_cpu.extension import build_extension

ROOT = Path(__file__).resolve().parent.parent.parent


def skip_unless_executable() -> None:
    """Skips, aloud, where the executor cannot be built or run."""
    if not (ROOT / "csrc").is_dir():
        pytest.skip("needs the sources")
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        pytest.skip("the executor switches stacks on x86-64 Linux only")
    if shutil.which(compiler()) is None:
        pytest.skip("needs g++")


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """One for each sanitizer, and "both"."""
    skip_unless_executable()
    programs = build(tmp_path_factory.mktemp("cuda_on_cpu"))
    clients = {name: Client(program) for name, program in programs.items()}
    clients["both"] = Client(*programs.values())
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture(scope="session")
def cuda_kernels(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ModuleType:
    """The kernels as a Python module, in the folder that --cuda-on-cpu names, or a new one."""
    skip_unless_executable()
    folder = request.config.getoption("cuda_on_cpu") or tmp_path_factory.mktemp("cuda_kernels")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return build_extension(Path(folder))


@pytest.fixture
def simulated_gpu(cuda_kernels: ModuleType) -> Iterator[torch.device]:
    """A GPU in name, whose kernels run on the CPU."""
    with cuda_on_cpu(cuda_kernels):
        yield GPU


@pytest.fixture
def client(clients: dict[str, Client]) -> Client:
    return clients["both"]


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
