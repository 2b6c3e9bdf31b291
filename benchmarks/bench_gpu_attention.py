# SPDX-License-Identifier: Apache-2.0
"""paged_attention on a GPU compared with FlashInfer, FlashAttention-3 and torch, in bfloat16.

Decode is rated by the bytes that it must move, as a share of the copy rate of the same run; prefill
by its multiplications (4 heads head_dim per causal pair of query and key), as a share of torch's
product of 8192 x 8192 matrices. Buffers rotate beyond the L2 cache. Planning on the host is not
timed; lampo's planning on the device is. "deterministic" is lampo with results that do not depend
on the batch.

    python benchmarks/bench_gpu_attention.py --json FILE
    python benchmarks/bench_gpu_attention.py --device cpu --quick     # only tries the script out
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gpu
import lampo.ops
import results
from lampo.bench import cost, gpu_peers, timing

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
from cases import MODEL_HEADS

COLUMNS = ["case", "page", "MB", "us", "GB/s", "% of copy", "TFLOP/s", "% of matmul"]
DETERMINISTIC = "lampo deterministic"
OTHERS = {  # the fastest peer with a name that begins with the value
    "deterministic us": DETERMINISTIC,
    "FlashInfer us": "FlashInfer",
    "FA3 us": "FA3",
    "SDPA us": "SDPA",
}
COLUMNS += [*OTHERS, "best peer", "x best peer"]
HEADS = MODEL_HEADS["Llama-3-8B"]

TOKENS = 131072  # cached tokens of the compared batches: 0.5 GB
# The error by rounding bfloat16 inputs, weights and outputs is 2e-3 to 4e-3.
MAX_ERROR = 1e-2
CHECKED_QUERIES = 64


@dataclass(frozen=True)
class Case:
    """Decode of sequences of these lengths, or prefill of whole prompts."""

    name: str
    seq_lens: tuple[int, ...]
    prefill: bool = False
    page_size: int = 16

    @property
    def query_lens(self) -> list[int]:
        return list(self.seq_lens) if self.prefill else [1] * len(self.seq_lens)

    @property
    def cost(self) -> cost.Cost:
        lens = self.query_lens, list(self.seq_lens)
        heads = HEADS.num_qo_heads, HEADS.num_kv_heads, HEADS.head_dim
        return cost.paged_attention(*lens, *heads)

    @property
    def matmul_flops(self) -> int:
        pairs = sum(n * (n + 1) // 2 if self.prefill else n for n in self.seq_lens)
        return 4 * pairs * HEADS.num_qo_heads * HEADS.head_dim

    @property
    def kv_bytes(self) -> int:
        return 4 * sum(self.seq_lens) * HEADS.num_kv_heads * HEADS.head_dim


def one_long(batch_size: int) -> tuple[int, ...]:
    """One sequence has half of the tokens."""
    rest = [TOKENS // 2 // (batch_size - 1)] * (batch_size - 1)
    return (TOKENS - sum(rest), *rest)


def zipf(batch_size: int) -> tuple[int, ...]:
    """The length falls with the rank: 1, 1/2, 1/3, ..."""
    total = sum(1 / rank for rank in range(1, batch_size + 1))
    lens = [int(TOKENS / total / rank) for rank in range(2, batch_size + 1)]
    return (TOKENS - sum(lens), *lens)


UNIFORM, SKEWED = "decode 32 x 4096", ("decode 32, one has half", "decode 32, zipf")
DECODE = [
    *((f"decode 1 x {n}", (n,)) for n in (1024, 4096, 16384, 65536, 131072)),
    ("decode 8 x 4096", (4096,) * 8),
    (UNIFORM, (4096,) * 32),
    (SKEWED[0], one_long(32)),
    (SKEWED[1], zipf(32)),
    ("decode 64 x 4096", (4096,) * 64),
    ("decode 256 x 1024", (1024,) * 256),
    ("decode 128 x 4096", (4096,) * 128),
    ("decode 16 x 65536", (65536,) * 16),
]
PREFILL = [
    ("prefill 1 x 2048", (2048,)),
    ("prefill 8 x 2048", (2048,) * 8),
    ("prefill 2 x 8192", (8192,) * 2),
    ("prefill 1 x 16384", (16384,)),
]
CASES = [
    Case(name, lens, prefill, page_size)
    for names, prefill in ((DECODE, False), (PREFILL, True))
    for name, lens in names
    for page_size in (16, 64)
]
FEW_NAMES = (UNIFORM, SKEWED[1], "decode 1 x 1024", "prefill 1 x 16384")
FEW = [case for case in CASES if case.name in FEW_NAMES and case.page_size == 16]
QUICK = [
    Case("decode 2 x 100", (100, 100)),
    Case("decode 3, ragged", (200, 1, 33), page_size=64),
    Case("prefill 2 x 70", (70, 70), prefill=True),
]


def make_problem(case: Case, device: torch.device) -> gpu_peers.Attention:
    """Page ids in random order; unneeded entries of a shorter sequence are page 0."""
    counts = [-(-n // case.page_size) for n in case.seq_lens]
    ids = torch.randperm(sum(counts), device=device).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=device)
    for row, part in zip(table, ids.split(counts), strict=True):
        row[: len(part)] = part
    h = HEADS
    return gpu_peers.Attention(
        case.query_lens, list(case.seq_lens), h.num_qo_heads, h.num_kv_heads, h.head_dim,
        case.page_size, table,
    )  # fmt: skip


def make_tensors(case: Case, device: torch.device) -> gpu_peers.Tensors:
    """q, k_cache, v_cache."""
    h, pages = HEADS, sum(-(-n // case.page_size) for n in case.seq_lens)
    q = torch.randn(sum(case.query_lens), h.num_qo_heads, h.head_dim, device=device)
    shape = (pages, h.num_kv_heads, case.page_size, h.head_dim)
    caches = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in "kv")
    return (q.bfloat16(), *caches)


def lampo_attention(p: gpu_peers.Attention, deterministic: bool = False) -> gpu_peers.Peer:
    size = lampo.ops.paged_attention_workspace_size(
        p.num_qo_heads,
        p.num_kv_heads,
        p.head_dim,
        p.page_table.shape[1] * p.page_size,
        batch_size=len(p.seq_lens),
        num_tokens=sum(p.query_lens),
        deterministic=deterministic,
        device=p.page_table.device,
    )
    workspace = torch.empty(size, dtype=torch.uint8, device=p.page_table.device)
    seq_lens, cu_seqlens_q = p.int32(p.seq_lens), p.cumulative(p.query_lens)

    def run(tensors: gpu_peers.Tensors) -> torch.Tensor:
        q, k_cache, v_cache, out = tensors
        return lampo.ops.paged_attention(
            q, k_cache, v_cache, p.page_table, seq_lens, cu_seqlens_q,
            deterministic=deterministic, out=out, workspace=workspace,
        )  # fmt: skip

    return gpu_peers.Peer(lambda q, k, v: (q, k, v, torch.full_like(q, torch.nan)), run)


def exact(
    p: gpu_peers.Attention, tensors: gpu_peers.Tensors, sequence: int
) -> tuple[torch.Tensor, slice]:
    """The last queries' outputs of a sequence in float64, and their range among all tokens."""
    q, k_cache, v_cache = tensors
    count = min(p.query_lens[sequence], CHECKED_QUERIES)
    end = sum(p.query_lens[: sequence + 1])
    rows = slice(end - count, end)
    k, v = (p.contiguous(cache, sequence).double() for cache in (k_cache, v_cache))
    group = p.num_qo_heads // p.num_kv_heads
    queries = q[rows].double().transpose(0, 1).unflatten(0, (p.num_kv_heads, group))
    scores = queries @ k[:, None].transpose(2, 3) * p.head_dim**-0.5
    hidden = torch.ones(count, k.shape[1], dtype=torch.bool, device=q.device)
    scores.masked_fill_(hidden.triu(k.shape[1] - count + 1), -torch.inf)
    out = (scores.softmax(-1) @ v[:, None]).flatten(0, 1).transpose(0, 1)
    return out, rows


