# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on the CPU: csrc/cuda/*.cu, compiled by g++ for the executor of cuda_on_cpu/,
under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer. No GPU needed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from cuda_on_cpu.client import Client, Refused, SanitizerReport

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cuda_on_cpu"


# Tests of the executor itself. A kernel of kernels/self_test.cu is right without its fault, in both
# builds, and detected with its fault in the named build.


def reverse(client: Client, fault: int, order: str = "forward") -> None:
    x, out = torch.randn(96), torch.zeros(96)
    client.call("reverse", x=x, out=out, fault=fault, order=order)
    assert torch.equal(out, x.flip(0))


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_barrier(client, order):
    reverse(client, 0, order)


def test_finds_missing_barrier(clients):
    with pytest.raises(SanitizerReport, match=r"data race(?s:.*)reverse_kernel"):
        reverse(clients["thread"], 1)


def test_finds_shared_memory_overrun(clients):
    with pytest.raises(SanitizerReport, match=r"heap-buffer-overflow(?s:.*)reverse_kernel"):
        reverse(clients["address"], 2)


def test_finds_divergent_barrier(client):
    with pytest.raises(
        Refused,
        match=r"(?s)divergent barrier.*thread \(0, 0, 0\) of block .* is at "
        r"__syncthreads.*48 wait, 48 have left, the first of them thread \(1, 0",
    ):
        reverse(client, 3)
    with pytest.raises(Refused, match=r"at __syncthreads while others .* at __syncthreads_or"):
        reverse(client, 4)
    reverse(client, 0)  # and goes on


def gather(client: Client, last_page: int) -> None:
    cache = torch.randn(5, 16)
    pages = torch.tensor([3, 0, 4, 1, last_page], dtype=torch.int32)
    out = torch.zeros(73)
    client.call("gather_pages", cache=cache, pages=pages, out=out)
    assert torch.equal(out, cache[pages.long()].flatten()[:73])


def test_pages(client):
    gather(client, 2)


@pytest.mark.parametrize("page", [5, -1])
def test_finds_page_out_of_bounds(clients, page):
    with pytest.raises(SanitizerReport, match=r"AddressSanitizer(?s:.*)gather_pages_kernel"):
        gather(clients["address"], page)


def stage_sum(client: Client, fault: int, width: int = 384) -> None:
    x, out = torch.randn(5, width), torch.zeros(width)
    client.call("stage_sum", x=x, out=out, fault=fault)
    torch.testing.assert_close(out, x.sum(0))


@pytest.mark.parametrize("width", [384, 200])
def test_async_copy(client, width):
    stage_sum(client, 0, width)


@pytest.mark.parametrize("fault", [1, 2])
def test_finds_missing_wait(clients, fault):
    with pytest.raises(SanitizerReport, match=r"use-after-poison(?s:.*)stage_sum_kernel"):
        stage_sum(clients["address"], fault)
    with pytest.raises((SanitizerReport, AssertionError)):
        stage_sum(clients["thread"], fault)


def test_finds_stage_filled_too_early(clients):
    with pytest.raises(SanitizerReport, match=r"data race(?s:.*)copy_async"):
        stage_sum(clients["thread"], 3)


