# SPDX-License-Identifier: Apache-2.0
"""End to end: prefill and decode of one model by lampo, llama.cpp, OpenVINO and transformers.

Every engine does the same work (the same input token ids, greedy, end-of-text ignored, the same
number of output tokens) in its own process, on the same model in the formats that it reads. All
engines of a run take turns, so that a ratio compares consecutive measurements.

Prefill is prompt tokens over the time to first token (TTFT); decode is tokens of all sequences over
the time after the first ones. A row compares lampo in one format with llama.cpp on the same file
and with the fastest peer that has at least as many bits per weight. The caches may differ: OpenVINO
has 8 bits, llama.cpp 16 or 8, lampo 16 or, in separate rows, 8. "limit %" is the minimum time by
cost.py, at the read bandwidth and the rate of matrix products measured in the same round, over
lampo's time.

    LAMPO_PEERS=DIRECTORY python benchmarks/bench_decode.py --cases decode --json FILE
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean, median
from typing import Any

import peers
import results
from lampo import _C, profiling
from lampo.bench import cost, limits, timing
from peers import ENGINES, FORMATS, ORACLE, OURS

COLUMNS = ["case", "lampo", "ms", "tok/s", "bound by", "GB/s", "limit %", "llama.cpp tok/s"]
COLUMNS += ["x llama.cpp", "best peer", "its tok/s", "x best peer"]
Times = dict[str, timing.Series]  # by the worker's name
RATIOS = ("x llama.cpp", "x best peer")

# The default model's chat template around "Why is the sky blue?".
# fmt: off
CHAT_PROMPT = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 4898, 314, 260, 6376, 4461, 47, 2, 198, 1, 520, 9531, 198,
]
# fmt: on
CHECKED_TOKENS = 64
# A token may differ from the exact model's best one if two are nearly tied: 4-bit weights times
# 8-bit activations change log-probabilities by a few hundredths, occasionally by more: 1.12 in the
# middle of an invented word, where llama.cpp's divergence was 20 times its mean as well.
MAX_GAP, MAX_MEAN_GAP = 2.0, 0.05


@dataclass(frozen=True)
class Case:
    """batch prompts of prompt_tokens, max_tokens per completion; at most `rounds` rounds.

    With one output token the prefill is timed, else the steps after the first token.
    """

    name: str
    batch: int
    prompt_tokens: int
    max_tokens: int
    rounds: int = 15
    quick: bool = False

    @property
    def prefill(self) -> bool:
        return self.max_tokens == 1

    @property
    def step(self) -> tuple[list[int], list[int]]:
        """Query and sequence lengths of the timed step; decode: the step in the middle."""
        if self.prefill:
            return [self.prompt_tokens] * self.batch, [self.prompt_tokens] * self.batch
        return [1] * self.batch, [self.prompt_tokens + self.max_tokens // 2] * self.batch

    def prompts(self, vocab_size: int, turn: int) -> list[list[int]]:
        """Arbitrary tokens; the first hundred ids may be special.

        Every prefill gets new ones, since an engine may have cached a prompt; decoding may repeat.
        """
        random = Random(turn if self.prefill else 0)
        tokens = [random.randrange(100, vocab_size) for _ in range(self.batch * self.prompt_tokens)]
        return [tokens[i :: self.batch] for i in range(self.batch)]

    def seconds(self, reply: dict[str, Any]) -> float:
        """Time of the whole prefill, or of one decode step."""
        if self.prefill:
            return float(reply["ttft_s"])
        return float(reply["total_s"] - reply["ttft_s"]) / (self.max_tokens - 1)


CASES = [
    *[Case(f"prefill {n}", 1, n, 1, rounds, n == 128) for n, rounds in ((128, 15), (512, 9))],
    Case("prefill 2048", 1, 2048, 1, 5),
    Case("decode, depth 0", 1, 1, 128, quick=True),
    *[
        Case(f"decode, depth {n}K", 1, n << 10, 64, rounds)
        for n, rounds in ((1, 7), (4, 5), (7, 3))
    ],
    *[Case(f"decode, batch {n}", n, 16, 32, 7) for n in (4, 8, 32)],
]


def options() -> argparse.Namespace:
    parser = results.parser(__doc__)
    parser.add_argument("--cases", default=".", metavar="REGEX", help="which cases to run")
    parser.add_argument("--formats", default="Q4_1", help=f"a list of {', '.join(FORMATS)}")
    parser.add_argument("--engines", help="which to run: a list (default: all)")
    parser.add_argument("--isa", choices=("avx2",), help="hold lampo and llama.cpp to this one")
    parser.set_defaults(repeats=5)
    args = parser.parse_args()
    if args.isa:
        peers.hold_to(args.isa)
    names = [engine for engine in ENGINES if engine != ORACLE]
    args.formats = args.formats.split(",")
    args.engines = args.engines.split(",") if args.engines else names
    for given, known in ((args.formats, FORMATS), (args.engines, ENGINES)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
    return args


def check(workers: list[peers.Worker], threads: int, report: results.Report) -> None:
    """Compares lampo's greedy tokens with the exact model of the file; wrong ones end the run."""
    if not peers.installed(ORACLE):
        report.note("transformers is not installed: tokens not checked")
        return
    for worker in workers:
        if worker.engine not in OURS:
            continue
        oracle = peers.Worker(ORACLE, worker.weight_format, threads)
        try:
            (expected,) = oracle.generate([CHAT_PROMPT], CHECKED_TOKENS)["token_ids"]
            (got,) = worker.generate([CHAT_PROMPT], CHECKED_TOKENS)["token_ids"]
            request = {"prompts": [CHAT_PROMPT], "continuation": got}
            gaps = oracle.ask(request)["gaps"]
        finally:
            oracle.close()
        pairs = enumerate(zip(got, expected, strict=True))
        same = next((i for i, (a, b) in pairs if a != b), CHECKED_TOKENS)
        sentence = (
            f"{worker.name}: first {same} of {CHECKED_TOKENS} greedy tokens equal those of "
            f"{ORACLE}; log-probability below its best token: mean {fmean(gaps):.4f}, "
            f"largest {max(gaps):.3f}"
        )
        if max(gaps) > MAX_GAP or fmean(gaps) > MAX_MEAN_GAP:
            sys.exit(f"wrong tokens, nothing timed: {sentence}")
        report.check(sentence)


