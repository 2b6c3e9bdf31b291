# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on the CPU: csrc/cuda/*.cu, compiled by g++ for the executor of cuda_on_cpu/,
under AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer. No GPU needed."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import reference
from cases import MERGES, ROWS
from compare import SENTINEL, assert_close
from cuda_on_cpu.build import build, compiler
from cuda_on_cpu.client import Client, Refused, SanitizerReport

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "cuda_on_cpu"
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    if not (ROOT / "csrc").is_dir():
        pytest.skip("needs the sources")
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        pytest.skip("the executor switches stacks on x86-64 Linux only")
    if shutil.which(compiler()) is None:
        pytest.skip("needs g++")
    programs = build(tmp_path_factory.mktemp("cuda_on_cpu"))
    clients = {name: Client(program) for name, program in programs.items()}
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture(params=["address", "thread"])
def client(request: pytest.FixtureRequest, clients: dict[str, Client]) -> Client:
    return clients[request.param]


def padded(shape: tuple[int, ...], pad: int, dtype: torch.dtype) -> torch.Tensor:
    """Random rows, `pad` elements apart; pad 3 makes them unaligned."""
    generator = torch.Generator().manual_seed(sum(shape) * 131 + pad)
    data = torch.randn(*shape[:-1], shape[-1] + pad, generator=generator)
    return data.to(dtype)[..., : shape[-1]]


def blank(shape: tuple[int, ...], pad: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((*shape[:-1], shape[-1] + pad), SENTINEL, dtype=dtype)[..., : shape[-1]]


def assert_gaps_untouched(out: torch.Tensor) -> None:
    backing = out.as_strided((out.shape[0], out.stride(0)), (out.stride(0), 1))
    assert (backing[:, out.shape[1] :] == backing.new_tensor(SENTINEL)).all(), "wrote past a row"


# The sizes are those of the GPU's tests; a sanitizer takes long over a long row, so few of those.
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("pad", [0, 3, 16])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm(client, dtype, weight_dtype, shape, pad, with_residual):
    shape = (min(shape[0], 6), shape[1])
    x = padded(shape, pad, dtype)
    weight = padded((shape[1],), 0, weight_dtype)
    residual = padded(shape, pad, dtype).flip(0) if with_residual else None
    normed = x if residual is None else x + residual
    results = []
    for order in ("forward", "backward"):
        out = blank(shape, pad, dtype)
        given = {"x": x, "weight": weight, "out": out}
        if residual is not None:
            given["residual"] = blank(shape, pad, dtype).copy_(residual)
        client.call("rms_norm", eps=1e-5, order=order, **given)
        assert_gaps_untouched(out)
        if residual is not None:
            assert torch.equal(given["residual"], normed)
            assert_gaps_untouched(given["residual"])
        results.append(out)
    assert torch.equal(*results), "depends on which thread is first"
    if x.numel():
        plain = torch.nn.functional.rms_norm(normed, (shape[1],), weight.to(dtype), 1e-5)
        assert_close(results[0], reference.rms_norm(normed, weight, 1e-5), plain)


@pytest.mark.parametrize("hidden_size", [128, 576, 4096, 20000])
def test_rms_norm_does_not_depend_on_the_batch(client, hidden_size):
    x = padded((9, hidden_size), 0, torch.bfloat16)
    weight = padded((hidden_size,), 0, torch.bfloat16)
    batch, one, unaligned = blank(x.shape, 0, x.dtype), blank((1, hidden_size), 0, x.dtype), None
    client.call("rms_norm", eps=1e-6, x=x, weight=weight, out=batch)
    for row in (0, 1, 8):
        client.call("rms_norm", eps=1e-6, x=x[row : row + 1], weight=weight, out=one)
        assert torch.equal(one[0], batch[row])
    unaligned = torch.empty(9, hidden_size + 1, dtype=x.dtype)[:, 1:].copy_(x)
    out = blank(x.shape, 0, x.dtype)
    client.call("rms_norm", eps=1e-6, x=unaligned, weight=weight, out=out)
    assert torch.equal(out, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("pad", [0, 3, 16])
def test_silu_mul(client, dtype, shape, pad):
    num_tokens, size = min(shape[0], 6), shape[1]
    x = padded((num_tokens, 2 * size), pad, dtype).mul_(6)
    out = blank((num_tokens, size), pad, dtype)
    client.call("silu_mul", x=x, out=out)
    assert_gaps_untouched(out)
    if out.numel():
        # 6e-7: what exp, reciprocal and two products may be off by, relative.
        expected = reference.silu(x[:, :size]) * x[:, size:].double()
        assert_close(out, expected, floor=6e-7 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", MERGES, ids=str)
@pytest.mark.parametrize("pad", [0, 3, 8])
@pytest.mark.parametrize("with_lse", [False, True])
def test_merge_states(client, dtype, size, pad, with_lse):
    num_splits, num_tokens, num_heads, _ = size
    partial = padded(size, pad, torch.float32)
    lse_partial = padded(size[:3], pad, torch.float32) * 20
    if num_splits and num_tokens > 1:
        lse_partial[0, 0] = -torch.inf  # not read: may be anything
        partial[0, 0] = torch.nan
        lse_partial[:, 1] = -torch.inf
    out = blank(size[1:], pad, dtype)
    lse = blank((num_tokens, num_heads), pad, torch.float32)
    given = {"lse": lse} if with_lse else {}
    client.call("merge_states", out_partial=partial, lse_partial=lse_partial, out=out, **given)
    if num_tokens == 0:
        return
    assert_gaps_untouched(out.flatten(0, 1))
    expected, expected_lse = reference.merge_states(partial, lse_partial)
    assert_close(out, expected, floor=1e-6 * num_splits)
    finite = expected_lse != -torch.inf
    assert not out[~finite].any()
    if with_lse:
        assert_gaps_untouched(lse)
        if finite.any():
            assert_close(lse[finite], expected_lse[finite], floor=1e-6)
        assert (lse[~finite] == -torch.inf).all()


# What the executor itself must do, and must find. Each kernel of kernels/self_test.cu is right
# without its fault, in both builds, and caught with it in the build that is named.


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
    """Small whole numbers, whose products and sums are exact in every type."""
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