def multiply(client: Client, dtype: torch.dtype, by_ldmatrix: bool, fault: int) -> None:
    """Small whole numbers: products and sums are exact in every type."""
    k = 32 // torch.empty(0, dtype=dtype).element_size()
    a = torch.randint(-9, 10, (16, k)).to(dtype)
    b = torch.randint(-9, 10, (8, k)).to(dtype)
    out = torch.zeros(16, 8, dtype=torch.int32 if dtype == torch.int8 else torch.float32)
    client.call("multiply", a=a, b=b, out=out, by_ldmatrix=by_ldmatrix, fault=fault)
    assert torch.equal(out.double(), a.double() @ b.double().T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("by_ldmatrix", [False, True])
def test_matrix_product(client, dtype, by_ldmatrix):
    multiply(client, dtype, by_ldmatrix, 0)
    with pytest.raises(AssertionError):  # the planted wrong fragment index
        multiply(client, dtype, by_ldmatrix, 1)


def warp_functions(client: Client, fault: int) -> torch.Tensor:
    x, out = torch.arange(32, dtype=torch.int32) - 16, torch.zeros(9, 32, dtype=torch.int32)
    client.call("warp_functions", x=x, out=out, fault=fault)
    return out


def test_warp_functions(client):
    lane = torch.arange(32)
    eighth = lane // 8 * 8
    source = torch.stack([
        lane // 16 * 16 + (lane + 3) % 16,
        torch.where(lane - 2 < eighth, lane, lane - 2),
        torch.where(lane + 2 > eighth + 7, lane, lane + 2),
        lane ^ 4,
    ])  # fmt: skip
    out = warp_functions(client, 0).long()
    assert torch.equal(out[:4], source - 16)
    assert (out[4] & 0xFFFFFFFF == 0xFFFE0000).all()  # those of more than 0
    assert (out[5] == torch.where(lane < 16, -136, 15)).all()
    assert (out[6] == 3).all()
    assert torch.equal(out[7], (lane + 1) % 32 - 16)
    assert (out[8] == 15).all()


def test_finds_wrong_use_of_a_warp(client, clients):
    with pytest.raises(Refused, match=r"is at __shfl_sync and waits for thread \(5, 0, 0\)"):
        warp_functions(client, 1)
    with pytest.raises(Refused, match=r"thread .* at __ballot_sync: the lanes of a mask must"):
        warp_functions(client, 2)
    with pytest.raises(SanitizerReport, match=r"data race(?s:.*)warp_functions_kernel"):
        warp_functions(clients["thread"], 3)


def cluster_sum(client: Client, fault: int) -> None:
    x, out = torch.arange(12.0), torch.zeros(12)
    client.call("cluster_sum", x=x, out=out, cluster=4, fault=fault)
    assert torch.equal(out, x.view(3, 4).sum(1, keepdim=True).add(torch.arange(4)).flatten())


def test_cluster(client, clients):
    cluster_sum(client, 0)
    with pytest.raises(SanitizerReport, match=r"data race(?s:.*)cluster_sum_kernel"):
        cluster_sum(clients["thread"], 1)
    with pytest.raises(Refused, match="asks for block 4 of a cluster of 4"):
        cluster_sum(client, 2)


def histogram(client: Client, fault: int) -> None:
    x = torch.randint(0, 5, (1000,), dtype=torch.int32)
    counts, arrived = torch.zeros(6, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    client.call("histogram", x=x, counts=counts, arrived=arrived, fault=fault)
    assert torch.equal(counts[:5].long(), torch.bincount(x, minlength=5))
    assert counts[5] == 1000


def test_atomics(client, clients):
    histogram(client, 0)
    with pytest.raises(SanitizerReport, match=r"data race(?s:.*)histogram_kernel"):
        histogram(clients["thread"], 1)


def begin_early(client: Client, fault: int) -> None:
    x, out = torch.arange(96.0), torch.zeros(96)
    client.call("begin_early", x=x, out=out, fault=fault)
    assert torch.equal(out, 2 * x)


def test_grids_that_begin_early(client):
    begin_early(client, 0)


@pytest.mark.parametrize("fault", [1, 2], ids=["writes", "reads"])
def test_finds_memory_of_a_grid_that_has_not_ended(client, fault):
    with pytest.raises(AssertionError):
        begin_early(client, fault)


def test_finds_missing_wait_for_the_stream(client):
    with pytest.raises(Refused, match="begins early without waiting for those before it"):
        begin_early(client, 3)


def test_finds_bad_launches(client):
    with pytest.raises(Refused, match="bad_launch: the launch was refused"):
        client.call("bad_launch", fault=1)
    with pytest.raises(Refused, match="uses 384 bytes of shared memory, the launch asked for 4"):
        client.call("bad_launch", fault=2)


def test_assembly_has_a_twin():
    """PTX is where a twin replaces it, and nowhere else."""
    with_twin = {path.name for path in (HERE / "twin/cuda/device/ptx").glob("*")}
    assert with_twin == {path.name for path in (ROOT / "csrc/cuda/device/ptx").glob("*")}
    for path in (ROOT / "csrc").rglob("*.cu*"):
        if path.is_file() and path.parent.name != "ptx":
            assert not re.search(r"\basm\b|__shared__", path.read_text()), path
