#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model of the CUDA kernels' inner loops, from their machine code alone: nothing runs on a GPU.

    python benchmarks/gpu_model.py [--gpu H200|A100] [--kernels PATTERN] [--json FILE]

Compiles the kernels by the build's own commands to machine code, disassembles it with nvdisasm, and
counts the instructions of a warp in one iteration of the loop that does the work (sass.py). Needs
nvcc and nvdisasm (`pip install nvidia-cuda-nvdisasm`).

A multiprocessor has 4 schedulers, and each issues an instruction per cycle at most. It has these
units; cycles are of a scheduler, for one instruction of a warp (PIPES):

    int       2        integers, comparisons, logic, most conversions    16 lanes a cycle
    float     1        f32 sums and products, pairs of 16 bits           32 lanes
    multiply  2        integer products, and moves by them               16 lanes
    special   8        exp2, reciprocals, other conversions              4 lanes
    memory    4 to 16  loads, stores, copies, shuffles                   of all four schedulers:
                                                                         32 lanes, 128 bytes
    tensor    4 or 8   mma.sync m16n8k16 of 16 bits, m16n8k32 of 8       sm_90, sm_80
              4        for every 8 columns of a wgmma m64nNk16           a warp has 16 rows of it

For loops that memory bounds, with n instructions and b bytes of global memory per iteration of a
warp, at the copy rate r (bytes/s) of a GPU with m multiprocessors and the clock f:

    issue %  = 100 n / (4 f m b / r)            100: every slot is needed to keep up with memory
    unit %   = 100 (cycles of the unit) / (4 f m b / r)        the busiest one, by name

For prompts, which the tensor cores bound, with c of their cycles per iteration:

    issue %  = 100 n / c                       100: as many instructions as cycles of products
    unit %   = 100 (cycles of the unit) / c
    tensor % = 100 / max(1, n / c, unit / c)    upper bound of the share of the peak

A loop with both below 100 may still wait for latency: blocks and warps are those that fit on a
multiprocessor by registers and shared memory. The values are limits of what the kernel can reach,
not predictions. Assumed (MACHINES): an H200 with 4.3 TB/s of copies, bytes read plus written,
and 1755 MHz; an A100 80GB with 1.57 TB/s and 1410 MHz.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sass

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "scripts"))

import cuda_kernels  # noqa: E402

COPY = r"LDGSTS\..*128"  # a warp's copies of 16 bytes per lane
SMALL_COPY = r"LDGSTS(?!.*128)"
LOAD = r"LDG\."
MMA = r"[HI]MMA"
SHFL = r"SHFL"
WGMMA = r"HGMMA\.64x(\d+)x16"

CACHES = {"bf16": "BF16", "int8": "signed char", "fp8": "F8E4M3"}

# Packed formats: bytes of a group of a strip with its share of the factors, groups in flight, and
# for a group a lane's loads, products per 8 rows of x, and shuffles, once and per 8 rows
# (csrc/cuda/linear/linear_packed.cu).
PACKED = {
    "Q4_0": (288, 12, 2, 2, 2, 0),
    "Q4_1": (320, 12, 2, 2, 4, 0),
    "Q8_0": (544, 6, 3, 2, 2, 0),
    "Q5_0": (352, 8, 3, 2, 4, 0),
    "Q5_1": (384, 8, 3, 2, 6, 0),
    "Q2_K": (168, 6, 4, 4, 4, 8),
    "Q3_K": (228, 6, 4, 4, 6, 4),
    "Q4_K": (296, 8, 3, 2, 4, 0),
    "Q5_K": (360, 6, 4, 2, 6, 0),
    "Q6_K": (420, 4, 4, 4, 4, 4),
    "IQ4_NL": (288, 12, 2, 2, 2, 0),
    "IQ4_XS": (276, 8, 3, 2, 2, 0),
    "MXFP4": (288, 12, 2, 2, 2, 0),
    "NVFP4": (288, 8, 2, 4, 0, 4),
    "Int4G32": (304, 8, 3, 2, 4, 0),
    "Int4G64": (280, 8, 3, 2, 4, 0),
    "Int4G128": (276, 8, 3, 2, 4, 0),
    "Int8G128": (532, 6, 4, 2, 4, 0),
    "NVFP4_G128": (304, 6, 3, 4, 0, 4),
}

