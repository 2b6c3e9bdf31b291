# SPDX-License-Identifier: Apache-2.0
"""``lampo bench serve``: many requests at once, to a server or to the engine in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lampo.cli import options as o
from lampo.cli.job import EXIT_INTERNAL, Job
from lampo.cli.options import ModelOptions
from lampo.cli.report import note_load, plural
from lampo.cli.terminal import console, note, print_table, show_logging
from lampo.runtime.machine_load import LoadMeter, MachineLoad

if TYPE_CHECKING:
    from lampo.bench.load import Record, Target
    from lampo.bench.summary import Spread, Summary
    from lampo.bench.workload import Length

_LOAD = "Load"


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=_LOAD, **settings)


@o.with_options(*o.options_of(ModelOptions))
def serve(
    ctx: typer.Context,
    *,
    url: Annotated[
        str | None,
        _option(
            "--url",
            help="A running server, http://host:port; LAMPO_API_KEY is its key. Absent: the model "
            "is loaded here, and no network is in between.",
            show_default=False,
        ),
    ] = None,
    num_requests: Annotated[
        int, _option("--num-requests", "-n", help="Calls.", min=1, max=1_000_000)
    ] = 64,
    request_rate: Annotated[
        float | None,
        _option(
            "--request-rate",
            help="Calls per second, at random times (a Poisson process). Default: as soon as "
            "--concurrency allows.",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        _option(
            "--concurrency",
            "-c",
            help="Calls under way at once, at most. Default: 8, or any with --request-rate.",
            min=1,
            max=4096,
            show_default=False,
        ),
    ] = None,
    input_len: Annotated[
        str, _option("--input-len", help="Prompt tokens: a number, or LOW-HIGH.")
    ] = "128",
    output_len: Annotated[
        str, _option("--output-len", help="Generated tokens: a number, or LOW-HIGH.")
    ] = "64",
    shared_prefix: Annotated[
        int, _option("--shared-prefix", help="Tokens with which all prompts begin.", min=0)
    ] = 0,
    warmup: Annotated[
        int, _option("--warmup", help="Calls before, which are not counted.", min=0, max=4096)
    ] = 8,
    temperature: Annotated[float, _option("--temperature", "-t", help="0 is greedy.")] = 0.0,
    seed: Annotated[int, _option("--seed", help="Of prompts, lengths and arrivals.")] = 0,
    as_json: o.Json = False,
    **options: Any,
) -> Job:
    """Measure serving: times to the first and between tokens, and throughput, under load.

    Prompts are random tokens of common words, of the lengths that are asked for; end-of-sequence is
    ignored, so that outputs have theirs.
    """
    return functools.partial(_run, dict(ctx.params))


def _run(values: dict[str, Any]) -> int:
    from lampo.bench.workload import Length

    lengths = (
        Length.parse("input_len", values["input_len"]),
        Length.parse("output_len", values["output_len"]),
    )
    rate = values["request_rate"]
    if rate is not None and not (0 < rate <= 1e6 and math.isfinite(rate)):
        raise ValueError(f"request_rate: expected a value in (0, 1e6], got {rate}")
    if values["concurrency"] is None and rate is None:
        values["concurrency"] = 8
    show_logging(quiet=True)
    with _target(values) as target:
        meter = LoadMeter()
        records = asyncio.run(_measure(target, values, lengths))
        load = meter.load() if values["url"] is None else None  # a server would count as another
    from lampo.bench.summary import summarize

    summary = summarize(records)
    if values["as_json"]:
        print(json.dumps(_document(values, summary, load), indent=2))
    else:
        _print(summary)
    note_load(load)
    for error in summary.errors:
        note(f"failed: {error}")
    return EXIT_INTERNAL if summary.num_failed else 0


@contextlib.contextmanager
def _target(values: dict[str, Any]) -> Iterator[Target]:
    from lampo.bench.targets import HTTPServer, InProcess

    if values["url"] is not None:
        key = os.environ.get("LAMPO_API_KEY") or None
        yield HTTPServer(values["url"], values["temperature"], key, values["model"])
        return
    from lampo.cli.session import open_llm

    llm = open_llm(ModelOptions.of(values), values["as_json"])
    from lampo.async_llm import AsyncLLM

    engine = AsyncLLM(llm, max_waiting=values["num_requests"] + values["warmup"])
    try:
        yield InProcess(engine, values["temperature"])
    finally:
        engine.close()


async def _measure(
    target: Target, values: dict[str, Any], lengths: tuple[Length, Length]
) -> list[Record]:
    from lampo.bench.load import run_load
    from lampo.bench.workload import arrivals, draw_calls

    count, warmup, seed = values["num_requests"], values["warmup"], values["seed"]
    token_ids, prefix = await target.vocabulary(), values["shared_prefix"]
    # Concurrency as in the measurement, so that every batch size is warm.
    before = draw_calls(warmup, *lengths, token_ids=token_ids, prefix=prefix, seed=seed + 1)
    await run_load(target, before, [0.0] * warmup, concurrency=values["concurrency"])
    calls = draw_calls(count, *lengths, token_ids=token_ids, prefix=prefix, seed=seed)
    times = arrivals(count, values["request_rate"], seed)
    with _bar(count) as on_end:
        return await run_load(
            target, calls, times, concurrency=values["concurrency"], on_end=on_end
        )


@contextlib.contextmanager
def _bar(count: int) -> Iterator[Callable[[Record], None]]:
    """A progress bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda record: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task("", total=count)
        yield lambda record: bar.update(task, advance=1)


def _print(summary: Summary) -> None:
    from rich.table import Table

    rows: dict[str, Spread | None] = {
        "time to first token": summary.time_to_first_token,
        "time per output token": summary.time_per_output_token,
        "inter-token latency": summary.inter_token_latency,
        "request": summary.request_latency,
    }
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("ms", no_wrap=True)
    for title in ("mean", "p50", "p90", "p99"):
        table.add_column(title, justify="right")
    for name, spread in rows.items():
        if spread is not None:
            times = (spread.mean, spread.p50, spread.p90, spread.p99)
            table.add_row(name, *(f"{1e3 * t:.{1 if t < 1 else 0}f}" for t in times))
    if summary.num_requests:
        print_table(table)
    print(
        f"{plural(summary.num_requests, 'request')} ({summary.num_failed} failed) in "
        f"{summary.duration:.2f} s: {summary.requests_per_second:.2f} requests/s, "
        f"{summary.output_tokens_per_second:.0f} output tokens/s, "
        f"{summary.total_tokens_per_second:.0f} tokens/s with prompts"
    )
    if summary.num_cached_tokens:
        share = summary.num_cached_tokens / summary.num_prompt_tokens
        print(f"{share:.0%} of the prompt tokens were found in the cache")


def _document(values: dict[str, Any], summary: Summary, busy: MachineLoad | None) -> dict[str, Any]:
    """The results with machine, versions, commit and command."""
    from lampo.cli.provenance import provenance

    names = ("requests_per_second", "output_tokens_per_second", "total_tokens_per_second")
    rates = {name: getattr(summary, name) for name in names}
    load = {name: value for name, value in values.items() if name != "as_json"}
    machine_load = None if busy is None else dataclasses.asdict(busy)
    measured = {**provenance(), "machine_load": machine_load, "load": load}
    return {**measured, "results": {**dataclasses.asdict(summary), **rates}}
