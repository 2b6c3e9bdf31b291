# SPDX-License-Identifier: Apache-2.0
"""Decoding while other processes compute: tokens per second on a busy machine.

Each engine decodes greedily after a short prompt, with one thread and with --threads, first on the
idle machine, then beside 1, 2 and 8 processes that count without pause. Engines take turns. "share"
is tokens/s over those of the idle machine with --threads; beside N processes on C cores a program
with as many threads as cores gets C / (C + N) of the machine.

    LAMPO_PEERS=DIRECTORY python benchmarks/bench_busy.py --formats Q4_0
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import peers
import results

COLUMNS = ["busy processes", "engine", "threads", "tok/s", "lowest", "highest", "share"]
NUM_BUSY = (0, 1, 2, 8)
PROMPT = [100, 200, 300, 400]
SETTLE_S = 1.0  # after the start of busy processes


def count_forever() -> None:
    while True:
        pass


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=count_forever, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    time.sleep(SETTLE_S if count else 0)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def tokens_per_second(worker: peers.Worker, max_tokens: int) -> float:
    reply = worker.generate([PROMPT], max_tokens, reuse=True)
    return float((max_tokens - 1) / (reply["total_s"] - reply["ttft_s"]))


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--formats", default="Q4_1", help="of the default model, a list")
    parser.add_argument("--engines", default="lampo,llama.cpp", help="a list")
    parser.add_argument("--tokens", type=int, default=128, help="per measurement (default: 128)")
    parser.set_defaults(repeats=5)
    args = parser.parse_args()
    report = results.Report("busy machine", COLUMNS, args)
    engines = [name for name in args.engines.split(",") if name in peers.ENGINES]
    workers: list[tuple[peers.Worker, int]] = []
    try:
        for threads in sorted({1, args.threads}):
            started = peers.start_workers(engines, args.formats.split(","), threads, report)
            workers += [(worker, threads) for worker in started]
        idle: dict[str, float] = {}
        for num_busy in NUM_BUSY[: 3 if args.quick else 4]:
            rates: list[list[float]] = [[] for _ in workers]
            with busy_processes(num_busy):
                for turn in range(args.repeats):
                    order = range(len(workers))
                    for i in order if turn % 2 else reversed(order):
                        tokens = args.tokens if num_busy < 8 else args.tokens // 4
                        rates[i].append(tokens_per_second(workers[i][0], tokens))
            for (worker, threads), series in zip(workers, rates, strict=True):
                median = statistics.median(series)
                if not num_busy and threads == args.threads:
                    idle[worker.name] = median
            for (worker, threads), series in zip(workers, rates, strict=True):
                median = statistics.median(series)
                report.add(
                    {
                        "busy processes": num_busy,
                        "engine": worker.name,
                        "threads": threads,
                        "tok/s": median,
                        "lowest": min(series),
                        "highest": max(series),
                        "share": median / idle[worker.name],
                    },
                    samples=series,
                )
    finally:
        for worker, _ in workers:
            worker.close()
    report.finish()


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:  # an engine's process ended with a message
        sys.exit(f"bench_busy: {error}")
