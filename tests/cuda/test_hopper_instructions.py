# SPDX-License-Identifier: Apache-2.0
"""mbarrier, TMA and wgmma by small kernels (cuda_on_cpu/kernels/hopper.cu) against models in
PyTorch, with random operands and descriptors: their CPU twins and, marked gpu, hardware. And faults
planted in a pipeline of them, which the twins find."""

from __future__ import annotations

import re
import subprocess

import pytest
import torch

from cuda_on_cpu.build import NVCC_FLAGS, nvcc
from cuda_on_cpu.client import Refused, SanitizerReport
from cuda_on_cpu.hopper import SOURCES, Run, on_executor, on_gpu

IMAGE_BYTES = 32 << 10
GROUP = 1024  # bytes of eight lines
RACE = (SanitizerReport, r"data race")


@pytest.fixture(
    params=[
        pytest.param("forward", marks=pytest.mark.long),
        pytest.param("backward", marks=pytest.mark.long),
        pytest.param("gpu", marks=[pytest.mark.gpu, pytest.mark.real_gpu]),
    ]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    if request.param != "gpu":
        return on_executor(request.getfixturevalue("clients")["both"], request.param)
    gpu = request.getfixturevalue("gpu")
    if torch.cuda.get_device_capability(gpu) != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")
    if nvcc() is None:
        pytest.skip("needs nvcc")
    if "gpu" not in _libraries:  # compiled once
        _libraries["gpu"] = on_gpu(gpu, tmp_path_factory.mktemp("hopper"))
    return _libraries["gpu"]


_libraries: dict[str, Run] = {}


def whole_numbers(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> torch.Tensor:
    """Products and sums of which are exact."""
    return torch.randint(-9, 10, shape, generator=g).to(dtype)


def swizzled(address: torch.Tensor) -> torch.Tensor:
    """Byte addresses as SWIZZLE_128B maps them: bits 4 to 6 are changed by bits 7 to 9."""
    return address ^ (address >> 7 & 7) << 4


def random_operand(g: torch.Generator, groups: int, leading: int) -> tuple[int, int, int]:
    """Where an operand of so many groups of lines begins, and its offsets, within the image."""

    def up_to(most: int) -> int:
        return int(torch.randint(0, most + 1, (1,), generator=g))

    between = GROUP * (1 + up_to((IMAGE_BYTES // GROUP - 1) // max(groups - 1, 1) - 1) % 3)
    room = IMAGE_BYTES - GROUP - (groups - 1) * between
    leading = GROUP * up_to(room // GROUP) if leading else 16 * up_to(100)
    begin = GROUP * up_to((room - (leading if groups == 2 else 0)) // GROUP)
    return begin, leading, between


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_product_of_shared_memory(run, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    image = whole_numbers((IMAGE_BYTES // 2,), dtype, g)
    numbers, operands = [int(dtype == torch.bfloat16)], []
    for lines in (64, 128):
        begin, leading, between = random_operand(g, lines // 8, 0)
        begin += 32 * int(torch.randint(0, 4, (1,), generator=g))  # 16 of 64 elements along K
        numbers += [begin, leading, between]
        line, k = torch.arange(lines)[:, None], torch.arange(16)
        address = begin + line // 8 * between + line % 8 * 128 + 2 * k
        operands.append(image[swizzled(address) // 2].double())
    out = torch.full((64, 128), torch.nan)
    run("multiply_shared", [image, out], numbers)
    assert torch.equal(out.double(), operands[0] @ operands[1].T)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_product_of_registers(run, dtype, columns, seed):
    g = torch.Generator().manual_seed(seed)
    image = whole_numbers((IMAGE_BYTES // 2,), dtype, g)
    a = whole_numbers((64, 16), dtype, g)
    begin, leading, between = random_operand(g, 2, 1)
    k, column = torch.arange(16)[:, None], torch.arange(columns)
    address = begin + column // 64 * leading + k // 8 * between + k % 8 * 128 + column % 64 * 2
    out = torch.full((64, columns), torch.nan)
    numbers = [int(dtype == torch.bfloat16), columns, begin, leading, between]
    run("multiply_registers", [a, image, out], numbers)
    assert torch.equal(out.double(), a.double() @ image[swizzled(address) // 2].double() + 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("box_rows", [8, 16, 128])
def test_box(run, box_rows, seed):
    """Boxes inside and outside of the tensor: zeros there, the swizzle everywhere."""
    g = torch.Generator().manual_seed(seed)
    columns = (64, 128, 80)[seed % 3]
    pages, heads, rows = 5, 3, (8, 16, 256)[seed % 3]
    x = torch.randn(pages, heads, rows, columns + 8, generator=g).half()[..., :columns]
    if seed % 2:  # rows of all heads side by side
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    page, head = int(torch.randint(0, pages + 1, (1,), generator=g)), seed % heads
    row = int(torch.randint(0, max(rows - box_rows, 0) + 3, (1,), generator=g))
    column = 64 * int(torch.randint(0, 2, (1,), generator=g))
    padded = torch.zeros(pages + 1, heads, 512, 192).half()
    padded[:pages, :, :rows, :columns] = x
    expected = torch.empty(box_rows * 64).half()
    address = torch.arange(box_rows * 64) * 2
    box = padded[page, head, row : row + box_rows, column : column + 64]
    expected[swizzled(address) // 2] = box.flatten()
    out = torch.full((box_rows * 64,), torch.nan).half()
    strides = [x.stride(2), x.stride(1), x.stride(0)]
    numbers = [columns, rows, heads, pages, *strides, box_rows, column, row, head, page]
    run("box", [x, out], numbers)
    assert torch.equal(out, expected)


def pipeline(run: Run, tiles: int, fault: int = 0) -> None:
    g = torch.Generator().manual_seed(tiles)
    a = whole_numbers((tiles, 64, 64), torch.bfloat16, g)
    b = whole_numbers((tiles, 128, 64), torch.bfloat16, g)
    out = torch.full((64, 128), torch.nan)
    run("pipeline", [a, b, out], [tiles, fault])
    expected = (a.double() @ b.double().transpose(1, 2)).sum(0)
    assert torch.equal(out.double(), expected), "other numbers"


@pytest.mark.parametrize("tiles", [1, 2, 7])
def test_pipeline(run, tiles):
    pipeline(run, tiles)


WRONG_NUMBERS = (AssertionError, "other numbers")


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "build", "order", "found"),
    [
        (1, "address", "forward", (Refused, "by wgmma what a copy has yet to write")),
        (1, "thread", "backward", RACE),
        (2, "address", "forward", (Refused, "arrives once too often at an mbarrier")),
        (3, "address", "forward", (Refused, "by wgmma what a copy has yet to write")),
        (3, "address", "backward", (Refused, r"wait for one another(?s:.*)is at an mbarrier")),
        (4, "address", "forward", (Refused, r"wait for one another(?s:.*)is at an mbarrier")),
        (5, "address", "forward", WRONG_NUMBERS),
        (6, "address", "forward", (Refused, "by wgmma without wgmma.fence")),
        (7, "address", "forward", (Refused, "over what a product still reads")),
        (8, "address", "forward", (Refused, "over what a product still reads")),
        (9, "thread", "forward", RACE),
        (9, "thread", "backward", RACE),
        (10, "address", "forward", (Refused, "made without fence_async_proxy")),
        (11, "thread", "forward", RACE),
        (12, "thread", "forward", RACE),
    ],
)
def test_finds_planted_faults(clients, fault, build, order, found):
    error, message = found
    with pytest.raises(error, match=message):
        pipeline(on_executor(clients[build], order), 7, fault)
    pipeline(on_executor(clients[build], order), 3)  # and goes on


@pytest.mark.long
def test_compiles_for_hopper(tmp_path):
    """What a GPU would run: with no product that nvcc has to run alone, for want of a fence."""
    if nvcc() is None:
        pytest.skip("needs nvcc")
    for source in SOURCES:
        kind = ["-cubin"] if source.suffix == ".cu" else ["-c"]
        command = [nvcc(), *kind, "-arch=sm_90a", *NVCC_FLAGS, source, "-o", tmp_path / "out"]
        ran = subprocess.run([str(w) for w in command], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert not re.search("warning|Performance Loss", ran.stdout + ran.stderr), ran.stderr
