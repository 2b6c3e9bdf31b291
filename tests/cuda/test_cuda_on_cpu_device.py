# SPDX-License-Identifier: Apache-2.0
"""The simulated GPU of cuda_on_cpu/device.py, and the GPU tests on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lampo import ops

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu_session

pytestmark = pytest.mark.long


@pytest.mark.usefixtures("cuda_kernels")
def test_gpu_tests():
    """The quick GPU tests, in a separate process."""
    options = ["-m", "gpu", "-k", gpu_session.REPRESENTATIVE, "--cuda-on-cpu"]
    command = [sys.executable, "-m", "pytest", "-q", *options, *gpu_session.gpu_test_files()]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=gpu_session.ROOT)
    assert ran.returncode == 0, ran.stdout[-6000:]
    assert int(re.findall(r"(\d+) passed", ran.stdout)[-1]) > 100


def test_where_tensors_are(simulated_gpu):
    host = torch.arange(6.0)
    there = host.to(simulated_gpu)
    assert there.is_cuda and there.device == simulated_gpu and not host.is_cuda
    there += 1
    assert torch.equal(host, torch.arange(6.0)), "a copy"
    assert torch.equal(there.cpu(), host + 1)
    assert there[2:].view(2, 2).is_cuda and torch.empty_like(there).is_cuda
    assert (
        torch.zeros(3, device="cuda").is_cuda and not torch.zeros_like(there, device="cpu").is_cuda
    )
    there.copy_(host)[1:3] = 9
    assert there.tolist() == [0, 9, 9, 3, 4, 5]
    assert (there * torch.tensor(2.0)).is_cuda, "scalars of the host are welcome"
    assert there[torch.tensor([1, 2])].is_cuda, "and indices"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda here, there: here + there,
        lambda here, there: torch.equal(here, there),
        lambda here, there: torch.where(there > 0, there, here),
        lambda here, there: here[there.long()],
        lambda here, there: torch.randn(3, device="cuda", generator=torch.Generator()),
        lambda here, there: ops.silu_mul(there, out=torch.empty(3, 1)),
    ],
)
def test_refuses_two_devices(simulated_gpu, wrong):
    here = torch.ones(3, 2)
    with pytest.raises((RuntimeError, ValueError), match="expected"):
        wrong(here, here.to(simulated_gpu))


def test_refuses_numpy(simulated_gpu):
    with pytest.raises(TypeError, match="can't convert"):
        torch.ones(3, device=simulated_gpu).numpy()


def test_ops_go_to_the_kernels_of_their_device(simulated_gpu, cuda_kernels, monkeypatch):
    x = torch.randn(3, 8)
    assert torch.allclose(ops.silu_mul(x.to(simulated_gpu)).cpu(), ops.silu_mul(x))
    assert ops.sampling_workspace_size(50_000, simulated_gpu) != ops.sampling_workspace_size(50_000)
    with pytest.raises(ValueError, match="out: expected a tensor on cuda:0, got one on cpu"):
        ops.silu_mul(x.to(simulated_gpu), out=torch.empty(3, 4))


def test_copies_take_their_time(simulated_gpu):
    """A host that does not wait sees what was there before; so does the device."""
    host, there = torch.zeros(3), torch.ones(3, device=simulated_gpu)
    arrived = torch.cuda.Event()
    host.copy_(there, non_blocking=True)
    arrived.record()
    assert not host.any()
    arrived.synchronize()
    assert host.all()
    there.copy_(host, non_blocking=True)
    host.fill_(7)  # too early
    assert there.tolist() == [7, 7, 7]


def test_graph(simulated_gpu):
    x, out = torch.ones(2, device=simulated_gpu), torch.zeros(2, device=simulated_gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(x * 2)
        ops.gelu(out[None], out=x[None])
    assert out.tolist() == [0, 0] and x.tolist() == [1, 1], "captured, not computed"
    for value in (3.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert out.tolist() == [2 * value] * 2
        torch.testing.assert_close(x.cpu(), torch.full((2,), 2 * value))
    for wrong in (
        lambda: x.cpu(),
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.copy_(torch.zeros(2)),
        lambda: torch.ones(2).to(simulated_gpu),
    ):
        with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="captur"):
            wrong()
