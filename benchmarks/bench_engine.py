# SPDX-License-Identifier: Apache-2.0
"""The engine with many requests: throughput compared with peers, prefix cache, overhead.

python benchmarks/bench_engine.py --json benchmarks/results/engine.json

- throughput: simultaneous requests with fixed numbers of input and output tokens: output tokens
  over the time until the last one is finished. A peer computes them as one batch.
- prefix cache: time to the first token of a cached prompt, and of a new one.
- overhead: time of a decode step in addition to the recorded step of the model, in one process.
"""

from __future__ import annotations

import os
import random
import sys
import time
from statistics import median
from typing import Any

import peers
import results
from lampo.bench import timing

OURS = "lampo"
COLUMNS = ["case", "lampo", "tok/s", "best peer", "its tok/s", "x best peer", "ms", "x"]


def random_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(100, 40_000) for _ in range(length)] for _ in range(count)]


def throughput(report: results.Report, args: Any) -> None:
    """Interleaved, with new prompts in every round."""
    count, num_in, num_out = args.requests, args.tokens_in, args.tokens_out
    workers = peers.start_workers(args.engines, args.formats, args.threads, report)
    try:
        answers = peers.take_turns(
            workers,
            lambda worker, turn: worker.generate(random_prompts(count, num_in, turn), num_out),
            args.repeats,
        )
    finally:
        for worker in workers:
            worker.close()
    seconds = {
        name: timing.Series(tuple(float(reply["total_s"]) for reply in replies))
        for name, replies in answers.items()
    }
    tokens = count * num_out
    for worker in workers:
        if worker.engine != OURS:
            continue
        row: dict[str, Any] = {
            "case": f"{count} requests, {num_in} in, {num_out} out",
            "lampo": worker.weight_format,
            "tok/s": tokens / seconds[worker.name].median,
        }
        rivals = [
            w.name for w in workers if w.engine != OURS and w.weight_format == worker.weight_format
        ]
        if rivals:
            best = min(rivals, key=lambda name: seconds[name].median)
            row["best peer"], row["its tok/s"] = best, tokens / seconds[best].median
            row["x best peer"] = timing.pair_ratio(seconds[best], seconds[worker.name]).median
        report.add(row, seconds={name: series.summary() for name, series in seconds.items()})


def prefix_cache(report: results.Report, args: Any) -> None:
    from lampo import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=1)
    new, known = [], []
    with LLM() as llm:
        for turn in range(args.repeats):
            for times in (new, known):
                output = llm.generate(random_prompts(1, 2048, 1000 + turn), params)[0]
                times.append(output.metrics.time_to_first_token or 0.0)
    for name, times in (("new", new), ("known", known)):
        report.add(
            {
                "case": f"first token, {name} prompt of 2,048",
                "lampo": "Q4_1",
                "ms": median(times) * 1e3,
                "x": median(a / b for a, b in zip(new, times, strict=True)),
            },
            seconds=timing.Series(tuple(times)).summary(),
        )


def overhead(report: results.Report, args: Any, batch_size: int) -> None:
    from lampo import LLM, SamplingParams
    from lampo.runtime.program import Program

    replays: list[float] = []
    replay = Program.replay

    def timed_replay(self: Program) -> None:
        start = time.perf_counter()
        replay(self)
        replays.append(time.perf_counter() - start)

    steps = []
    params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
    with LLM(max_num_seqs=batch_size) as llm:
        engine = llm.shared_engine().engine
        for prompt in random_prompts(batch_size, 16, batch_size):
            engine.add(llm.request(prompt, params))
        for _ in range(8):  # prompts, and the recording of the step
            engine.step()
        Program.replay = timed_replay  # type: ignore[method-assign]
        try:
            for _ in range(100):
                start = time.perf_counter()
                engine.step()
                steps.append(time.perf_counter() - start)
        finally:
            Program.replay = replay  # type: ignore[method-assign]
    beyond = [step - model for step, model in zip(steps, replays, strict=True)]
    report.add(
        {
            "case": f"step, batch {batch_size}, and its share beyond the model",
            "lampo": "Q4_1",
            "ms": median(steps) * 1e3,
            "x": median(b / s for b, s in zip(beyond, steps, strict=True)),
        },
        step_s=timing.Series(tuple(steps)).summary(),
        beyond_s=timing.Series(tuple(beyond)).summary(),
    )


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--engines", default="lampo,llama.cpp", type=lambda text: text.split(","))
    parser.add_argument("--formats", default="Q4_1,Q4_0", type=lambda text: text.split(","))
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens-in", type=int, default=128)
    parser.add_argument("--tokens-out", type=int, default=128)
    parser.set_defaults(repeats=3)
    args = parser.parse_args()
    unknown = [name for name in args.engines if name not in peers.ENGINES]
    if unknown:
        sys.exit(f"bench_engine: unknown engines: {', '.join(unknown)}")
    os.environ["LAMPO_NUM_THREADS"] = str(args.threads)
    report = results.Report("engine", COLUMNS, args)
    throughput(report, args)
    prefix_cache(report, args)
    for batch_size in (1, 32):
        overhead(report, args, batch_size)
    report.finish()


if __name__ == "__main__":
    main()