class Limits:
    """The minimum time of a step, measured in every round, as a shared machine's speed varies.

    The read bandwidth is that of a buffer of the size of a step's reads, as a smaller one would
    partly stay cached. The rate of products is that of the kernels' own instructions on registers,
    of int8 for packed weights, else of float32 or bfloat16.
    """

    def __init__(self, step: cost.Cost, weight_format: str, threads: int) -> None:
        self.step, self.threads = step, threads
        self.products = ("f32", "bf16") if FORMATS[weight_format] == 16 else ("int8",)
        self._bandwidth: list[float] = []
        self._rate: list[float] = []

    def sample(self) -> None:
        self._bandwidth.append(median(profiling.read_bandwidth(self.step.nbytes, self.threads, 3)))
        self._rate.append(max(limits.peak_rate(products) for products in self.products))

    @property
    def bandwidth(self) -> timing.Series:
        return timing.Series(tuple(self._bandwidth))

    @property
    def rate(self) -> timing.Series:
        return timing.Series(tuple(self._rate))

    @property
    def seconds(self) -> timing.Series:
        limits = zip(self._bandwidth, self._rate, strict=True)
        return timing.Series(tuple(self.step.least_seconds(*limit) for limit in limits))

    @property
    def by_memory(self) -> bool:
        step = self.step
        return step.nbytes / self.bandwidth.median > step.flops / self.rate.median


def label(ours: peers.Worker) -> str:
    """The worker's format, and its cache if that is not the default."""
    kv_dtype = OURS[ours.engine]
    return ours.weight_format + ("" if kv_dtype == "bf16" else f", {kv_dtype} cache")


