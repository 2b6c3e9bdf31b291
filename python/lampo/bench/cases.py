# SPDX-License-Identifier: Apache-2.0
"""A case: one call of an op, with its buffers, cost, reference and peers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch

from lampo.bench.cost import Cost

Arguments = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Peer = Callable[[Arguments], Callable[[], Any]]
"""Converts a set of arguments to its own layout, and returns the call to time."""

DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
# Largest error, as a share of the magnitude of a value and of the root mean square of all.
_PEER_SLACK = 4.0  # peers round intermediate results to the type of their inputs
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class WrongResult(ValueError):
    """A function's result differs from the reference."""


class Case(ABC):
    """One call of `op` with the values of its axes.

    Attributes:
        op: the function.
        prepare: keeps the values of the axes, given by name; ValueError: they do not fit together.
        products: instructions that bound the op's arithmetic on CPU, see limits.py.
        passes: times that a product is done, with inputs in several parts.
    """

    op: ClassVar[Callable[..., Any]]
    prepare: Callable[..., None]
    products: tuple[str, ...] = ("f32",)
    passes: float = 1.0

    def __init__(self, values: Mapping[str, Any], device: torch.device) -> None:
        self.values, self.device = dict(values), device
        self.prepare(**values)

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """Bytes and operations that the call needs at least."""

    @abstractmethod
    def make(self) -> Arguments:
        """Keyword arguments of the op, on new buffers."""

    @abstractmethod
    def expected(self, arguments: Arguments) -> Tensors:
        """Results by name in float64 on CPU, from arguments that no call has changed."""

    @abstractmethod
    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        """The same after a call: what it returned, and what it wrote."""

    def peers(self) -> dict[str, Peer]:
        """torch's ways to do the same work, by name."""
        return {}

    def gpu_peers(self, package: str) -> dict[str, Peer]:
        """What "flashinfer" or "fa3" has for this op, by name. Raises: ValueError: nothing."""
        raise ValueError("has no such op")

    def parts(self) -> dict[str, Peer]:
        """torch's ways to do a part of the work: a bound for others. Not checked."""
        return {}

    def bind(self, function: Callable[..., Any], arguments: Arguments) -> Callable[[], Any]:
        """The call of a function with the op's arguments."""
        return partial(function, **arguments)

    @property
    def set_bytes(self) -> int:
        """Bytes of a set of buffers, about."""
        return self.cost.nbytes

    def tolerance(self, name: str, found: torch.Tensor) -> float:
        return TOLERANCES.get(found.dtype, 2e-2)

    def check(self, function: Callable[..., Any]) -> float:
        """Calls a function on new buffers; returns the largest error in units of the tolerance.

        Raises: WrongResult with the largest error and its place.
        """
        arguments = self.make()
        expected = self.expected(cloned(arguments))
        returned = self.bind(function, arguments)()
        for value in returned if isinstance(returned, tuple) else (returned,):
            if value is not None and not isinstance(value, torch.Tensor):
                raise WrongResult(f"out: expected a tensor, got {type(value).__name__}")
        return self.compare(expected, self.results(arguments, returned))

    def check_peer(self, peer: Peer) -> float:
        """As :meth:`check`, for a peer."""
        arguments = self.make()
        expected = self.expected(cloned(arguments))
        return self.compare(expected, self.results(arguments, peer(arguments)()), _PEER_SLACK)

    def compare(self, expected: Tensors, found: Tensors, slack: float = 1.0) -> float:
        worst = 0.0
        for name, wanted in expected.items():
            tolerance = slack * self.tolerance(name, found[name])
            worst = max(worst, _compare(name, wanted, found[name], tolerance))
        return worst


def cloned(arguments: Arguments) -> Arguments:
    """A copy with tensors of its own."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)
        for name, value in arguments.items()
    }


def _compare(name: str, expected: torch.Tensor, found: torch.Tensor, tolerance: float) -> float:
    """The largest error over the tolerance. Raises: WrongResult."""
    if found.shape != expected.shape:
        raise WrongResult(f"{name}: expected shape {list(expected.shape)}, got {list(found.shape)}")
    if expected.numel() == 0:
        return 0.0
    wanted, got = expected.double(), found.detach().to("cpu").double()
    same_infinity = wanted.isinf() & (wanted == got)
    difference = (got - wanted).abs().masked_fill(same_infinity, 0.0)
    finite = wanted.masked_fill(wanted.isinf(), 0.0)
    scale = finite.abs() + finite.square().mean().sqrt()
    error = difference / (tolerance * scale.clamp(min=1e-30))
    error = error.nan_to_num(nan=float("inf")).flatten()
    at = int(error.argmax())
    worst = float(error[at])
    if worst > 1:
        place = [int(i) for i in torch.unravel_index(torch.tensor(at), expected.shape)]
        raise WrongResult(
            f"{name}: differs from the reference by {float(difference.flatten()[at]):.3g} at "
            f"{place}: expected {float(wanted.flatten()[at]):.6g}, "
            f"got {float(got.flatten()[at]):.6g}; allowed is "
            f"{tolerance * float(scale.flatten()[at]):.2g}; "
            f"{int((error > 1).sum())} of {error.numel()} values are wrong"
        )
    return worst