# Cycles of a scheduler for an instruction of a warp, by the first pattern that matches.
PIPES: tuple[tuple[str, str, int], ...] = (
    ("special", r"MUFU|I2F(?!P)|F2I|F2F(?!P)|I2I|POPC|FLO|BREV", 8),
    ("memory", r"(LDGSTS|LDG|STG|LDS|STS|LDSM|LD\.|ST\.).*(128|\.4$)", 16),
    ("memory", r"(LDGSTS|LDG|STG|LDS|STS|LDSM|LD\.|ST\.).*(64|\.2$)", 8),
    ("memory", r"LDGSTS|LDG|STG|LDS|STS|LDSM|LD\.|ST\.|LDC|ATOM|RED|SHFL|BAR", 4),
    ("float", r"F(FMA|ADD|MUL)|H(FMA2|ADD2|MUL2)", 1),
    ("multiply", r"IMAD", 2),
    ("int", r"I|LOP|LEA|SHF|PRMT|SEL|FSEL|FSETP|FMNMX|VI|VOTE|MOV|CS2R|F2FP|PLOP|P2R|R2P", 2),
)


@dataclass(frozen=True)
class Machine:
    name: str
    architecture: str  # of cuda_kernels.configure
    copy_rate: float  # bytes/s, read plus written
    multiprocessors: int
    clock: float  # Hz
    shared_bytes: int  # of a multiprocessor
    mma_cycles: int  # of a tensor core, for an m16n8k16 of 16 bits

    def slots(self, nbytes: float) -> float:
        """Issue slots of a multiprocessor while it copies its share of memory's bytes."""
        return 4 * self.clock * self.multiprocessors * nbytes / self.copy_rate


MACHINES = {
    "H200": Machine("H200", "90a", 4.3e12, 132, 1.755e9, 228 << 10, 4),
    "A100": Machine("A100", "80-real", 1.57e12, 108, 1.41e9, 164 << 10, 8),
}


