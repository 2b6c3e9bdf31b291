# SPDX-License-Identifier: Apache-2.0
"""Cases of paged_attention, append_kv and merge_states."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lampo import ops
from lampo.bench import cost, gpu_peers, reference
from lampo.bench.axes import Heads
from lampo.bench.cases import DTYPES, Arguments, Case, Peer, Tensors

# Beyond these, only some sequences and tokens of a call are compared with the reference.
_CHECKED_ELEMENTS = 1 << 22
_CHECKED_TOKENS = 32
_BLOCK = (1 << 16) + 1  # random numbers, repeated: pages differ, as their size is a power of two
_INT8_SCALE = 0.025


def random_values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Normal values, or codes of int8: one block, repeated, as gigabytes take long to draw."""
    count = torch.Size(shape).numel()
    block = torch.randn(max(min(count, _BLOCK), 1))
    if dtype == torch.int8:
        block = (block * 40).round().clamp(-127, 127)
    return block.to(dtype).repeat(-(-count // len(block)))[:count].reshape(shape)


def in_huge_pages(values: torch.Tensor) -> torch.Tensor:
    """A copy in huge pages, like the engine's cache."""
    if not values.nbytes:
        return values
    memory = mmap.mmap(-1, values.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    copy = torch.frombuffer(memory, dtype=torch.uint8).view(values.dtype).view(values.shape)
    copy.view(torch.uint8).copy_(values.view(torch.uint8))
    return copy


def _page_rows(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """cache[pages], for dtypes without indexing too."""
    stored = cache.view(torch.uint8) if cache.dtype.itemsize == 1 else cache
    rows: torch.Tensor = stored[pages.long()].view(cache.dtype)
    return rows


class PagedAttention(Case):
    op = staticmethod(ops.paged_attention)
    products = ("f32", "bf16")

    def prepare(
        self,
        batch: int,
        seq_len: int,
        query_len: int | str,
        heads: Heads,
        page: int,
        window: int,
        dtype: str,
    ) -> None:
        self.batch, self.seq_len, self.heads, self.page = batch, seq_len, heads, page
        self.query_len = seq_len if isinstance(query_len, str) else query_len
        if self.query_len > seq_len:
            raise ValueError(f"query_len: expected at most seq_len, {seq_len}, got {query_len}")
        self.window, self.dtype = window, dtype
        self.pages = -(-seq_len // page)
        # The same for all sets of buffers, as GPU peers plan for it.
        table = torch.randperm(self.pages * batch).int().view(batch, -1)
        self._page_table = table.to(self.device)
        self._built: dict[str, gpu_peers.Peer] = {}

    @property
    def cost(self) -> cost.Cost:
        lens = [self.query_len] * self.batch, [self.seq_len] * self.batch
        h = self.heads
        shape = (h.num_qo_heads, h.num_kv_heads, h.head_dim)
        return cost.paged_attention(*lens, *shape, kv_dtype=self.dtype, window=self.window)

    def make(self) -> Arguments:
        h, device, dtype = self.heads, self.device, DTYPES[self.dtype]
        shape = (self.pages * self.batch, h.num_kv_heads, self.page, h.head_dim)
        q = torch.randn(self.batch * self.query_len, h.num_qo_heads, h.head_dim).bfloat16()
        size = ops.paged_attention_workspace_size(
            h.num_qo_heads,
            h.num_kv_heads,
            h.head_dim,
            self.pages * self.page,
            batch_size=self.batch,
            num_tokens=len(q),
            device=device,
        )
        place = in_huge_pages if device.type == "cpu" else lambda values: values.to(device)
        arguments: Arguments = {
            "q": q.to(device),
            "k_cache": place(random_values(shape, dtype)),
            "v_cache": place(random_values(shape, dtype)),
            "page_table": self._page_table,
            "seq_lens": torch.full((self.batch,), self.seq_len, dtype=torch.int32, device=device),
            "cu_seqlens_q": (torch.arange(self.batch + 1).int() * self.query_len).to(device),
            "out": torch.full_like(q, torch.nan, device=device),
            "workspace": torch.empty(size, dtype=torch.uint8, device=device),
        }
        if dtype == torch.int8:
            scale = torch.full(shape[:3], _INT8_SCALE, device=device)
            arguments |= {"k_scale": scale, "v_scale": scale}
        if self.window:
            arguments["sliding_window"] = self.window
        return arguments

    def _checked(self) -> list[tuple[int, range]]:
        """(sequence, tokens of its queries) to compare with the reference."""
        h = self.heads
        few = self.batch * self.seq_len * h.num_kv_heads * h.head_dim <= _CHECKED_ELEMENTS
        sequences = range(self.batch) if few else sorted({0, self.batch - 1})
        n = self.query_len
        parts = [range(n)]
        if n > 2 * _CHECKED_TOKENS:
            parts = [range(_CHECKED_TOKENS), range(n - _CHECKED_TOKENS, n)]
        return [(sequence, part) for sequence in sequences for part in parts]

    def expected(self, arguments: Arguments) -> Tensors:
        scale = _INT8_SCALE if self.dtype == "int8" else 1.0
        found = {}
        for sequence, part in self._checked():
            first = sequence * self.query_len
            q = arguments["q"][first + part.start : first + part.stop].cpu()
            end = self.seq_len - self.query_len + part.stop
            rows = []
            for kv in range(self.heads.num_kv_heads):
                group = self.heads.group_size
                k, v = (
                    self.contiguous(arguments, name, sequence)[kv, :end].double().cpu() * scale
                    for name in ("k_cache", "v_cache")
                )
                out, _ = reference.attention(
                    q[:, kv * group : (kv + 1) * group],
                    k[:, None],
                    v[:, None],
                    self.heads.head_dim**-0.5,
                    sliding_window=self.window or None,
                )
                rows.append(out)
            found[self._name(sequence, part)] = torch.cat(rows, 1)
        return found

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        out = arguments["out"] if returned is None else returned
        return {
            self._name(s, part): out[s * self.query_len + part.start :][: len(part)]
            for s, part in self._checked()
        }

    def _name(self, sequence: int, part: range) -> str:
        return f"out, sequence {sequence}, from token {part.start}"

    def contiguous(self, arguments: Arguments, name: str, sequence: int) -> torch.Tensor:
        """[num_kv_heads, seq_len, head_dim] of one sequence's cache."""
        rows = _page_rows(arguments[name], arguments["page_table"][sequence])
        return rows.transpose(0, 1).flatten(1, 2)[:, : self.seq_len]

    def peers(self) -> dict[str, Peer]:
        """On contiguous tensors of the cache's dtype, without a page table."""
        if DTYPES[self.dtype].itemsize == 1 or self.window:
            return {}
        return {
            "torch sdpa": lambda arguments: self._peer(arguments, _by_sdpa),
            "torch matmul": lambda arguments: self._peer(arguments, _by_matmul),
        }

    def gpu_peers(self, package: str) -> dict[str, Peer]:
        if self.dtype != "bf16" or self.window:
            raise ValueError("timed with a bf16 cache and without a window")
        h = self.heads
        problem = gpu_peers.Attention(
            [self.query_len] * self.batch,
            [self.seq_len] * self.batch,
            h.num_qo_heads,
            h.num_kv_heads,
            h.head_dim,
            self.page,
            self._page_table,
        )

        def peer(name: str, arguments: Arguments) -> Callable[[], torch.Tensor]:
            if name not in self._built:
                self._built[name] = gpu_peers.ATTENTION[name](problem)
            built = self._built[name]
            tensors = built.prepare(*(arguments[n] for n in ("q", "k_cache", "v_cache")))
            return lambda: built.run(tensors)

        names = [n for n in gpu_peers.attention_peers(problem) if n.lower().startswith(package)]
        return {name: partial(peer, name) for name in names}

    def _peer(
        self, arguments: Arguments, attention: Callable[..., torch.Tensor]
    ) -> Callable[[], torch.Tensor]:
        k, v = (
            torch.stack([self.contiguous(arguments, name, s) for s in range(self.batch)])
            for name in ("k_cache", "v_cache")
        )
        rows = arguments["q"].to(k.dtype).unflatten(0, (self.batch, -1))
        q = rows.transpose(1, 2).contiguous()
        hidden = None
        if self.query_len > 1 and self.query_len < self.seq_len:
            hidden = torch.ones(self.query_len, self.seq_len, dtype=torch.bool, device=k.device)
            hidden = hidden.triu(self.seq_len - self.query_len + 1)
        return lambda: attention(q, k, v, hidden).transpose(1, 2).flatten(0, 1)


def _by_matmul(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None
) -> torch.Tensor:
    """q [batch, heads, n, d]; k, v [batch, kv_heads, len, d]. A group's queries as one matrix."""
    batch, heads, n, head_dim = q.shape
    scores = (q.reshape(batch, k.shape[1], -1, head_dim) @ k.transpose(2, 3)) * head_dim**-0.5
    if n > 1:
        if hidden is None:
            hidden = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores.view(batch, heads, n, -1).masked_fill_(hidden, -torch.inf)
    out: torch.Tensor = scores.softmax(-1) @ v
    return out.reshape(batch, heads, n, head_dim)


def _by_sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor | None
) -> torch.Tensor:
    mask = None if hidden is None else ~hidden
    causal = mask is None and q.shape[2] > 1
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, enable_gqa=True
    )


class AppendKv(Case):
    op = staticmethod(ops.append_kv)

    def prepare(self, rows: int, heads: Heads, page: int, dtype: str) -> None:
        self.rows, self.heads, self.page, self.dtype = rows, heads, page, dtype

    @property
    def cost(self) -> cost.Cost:
        h = self.heads
        return cost.append_kv(
            self.rows, h.num_qo_heads, h.num_kv_heads, h.head_dim, kv_dtype=self.dtype
        )

    def make(self) -> Arguments:
        h, device, dtype = self.heads, self.device, DTYPES[self.dtype]
        num_pages = -(-self.rows // self.page)
        shape = (num_pages, h.num_kv_heads, self.page, h.head_dim)
        angles = torch.rand(self.rows, h.head_dim // 2) * 6.28
        q = torch.randn(self.rows, h.num_qo_heads, h.head_dim)
        k, v = (torch.randn(self.rows, h.num_kv_heads, h.head_dim) for _ in range(2))
        arguments: Arguments = {
            "q": q.bfloat16(),
            "k": k.bfloat16(),
            "v": v.bfloat16(),
            "k_cache": torch.zeros(shape, dtype=dtype),
            "v_cache": torch.zeros(shape, dtype=dtype),
            "slot_mapping": torch.randperm(num_pages * self.page)[: self.rows],
            "positions": torch.arange(self.rows),
            "cos_sin": torch.cat([angles.cos(), angles.sin()], 1),
        }
        if dtype == torch.int8:
            arguments |= {name: torch.zeros(shape[:3]) for name in ("k_scale", "v_scale")}
        return {name: value.to(device) for name, value in arguments.items()}

    def expected(self, arguments: Arguments) -> Tensors:
        cos_sin = arguments["cos_sin"].cpu()
        return {
            "q": reference.rope(arguments["q"].cpu(), cos_sin, False),
            "k_cache at the slots": reference.rope(arguments["k"].cpu(), cos_sin, False),
            "v_cache at the slots": arguments["v"].cpu().double(),
        }

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {
            "q": arguments["q"],
            "k_cache at the slots": self._stored(arguments, "k"),
            "v_cache at the slots": self._stored(arguments, "v"),
        }

    def _stored(self, arguments: Arguments, name: str) -> torch.Tensor:
        """[rows, num_kv_heads, head_dim] float32."""
        slots = arguments["slot_mapping"]
        page, slot = slots // self.page, slots % self.page
        values: torch.Tensor = arguments[f"{name}_cache"].float()[page, :, slot]
        if self.dtype == "int8":
            values *= arguments[f"{name}_scale"][page, :, slot][..., None]
        return values

    def tolerance(self, name: str, found: torch.Tensor) -> float:
        return {"fp8": 0.07}.get(self.dtype, 2e-2) if "cache" in name else 2e-2

    def peers(self) -> dict[str, Peer]:
        if DTYPES[self.dtype].itemsize == 1:
            return {}

        def peer(arguments: Arguments) -> Callable[[], None]:
            q, k, v, k_cache, v_cache = (
                arguments[name] for name in ("q", "k", "v", "k_cache", "v_cache")
            )
            page = arguments["slot_mapping"] // self.page
            slot = arguments["slot_mapping"] % self.page

            def run() -> None:
                cos, sin = arguments["cos_sin"][arguments["positions"]][:, None].chunk(2, -1)
                rotated = []
                for x in (q, k):
                    a, b = x.chunk(2, -1)
                    rotated.append(torch.cat([a * cos - b * sin, b * cos + a * sin], -1))
                q.copy_(rotated[0])
                k_cache[page, :, slot] = rotated[1].to(k_cache.dtype)
                v_cache[page, :, slot] = v.to(v_cache.dtype)

            return run

        return {"torch": peer}


class MergeStates(Case):
    op = staticmethod(ops.merge_states)

    def prepare(self, rows: int, splits: int, heads: Heads, dtype: str) -> None:
        self.rows, self.splits, self.dtype = rows, splits, dtype
        self.num_heads, self.head_dim = heads.num_qo_heads, heads.head_dim

    @property
    def cost(self) -> cost.Cost:
        return cost.merge_states(self.splits, self.rows, self.num_heads, self.head_dim, self.dtype)

    def make(self) -> Arguments:
        shape = (self.splits, self.rows, self.num_heads)
        out = torch.full((*shape[1:], self.head_dim), torch.nan, dtype=DTYPES[self.dtype])
        arguments = {
            "out_partial": random_values((*shape, self.head_dim), torch.float32),
            "lse_partial": torch.randn(shape),
            "out": out,
            "lse": torch.full(shape[1:], torch.nan),
        }
        return {name: value.to(self.device) for name, value in arguments.items()}

    def expected(self, arguments: Arguments) -> Tensors:
        parts = (arguments[name].cpu() for name in ("out_partial", "lse_partial"))
        return dict(zip(("out", "lse"), reference.merge_states(*parts), strict=True))

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        out, lse = (arguments["out"], arguments["lse"]) if returned is None else returned
        return {"out": out, "lse": lse}

    def peers(self) -> dict[str, Peer]:
        dtype = DTYPES[self.dtype]

        def peer(arguments: Arguments) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
            out_partial, lse_partial = arguments["out_partial"], arguments["lse_partial"]

            def run() -> tuple[torch.Tensor, torch.Tensor]:
                lse = lse_partial.logsumexp(0)
                weights = (lse_partial - lse).exp()[..., None]
                return (out_partial * weights).sum(0).to(dtype), lse

            return run

        return {"torch": peer}
