# SPDX-License-Identifier: Apache-2.0
"""Cases of the ops of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lampo import ops
from lampo.bench import cost, reference
from lampo.bench.axes import Shape
from lampo.bench.cases import DTYPES, Arguments, Case, Peer, Tensors
from lampo.bench.linear_cases import Weights

_ERRORS = {8: 5e-2, 9: 3e-2, 16: 1e-3}  # by the bits of the input


def _routing(rows: int, experts: int, top_k: int) -> ops.Routing:
    """Every token's experts by chance, in every case the same."""
    generator = torch.Generator().manual_seed(0)
    return ops.route_tokens(torch.randn(rows, experts, generator=generator), top_k)


def _check(device: torch.device, experts: int, top_k: int) -> None:
    if device.type != "cpu":
        raise ValueError(f"device: experts are computed on cpu alone, got {device}")
    if not 1 <= top_k <= min(experts, 64):
        raise ValueError(f"top_k: expected 1 to {min(experts, 64)}, got {top_k}")


class RouteTokens(Case):
    op = staticmethod(ops.route_tokens)

    def prepare(self, rows: int, experts: int, top_k: int) -> None:
        _check(self.device, experts, top_k)
        self.rows, self.experts, self.top_k = rows, experts, top_k

    @property
    def cost(self) -> cost.Cost:
        return cost.route_tokens(self.rows, self.experts, self.top_k)

    def make(self) -> Arguments:
        logits = torch.randn(self.rows, self.experts, device=self.device)
        return {"logits": logits, "top_k": self.top_k, "out": ops.route_tokens(logits, self.top_k)}

    def expected(self, arguments: Arguments) -> Tensors:
        experts, weights = reference.route_tokens(arguments["logits"].cpu(), self.top_k, True)
        return {"experts": experts, "weights": weights}

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        routing = arguments["out"]
        if isinstance(returned, tuple):
            return dict(zip(("experts", "weights"), returned, strict=True))
        return {"experts": routing.experts, "weights": routing.weights}

    def peers(self) -> dict[str, Peer]:
        def peer(a: Arguments) -> Callable[[], Any]:
            logits, top_k = a["logits"], a["top_k"]

            def route() -> tuple[torch.Tensor, torch.Tensor]:
                largest, experts = logits.topk(top_k)
                return experts, largest.softmax(1)

            return route

        return {"torch": peer}

    def bind(self, function: Any, arguments: Arguments) -> Any:
        call = super().bind(function, arguments)

        def without_result() -> None:
            call()

        return without_result


class ExpertLinear(Weights):
    op = staticmethod(ops.expert_linear)

    def prepare(
        self, shape: Shape, rows: int, experts: int, top_k: int, dtype: str, activation_bits: int
    ) -> None:
        _check(self.device, experts, top_k)
        if shape.out_features % 16:
            raise ValueError(f"shape: expected a multiple of 16 rows per expert, got {shape}")
        self._take(Shape(experts * shape.out_features, shape.in_features), rows, dtype)
        self.bits = activation_bits if self.packed else 16
        self.products = ("int8",) if self.packed else ("f32", "bf16")
        self.passes = self.bits / 8 if self.packed else 1.0
        self.of_one = shape
        self.routing = _routing(rows, experts, top_k)
        self.expert_of = self.routing.experts.flatten()[self.routing.rows.flatten().argsort()]

    @property
    def cost(self) -> cost.Cost:
        chosen = len(self.expert_of.unique())
        one = self.of_one.in_features, self.of_one.out_features
        return cost.expert_linear(self.rows, len(self.expert_of), chosen, *one, self.dtype, "f32")

    def make(self) -> Arguments:
        num_rows, columns = len(self.expert_of), self.of_one.in_features
        size = ops.linear_workspace_size(num_rows, columns)
        return {
            "x": torch.randn(self.rows, columns),
            "weight": self._weight(),
            "offsets": self.routing.offsets,
            "x_rows": self.routing.x_rows,
            "activation_bits": self.bits,
            "out": torch.full((num_rows, self.of_one.out_features), torch.nan),
            "workspace": torch.empty(size, dtype=torch.uint8),
        }

    def expected(self, arguments: Arguments) -> Tensors:
        columns, found = self.of_one.out_features, []
        for row, expert in zip(self.routing.x_rows.tolist(), self.expert_of.tolist(), strict=True):
            weight = self._values(torch.arange(columns * expert, columns * (expert + 1)))
            found.append(reference.linear(arguments["x"][row : row + 1], weight, None))
        return {"out": torch.cat(found)}

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {"out": arguments["out"] if returned is None else returned}

    def peers(self) -> dict[str, Peer]:
        dtype = torch.bfloat16 if self.packed else DTYPES[self.dtype]

        def peer(a: Arguments) -> Callable[[], torch.Tensor]:
            weight = a["weight"]
            if isinstance(weight, ops.PackedWeight):
                weight = ops.embedding(torch.arange(weight.shape[0]), weight, dtype=dtype)
            parts = weight.unflatten(0, (-1, self.of_one.out_features))
            x, x_rows, counts = a["x"].to(dtype), a["x_rows"], a["offsets"].diff().tolist()

            def multiply() -> torch.Tensor:
                rows = x[x_rows].split(counts)
                linear = torch.nn.functional.linear
                return torch.cat(
                    [linear(own, part) for own, part in zip(rows, parts, strict=True) if len(own)]
                )

            return multiply

        return {f"torch {'bf16' if self.packed else self.dtype}": peer}

    def tolerance(self, name: str, found: torch.Tensor) -> float:
        own = _ERRORS[self.bits]
        return own if found.dtype == torch.float32 else max(own, super().tolerance(name, found))


class CombineExperts(Case):
    op = staticmethod(ops.combine_experts)

    def prepare(self, rows: int, size: int, top_k: int, dtype: str) -> None:
        _check(self.device, 2 * top_k, top_k)
        self.rows, self.size, self.top_k, self.dtype = rows, size, top_k, dtype

    @property
    def cost(self) -> cost.Cost:
        return cost.combine_experts(self.rows, self.size, self.top_k, self.dtype)

    def make(self) -> Arguments:
        dtype = DTYPES[self.dtype]
        return {
            "y": torch.randn(self.rows * self.top_k, self.size).to(dtype),
            "routing": _routing(self.rows, 2 * self.top_k, self.top_k),
            "out": torch.full((self.rows, self.size), torch.nan, dtype=dtype),
        }

    def expected(self, arguments: Arguments) -> Tensors:
        y, routing = arguments["y"], arguments["routing"]
        return {"out": reference.combine_experts(y, routing.rows, routing.weights)}

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {"out": arguments["out"] if returned is None else returned}

    def peers(self) -> dict[str, Peer]:
        def peer(a: Arguments) -> Callable[[], torch.Tensor]:
            y, routing = a["y"], a["routing"]
            return lambda: (y[routing.rows] * routing.weights[..., None].to(y.dtype)).sum(1)

        return {"torch": peer}
