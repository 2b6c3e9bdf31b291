# SPDX-License-Identifier: Apache-2.0
"""``lampo profile``: time and bytes of a decode step, op by op."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lampo.checks import check_integer
from lampo.cli import options
from lampo.cli.job import Job
from lampo.cli.options import ModelOptions
from lampo.cli.report import note_load, plural
from lampo.cli.terminal import print_table, status
from lampo.llm_arguments import MAX_NUM_SEQS

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
    check_integer("batch_size", batch_size, 1, MAX_NUM_SEQS)
    chosen = ModelOptions.of({**values, "max_num_seqs": batch_size})
    return functools.partial(_run, chosen, batch_size, depth, repeats, as_json)


def _run(chosen: ModelOptions, batch_size: int, depth: int, repeats: int, as_json: bool) -> int:
    from lampo.cli.session import load_llm, open_files
    from lampo.profiling import check_profile_arguments, profile

    files = open_files(chosen, quiet=as_json)
    check_profile_arguments(batch_size, depth, repeats, chosen.max_num_seqs, files.max_model_len)
    with load_llm(files, chosen) as llm:
        if not as_json:
            status.show("measuring")
        found = profile(llm, batch_size=batch_size, depth=depth, repeats=repeats)
    status.clear()
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        print_profile(found)
    return 0


def print_profile(found: Profile) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("op", no_wrap=True)
    for title in ("calls", "us", "time %", "MB", "GB/s", "limit %"):
        table.add_column(title, justify="right", no_wrap=True)

    def add(name: str, calls: int, seconds: float, nbytes: int, style: str = "") -> None:
        rate = nbytes / seconds
        share = f"{100 * rate / found.read_bandwidth:.0f}" if found.limit_is_plausible else "-"
        table.add_row(
            Text(name),
            str(calls),
            f"{seconds * 1e6:.0f}",
            f"{100 * seconds / found.seconds:.1f}",
            f"{nbytes / 1e6:.2f}",
            f"{rate / 1e9:.1f}",
            share,
            style=style,
        )

    for op in found.ops:
        add(op.name, op.calls, op.seconds, op.nbytes)
    add("step", sum(op.calls for op in found.ops), found.seconds, found.nbytes, "bold")
    print_table(table)
    limit = f"limit: {found.read_bandwidth / 1e9:.1f} GB/s"
    if not found.limit_is_plausible:
        limit = f"limit: unknown, as reading alone reached {found.read_bandwidth / 1e9:.1f} GB/s"
    print(
        f"batch {found.batch_size}, {plural(found.depth, 'token')} in the cache, "
        f"{plural(found.num_threads, 'thread')}: {found.batch_size / found.seconds:.0f} tokens/s; "
        f"{limit}"
    )
    note_load(found.load)
