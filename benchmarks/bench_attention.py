# SPDX-License-Identifier: Apache-2.0
"""paged_attention, decode and prefill, compared with the machine's limits and with torch.

Decode is rated by the bytes of K and V that it must read, as a share of the read bandwidth that the
same run measures. A call's cache is not in the last-level cache ("cold"), except in "warm" cases: a
short context of one layer, which a real step finds in L2 or L3. Prefill is rated by its operations,
as a share of the rate of torch's matrix product in float32.

Peers read contiguous K and V per sequence, without a page table: a plain matmul-softmax-matmul in
the cache's dtype with the query heads of a group as one matrix (the stronger peer), and torch's
scaled_dot_product_attention.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import cost
import lampo.ops
import results
import timing
from lampo import _C

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
from cases import MODEL_HEADS, Heads

COLUMNS = [
    "case", "heads", "cache", "us", "GB/s", "GFLOP/s", "% of limit",
    "matmul us", "vs matmul", "sdpa us", "vs sdpa",
]  # fmt: skip
CACHES = {
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
SAMPLE_S = 5e-3


@dataclass(frozen=True)
class Case:
    model: str
    batch_size: int
    seq_len: int
    query_len: int = 1
    cache: str = "bf16"
    warm: bool = False
    page_size: int = 64  # the engine's

    @property
    def heads(self) -> Heads:
        return MODEL_HEADS[self.model]

    @property
    def lens(self) -> tuple[list[int], list[int]]:
        return [self.query_len] * self.batch_size, [self.seq_len] * self.batch_size

    @property
    def cost(self) -> cost.Cost:
        heads = self.heads
        return cost.paged_attention(
            *self.lens, heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, kv_dtype=self.cache
        )

    @property
    def kv_bytes(self) -> int:
        heads = self.heads
        row = heads.num_kv_heads * heads.head_dim * CACHES[self.cache].itemsize
        return 2 * self.batch_size * self.seq_len * row

    def __str__(self) -> str:
        kind = "decode" if self.query_len == 1 else f"prefill {self.query_len}"
        note = ", warm" if self.warm else ""
        note += f", pages of {self.page_size}" if self.page_size != 64 else ""
        return f"{kind}, {self.batch_size} x {self.seq_len}{note}"


CASES = [
    Case("SmolLM2-135M", 1, 200, warm=True),
    Case("SmolLM2-135M", 1, 2000, warm=True),
    Case("SmolLM2-135M", 1, 7000),
    Case("SmolLM2-135M", 8, 2000),
    Case("Llama-3-8B", 1, 4096),
    Case("Llama-3-8B", 1, 16384),
    Case("Llama-3-8B", 1, 16384, page_size=16),
    Case("Llama-3-8B", 8, 4096),
    Case("Llama-2-7B", 1, 4096),
    Case("Gemma-2-9B", 1, 4096),
    Case("Llama-3-8B", 1, 16384, cache="f16"),
    Case("Llama-3-8B", 1, 16384, cache="fp8"),
    Case("Llama-3-8B", 1, 16384, cache="int8"),
    Case("Llama-3-8B", 1, 8192, cache="f32"),
    Case("SmolLM2-135M", 1, 512, query_len=512, warm=True),
    Case("SmolLM2-135M", 1, 2048, query_len=2048, warm=True),
    Case("Llama-3-8B", 1, 1024, query_len=1024, warm=True),
]
QUICK = [CASES[0], Case("Llama-3-8B", 1, 1024), Case("SmolLM2-135M", 1, 256, 256, warm=True)]


def in_huge_pages(values: torch.Tensor) -> torch.Tensor:
    """A copy in huge pages, like the engine's cache."""
    memory = mmap.mmap(-1, values.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    copy = torch.frombuffer(memory, dtype=values.dtype).view(values.shape)
    copy.view(torch.uint8).copy_(values.view(torch.uint8))
    return copy


@dataclass
class Inputs:
    """One set of buffers: the cache in shuffled pages, and the same K and V contiguous."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    scale: torch.Tensor | None
    page_table: torch.Tensor
    seq_lens: torch.Tensor
    cu_seqlens_q: torch.Tensor
    out: torch.Tensor
    workspace: torch.Tensor

    @classmethod
    def make(cls, case: Case) -> Inputs:
        heads, dtype = case.heads, CACHES[case.cache]
        pages = -(-case.seq_len // case.page_size)
        shape = (pages * case.batch_size, heads.num_kv_heads, case.page_size, heads.head_dim)
        # One small block of random numbers, repeated: generating gigabytes takes too long.
        block = torch.randn(1 << 16)
        count = torch.Size(shape).numel()
        if dtype == torch.int8:
            block = (block * 40).clamp(-127, 127)
        values = block.to(dtype).repeat(-(-count // len(block)))[:count].reshape(shape)
        width = pages * case.page_size
        size = lampo.ops.paged_attention_workspace_size(
            heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, width
        )
        q = torch.randn(case.batch_size * case.query_len, heads.num_qo_heads, heads.head_dim)
        return cls(
            q=q.bfloat16(),
            k_cache=in_huge_pages(values),
            v_cache=in_huge_pages(values),
            scale=torch.full(shape[:3], 0.025) if dtype == torch.int8 else None,
            page_table=torch.randperm(shape[0]).int().reshape(case.batch_size, pages),
            seq_lens=torch.full((case.batch_size,), case.seq_len, dtype=torch.int32),
            cu_seqlens_q=torch.arange(case.batch_size + 1, dtype=torch.int32) * case.query_len,
            out=torch.empty_like(q, dtype=torch.bfloat16),
            workspace=torch.empty(size, dtype=torch.uint8),
        )

    def run(self) -> torch.Tensor:
        return lampo.ops.paged_attention(
            self.q, self.k_cache, self.v_cache, self.page_table, self.seq_lens, self.cu_seqlens_q,
            k_scale=self.scale, v_scale=self.scale, out=self.out, workspace=self.workspace,
        )  # fmt: skip

    def contiguous(self, cache: torch.Tensor) -> torch.Tensor:
        """[batch_size, num_kv_heads, seq_len, head_dim] of a cache."""
        pages = cache.view(torch.uint8) if cache.dtype.itemsize == 1 else cache
        rows = pages[self.page_table.long()].view(cache.dtype)
        return rows.transpose(1, 2).flatten(2, 3)[:, :, : int(self.seq_lens[0])].contiguous()


def by_matmul(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q [batch, heads, n, d]; k, v [batch, kv_heads, len, d]. A group's queries as one matrix."""
    batch, heads, n, head_dim = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, head_dim)
    scores = (grouped @ k.transpose(2, 3)) * head_dim**-0.5
    if n > 1:
        hidden = torch.ones(n, k.shape[2], dtype=torch.bool).triu(k.shape[2] - n + 1)
        scores.view(batch, heads, n, -1).masked_fill_(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).reshape(batch, heads, n, head_dim)


