# SPDX-License-Identifier: Apache-2.0
"""Time per op of a decode step: `lampo.profile` of the default model, as a result file.

python benchmarks/bench_profile.py --depth 0 --json benchmarks/results/profile.json
"""

from __future__ import annotations

import os
from typing import Any

import results

COLUMNS = ["op", "calls", "us", "time %", "MB", "GB/s", "limit %"]


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.set_defaults(repeats=100)
    args = parser.parse_args()
    os.environ["LAMPO_NUM_THREADS"] = str(args.threads)
    import lampo

    report = results.Report("profile", COLUMNS, args)
    with lampo.LLM() as llm:
        found = lampo.profile(
            llm, batch_size=args.batch_size, depth=args.depth, repeats=args.repeats
        )
    report.limit("read bandwidth, bytes/s", found.read_bandwidth)
    if not found.limit_is_plausible:
        report.note(
            "no limit: reading memory alone was slower than the step, so something else ran"
        )
    report.note(f"batch {args.batch_size}, {args.depth} tokens in the cache; medians of replays")

    def add(name: str, calls: int, seconds: float, nbytes: int) -> None:
        rate = nbytes / seconds
        row: dict[str, Any] = {"op": name, "calls": calls, "us": seconds * 1e6}
        row |= {"time %": 100 * seconds / found.seconds, "MB": nbytes / 1e6}
        share = 100 * rate / found.read_bandwidth if found.limit_is_plausible else None
        report.add(row | {"GB/s": rate / 1e9, "limit %": share})

    for op in found.ops:
        add(op.name, op.calls, op.seconds, op.nbytes)
    add("step", sum(op.calls for op in found.ops), found.seconds, found.nbytes)
    report.finish()


if __name__ == "__main__":
    main()
