# SPDX-License-Identifier: Apache-2.0
"""``lampo bench op``: one op over lists of shapes, beside peers and the machine's limits."""

from __future__ import annotations

import functools
import os
from typing import Annotated, Any

import typer

from lampo.bench.axes import OPS, combinations
from lampo.cli import bench_output as b
from lampo.cli.job import EXIT_INTERNAL, Job
from lampo.cli.options import with_options
from lampo.cli.terminal import note

MODEL_PEERS = ("transformers", "llama.cpp")


@with_options(*b.axis_options(OPS))
def op(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="OP", help=f"One of {', '.join(OPS)} (a native call that does nothing)."
        ),
    ],
    *,
    device: Annotated[
        str, b.option(b.RUN, "--device", help="cpu, cuda or cuda:<index>. Default: cpu.")
    ] = "cpu",
    threads: Annotated[
        int | None,
        b.option(
            b.RUN,
            "--threads",
            help="Worker threads. Default: LAMPO_NUM_THREADS, else the cores this process may use.",
            min=1,
            max=1024,
        ),
    ] = None,
    repeats: b.Repeats = 15,
    warm: Annotated[
        bool,
        b.option(
            b.RUN,
            "--warm",
            help="Use the same buffers in every call. By default calls take turns with more "
            "buffers than the caches hold, and find theirs uncached.",
        ),
    ] = False,
    peers: b.Peers = None,
    kernel: Annotated[
        str | None,
        b.option(
            b.RUN,
            "--kernel",
            help="Your own function, FILE.py:FUNCTION, with the op's keyword arguments: checked, "
            "then timed on the same buffers.",
        ),
    ] = None,
    json_file: b.JsonFile = None,
    csv_file: b.CsvFile = None,
    plot_file: b.PlotFile = None,
    **shapes: Any,
) -> Job:
    """Time an op over lists of shapes, beside peers and the machine's limits.

    Every case is checked against a reference in float64 before it is timed. Contestants take turns;
    times are medians with quartiles. limit % is the least time by the measured bandwidth and rate
    of operations over the time taken.
    """
    return functools.partial(_run, dict(ctx.params))


def _run(values: dict[str, Any]) -> int:
    name = values["name"]
    cases = combinations(name, {axis: values[axis] for axes in OPS.values() for axis in axes})
    peers = b.parse_peers(values["peers"], ("torch",))
    b.check_files(values)
    if values["threads"] is not None:
        os.environ["LAMPO_NUM_THREADS"] = str(values["threads"])
    import torch

    from lampo import _C
    from lampo.bench.op_bench import OpBench
    from lampo.bench.own_kernel import OwnKernel
    from lampo.runtime.device import resolve_device

    device = resolve_device(values["device"])
    torch.set_num_threads(_C.num_threads())
    torch.manual_seed(0)
    bench = OpBench(
        name,
        device,
        _C.num_threads(),
        repeats=values["repeats"],
        warm=values["warm"],
        peers=tuple(p for p in peers if p not in MODEL_PEERS),
        kernel=None if values["kernel"] is None else OwnKernel.load(values["kernel"]),
    )
    for peer in peers:
        if peer in MODEL_PEERS:
            bench.note(f"{peer} has whole models alone: see `lampo bench decode`")
    found = bench.cases(cases)
    rows = b.collect(bench.run(found), name, len(found))
    b.write(f"op {name}", rows, bench.limits.report(), bench.notes, values, device=str(device))
    if bench.failed:
        note(f"error: {bench.failed} of {len(found)} cases are wrong, and were not timed")
        return EXIT_INTERNAL
    return 0
