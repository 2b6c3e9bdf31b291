# SPDX-License-Identifier: Apache-2.0
"""The model of the CUDA kernels' inner loops (benchmarks/gpu_model.py): its reading of machine
code, its arithmetic, and the committed numbers of instructions, which may only fall."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_model
import sass

ROOT = Path(__file__).resolve().parents[2]
CODE = (ROOT / "tests" / "data" / "loops.sass").read_text()


@pytest.fixture(scope="module")
def two_loops() -> list[sass.Instruction | str]:
    return sass.kernels(CODE)["two_loops"]


def test_kernels_and_instructions(two_loops):
    assert list(sass.kernels(CODE)) == ["two_loops", "straight"]
    found = [item for item in two_loops if isinstance(item, sass.Instruction)]
    assert len(found) == 25
    assert found[2] == sass.Instruction("", "LDGSTS.E.BYPASS.128", "[R4], desc[UR4][R2.64]")
    assert (found[4].guard, found[4].jumps, found[4].always) == ("@P1", True, False)
    assert not found[5].jumps, "lanes of a warp at different places"
    assert found[20] == sass.Instruction("", "NOP", "")
    assert sass.kernels(CODE)["straight"][0] == sass.Instruction("@!PT", "LDS", "RZ, [RZ]")


def test_edges_and_loops(two_loops):
    blocks = sass.blocks_of(two_loops)
    names = [[i.opcode.split(".")[0] for i in block.instructions] for block in blocks]
    sync = names.index(["BSYNC"])
    header = names.index(["HMMA", "LDSM", "ISETP", "BRA"])
    assert blocks[sync].next == [header], "BSYNC goes to BSSY's label, not on"
    inner = sass.Loop(header, frozenset({header}))
    outer, found = sass.loops_of(blocks)
    assert found == inner
    assert inner.blocks < outer.blocks
    assert sum(len(blocks[i].instructions) for i in outer.blocks) == 16
    with pytest.raises(ValueError, match="computed address"):
        sass.blocks_of([sass.Instruction("", "BRX", "R2 -0x100")])


def test_hot_path(two_loops):
    """The cheaper branch; the inner loop as often as the work needs."""
    work = {"mma": (r"HMMA", 4), "copies": (gpu_model.COPY, 1)}
    path = sass.hot_path(two_loops, work)
    assert path.opcodes == Counter(
        {
            "LDGSTS.E.BYPASS.128": 1, "BSSY": 1, "BRA": 1 + 4 + 1, "MOV": 1, "BSYNC": 1,
            "HMMA.16816.F32.BF16": 4, "LDSM.16.M88.4": 4, "ISETP.NE.AND": 4, "IMAD.MOV.U32": 1,
        }
    )  # fmt: skip
    assert path.instructions == 23
    assert path.loop_size == 16
    assert path.count("LDSM|IMAD") == 5
    assert sass.hot_path(two_loops, {"mma": (r"HMMA", 1)}).instructions == 4, "the inner loop"
    longer = sass.hot_path(two_loops, {"sums": (r"FADD", 3), "mma": (r"HMMA", 1)})
    assert longer.instructions == 2 + 1 + 1 + 4 + 1 + 4 + 2, "the other branch"
    with pytest.raises(ValueError, match="no loop with an iteration of 1 mma, 2 copies"):
        sass.hot_path(two_loops, {"mma": (r"HMMA", 1), "copies": (gpu_model.COPY, 2)})
    with pytest.raises(ValueError, match="no loop"):
        sass.hot_path(sass.kernels(CODE)["straight"], work)


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "limit", "blocks"),
    [
        (128, 128, 0, 32, 4),  # 16 warps of 4096 registers
        (128, 129, 0, 32, 3),  # 4352 of them
        (128, 32, 0, 32, 16),  # 64 warps
        (32, 16, 0, 32, 32),
        (128, 64, 75 << 10, 32, 3),  # 228 KB, 1 KB of each block reserved
        (128, 64, 76 << 10, 32, 2),
        (512, 128, 0, 1, 1),
    ],
)
def test_blocks_per_multiprocessor(threads, registers, shared, limit, blocks):
    machine = gpu_model.MACHINES["H200"]
    found = gpu_model.blocks_per_multiprocessor(machine, threads, registers, shared, limit)
    assert found == blocks


def measured(case: gpu_model.Case, opcodes: dict[str, int]) -> gpu_model.Measured:
    path = sass.Path(Counter(opcodes), 1000)
    return gpu_model.Measured(case, gpu_model.MACHINES["H200"], path, 100)


def test_formulas():
    cases = {case.name: case for case in gpu_model.cases(gpu_model.MACHINES["H200"])}
    opcodes = {"HMMA.16816.F32.BF16": 32, "LDGSTS.E.BYPASS.128": 16, "LDSM.16.M88.4": 24}
    opcodes |= {"LOP3.LUT": 100, "IMAD.WIDE": 50, "MUFU.EX2": 10, "FADD": 68, "SHFL.BFLY": 2}
    one = measured(cases["attention, decode, bf16, d128"], opcodes)
    assert one.cycles() == {
        "tensor": 128, "memory": 40 * 16 + 2 * 4, "int": 200, "multiply": 100, "special": 80,
        "float": 68,
    }  # fmt: skip
    # 16 keys of 2 rows of 256 bytes; 132 multiprocessors of 4 x 1.755 GHz, 4.3 TB/s.
    slots = 4 * 1.755e9 * 132 * (16 * 2 * 256) / 4.3e12
    row = one.row()
    assert row["issue %"] == pytest.approx(100 * 302 / slots)
    assert (row["unit"], row["unit %"]) == ("memory", pytest.approx(100 * 648 / slots))
    assert row["per 512 B"] == pytest.approx(302 / 16)
    assert row["tensor %"] is None

    row = measured(cases["attention, prompts, bf16, d128"], opcodes | {"LOP3.LUT": 0}).row()
    assert row["issue %"] == pytest.approx(100 * 202 / 128)
    assert row["tensor %"] == pytest.approx(100 * 128 / 648)
    assert row["per mma"] == 202 / 128, "by the loop's work, not by the instructions found"

    histogram = measured(cases["sample, histogram"], {"FADD": 100, "ATOMS.ADD": 8}).row()
    assert histogram["issue %"] == pytest.approx(100 * 108 / (slots * 1024 / 8192))
    assert histogram["per mma"] is None and histogram["tensor %"] is None

    wgmma = cases["attention, prompts, wgmma, bf16, d64"]
    opcodes = {"HGMMA.64x128x16.F32": 4, "HGMMA.64x64x16.F32": 8, "FADD": 1000}
    one = measured(wgmma, opcodes)
    assert one.cycles() == {"tensor": 4 * 64 + 8 * 32, "float": 1000}
    # As many as 64 + 64 products of 16 rows, 8 columns and 16 values of k.
    assert one.row()["per mma"] == pytest.approx(1012 / 128)
    a100 = [case.name for case in gpu_model.cases(gpu_model.MACHINES["A100"])]
    assert not any("wgmma" in name for name in a100)


def test_complaints_of_compilers():
    """Those of ptxas that it calls information, too, but not its report."""
    text = """ptxas info    : Compiling entry function 'error_kernel' for 'sm_90a'
    0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