def check(problem: gpu_peers.Attention, tensors: gpu_peers.Tensors, ours: torch.Tensor) -> float:
    """The error of the longest and of the last sequence compared with float64."""
    errors = []
    for sequence in (problem.seq_lens.index(max(problem.seq_lens)), len(problem.seq_lens) - 1):
        expected, rows = exact(problem, tensors, sequence)
        errors.append(gpu.relative_error(ours[rows], expected))
    if max(errors) > MAX_ERROR:
        raise AssertionError(f"lampo's error is {max(errors):.1e}")
    return max(errors)


@dataclass(frozen=True)
class Outcome:
    """Seconds per call; errors, lampo's relative to float64 and peers' to lampo; kernels."""

    times: dict[str, timing.Series]
    errors: dict[str, float]
    kernels: list[dict[str, Any]] | None


def run_case(case: Case, device: gpu.Device, peers: str) -> Outcome:
    problem = make_problem(case, device.torch)
    sets = device.rotating(lambda: make_tensors(case, device.torch), case.kv_bytes)

    def build(make: Callable[[gpu_peers.Attention], gpu_peers.Peer]) -> list[gpu.Call]:
        peer = make(problem)
        return [partial(peer.run, peer.prepare(*tensors)) for tensors in sets]

    calls = {"lampo": build(lampo_attention)}
    ours = calls["lampo"][0]()
    errors = {"lampo": check(problem, sets[0], ours)}
    others: dict[str, Callable[[gpu_peers.Attention], gpu_peers.Peer]] = {
        DETERMINISTIC: partial(lampo_attention, deterministic=True),
        **{
            name: gpu_peers.ATTENTION[name]
            for name in gpu_peers.attention_peers(problem)
            if name.startswith(peers)
        },
    }
    for name, make in others.items():

        def tried(make: Any = make) -> tuple[list[gpu.Call], float]:
            built = build(make)
            return built, gpu.relative_error(built[0](), ours)

        if (found := device.attempt(name, tried)) is None:
            continue
        errors[name] = found[1]
        if errors[name] <= MAX_ERROR:
            calls[name] = found[0]
        else:
            device.report.note(f"{name} is left out of {case.name}: off by {errors[name]:.1e}")
    return Outcome(device.seconds(calls), errors, device.kernels(calls["lampo"][:10]))


