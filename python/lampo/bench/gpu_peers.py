# SPDX-License-Identifier: Apache-2.0
"""Attention and sampling of FlashInfer, FlashAttention-3 and torch; torch's run on the CPU too.

An entry of a table builds a peer for a problem, host-side planning included, so that only its
kernels are timed. Inputs have the peer's best layout. A peer that is not installed or refuses the
problem raises; the benchmark leaves it out with a note.

FlashInfer: the package flashinfer-python, which compiles its kernels at first use.
FlashAttention-3: with a paged cache, from an installed vllm or the library at FA3_LIBRARY.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

FLASHINFER_WORKSPACE = 256 << 20
Tensors = tuple[torch.Tensor, ...]
Sample = Callable[[torch.Tensor], torch.Tensor]  # logits to tokens


@dataclass(frozen=True)
class Attention:
    """Causal attention of the last query_lens[i] of seq_lens[i] tokens over a paged cache.

    Attributes:
        query_lens, seq_lens: lengths per sequence, on the host.
        num_qo_heads, num_kv_heads, head_dim, page_size: the cache is [num_pages, num_kv_heads,
            page_size, head_dim].
        page_table: [batch_size, max_pages_per_seq] int32, on the device.
    """

    query_lens: list[int]
    seq_lens: list[int]
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    page_table: torch.Tensor

    @property
    def decode(self) -> bool:
        return set(self.query_lens) == {1}

    @property
    def uniform(self) -> bool:
        return len(set(self.seq_lens)) == len(set(self.query_lens)) == 1

    def cumulative(self, lens: list[int]) -> torch.Tensor:
        """[batch_size + 1] int32 on the device."""
        sums = torch.tensor([0, *lens]).cumsum(0)
        return sums.to(device=self.page_table.device, dtype=torch.int32)

    def int32(self, lens: list[int]) -> torch.Tensor:
        return torch.tensor(lens, dtype=torch.int32, device=self.page_table.device)

    def contiguous(self, cache: torch.Tensor, sequence: int) -> torch.Tensor:
        """[num_kv_heads, seq_len, head_dim] of one sequence."""
        length = self.seq_lens[sequence]
        pages = self.page_table[sequence, : -(-length // self.page_size)].long()
        return cache[pages].transpose(0, 1).flatten(1, 2)[:, :length]


@dataclass(frozen=True)
class Peer:
    """prepare: converts q [num_tokens, num_qo_heads, head_dim], k_cache and v_cache for the peer.
    run: takes the result of `prepare`, returns [num_tokens, num_qo_heads, head_dim].
    """

    prepare: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Tensors]
    run: Callable[[Tensors], torch.Tensor]


def flashinfer_attention(problem: Attention, kind: str) -> Peer:
    """kind: "cuda cores" (decode alone), or a backend that multiplies on tensor cores."""
    import flashinfer

    p, device = problem, problem.page_table.device
    pages = [-(-length // p.page_size) for length in p.seq_lens]
    ids = torch.cat([row[:count] for row, count in zip(p.page_table, pages, strict=True)])
    last = [n - (count - 1) * p.page_size for n, count in zip(p.seq_lens, pages, strict=True)]
    paging = p.cumulative(pages), ids, p.int32(last)
    shape = p.num_qo_heads, p.num_kv_heads, p.head_dim, p.page_size
    types = {"q_data_type": torch.bfloat16, "kv_data_type": torch.bfloat16}
    workspace = torch.zeros(FLASHINFER_WORKSPACE, dtype=torch.uint8, device=device)
    if p.decode:
        on_cores = kind == "cuda cores"
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace,
            "HND",
            use_tensor_cores=not on_cores,
            backend="auto" if on_cores else kind,
        )
        wrapper.plan(*paging, *shape, **types)
    else:
        wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND", backend=kind)
        wrapper.plan(p.cumulative(p.query_lens), *paging, *shape, causal=True, **types)
    out = torch.empty(
        sum(p.query_lens), p.num_qo_heads, p.head_dim, dtype=torch.bfloat16, device=device
    )
    return Peer(
        prepare=lambda q, k_cache, v_cache: (q, k_cache, v_cache),
        run=lambda t: wrapper.run(t[0], (t[1], t[2]), out=out),
    )


def fa3_path() -> Path:
    if "FA3_LIBRARY" in os.environ:
        return Path(os.environ["FA3_LIBRARY"])
    vllm = importlib.util.find_spec("vllm")
    if vllm is None or vllm.origin is None:
        raise ImportError("neither vllm nor FA3_LIBRARY is there")
    return Path(vllm.origin).parent / "vllm_flash_attn" / "_vllm_fa3_C.abi3.so"


def fa3_version() -> str:
    """An identifier of the library, which has no version."""
    return f"sha256 {hashlib.sha256(fa3_path().read_bytes()).hexdigest()[:16]}"


@cache
def fa3_library() -> Any:
    torch.ops.load_library(str(fa3_path()))
    return torch.ops._vllm_fa3_C


def call(op: Any, **arguments: Any) -> Any:
    """Calls a torch op by the names of its arguments; absent ones are None."""
    names = [argument.name for argument in op.default._schema.arguments]
    return op(**{name: arguments.pop(name, None) for name in names}, **arguments)


def fa3_attention(problem: Attention) -> Peer:
    """FlashAttention-3 as vllm calls it, its schedule made once; the cache tokens first."""
    library = fa3_library()
    p = problem
    seq_lens, cu_seqlens_q = p.int32(p.seq_lens), p.cumulative(p.query_lens)
    longest_q, longest = max(p.query_lens), max(p.seq_lens)
    schedule = call(
        library.get_scheduler_metadata,
        batch_size=len(p.seq_lens),
        max_seqlen_q=longest_q,
        max_seqlen_k=longest,
        num_heads=p.num_qo_heads,
        num_heads_k=p.num_kv_heads,
        headdim=p.head_dim,
        headdim_v=p.head_dim,
        qkv_dtype=torch.bfloat16,
        seqused_k=seq_lens,
        cu_seqlens_q=cu_seqlens_q,
        page_size=p.page_size,
        max_seqlen_k_new=0,
        is_causal=True,
        window_size_left=-1,
        window_size_right=-1,
        has_softcap=False,
        num_splits=0,
        sm_margin=0,
    )

    def run(tensors: Tensors) -> torch.Tensor:
        q, k, v, out = tensors
        found: torch.Tensor = call(
            library.fwd,
            q=q,
            k=k,
            v=v,
            out=out,
            cu_seqlens_q=cu_seqlens_q,
            seqused_k=seq_lens,
            max_seqlen_q=longest_q,
            max_seqlen_k=longest,
            page_table=p.page_table,
            softmax_scale=p.head_dim**-0.5,
            is_causal=True,
            window_size_left=-1,
            window_size_right=-1,
            softcap=0.0,
            is_rotary_interleaved=True,
            scheduler_metadata=schedule,
            num_splits=0,
            sm_margin=0,
            cp_world_size=1,
            cp_rank=0,
        )[0]
        return found

    def tokens_first(cache: torch.Tensor) -> torch.Tensor:
        return cache.transpose(1, 2).contiguous()

    return Peer(
        lambda q, k, v: (q, tokens_first(k), tokens_first(v), torch.empty_like(q)),
        run,
    )


def sdpa_attention(problem: Attention, backend: SDPBackend) -> Peer:
    """torch's attention on contiguous keys and values of equal sequences, without a page table."""
    p = problem
    if not p.uniform:
        raise ValueError("sequences differ in length")
    batch_size, query_len = len(p.seq_lens), p.query_lens[0]

    def prepare(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> Tensors:
        rows = q.unflatten(0, (batch_size, query_len)).transpose(1, 2).contiguous()
        k, v = (
            torch.stack([p.contiguous(cache, i) for i in range(batch_size)])
            for cache in (k_cache, v_cache)
        )
        return rows, k, v

    def run(tensors: Tensors) -> torch.Tensor:
        q, k, v = tensors
        with sdpa_kernel(backend):
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=query_len > 1, enable_gqa=True
            )
        return out.transpose(1, 2).flatten(0, 1)

    return Peer(prepare, run)


