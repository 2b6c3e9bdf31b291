# SPDX-License-Identifier: Apache-2.0
"""``lampo bench decode``, ``prefill``, ``batch``: a whole model, beside peers and limits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lampo.bench.axes import MODELS, product_of
from lampo.cli import bench_output as b
from lampo.cli.job import EXIT_INTERNAL, Job
from lampo.cli.options import ModelOptions, options_of, with_options
from lampo.cli.terminal import note, show_logging, status

Model = Annotated[
    str | None,
    typer.Argument(help="As of --model of `lampo generate`. Default: SmolLM2-135M-Instruct."),
]
Peers = Annotated[
    str | None,
    b.option(
        b.RUN,
        "--peers",
        help="What is timed beside lampo: a list of transformers and llama.cpp (its program "
        "llama-bench, on PATH). Default: none.",
    ),
]
Repeats = Annotated[
    int, b.option(b.RUN, "--repeats", help="Samples per case. Default: 5.", min=1, max=10_000)
]
_OPTIONS = options_of(ModelOptions, without=("model",))


def _command(benchmark: str, doc: str) -> Callable[..., Job]:
    """A command; its options are the axes of its cases, those of a model and these."""

    @with_options(*b.axis_options({benchmark: MODELS[benchmark]}), *_OPTIONS)
    def command(
        ctx: typer.Context,
        model: Model = None,
        *,
        repeats: Repeats = 5,
        peers: Peers = None,
        json_file: b.JsonFile = None,
        csv_file: b.CsvFile = None,
        plot_file: b.PlotFile = None,
        **values: Any,
    ) -> Job:
        return functools.partial(_run, benchmark, dict(ctx.params))

    command.__name__, command.__doc__ = benchmark, doc
    return command


decode = _command(
    "decode",
    """Time a model's decode steps, one sequence, at depths of the cache.

    us is the mean time of a step; limit % the least time to read weights and cache by the measured
    bandwidth, over that. Decoded tokens are checked with a prefill of the same text.
    """,
)
prefill = _command(
    "prefill",
    """Time a model's prompts, up to the first token; every prompt is new.

    limit % is the least time by the peak rate of the multiplying instructions over the time taken.
    """,
)
batch = _command(
    "batch",
    """Time a model's decode steps of several sequences at once.

    us is the mean time of a step, tok/s the tokens of all sequences.
    """,
)


def _run(benchmark: str, values: dict[str, Any]) -> int:
    cases = product_of(benchmark, MODELS[benchmark], {k: values[k] for k in MODELS[benchmark]})
    peers = b.parse_peers(values["peers"], ())
    b.check_files(values)
    options = ModelOptions.of(values)
    show_logging(quiet=True)
    from lampo.bench.model_bench import ModelBench, Work
    from lampo.cli.session import load_llm, open_files
    from lampo.runtime.device import resolve_device

    files = open_files(options, quiet=values["json_file"] == "-")
    for case in cases:
        Work.of(benchmark, case).check(files.max_model_len, options.max_num_seqs)
    with load_llm(files, options) as llm:
        status.clear()
        device = resolve_device(options.device)
        bench = ModelBench(llm, device, benchmark, values["repeats"], peers)
        rows = b.collect(bench.run(cases), benchmark, len(cases))
        title = f"{benchmark} {llm.path.name}"
        limits = bench.limits.report()
        b.write(title, rows, limits, bench.notes, values, device=str(device))
    if bench.failed:
        note(f"error: {bench.failed} of {len(cases)} cases are wrong, and were not timed")
        return EXIT_INTERNAL
    return 0