def by_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=q.shape[2] > 1, enable_gqa=True
    )


def peers(case: Case, cover: int) -> dict[str, Callable[[], object]]:
    """torch on contiguous tensors of the cache's dtype; none if torch does not support it."""
    if CACHES[case.cache].itemsize == 1:
        return {}

    def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = Inputs.make(case)
        k, v = inputs.contiguous(inputs.k_cache), inputs.contiguous(inputs.v_cache)
        shape = (case.batch_size, case.query_len, case.heads.num_qo_heads, case.heads.head_dim)
        return inputs.q.to(k.dtype).reshape(shape).transpose(1, 2).contiguous(), k, v

    sets = timing.Rotating(tensors, case.kv_bytes, cover=cover)
    return {"matmul": lambda: by_matmul(*sets()), "sdpa": lambda: by_sdpa(*sets())}


def check(report: results.Report) -> None:
    case = Case("SmolLM2-135M", 2, 300)
    inputs = Inputs.make(case)
    k, v = inputs.contiguous(inputs.k_cache), inputs.contiguous(inputs.v_cache)
    q = inputs.q.reshape(2, 1, 9, 64).transpose(1, 2)
    expected = by_matmul(q.float(), k.float(), v.float()).transpose(1, 2).reshape(2, 9, 64)
    torch.testing.assert_close(inputs.run().float(), expected, rtol=1e-2, atol=5e-3)
    report.check("decode of a batch equals torch's matmul-softmax-matmul in float32")


def main() -> None:
    args = results.parser(__doc__).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    _C.set_num_threads(args.threads)
    report = results.Report("attention", COLUMNS, args)
    report.note(f"kernels: {_C.cpu_isa()}, pages of 64 tokens, shuffled; queries in bf16")
    check(report)
    bandwidth = timing.read_bandwidth(threads=args.threads)
    flops = timing.matmul_rate("float32", args.threads)
    report.limit("read bandwidth, GB/s", bandwidth.median / 1e9)
    report.limit("torch matrix product in float32, GFLOP/s", flops.median / 1e9)
    for case in QUICK if args.quick else CASES:
        cover = 0 if case.warm else timing.CACHE_TO_COVER
        sets = timing.Rotating(lambda case=case: Inputs.make(case), case.kv_bytes, cover=cover)
        contestants = {"ours": lambda sets=sets: sets().run(), **peers(case, cover)}
        # Several calls in a row, like a step's layers: a single call would time waking threads.
        times = timing.interleave(contestants, repeats=args.repeats, min_sample_s=SAMPLE_S)
        seconds = times["ours"].median
        rate = case.cost.flops / seconds if case.query_len > 1 else case.kv_bytes / seconds
        limit = flops.median if case.query_len > 1 else bandwidth.median
        row: dict[str, object] = {
            "case": str(case),
            "heads": f"{case.model} {case.heads}",
            "cache": case.cache,
            "us": times["ours"].us,
            "GB/s": case.kv_bytes / seconds / 1e9,
            "GFLOP/s": case.cost.flops / seconds / 1e9,
            "% of limit": None if case.warm and case.query_len == 1 else 100 * rate / limit,
        }
        for name in ("matmul", "sdpa"):
            if name in times:
                row[f"{name} us"] = times[name].us
                row[f"vs {name}"] = timing.pair_ratio(times[name], times["ours"]).median
        report.add(row, time_us={name: series.summary(1e6) for name, series in times.items()})
    report.finish(mean_of=("vs matmul", "vs sdpa"))


if __name__ == "__main__":
    main()