def blocks_per_multiprocessor(
    machine: Machine, threads: int, registers: int, shared_bytes: int, limit: int = 32
) -> int:
    """Resident blocks: 64 warps, 64 K registers given to warps by 256, 1 KB of shared memory extra.

    limit: what the launch or the kernel's own bound allows.
    """
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = (65536 // 4 // of_warp * 4) // warps
    by_shared = machine.shared_bytes // (shared_bytes + 1024)
    return min(limit, 32, 64 // warps, by_registers, by_shared)


@dataclass(frozen=True)
class Case:
    """A kernel's loop. All numbers are per iteration of one warp."""

    name: str
    file: str
    kernel: str  # its demangled name
    work: dict[str, tuple[str, int]]  # of sass.hot_path
    threads: int
    shared_bytes: int
    memory_bytes: int = 0  # read from memory, and written; 0: the tensor cores bound the loop
    most_blocks: int = 32
    products: int = 0  # m16n8k16, where an instruction of work["mma"] is more
    hopper: bool = False  # for sm_90a alone


def _attention(kind: int, head_dim: int, cache: str) -> Case:
    """paged_attention's loop over key tiles (csrc/cuda/attention/layout.h)."""
    cache_bytes = 2 if cache == "bf16" else 1
    decode = kind == 0
    row_blocks = 1 if decode or head_dim > 128 else 2
    keys = (64 if head_dim <= 128 else 32) if decode else 32
    warps = keys // 16 if decode else 4
    warp_keys = 16 if decode else keys
    stage = 2 * keys * head_dim * cache_bytes
    stages = (4 if 2 * stage < 64 << 10 else 2) if decode else (4 if head_dim == 128 else 2)
    scales = 2 * 4 * (keys if cache_bytes == 1 else 4)
    rows = 16 if decode else 64 * row_blocks
    copied = 2 * keys // warps * head_dim * cache_bytes
    of_keys = warp_keys // 16  # blocks of 16 keys
    work = {
        "mma": (MMA, row_blocks * of_keys * (head_dim // 8 + head_dim // 8)),  # Q K^T and P V
        "copies": (COPY, copied // 512),
        "values": (r"LDSM.*MT", of_keys * head_dim * cache_bytes // 32),
    }
    if cache_bytes == 1:
        work["scales"] = (SMALL_COPY, 2)
    kind_name = "decode" if decode else "prompts"
    file = "split_keys" if decode else "split_rows"
    return Case(
        name=f"attention, {kind_name}, {cache}, d{head_dim}",
        file=f"csrc/cuda/attention/paged_attention_{file}.cu",
        kernel=f"paged_attention_kernel<AttentionTraits<BF16, {head_dim}, {CACHES[cache]}, "
        f"(TileKind){kind}> >",
        work=work,
        threads=32 * warps,
        shared_bytes=-(-(rows * head_dim * 2 + stages * (stage + scales) + 96) // 128) * 128,
        memory_bytes=copied if decode else 0,
        most_blocks=3 if decode else 2,
    )


def _hopper_attention(head_dim: int) -> Case:
    """The loop over key tiles of a warp with 16 rows (csrc/cuda/attention/hopper_traits.cuh)."""
    stages = 4 if head_dim == 64 else 2
    rows = 8 * 16 * ((head_dim + 8) * 4 + 8)
    return Case(
        name=f"attention, prompts, wgmma, bf16, d{head_dim}",
        file="csrc/cuda/attention/paged_attention_hopper.cu",
        kernel=f"paged_attention_hopper_kernel<HopperTraits<BF16, {head_dim}> >",
        work={"mma": (WGMMA, head_dim // 16 + 128 // 16)},  # Q K^T and P V
        threads=384,
        shared_bytes=rows + stages * 2 * 128 * head_dim * 2 + 1024,
        most_blocks=1,
        products=2 * head_dim,  # of 16 rows and 128 keys
        hopper=True,
    )


def _linear(
    name: str, kernel: str, chunk: dict[str, tuple[str, int, int]], nbytes: int, in_flight: int
) -> Iterator[Case]:
    """linear's loop over rounds of chunks (csrc/cuda/linear/linear_block.h), two strips at a time.

    chunk: the work of 16 rows of weight by 32 inputs, nbytes: opcodes, their number once, and for
    each 8 rows of x. A turn of the loop has in_flight chunks. The launch has a block per
    multiprocessor.
    """
    for tiles, rows in ((1, "1 to 8 rows"), (2, "9 to 16 rows")):
        yield Case(
            name=f"linear, {name}, {rows}",
            file=f"csrc/cuda/linear/{kernel.split('_kernel')[0]}.cu",
            kernel=kernel,
            work={
                kind: (pattern, (once + tiles * per_tile) * in_flight)
                for kind, (pattern, once, per_tile) in chunk.items()
                if once or per_tile
            },
            threads=512,
            shared_bytes=0,
            memory_bytes=in_flight * nbytes,
            most_blocks=1,
        )


def _sampling(name: str, kernel: str, shared_bytes: int, **work: tuple[str, int]) -> Case:
    """A pass of sample over 256 tokens, 8 a lane (csrc/cuda/sampling/sample.cu)."""
    return Case(
        name=f"sample, {name}",
        file="csrc/cuda/sampling/sample.cu",
        kernel=f"{kernel}_kernel<float>",
        work={"loads": (LOAD + ".*128", 2), **work},
        threads=512,
        shared_bytes=shared_bytes,
        memory_bytes=256 * 4,
    )


def _rows(name: str, file: str, kernel: str, threads: int, vectors: int, **work: Any) -> Case:
    """A loop over rows, or heads, of bfloat16: each lane reads and writes `vectors` of 16 bytes.

    Weights and angles stay in the caches: they are work, and no bytes.
    """
    return Case(
        name=name,
        file=f"csrc/cuda/{file}.cu",
        kernel=kernel,
        work=work,
        threads=threads,
        shared_bytes=4 * 8 * 128,
        memory_bytes=2 * vectors * 512,
    )


def cases(machine: Machine) -> Iterator[Case]:
    """All that run on a machine."""
    yield from (case for case in _all_cases() if machine.architecture == "90a" or not case.hopper)


def _all_cases() -> Iterator[Case]:
    for kind in (0, 1):
        for cache in CACHES:
            for head_dim in (64, 128, 256):
                yield _attention(kind, head_dim, cache)
    dense = {"loads": (LOAD + ".*128", 2, 0), "mma": (MMA, 0, 2)}
    yield from _linear("bf16", "linear_kernel<BF16, BF16, 1, 2, true>", dense, 1024, 4)
    for name, (nbytes, in_flight, loads, products, once, per_tile) in PACKED.items():
        chunk = {"loads": (LOAD, loads, 0), "mma": (MMA, 0, products)}
        chunk["shuffles"] = (SHFL, once, per_tile)
        kernel = f"linear_packed_kernel<formats::{name}, 2>"
        yield from _linear(name, kernel, chunk, nbytes, in_flight)
    chunk = {"loads": (LOAD, 3, 0), "mma": (MMA, 0, 2), "shuffles": (SHFL, 2, 0)}
    yield from _linear("FP8_G128", "linear_fp8_kernel<1, 2>", chunk, 528, 6)
    for head_dim in (64, 128):
        yield _hopper_attention(head_dim)
    masses = {"masses": (r"F2I\.U64", 8)}
    yield _sampling("maxima", "maxima", 128, lanes=(r"SHFL", 5))
    yield _sampling("histogram", "histogram", 3 << 13, sums=(r"ATOMS\.ADD", 8), **masses)
    yield _sampling("gather, all kept", "gather", 17 << 10, lanes=(r"SHFL", 10), **masses)
    yield _sampling("gather, none kept", "gather", 17 << 10)
    yield _rows(
        "rms_norm, rows of 4096", "elementwise/rms_norm", "rms_norm_kernel<BF16, BF16, true, 2>",
        256, 2, loads=(LOAD + ".*128", 4), stores=(r"STG.*128", 1),
    )  # fmt: skip
    yield _rows(
        "append_kv, rotated heads", "attention/append_kv", "append_kv_kernel<BF16, BF16>",
        128, 1, angles=(r"LDG?\.E.*128", 4), halves=(r"LDS.*128", 2), stores=(r"STG?\.E.*128", 1),
        elements=(r"(LD|ST)G?\.E\.U16", 0),
    )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A case's kernel on a machine: its code, and the model's numbers."""

    case: Case
    machine: Machine
    path: sass.Path
    registers: int

    @property
    def blocks(self) -> int:
        case = self.case
        return blocks_per_multiprocessor(
            self.machine, case.threads, self.registers, case.shared_bytes, case.most_blocks
        )

    def cycles(self) -> dict[str, int]:
        """Cycles of a scheduler's units per iteration."""
        found: dict[str, int] = {}
        for opcode, number in self.path.opcodes.items():
            wide = re.match(WGMMA, opcode)
            if wide or re.match(MMA, opcode):
                cycles = self.machine.mma_cycles * (int(wide[1]) // 8 if wide else 1)
                found["tensor"] = found.get("tensor", 0) + number * cycles
                continue
            for name, pattern, cycles in PIPES:
                if re.match(pattern, opcode):
                    found[name] = found.get(name, 0) + number * cycles
                    break
        return found

    def row(self) -> dict[str, Any]:
        """A row of the table."""
        cycles = self.cycles()
        tensor = cycles.get("tensor", 0)
        n = self.path.instructions
        decode = self.case.memory_bytes > 0
        products = self.case.products or self.case.work.get("mma", ("", 0))[1]
        if decode:
            available = self.machine.slots(self.case.memory_bytes)
        else:
            available = float(tensor)
            del cycles["tensor"]
        unit = max(cycles, key=lambda name: cycles[name])
        issue = n / available
        busiest = cycles[unit] / available
        return {
            "kernel": self.case.name,
            "instructions": n,
            "per 512 B": n / (self.case.memory_bytes / 512) if decode else None,
            "per mma": n / products if products else None,
            "registers": self.registers,
            "blocks x warps": f"{self.blocks} x {self.case.threads // 32}",
            "issue %": 100 * issue,
            "unit": unit,
            "unit %": 100 * busiest,
            "tensor %": None if decode else 100 / max(1.0, issue, busiest),
        }


COLUMNS = [
    *("kernel", "instructions", "per 512 B", "per mma", "registers", "blocks x warps"),
    *("issue %", "unit", "unit %", "tensor %"),
]


def nvdisasm() -> str | None:
    """The path of nvdisasm: on PATH, or in the package nvidia-cuda-nvdisasm."""
    if found := shutil.which("nvdisasm"):
        return found
    try:
        files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((str(file.locate()) for file in files if file.stem == "nvdisasm"), None)


def missing() -> str:
    """What the model lacks on this machine; empty if it can run."""
    if not cuda_kernels.has_nvcc():
        return "no nvcc (PATH, CUDACXX, CUDA_HOME)"
    if nvdisasm() is None:
        return "no nvdisasm (pip install nvidia-cuda-nvdisasm)"
    return ""


def nvcc_release(build: Path) -> str:
    """The version of the nvcc that a configured build uses, such as "13.0"."""
    cache = (build / "CMakeCache.txt").read_text()
    nvcc = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", cache, re.MULTILINE)
    assert nvcc, "no CUDA compiler in CMakeCache.txt"
    text = subprocess.run([nvcc[1], "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release ([\d.]+)", text.stdout)
    return release[1] if release else "unknown"


def measure(machine: Machine, chosen: list[Case], folder: Path, jobs: int = 2) -> list[Measured]:
    """Compiles the cases' files and counts. Raises RuntimeError or ValueError, which say why."""
    disassembler = nvdisasm()
    assert disassembler, missing()
    commands = {
        cuda_kernels.source_of(command): command
        for command in cuda_kernels.configure(machine.architecture, folder)
    }

    def of_file(file: str) -> list[Measured]:
        cubin = folder / (Path(file).stem + ".cubin")
        status, text = cuda_kernels.compile_file(commands[file], cubin, cubin=True)
        if status != 0:
            raise RuntimeError(f"{file}: nvcc failed\n{text}")
        report, _ = cuda_kernels.parse_report(file, text)
        registers = {kernel.name: kernel.registers for kernel in report}
        code = subprocess.run([disassembler, "-c", str(cubin)], capture_output=True, text=True)
        if code.returncode != 0:
            raise RuntimeError(f"{file}: nvdisasm failed\n{code.stderr}")
        bodies = sass.kernels(code.stdout)
        names = dict(zip(cuda_kernels.demangle(list(bodies)), bodies, strict=True))
        found = []
        for case in chosen:
            if case.file != file:
                continue
            if case.kernel not in names:
                raise ValueError(f"{file} has no kernel {case.kernel}")
            name = names[case.kernel]
            try:
                path = sass.hot_path(bodies[name], case.work)
            except ValueError as error:
                raise ValueError(f"{case.kernel}: {error}") from error
            found.append(Measured(case, machine, path, registers[name]))
        return found

    with ThreadPoolExecutor(jobs) as pool:
        parts = pool.map(of_file, dict.fromkeys(case.file for case in chosen))
        by_name = {m.case.name: m for part in parts for m in part}
    return [by_name[case.name] for case in chosen]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kernels", default="", help="a pattern of names")
    parser.add_argument("--gpu", choices=list(MACHINES), default="H200")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    if why := missing():
        print(f"gpu_model: {why}")
        return 1

    import results

    report = results.Report(f"gpu_model, {options.gpu}", COLUMNS, options)
    report.document["hardware"] = {"gpu": f"{options.gpu} by the model, not run on a GPU"}
    chosen = [
        case for case in cases(MACHINES[options.gpu]) if re.search(options.kernels, case.name)
    ]
    with tempfile.TemporaryDirectory(prefix="gpu_model.") as folder:
        found = measure(MACHINES[options.gpu], chosen, Path(folder), options.jobs)
        report.version("nvcc", nvcc_release(Path(folder)))
    for one in found:
        report.add(one.row(), blocks=one.blocks, cycles=one.cycles(), loop_size=one.path.loop_size)
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
