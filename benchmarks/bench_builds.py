# SPDX-License-Identifier: Apache-2.0
"""Two builds of lampo by turns, in processes that both stay loaded: has a change cost time?

    python benchmarks/bench_builds.py OLD/.venv/bin/python NEW/.venv/bin/python [--model FILE]

An argument may begin with PYTHONPATH=FOLDER and a comma, for a build in a source tree. golden.py
tells whether two builds compute the same bits.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

CASES = {"decode": 14, "prefill 512": 10, "prefill 2048": 5, "batch 32": 8, "logprobs": 10}


def measure(llm: Any, case: str) -> float:
    """Milliseconds: of a token, or of a whole prompt."""
    from lampo import SamplingParams

    def greedy(max_tokens: int, **fields: Any) -> SamplingParams:
        fields = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True} | fields
        return SamplingParams(**fields)

    kind, _, size = case.partition(" ")
    prompt = [100 + i * 7919 % 40000 for i in range(2048)]
    begin = time.perf_counter()
    if kind == "prefill":
        llm.generate([prompt[: int(size)]], greedy(1), progress=False)
        return (time.perf_counter() - begin) * 1e3
    fields = {"temperature": 1.0, "top_p": 0.9, "seed": 1, "logprobs": 2}
    params = greedy(100, **fields) if kind == "logprobs" else greedy(100)
    prompts = [prompt[i : i + 16] for i in range(int(size or 1))]
    metrics = llm.generate(prompts, params, progress=False)[0].metrics
    return float(metrics.time_per_output_token * 1e3)


def work(model: str) -> None:
    """Answers each case on stdin with its time on stdout."""
    from lampo import LLM

    with LLM(model or None, enable_prefix_caching=False) as llm:
        print("ready", flush=True)
        for line in sys.stdin:
            print(measure(llm, line.strip()), flush=True)


def start(build: str, model: str) -> subprocess.Popen[str]:
    settings = build.split(",")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= dict(setting.split("=", 1) for setting in settings[:-1])
    command = [settings[-1], __file__, "--work", "--model", model]
    worker = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n", build
    return worker


def ask(worker: subprocess.Popen[str], case: str) -> float:
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(f"{case}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("builds", nargs="*", metavar="PYTHON", help="the old build, the new one")
    parser.add_argument("--model", default="", help="as for LLM; default: the default model")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.model)
    if len(args.builds) != 2:
        parser.error("expected two builds")
    workers = [start(build, args.model) for build in args.builds]
    print("| case | old ms | new ms | new / old, median of pairs |\n|---|---|---|---|")
    for case, rounds in CASES.items():
        times: list[list[float]] = [[], []]
        for turn in range(rounds + 1):
            for which in (0, 1) if turn % 2 else (1, 0):
                times[which].append(ask(workers[which], case))
        old, new = (series[1:] for series in times)  # the first round warms up
        ratio = statistics.median(b / a for a, b in zip(old, new, strict=True))
        medians = f"{statistics.median(old):.2f} | {statistics.median(new):.2f}"
        print(f"| {case} | {medians} | {ratio:.3f} |", flush=True)
    for worker in workers:
        worker.kill()
    return None


if __name__ == "__main__":
    main()