def compare(
    row: dict[str, Any], tokens: int, ours: peers.Worker, others: list[peers.Worker], seconds: Times
) -> None:
    """Adds llama.cpp on the same file, and the fastest peer with as many bits per weight."""
    weight_format = ours.weight_format
    others = [w for w in others if FORMATS[w.weight_format] >= FORMATS[weight_format]]
    same_file = [w for w in others if w.weight_format == weight_format and "llama" in w.engine]
    if peer := fastest(same_file, seconds):
        row["llama.cpp tok/s"] = tokens / seconds[peer].median
        row["x llama.cpp"] = timing.pair_ratio(seconds[peer], seconds[ours.name]).median
    if peer := fastest(others, seconds):
        row["best peer"], row["its tok/s"] = peer, tokens / seconds[peer].median
        row["x best peer"] = timing.pair_ratio(seconds[peer], seconds[ours.name]).median


def fastest(workers: list[peers.Worker], seconds: Times) -> str | None:
    return min((w.name for w in workers), key=lambda name: seconds[name].median, default=None)


def run_case(
    case: Case, workers: list[peers.Worker], threads: int, rounds: int, report: results.Report
) -> None:
    kind = case.prompt_tokens, case.prefill
    workers = [worker for worker in workers if ENGINES[worker.engine].takes_part(*kind)]
    ours = [worker for worker in workers if worker.engine in OURS]
    shapes = [
        replace(cost.model_shape_of_gguf(worker.model), kv_dtype=OURS[worker.engine])
        for worker in ours
    ]
    limits = [
        Limits(cost.step(shape, *case.step), worker.weight_format, threads)
        for shape, worker in zip(shapes, ours, strict=True)
    ]

    def generate(worker: peers.Worker, turn: int) -> dict[str, Any]:
        if worker is ours[0] and turn:
            for limit in limits:
                limit.sample()
        prompts = case.prompts(shapes[0].vocab_size, turn)
        return worker.generate(prompts, case.max_tokens, reuse=not case.prefill)

    answers = peers.take_turns(workers, generate, min(rounds, case.rounds))
    seconds = {
        name: timing.Series(tuple(case.seconds(reply) for reply in replies))
        for name, replies in answers.items()
    }
    tokens = sum(case.step[0])
    for worker, limit in zip(ours, limits, strict=True):
        mine = seconds[worker.name].median
        share = timing.pair_ratio(limit.seconds, seconds[worker.name]).median
        row: dict[str, Any] = {
            "case": case.name,
            "lampo": label(worker),
            "ms": mine * 1e3,
            "tok/s": tokens / mine,
            "bound by": "memory" if limit.by_memory else "compute",
            "GB/s": limit.step.gb_per_s(mine) if limit.by_memory else None,
            "limit %": 100 * share,
        }
        compare(row, tokens, worker, [w for w in workers if w not in ours], seconds)
        report.add(
            row,
            seconds={name: series.summary() for name, series in seconds.items()},
            cost={"bytes": limit.step.nbytes, "operations": limit.step.flops},
            limits={
                "read bandwidth, bytes/s": limit.bandwidth.summary(),
                f"{' or '.join(limit.products)} products, operations/s": limit.rate.summary(),
            },
        )


def main() -> None:
    args = options()
    cases = [case for case in CASES if re.search(args.cases, case.name)]
    if args.quick:
        cases = [case for case in cases if case.quick]
    report = results.Report("decode", COLUMNS, args)
    _C.set_num_threads(args.threads)  # of this process, which measures the limits
    workers = peers.start_workers(args.engines, args.formats, args.threads, report)
    try:
        if not any(worker.engine in OURS for worker in workers):
            sys.exit("bench_decode: lampo is not among the engines, or reads none of the formats")
        check(workers, args.threads, report)
        for case in cases:
            run_case(case, workers, args.threads, args.repeats, report)
    finally:
        for worker in workers:
            worker.close()
    report.finish(mean_of=RATIOS)


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:  # an engine's process ended with a message
        sys.exit(f"bench_decode: {error}")