ATTENTION: dict[str, Callable[[Attention], Peer]] = {
    "FlashInfer cuda cores": lambda p: flashinfer_attention(p, "cuda cores"),
    "FlashInfer fa2": lambda p: flashinfer_attention(p, "fa2"),
    "FlashInfer fa3": lambda p: flashinfer_attention(p, "fa3"),
    "FA3": fa3_attention,
    "SDPA flash": lambda p: sdpa_attention(p, SDPBackend.FLASH_ATTENTION),
    "SDPA cuDNN": lambda p: sdpa_attention(p, SDPBackend.CUDNN_ATTENTION),
}


def attention_peers(problem: Attention) -> list[str]:
    """Names of the peers that support the problem."""
    return [
        name
        for name in ATTENTION
        if (problem.decode or "cuda cores" not in name) and (problem.uniform or "SDPA" not in name)
    ]


def flashinfer_top_p(top_p: float, device: torch.device) -> Sample:
    """From logits to tokens: softmax, then rejection sampling."""
    from flashinfer import sampling

    seed, offset = (torch.tensor([n], device=device) for n in (1234, 0))

    def run(logits: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = sampling.top_p_sampling_from_probs(
            sampling.softmax(logits), top_p, seed=seed, offset=offset
        )
        return tokens

    return run


def torch_top_p_by_sort(
    logits: torch.Tensor, top_p: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """The usual top-p draw in torch, by a full sort: [batch_size, vocab_size] -> [batch_size].

    Keeps the smallest prefix of the sorted probabilities with a mass of top_p, the crossing token
    included, and draws by inverting the cumulative sum: one uniform number per row.
    torch.multinomial would draw one per vocabulary entry and take half as long as the sort again.
    """
    probs, ids = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    mass = probs.cumsum(dim=-1)
    rows, device = (logits.shape[0], 1), logits.device
    crossing = torch.searchsorted(mass, torch.full(rows, top_p, device=device))
    crossing.clamp_(max=mass.shape[-1] - 1)
    draw = torch.rand(rows, generator=generator, device=device) * mass.gather(-1, crossing)
    return ids.gather(-1, torch.searchsorted(mass, draw).clamp_(max=crossing)).squeeze(-1)


def sort_top_p(top_p: float, device: torch.device) -> Sample:
    return lambda logits: torch_top_p_by_sort(logits, top_p)


SAMPLING: dict[str, Callable[[float, torch.device], Sample]] = {
    "FlashInfer": flashinfer_top_p,
    "sort": sort_top_p,
}
