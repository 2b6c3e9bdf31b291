# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test file may use."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from cuda_on_cpu.build import ARCHITECTURES
from cuda_on_cpu.fixtures import (  # noqa: F401
    build_for,
    client,
    clients,
    cuda_kernels,
    ptx_client,
    ptx_program,
    simulated_gpu,
)
from lampo import _C
from lampo.runtime.device import cuda_info

torch.set_num_threads(2)


@pytest.fixture(params=_C.compiled_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per compiled kernel table; those this CPU lacks are skipped, aloud."""
    name: str = request.param
    if name not in _C.runnable_isas():
        pytest.skip(f"this CPU cannot run the {name} kernels")
    before = _C.cpu_isa()
    _C.set_cpu_isa(name)
    yield name
    _C.set_cpu_isa(before)


@pytest.fixture(scope="session")
def hooks() -> ModuleType:
    """Native functions that no op exposes (tests/hooks/); the test is skipped, aloud, without."""
    reason = "lampo._test_hooks is not built; scripts/test and scripts/dev build it"
    module: ModuleType = pytest.importorskip("lampo._test_hooks", reason=reason)
    return module


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cuda-on-cpu",
        action="store_true",
        help="run the GPU tests on the kernels compiled for the CPU",
    )
    parser.addoption(
        "--ptx",
        choices=ARCHITECTURES,
        help="run tests of kernels on the CPU on kernels translated from PTX",
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        fixtures = {name for item in session.items for name in getattr(item, "fixturenames", ())}
        if "gpu" in fixtures and session.config.getoption("cuda_on_cpu"):
            fixtures.add("cuda_kernels")
        if "client" in fixtures:
            fixtures.add("ptx_client" if session.config.getoption("ptx") else "clients")
        if session.config.getoption("ptx"):
            fixtures.discard("clients")
        with session.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            build_for(fixtures, session.config.getoption("ptx") or "sm_90a")


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """A CUDA device that lampo and torch can both use; without one the test is skipped, aloud."""
    if request.config.getoption("cuda_on_cpu"):
        if request.node.get_closest_marker("real_gpu"):
            pytest.skip("needs a real GPU: takes minutes with the kernels on the CPU")
        device: torch.device = request.getfixturevalue("simulated_gpu")
        return device
    info = cuda_info()
    if not info.usable:
        pytest.skip(f"no GPU for lampo: {info.why}")
    if not torch.cuda.is_available():
        pytest.skip("no GPU for torch: torch.cuda.is_available() is False")
    return torch.device("cuda", next(d.index for d in info.devices if d.usable))