def add_row(
    report: results.Report, case: Case, outcome: Outcome, copy: float, matmul: float
) -> float:
    """Returns GB/s."""
    times = outcome.times
    seconds = times["lampo"].median
    rate, flops = case.cost.nbytes / seconds, case.matmul_flops / seconds
    row: dict[str, Any] = {
        "case": case.name,
        "page": case.page_size,
        "MB": case.cost.nbytes / 1e6,
        "us": seconds * 1e6,
    }
    if case.prefill:
        row |= {"TFLOP/s": flops / 1e12, "% of matmul": 100 * flops / matmul}
    else:
        row |= {"GB/s": rate / 1e9, "% of copy": 100 * rate / copy}
    for column, prefix in OTHERS.items():
        alike = [series.us for name, series in times.items() if name.startswith(prefix)]
        row[column] = min(alike, default=None)
    rivals = [name for name in times if not name.startswith("lampo")]
    if rivals:
        best = min(rivals, key=lambda name: times[name].median)
        row["best peer"] = best
        row["x best peer"] = timing.pair_ratio(times[best], times["lampo"]).median
    report.add(
        row,
        time_us={name: series.summary(1e6) for name, series in times.items()},
        relative_error=outcome.errors,
        kernels=outcome.kernels,
    )
    return rate / 1e9


def main() -> None:
    parser = gpu.parser(__doc__)
    parser.add_argument("--cases", default="", help="only cases with names that contain this")
    parser.add_argument("--peers", default="", help="only peers with names that begin with this")
    args = parser.parse_args()
    torch.manual_seed(0)
    report = results.Report("GPU attention", COLUMNS, args)
    device = gpu.Device(args, report)
    if version := device.attempt("FA3", gpu_peers.fa3_version):
        report.version("FA3", version)
    copy, matmul = device.copy_rate(), device.matmul_rate()
    report.note(f"bfloat16, Llama-3-8B's heads {HEADS}; pages in random order")
    rates: dict[tuple[str, int], float] = {}
    worst = 0.0
    for case in QUICK if args.quick else CASES:
        if args.cases not in case.name or (args.few and not args.quick and case not in FEW):
            continue
        with device.case(f"{case.name}, pages of {case.page_size}"):
            outcome = run_case(case, device, args.peers)
            worst = max(worst, *(outcome.errors[name] for name in outcome.times))
            rates[case.name, case.page_size] = add_row(report, case, outcome, copy, matmul)
    if rates:
        report.check(
            f"before each row was timed, lampo was within {MAX_ERROR} of float64 and each peer "
            f"within {MAX_ERROR} of lampo (|difference| / |expected|); largest {worst:.1e}"
        )
    for (name, page_size), rate in rates.items():
        if name in SKEWED and (UNIFORM, page_size) in rates:
            share = 100 * rate / rates[UNIFORM, page_size]
            report.note(f"{name}, pages of {page_size}: {share:.0f} % of the GB/s of {UNIFORM}")
    report.finish(mean_of="x best peer")
    device.exit()


if __name__ == "__main__":
    main()
