# SPDX-License-Identifier: Apache-2.0
"""Cases of ops with a state per sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import normalize, softplus

from lampo import ops
from lampo.bench import cost, reference
from lampo.bench.axes import Heads
from lampo.bench.cases import DTYPES, Arguments, Case, Peer, Tensors

_WIDTH = 4
_PAST = 100  # position of a sequence's first new token: its state is read


class _Recurrent(Case):
    batch: int
    query_len: int
    dtype: str

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {"out": arguments["out"] if returned is None else returned}

    def _sequences(self) -> Arguments:
        lengths = torch.arange(self.batch + 1) * self.query_len
        return {
            "state_slots": torch.arange(self.batch, device=self.device),
            "seq_lens": torch.full((self.batch,), _PAST + self.query_len, dtype=torch.int32).to(
                self.device
            ),
            "cu_seqlens_q": lengths.to(self.device, torch.int32),
        }

    def _tokens(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.batch * self.query_len, *shape).to(self.device, DTYPES[self.dtype])


class CausalConv(_Recurrent):
    op = staticmethod(ops.causal_conv)

    def prepare(self, batch: int, query_len: int, size: int, dtype: str) -> None:
        self.batch, self.query_len, self.size, self.dtype = batch, query_len, size, dtype

    @property
    def cost(self) -> cost.Cost:
        return cost.causal_conv(self.batch, self.query_len, self.size, _WIDTH, self.dtype)

    def make(self) -> Arguments:
        return {
            "x": self._tokens(self.size),
            "weight": torch.randn(_WIDTH, self.size, device=self.device),
            "state": torch.randn(self.batch, _WIDTH - 1, self.size, device=self.device),
            **self._sequences(),
            "silu": True,
            "out": self._tokens(self.size),
        }

    def expected(self, arguments: Arguments) -> Tensors:
        x = arguments["x"].cpu().unflatten(0, (self.batch, self.query_len))
        weight, state = (arguments[name].cpu() for name in ("weight", "state"))
        rows = [
            reference.causal_conv(each, weight, past, with_silu=True)
            for each, past in zip(x, state, strict=True)
        ]
        return {"out": torch.cat(rows)}

    def peers(self) -> dict[str, Peer]:
        def peer(a: Arguments) -> Callable[[], torch.Tensor]:
            weight = a["weight"].t()[:, None].to(a["x"].dtype)
            past = a["state"].to(a["x"].dtype)

            def call() -> torch.Tensor:
                x = torch.cat([past, a["x"].unflatten(0, (self.batch, -1))], 1).mT
                y = torch.nn.functional.conv1d(x, weight, groups=self.size)
                return torch.nn.functional.silu(y).mT.flatten(0, 1)

            return call

        return {"torch": peer}


class GatedDelta(_Recurrent):
    """Without the norm of the output; "32/16x128": 32 value heads, 16 key heads."""

    op = staticmethod(ops.gated_delta)

    def prepare(self, batch: int, query_len: int, heads: Heads, dtype: str) -> None:
        self.batch, self.query_len, self.heads, self.dtype = batch, query_len, heads, dtype

    @property
    def cost(self) -> cost.Cost:
        h = self.heads
        return cost.gated_delta(
            self.batch, self.query_len, h.num_qo_heads, h.num_kv_heads, h.head_dim, self.dtype
        )

    def make(self) -> Arguments:
        h, dim = self.heads, self.heads.head_dim
        return {
            "q": self._tokens(h.num_kv_heads, dim),
            "k": self._tokens(h.num_kv_heads, dim),
            "v": self._tokens(h.num_qo_heads, dim),
            "a": self._tokens(h.num_qo_heads),
            "b": self._tokens(h.num_qo_heads),
            "decay": -torch.rand(h.num_qo_heads, device=self.device),
            "dt_bias": torch.randn(h.num_qo_heads, device=self.device),
            "state": torch.randn(self.batch, h.num_qo_heads, dim, dim, device=self.device) / 4,
            **self._sequences(),
            "scale": dim**-0.5,
            "out": self._tokens(h.num_qo_heads, dim),
        }

    def expected(self, arguments: Arguments) -> Tensors:
        a = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        out = torch.zeros(a["v"].shape, dtype=torch.float64)
        for seq in range(self.batch):
            rows = slice(seq * self.query_len, (seq + 1) * self.query_len)
            for head in range(self.heads.num_qo_heads):
                key_head = head // self.heads.group_size
                q, k = (a[name][rows, key_head] for name in ("q", "k"))
                v, dt, b = (a[name][rows, head] for name in ("v", "a", "b"))
                decay, dt_bias = (a[name][head] for name in ("decay", "dt_bias"))
                state = a["state"][seq, head]
                out[rows, head], _ = reference.gated_delta(
                    q, k, v, dt, b, decay, dt_bias, state, float(a["scale"])
                )
        return {"out": out}

    def peers(self) -> dict[str, Peer]:
        def peer(a: Arguments) -> Callable[[], torch.Tensor]:
            groups, state = self.heads.group_size, a["state"].clone()
            keep = (a["decay"] * softplus(a["a"].float() + a["dt_bias"])).exp()
            beta, out = a["b"].float().sigmoid(), torch.empty_like(a["out"])

            def call() -> torch.Tensor:
                q, k = (normalize(a[name].float(), dim=-1) for name in ("q", "k"))
                q, k = (x.repeat_interleave(groups, 1) for x in (q * a["scale"], k))
                tokens = (q, k, a["v"].float(), keep, beta, out)
                q, k, v, g, b, o = (x.unflatten(0, (self.batch, -1)) for x in tokens)
                s = state
                for t in range(self.query_len):
                    s = s * g[:, t, :, None, None]
                    delta = b[:, t, :, None] * (v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], s))
                    s = s + torch.einsum("bhk,bhv->bhkv", k[:, t], delta)
                    o[:, t] = torch.einsum("bhk,bhkv->bhv", q[:, t], s)
                return out

            return call

        return {"torch": peer}
