# SPDX-License-Identifier: Apache-2.0
"""Faults in the assembly of csrc/cuda/device/ptx/, which the twins of g++'s route replace: planted
in a copy of a header, compiled by nvcc and translated, they are found. Needs nvcc, no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from cuda_on_cpu.build import HERE, PLAIN, ROOT
from cuda_on_cpu.client import Client, Refused
from cuda_on_cpu.fixtures import padded
from cuda_on_cpu.ptx.build import build_planted
from cuda_on_cpu.ptx.parse import PtxError

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]  # compilers, on a busy machine

SELF_TEST = HERE / "kernels/self_test.cu"
HEADERS = "cuda/device/ptx"


def activation(client: Client) -> None:
    x, out = padded((3, 256), 0, torch.bfloat16), torch.zeros(3, 128, dtype=torch.bfloat16)
    client.call("silu_mul", x=x, out=out)


def embedding(client: Client) -> None:
    table, out = padded((5, 64), 0, torch.float16), torch.zeros(3, 64)
    ids = torch.tensor([1, 4, 0])
    client.call("embedding", token_ids=ids, table=table, out=out, accumulate=False)


def product(client: Client) -> None:
    """A product of matrices whose rows and columns differ, by ldmatrix."""
    for dtype in (torch.bfloat16, torch.float16, torch.int8):
        k = 32 // torch.empty(0, dtype=dtype).element_size()
        a, b = torch.arange(16 * k) % 13 - 6, torch.arange(8 * k) % 11 - 5
        out = torch.zeros(16, 8, dtype=torch.int32 if dtype == torch.int8 else torch.float32)
        a, b = a.view(16, k).to(dtype), b.view(8, k).to(dtype)
        client.call("multiply", a=a, b=b, out=out, by_ldmatrix=True, fault=0)


def loads(client: Client) -> None:
    x, out = torch.arange(256, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    client.call("load_twice", x=x, out=out)


def stages(client: Client) -> None:
    for width in (384, 200):
        x, out = padded((5, width), 0, torch.float32), torch.zeros(width)
        client.call("stage_sum", x=x, out=out, fault=0)


def cluster(client: Client) -> None:
    client.call("cluster_sum", x=torch.arange(12.0), out=torch.zeros(12), cluster=4, fault=0)


class Fault(NamedTuple):
    header: str
    right: str
    wrong: str
    source: str  # of csrc/cuda; empty: the executor's own kernels
    run: Callable[[Client], None]


LOAD = """asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(reg[0]), "=r"(reg[1]), "=r"(reg[2]), "=r"(reg[3])
                 : "r"(from)
                 : "memory");"""
PURE = (LOAD, LOAD.replace(" volatile", "").replace(': "memory"', ""))

QUICK = {
    "operands of cvt swapped": Fault(
        "arithmetic.cuh", '"cvt.rn.bf16x2.f32 %0, %1, %2;"', '"cvt.rn.bf16x2.f32 %0, %2, %1;"',
        "elementwise/activation.cu", activation,
    ),
    "registers of A swapped": Fault(
        "matrix.cuh", "{%4, %5, %6, %7}, {%8, %9}", "{%4, %6, %5, %7}, {%8, %9}", "", product,
    ),
}  # fmt: skip
OTHERS = {
    "rounded toward zero": Fault(
        "arithmetic.cuh", "cvt.rn.bf16x2.f32", "cvt.rz.bf16x2.f32",
        "elementwise/activation.cu", activation,
    ),
    "rounded to the wrong type": Fault(
        "arithmetic.cuh", "cvt.rn.bf16x2.f32", "cvt.rn.f16x2.f32",
        "elementwise/activation.cu", activation,
    ),
    "registers of B swapped": Fault(
        "matrix.cuh", "{%4, %5, %6, %7}, {%8, %9}", "{%4, %5, %6, %7}, {%9, %8}", "", product,
    ),
    "registers of the sums swapped": Fault(
        "matrix.cuh", '"{%0, %1, %2, %3}, {%4, %5, %6, %7}', '"{%0, %2, %1, %3}, {%4, %5, %6, %7}',
        "", product,
    ),
    "matrices of ldmatrix swapped": Fault(
        "matrix.cuh", "m8n8.x4.shared.b16 {%0, %1, %2, %3}", "m8n8.x4.shared.b16 {%0, %2, %1, %3}",
        "", product,
    ),
    "ldmatrix without volatile and memory": Fault("matrix.cuh", *PURE, "", loads),
    "waits for one group too few": Fault(
        "async_copy.cuh", '"n"(kPending)', '"n"(kPending + 1)', "", stages,
    ),
    "copies half of the bytes": Fault(
        "async_copy.cuh", "[%0], [%1], 16, %2;", "[%0], [%1], 16, 8;", "", stages,
    ),
    "does not wait for the kernels before": Fault(
        "stream.cuh", 'asm volatile("griddepcontrol.wait;" ::: "memory");', "",
        "elementwise/activation.cu", activation,
    ),
    "cluster arrives and does not wait": Fault(
        "cluster.cuh", '\n      "barrier.cluster.wait.acquire.aligned;"', '""', "", cluster,
    ),
}  # fmt: skip


def is_found(fault: Fault) -> str:
    source = ROOT / "csrc/cuda" / fault.source if fault.source else SELF_TEST
    header = f"{HEADERS}/{fault.header}"
    try:
        kernels = build_planted(source, header, fault.right, fault.wrong)
    except PtxError as error:
        return str(error)
    client = Client(PLAIN, [PLAIN, kernels], any_nan=True)
    try:
        fault.run(client)
    except (AssertionError, Refused) as error:
        return str(error)
    finally:
        client.close()
    return ""


@pytest.mark.usefixtures("ptx_program")
@pytest.mark.parametrize("name", QUICK)
def test_finds(name):
    assert "the builds differ" in is_found(QUICK[name])


@pytest.mark.usefixtures("ptx_program")
@pytest.mark.parametrize("source", ["elementwise/activation.cu", ""])
def test_finds_nothing_in_the_header_as_it_is(source):
    fault = next(fault for fault in QUICK.values() if fault.source == source)
    assert is_found(fault._replace(wrong=fault.right)) == ""
    if not source:
        for run in (loads, stages, cluster):
            assert is_found(fault._replace(wrong=fault.right, run=run)) == ""


@pytest.mark.slow
@pytest.mark.usefixtures("ptx_program")
@pytest.mark.parametrize("name", OTHERS)
def test_finds_others(name):
    assert is_found(OTHERS[name])