x.cu(58): error #177-D: function "f" was declared but never referenced"""
    kernels, complaints = gpu_model.cuda_kernels.parse_report("x.cu", text)
    assert [(k.name, k.spilled, k.registers) for k in kernels] == [("error_kernel", 12, 168)]
    assert complaints == text.splitlines()[3:]


def committed(name: str) -> dict[str, Any]:
    return json.loads((gpu_model.ROOT / "benchmarks" / "results" / name).read_text())


@pytest.mark.long
@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("H200", "gpu_model.json"),
        pytest.param("A100", "gpu_model_a100.json", marks=pytest.mark.slow),
    ],
)
def test_loops_do_not_grow(gpu, name, tmp_path):
    """No loop has more instructions than the committed number, and no fewer blocks fit. After a
    change that lowers them, or has a reason to raise them, `gpu_model.py --json` writes the file.
    """
    if why := gpu_model.missing():
        pytest.skip(why)
    document = committed(name)
    chosen = list(gpu_model.cases(gpu_model.MACHINES[gpu]))
    assert [case["kernel"] for case in document["cases"]] == [case.name for case in chosen]
    found = gpu_model.measure(gpu_model.MACHINES[gpu], chosen, tmp_path)
    nvcc = gpu_model.nvcc_release(tmp_path)
    if nvcc != document["versions"]["nvcc"]:
        pytest.skip(f"nvcc {nvcc}; the numbers are of {document['versions']['nvcc']}")
    worse = []
    for case, one in zip(document["cases"], found, strict=True):
        if one.path.instructions > case["instructions"] or one.blocks < case["blocks"]:
            before = f"{case['instructions']} instructions, {case['blocks']} blocks"
            after = f"{one.path.instructions}, {one.blocks}"
            worse.append(f"{one.case.name}: {before} -> {after}")
    assert worse == []
