# SPDX-License-Identifier: Apache-2.0
"""Cases of norms and activations, and of a native call that does nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lampo import _C, ops
from lampo.bench import cost, reference
from lampo.bench.attention_cases import random_values
from lampo.bench.cases import DTYPES, Arguments, Case, Peer, Tensors

_EPS = 1e-6


class _Elementwise(Case):
    """A case with one input and one output."""

    dtype: str

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {"out": arguments["out"] if returned is None else returned}

    def _tensor(self, rows: int, columns: int) -> torch.Tensor:
        return random_values((rows, columns), DTYPES[self.dtype]).to(self.device)

    def _out(self, rows: int, columns: int) -> torch.Tensor:
        shape = (rows, columns)
        return torch.full(shape, torch.nan, dtype=DTYPES[self.dtype], device=self.device)


class _Norm(_Elementwise):
    def prepare(self, rows: int, hidden: int, dtype: str) -> None:
        self.rows, self.hidden, self.dtype = rows, hidden, dtype

    @property
    def cost(self) -> cost.Cost:
        return cost.rms_norm(self.rows, self.hidden, self.dtype)

    def make(self) -> Arguments:
        return {
            "x": self._tensor(self.rows, self.hidden),
            "weight": self._tensor(1, self.hidden)[0],
            "eps": _EPS,
            "out": self._out(self.rows, self.hidden),
        }


class RmsNorm(_Norm):
    op = staticmethod(ops.rms_norm)

    def expected(self, arguments: Arguments) -> Tensors:
        x, weight = arguments["x"].cpu(), arguments["weight"].cpu()
        return {"out": reference.rms_norm(x, weight, _EPS)}

    def peers(self) -> dict[str, Peer]:
        def peer(a: Arguments) -> Callable[[], torch.Tensor]:
            return lambda: torch.nn.functional.rms_norm(a["x"], (self.hidden,), a["weight"], _EPS)

        return {"torch": peer}


class LayerNorm(_Norm):
    op = staticmethod(ops.layer_norm)

    def make(self) -> Arguments:
        return super().make() | {"bias": self._tensor(1, self.hidden)[0]}

    def expected(self, arguments: Arguments) -> Tensors:
        x, weight, bias = (arguments[name].cpu() for name in ("x", "weight", "bias"))
        return {"out": reference.layer_norm(x, weight, bias, _EPS)}

    def peers(self) -> dict[str, Peer]:
        def peer(a: Arguments) -> Callable[[], torch.Tensor]:
            return lambda: torch.nn.functional.layer_norm(
                a["x"], (self.hidden,), a["weight"], a["bias"], _EPS
            )

        return {"torch": peer}


class _Gate(_Elementwise):
    activation: Callable[[torch.Tensor], torch.Tensor]
    exact: Callable[[torch.Tensor], torch.Tensor]

    def prepare(self, rows: int, size: int, dtype: str) -> None:
        self.rows, self.size, self.dtype = rows, size, dtype

    @property
    def cost(self) -> cost.Cost:
        return cost.silu_mul(self.rows, self.size, self.dtype)

    def make(self) -> Arguments:
        gate_up = self._tensor(self.rows, 2 * self.size)
        return {"gate_up": gate_up, "out": self._out(self.rows, self.size)}

    def expected(self, arguments: Arguments) -> Tensors:
        gate, up = arguments["gate_up"].cpu().double().chunk(2, 1)
        return {"out": type(self).exact(gate) * up}

    def peers(self) -> dict[str, Peer]:
        def peer(arguments: Arguments) -> Callable[[], torch.Tensor]:
            gate, up = arguments["gate_up"].chunk(2, 1)
            return lambda: type(self).activation(gate) * up

        return {"torch": peer}


class SiluMul(_Gate):
    op = staticmethod(ops.silu_mul)
    activation = staticmethod(torch.nn.functional.silu)
    exact = staticmethod(reference.silu)


class GeluMul(_Gate):
    op = staticmethod(ops.gelu_mul)
    activation = staticmethod(torch.nn.functional.gelu)
    exact = staticmethod(partial(reference.gelu, tanh_approximation=False))


class _OneToOne(_Elementwise):
    """x and out, [rows, size] each."""

    def prepare(self, rows: int, size: int, dtype: str) -> None:
        self.rows, self.size, self.dtype = rows, size, dtype

    @property
    def cost(self) -> cost.Cost:
        return cost.gelu(self.rows, self.size, self.dtype)


class Gelu(_OneToOne):
    op = staticmethod(ops.gelu)

    def make(self) -> Arguments:
        x = self._tensor(self.rows, self.size)
        return {"x": x, "out": self._out(self.rows, self.size)}

    def expected(self, arguments: Arguments) -> Tensors:
        return {"out": reference.gelu(arguments["x"].cpu(), False)}

    def peers(self) -> dict[str, Peer]:
        return {"torch": lambda a: lambda: torch.nn.functional.gelu(a["x"])}


class Scale(_OneToOne):
    """With a soft cap, as of logits."""

    op = staticmethod(partial(ops.scale, factor=0.5, soft_cap=30.0))

    def make(self) -> Arguments:
        x = self._tensor(self.rows, self.size)
        return {"x": x, "out": self._out(self.rows, self.size)}

    def expected(self, arguments: Arguments) -> Tensors:
        return {"out": reference.scale(arguments["x"].cpu(), 0.5, 30.0)}

    def peers(self) -> dict[str, Peer]:
        return {"torch": lambda a: lambda: 30.0 * torch.tanh(a["x"] * (0.5 / 30.0))}


class ScaleByPosition(_OneToOne):
    op = staticmethod(partial(ops.scale_by_position, beta=0.1, length=16384))

    def make(self) -> Arguments:
        x = self._tensor(self.rows, self.size)
        positions = torch.arange(self.rows, device=x.device) * 5000
        return {"x": x, "positions": positions, "out": self._out(self.rows, self.size)}

    def expected(self, arguments: Arguments) -> Tensors:
        x, positions = arguments["x"].cpu(), arguments["positions"].cpu()
        return {"out": reference.scale_by_position(x, positions, 0.1, 16384)}

    def peers(self) -> dict[str, Peer]:
        def peer(a: Arguments) -> Callable[[], torch.Tensor]:
            x, positions = a["x"], a["positions"]
            return lambda: x * (1 + 0.1 * torch.log1p(positions // 16384))[:, None].to(x.dtype)

        return {"torch": peer}


class SigmoidMul(_OneToOne):
    op = staticmethod(ops.sigmoid_mul)

    @property
    def cost(self) -> cost.Cost:
        return cost.silu_mul(self.rows, self.size, self.dtype)

    def make(self) -> Arguments:
        x, gate = (self._tensor(self.rows, self.size)[:, None] for _ in range(2))
        return {"x": x, "gate": gate, "out": self._out(self.rows, self.size)[:, None]}

    def expected(self, arguments: Arguments) -> Tensors:
        x, gate = (arguments[name].cpu().double() for name in ("x", "gate"))
        return {"out": x * torch.sigmoid(gate)}

    def peers(self) -> dict[str, Peer]:
        return {"torch": lambda a: lambda: a["x"] * torch.sigmoid(a["gate"])}


class Call(Case):
    """A native call that reads six tensors by DLPack, releases the GIL, and returns."""

    op = staticmethod(_C.call_cost)
    products = ()

    def prepare(self, arrays: str) -> None:
        self.arrays = arrays
        if self.device.type != "cpu":
            raise ValueError("device: the call is timed with arguments on cpu")

    @property
    def cost(self) -> cost.Cost:
        return cost.Cost(0, 0)

    def make(self) -> Arguments:
        tensors = {f"t{i}": torch.ones(1, 576) for i in range(6)}
        if self.arrays == "parameter":
            return {name: torch.nn.Parameter(t, False) for name, t in tensors.items()}
        if self.arrays == "numpy":
            return {name: t.numpy() for name, t in tensors.items()}
        return dict(tensors)

    def bind(self, function: Callable[..., Any], arguments: Arguments) -> Callable[[], Any]:
        return partial(function, *arguments.values())

    def expected(self, arguments: Arguments) -> Tensors:
        return {}

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {}

    def peers(self) -> dict[str, Peer]:
        if self.arrays != "torch":
            return {}
        return {"torch add": lambda a: partial(torch.add, a["t0"], a["t1"], out=a["t2"])}
