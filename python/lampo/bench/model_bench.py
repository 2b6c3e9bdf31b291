# SPDX-License-Identifier: Apache-2.0
"""Times a whole model: decoding at depths, prefill, batches; beside peers in turns."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from lampo import _C
from lampo.bench import timing
from lampo.bench.axes import FORMATS
from lampo.bench.cases import WrongResult
from lampo.bench.cost import Cost
from lampo.bench.limits import Limits
from lampo.bench.model_peers import PEERS, ModelPeer
from lampo.bench.results import LAMPO, Measured, is_busy
from lampo.bench.workload import VOCABULARY_TEXT
from lampo.error_text import shortened
from lampo.runtime.machine_load import LoadMeter
from lampo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lampo.llm import LLM

# Nats that a decoded token may lie below the best one of the reference, which adds in other orders.
_MOST_GAP, _MOST_MEAN_GAP = 2.0, 0.05
_CHECKED_TOKENS = 8
_LINEAR = re.compile(r"linear \[(\d+), (\d+)\] (\w+)")


@dataclass(frozen=True)
class Work:
    """One measurement of a model: prompts of `prompt` tokens, then `tokens` steps.

    Attributes:
        prefill: the time to the first token counts, else that of a step after it.
    """

    batch: int
    prompt: int
    tokens: int
    prefill: bool = False

    @classmethod
    def of(cls, benchmark: str, values: Mapping[str, Any]) -> Work:
        if benchmark == "prefill":
            return cls(1, values["prompt"], 1, prefill=True)
        if benchmark == "decode":
            return cls(1, values["depth"] + 1, values["tokens"])
        return cls(values["batch"], values["prompt"], values["tokens"])

    @property
    def max_tokens(self) -> int:
        """Tokens to generate: the first one comes from the prompt."""
        return 1 if self.prefill else self.tokens + 1

    @property
    def depth(self) -> int:
        """Tokens in the cache in the middle of the steps."""
        return self.prompt + self.tokens // 2

    def check(self, max_model_len: int, max_num_seqs: int) -> None:
        """Raises: ValueError: the model has no room for it."""
        if self.prompt + self.max_tokens > max_model_len:
            raise ValueError(
                f"prompt: {self.prompt} tokens and {self.max_tokens} new ones exceed the "
                f"context of {max_model_len}"
            )
        if self.batch > max_num_seqs:
            raise ValueError(f"batch: expected at most max_num_seqs, {max_num_seqs}")


@dataclass
class ModelBench:
    """A model's benchmarks, their limits and notes.

    Attributes:
        peers: names in model_peers.PEERS, which are started with the first case.
    """

    llm: LLM
    device: torch.device
    benchmark: str
    repeats: int
    peers: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)
    failed: int = 0

    def __post_init__(self) -> None:
        self.limits = Limits(self.device, _C.num_threads())
        self._token_ids = sorted(set(self.llm.tokenizer.encode(VOCABULARY_TEXT, add_bos=False)))
        self._peers: dict[str, ModelPeer] | None = None

    def run(self, cases: Sequence[dict[str, Any]]) -> Iterator[Measured]:
        for values in cases:
            try:
                yield self.measure(values)
            except WrongResult as error:
                self.failed += 1
                case = ", ".join(f"{name} {value}" for name, value in values.items())
                self.notes.append(f"{case}: wrong, not timed: {error}")

    def measure(self, values: dict[str, Any]) -> Measured:
        """Raises: WrongResult: the model disagrees with its reference."""
        work = Work.of(self.benchmark, values)
        self._check(work)
        contestants = {LAMPO: partial(self._seconds, work)} | self._contestants(work)
        cost, products = self._cost(work)
        if cost.nbytes:
            self.limits.measure(cost.nbytes, products)
        meter = LoadMeter()
        times = timing.take_turns(contestants, repeats=self.repeats)
        load = meter.load()
        if cost.nbytes:
            self.limits.measure(cost.nbytes, products)
        tokens = work.prompt if work.prefill else work.batch
        return Measured(
            case=values,
            times=times,
            cost=cost,
            least=partial(self.limits.least, cost, cost.nbytes, products) if cost.nbytes else None,
            load=load,
            busy=is_busy(load),
            extra={"tok/s": tokens / times[LAMPO].median},
        )

    def prompts(self, work: Work, turn: int) -> list[list[int]]:
        """The same in every turn, but for prefill: nothing of a prompt may be in the cache."""
        rng = random.Random(turn if work.prefill else 0)
        return [rng.choices(self._token_ids, k=work.prompt) for _ in range(work.batch)]

    def _seconds(self, work: Work, turn: int) -> float:
        params = SamplingParams(temperature=0, max_tokens=work.max_tokens, ignore_eos=True)
        outputs = self.llm.generate(self.prompts(work, turn), params, progress=False)
        first = [output.metrics.time_to_first_token or math.nan for output in outputs]
        if work.prefill:
            return max(first)
        # Sequences of a batch start one after another: the steps of all follow the last start.
        ends = [
            start + (output.metrics.time_per_output_token or math.nan) * work.tokens
            for start, output in zip(first, outputs, strict=True)
        ]
        return (max(ends) - max(first)) / work.tokens

    def _check(self, work: Work) -> None:
        """Decodes greedily, and looks up the tokens in one prefill of the same text.

        Raises: WrongResult: they are not the best ones there.
        """
        count = _CHECKED_TOKENS if work.prefill else min(work.max_tokens, _CHECKED_TOKENS)
        count = min(count, self.llm.max_model_len - work.prompt)
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        prompts = self.prompts(work, 0)
        outputs = self.llm.generate(prompts, params, progress=False)
        tokens = [output.outputs[0].token_ids for output in outputs]
        gaps = [g for p, t in zip(prompts, tokens, strict=True) for g in self._gaps(p, t)]
        if not gaps or max(gaps) > _MOST_GAP or fmean(gaps) > _MOST_MEAN_GAP:
            raise WrongResult(f"decoded tokens differ from a prefill of the same text: {gaps}")

    def _gaps(self, prompt: list[int], tokens: list[int]) -> list[float]:
        """For each token after a prompt: nats below the best token, by one prefill of both."""
        text = prompt + tokens
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        if len(text) >= self.llm.max_model_len:
            text = text[: self.llm.max_model_len - 1]
        (output,) = self.llm.generate([text], params, progress=False)
        tables = (output.prompt_logprobs or [])[len(prompt) :]
        gaps = []
        for token, table in zip(text[len(prompt) :], tables, strict=True):
            assert table is not None
            best = max(candidate.logprob for candidate in table.values())
            gaps.append(best - table[token].logprob)
        return gaps

    def _contestants(self, work: Work) -> dict[str, Callable[[int], float]]:
        """The peers that compute this, and agree with lampo."""
        if self._peers is None:
            self._peers = {}
            for name in self.peers:
                if name not in PEERS:
                    self.notes.append(f"{name} has no whole models")
                    continue
                try:
                    self._peers[name] = PEERS[name](self.llm.path, _C.num_threads())
                except Exception as error:
                    self._leave_out(name, error)
        found: dict[str, Callable[[int], float]] = {}
        for name, peer in self._peers.items():
            try:
                tokens = peer.tokens(self.prompts(work, 0), _CHECKED_TOKENS)
                for prompt, continuation in zip(self.prompts(work, 0), tokens, strict=False):
                    gaps = self._gaps(prompt, continuation)
                    if gaps and fmean(gaps) > 10 * _MOST_MEAN_GAP:
                        raise WrongResult(f"its tokens are not lampo's: {fmean(gaps):.2f} nats")
                # It refuses now, and not in a turn.
                peer.seconds(self.prompts(work, 0), min(work.max_tokens, 2), work.prefill)
                found[name] = partial(self._peer_seconds, peer, work)
            except Exception as error:
                self._leave_out(name, error)
        return found

    def _peer_seconds(self, peer: ModelPeer, work: Work, turn: int) -> float:
        return peer.seconds(self.prompts(work, turn), work.max_tokens, work.prefill)

    def _leave_out(self, name: str, error: Exception) -> None:
        text = f"{name} is left out: {shortened(str(error)) or type(error).__name__}"
        if text not in self.notes:
            self.notes.append(text)

    def _cost(self, work: Work) -> tuple[Cost, tuple[str, ...]]:
        """Bytes and operations of a step or a prompt, and the instructions of its products.

        The bytes are those of the recorded step's ops. The products are counted from the shapes of
        its linears: the LM head's for one token per sequence, the others' for all.
        """
        if self.device.type != "cpu":  # steps are replayed op by op on CPU alone
            return Cost(0, 0), ()
        depth = 0 if work.prefill else work.depth
        (replay,) = self.llm.inspector().replay_decode(work.batch, depth, 1)
        linears = [match for op in replay if (match := _LINEAR.match(op.name)) is not None]
        packed = any(match[3] in FORMATS for match in linears)
        products = ("int8",) if packed else ("f32", "bf16")
        vocab = self.llm.config.vocab_size
        weights = head = 0
        for match in linears:
            size = int(match[1]) * int(match[2])
            if int(match[1]) == vocab:
                head += size
            else:
                weights += size
        tokens = work.prompt if work.prefill else work.batch
        flops = 2 * (weights * tokens + head * work.batch)
        for a in self.llm.config.attentions:
            flops += 4 * a.q_size * _pairs(work, a.window)
        return Cost(sum(op.nbytes for op in replay), flops), products


def _pairs(work: Work, window: int | None) -> int:
    """Pairs of a query and a key that it sees."""
    if not work.prefill:
        return work.batch * min(work.depth, window or work.depth)
    n = work.prompt
    if window is None or window >= n:
        return n * (n + 1) // 2
    return window * (window + 1) // 2 + (n - window) * window
