# SPDX-License-Identifier: Apache-2.0
"""Times cases of an op beside peers: each is checked, then timed in turns on uncached buffers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from lampo.bench import timing
from lampo.bench.attention_cases import AppendKv, MergeStates, PagedAttention
from lampo.bench.cases import Arguments, Case, Peer, WrongResult
from lampo.bench.elementwise_cases import (
    Call,
    Gelu,
    GeluMul,
    LayerNorm,
    RmsNorm,
    Scale,
    ScaleByPosition,
    SigmoidMul,
    SiluMul,
)
from lampo.bench.expert_cases import CombineExperts, ExpertLinear, RouteTokens
from lampo.bench.limits import Limits
from lampo.bench.linear_cases import Embedding, Linear
from lampo.bench.own_kernel import OwnKernel
from lampo.bench.recurrent_cases import CausalConv, GatedDelta
from lampo.bench.results import LAMPO, Measured, is_busy
from lampo.bench.sampling_cases import Sample, TokenLogprobs
from lampo.error_text import shortened
from lampo.runtime.machine_load import LoadMeter

CASES: dict[str, type[Case]] = {
    "paged_attention": PagedAttention,
    "append_kv": AppendKv,
    "merge_states": MergeStates,
    "linear": Linear,
    "route_tokens": RouteTokens,
    "expert_linear": ExpertLinear,
    "combine_experts": CombineExperts,
    "embedding": Embedding,
    "sample": Sample,
    "token_logprobs": TokenLogprobs,
    "rms_norm": RmsNorm,
    "layer_norm": LayerNorm,
    "silu_mul": SiluMul,
    "gelu_mul": GeluMul,
    "gelu": Gelu,
    "scale": Scale,
    "scale_by_position": ScaleByPosition,
    "sigmoid_mul": SigmoidMul,
    "causal_conv": CausalConv,
    "gated_delta": GatedDelta,
    "call": Call,
}
_SETTLE_S = 0.02  # pause before a turn: other threads stop spinning
_SAMPLE_S = 2e-3  # several calls in a row, as in a model: one alone would time waking threads
_MOST_SETS = 256  # tiny buffers may then stay cached, as in a model's step
_L2_COVER = 3  # times the L2 cache of a GPU


@dataclass
class OpBench:
    """The settings of a run, its limits and its notes.

    Attributes:
        peers: "torch", "flashinfer", "fa3".
        warm: use one set of buffers, which may stay in the caches.
        kernel: to time beside the op.
        notes: what was left out, and why.
    """

    name: str
    device: torch.device
    threads: int
    repeats: int = 15
    warm: bool = False
    peers: tuple[str, ...] = ("torch",)
    kernel: OwnKernel | None = None
    notes: list[str] = field(default_factory=list)
    failed: int = 0  # cases with a wrong result of the op

    def __post_init__(self) -> None:
        self.limits = Limits(self.device, self.threads)
        cover = timing.CACHE_TO_COVER
        if self.device.type == "cuda":
            cover = _L2_COVER * torch.cuda.get_device_properties(self.device).L2_cache_size
        self.cover = 0 if self.warm else cover

    def cases(self, values: Sequence[dict[str, Any]]) -> list[Case]:
        """The cases, without those that another one is the same as. Raises: ValueError."""
        found: dict[tuple[str, ...], Case] = {}
        for each in values:
            case = CASES[self.name](each, self.device)
            found.setdefault(tuple(map(str, case.values.values())), case)
        return list(found.values())

    def run(self, cases: Sequence[Case]) -> Iterator[Measured]:
        """Measures each case. Raises: ValueError: the own kernel is wrong in one of them."""
        if self.kernel is not None:
            for case in cases:
                self.kernel.check(case)
        for case in cases:
            try:
                yield self.measure(case)
            except WrongResult as error:
                self.failed += 1
                self.note(f"{describe(case)}: wrong, not timed: {error}")

    def measure(self, case: Case) -> Measured:
        """Raises: WrongResult: the op differs from the reference."""
        error = case.check(type(case).op)
        functions = {LAMPO: type(case).op}
        if self.kernel is not None:
            functions[self.kernel.name] = self.kernel.function
        size = case.set_bytes
        limit = 1 if not case.cost.nbytes else _MOST_SETS
        count = max(1, min(-(-self.cover // max(size, 1)) + 1, limit))
        sets = [case.make() for _ in range(count)]
        calls = {
            name: [case.bind(function, arguments) for arguments in sets]
            for name, function in functions.items()
        }
        for name, peer in self._peers(case).items():
            prepared = self._attempt(name, partial(_prepared, peer, sets))
            if prepared is not None:
                calls[name] = prepared
        limited = case.cost.nbytes > 0 and not self.warm
        if limited:
            self.limits.measure(size * count, case.products)
        least = partial(self.limits.least, case.cost, size * count, case.products, case.passes)
        meter = LoadMeter()
        times = self._time(calls)
        load = meter.load()
        if limited:
            self.limits.measure(size * count, case.products)
        return Measured(
            case=case.values,
            times=times,
            cost=case.cost,
            least=least if limited else None,
            error=error,
            load=load,
            busy=is_busy(load),
        )

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _peers(self, case: Case) -> dict[str, Peer]:
        """The peers that agree with the reference."""
        found: dict[str, Peer] = {}
        for package in self.peers:
            if package == "torch":
                found |= case.peers()
            elif self.device.type != "cuda":
                self.note(f"{package} is left out: it needs a GPU, --device cuda")
            else:
                found |= self._attempt(package, partial(case.gpu_peers, package)) or {}
        agreeing = {
            name: peer
            for name, peer in found.items()
            if self._attempt(name, partial(case.check_peer, peer)) is not None
        }
        return agreeing | (case.parts() if "torch" in self.peers else {})

    def _attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """make(), or None and a note."""
        try:
            return make()
        except Exception as error:
            self.note(f"{name} is left out: {type(error).__name__}: {shortened(str(error))}")
            return None

    def _time(self, calls: dict[str, list[Callable[[], Any]]]) -> dict[str, timing.Series]:
        if self.device.type == "cpu":
            return timing.interleave(
                {name: _in_turns(each) for name, each in calls.items()},
                repeats=self.repeats,
                min_sample_s=_SAMPLE_S,
                settle_s=_SETTLE_S,
            )
        rounds = {name: self._captured(name, each) for name, each in calls.items()}
        times = timing.interleave(
            rounds, repeats=self.repeats, settle_s=0, min_sample_s=1e-3, device=self.device.type
        )
        return {
            name: timing.Series(tuple(s / len(calls[name]) for s in series.values))
            for name, series in times.items()
        }

    def _captured(self, name: str, calls: list[Callable[[], Any]]) -> Callable[[], Any]:
        """All calls as one CUDA graph: the device's time, without launches by Python."""

        def one_after_the_other() -> None:
            for call in calls:
                call()

        try:
            return timing.cuda_graph(one_after_the_other)
        except Exception as error:
            self.note(f"{name} is timed with its launches, as it was not captured: {error}")
            return one_after_the_other


def _prepared(peer: Peer, sets: Sequence[Arguments]) -> list[Callable[[], Any]]:
    return [peer(arguments) for arguments in sets]


def _in_turns(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    following = itertools.cycle(calls)
    return lambda: next(following)()


def describe(case: Case) -> str:
    return ", ".join(f"{name} {value}" for name, value in case.values.items() if value is not None)
