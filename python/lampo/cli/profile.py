# SPDX-License-Identifier: Apache-2.0
"""``lampo profile``: time and bytes of a decode step, op by op."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lampo.cli import options
from lampo.cli.job import Job
from lampo.cli.options import ModelOptions

if TYPE_CHECKING:
    from lampo.profiling import Profile


@options.with_options(*options.options_of(ModelOptions, without=("device", "max_num_seqs")))
def profile(
    *,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", help="Sequences that are decoded together.")
    ] = 1,
    depth: Annotated[
        int, typer.Option("--depth", "-d", help="Tokens that each has in the cache.")
    ] = 0,
    repeats: Annotated[int, typer.Option("--repeats", help="Replays; the medians count.")] = 20,
    as_json: options.Json = False,
    **values: Any,
) -> Job:
    """Show where the time of a decode step goes: time and bytes per op, beside the memory's limit.

    The limit is the bandwidth, measured here, of reading a buffer as large as what a step moves.
    """
    chosen = ModelOptions.of({**values, "max_num_seqs": max(batch_size, 1)})
    return functools.partial(_run, chosen, batch_size, depth, repeats, as_json)


def _run(chosen: ModelOptions, batch_size: int, depth: int, repeats: int, as_json: bool) -> int:
    from lampo.cli.session import open_llm

    with open_llm(chosen, quiet=as_json) as llm:
        from lampo.profiling import profile

        found = profile(llm, batch_size=batch_size, depth=depth, repeats=repeats)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        _print(found)
    return 0


def _print(found: Profile) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("op", no_wrap=True)
    for title in ("calls", "us", "time %", "MB", "GB/s", "limit %"):
        table.add_column(title, justify="right")
    for op in found.ops:
        table.add_row(
            Text(op.name),
            str(op.calls),
            f"{op.seconds * 1e6:.0f}",
            f"{100 * op.seconds / found.seconds:.1f}",
            f"{op.nbytes / 1e6:.2f}",
            f"{op.bytes_per_second / 1e9:.1f}",
            f"{100 * op.bytes_per_second / found.read_bandwidth:.0f}",
        )
    table.add_row(
        "step",
        str(sum(op.calls for op in found.ops)),
        f"{found.seconds * 1e6:.0f}",
        "100.0",
        f"{found.nbytes / 1e6:.2f}",
        f"{found.nbytes / found.seconds / 1e9:.1f}",
        f"{100 * found.share_of_limit:.0f}",
        style="bold",
    )
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(table)
    console.print(
        f"batch {found.batch_size}, {found.depth} tokens in the cache, {found.num_threads} "
        f"threads: {found.batch_size / found.seconds:.0f} tokens/s; "
        f"limit: {found.read_bandwidth / 1e9:.1f} GB/s"
    )
