# SPDX-License-Identifier: Apache-2.0
"""The options and the output that `lampo bench op`, `decode`, `prefill` and `batch` share."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lampo.bench.axes import HELP, Axis
from lampo.cli.terminal import console, note

if TYPE_CHECKING:
    from lampo.bench.results import Measured

SHAPES, RUN, OUTPUT = "Shapes: lists such as 1,8 or 1k,4k", "Run", "Output"
PEERS = ("torch", "transformers", "llama.cpp", "flashinfer", "fa3")


def option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


Repeats = Annotated[
    int, option(RUN, "--repeats", help="Samples per case. Default: 15.", min=1, max=10_000)
]
Peers = Annotated[
    str | None,
    option(
        RUN,
        "--peers",
        help=f"What is timed beside lampo: a list of {', '.join(PEERS)}, or none. "
        "Default: torch, where it computes the same.",
    ),
]
JsonFile = Annotated[
    str | None,
    option(OUTPUT, "--json", help="Write the results as JSON; -: to stdout, without a table."),
]
CsvFile = Annotated[
    str | None,
    option(OUTPUT, "--csv", help="Write the results as CSV, a line per case and contestant."),
]
PlotFile = Annotated[
    str | None,
    option(OUTPUT, "--plot", help="Draw latency over length, and the roofline, as SVG."),
]


def axis_options(tables: Mapping[str, Mapping[str, Axis]]) -> list[inspect.Parameter]:
    """An option per axis, with the benchmarks that have it and their defaults."""
    owners: dict[str, list[str]] = {}
    for benchmark, axes in tables.items():
        for name in axes:
            owners.setdefault(name, []).append(benchmark)
    found = []
    for name, benchmarks in owners.items():
        help = HELP[name]
        if len(tables) > 1:
            help += f" Of {', '.join(benchmarks)}."
        defaults = list(dict.fromkeys(tables[b][name].default for b in benchmarks))
        help += f" Default: {' or '.join(defaults)}."
        flag = "--" + name.replace("_", "-")
        annotation = Annotated[str | None, option(SHAPES, flag, help=help, metavar="LIST")]
        found.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
        )
    return found


def parse_peers(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a list. Raises: ValueError."""
    if text is None:
        return default
    if text == "none":
        return ()
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in PEERS:
            raise ValueError(f"peers: expected none or some of {', '.join(PEERS)}; got {name!r}")
    return names


def check_files(values: Mapping[str, Any]) -> None:
    """Checks that the output files can be written, before anything is measured. Raises: OSError."""
    for name in ("json_file", "csv_file", "plot_file"):
        file = values.get(name)
        if file is None or file == "-":
            continue
        path = Path(file).expanduser()
        if not path.resolve().parent.is_dir():
            raise FileNotFoundError(2, "no such folder", str(path.parent))
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder", file)


@contextlib.contextmanager
def progress(what: str, count: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where that is a terminal; yields what advances it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task("", total=count)
        yield lambda: bar.update(task, advance=1)


def collect(measured: Iterator[Measured], what: str, count: int) -> list[dict[str, Any]]:
    """The rows, as far as Ctrl-C lets them come."""
    found: list[Measured] = []
    with progress(what, count) as advance:
        try:
            for each in measured:
                found.append(each)
                advance()
        except KeyboardInterrupt:
            note(f"interrupted: {len(found)} of {count} cases are complete")
    return [each.row() for each in found]


def write(
    benchmark: str,
    rows: Sequence[dict[str, Any]],
    limits: Mapping[str, float],
    notes: Sequence[str],
    values: Mapping[str, Any],
    **more: Any,
) -> None:
    """Prints the table, and writes the files that were asked for."""
    from lampo.bench import results
    from lampo.cli.provenance import provenance

    document = {
        "benchmark": benchmark,
        **provenance(),
        **more,
        "limits": dict(limits),
        "notes": list(notes),
        "columns": results.columns(rows),
        "constants": results.constants(rows),
        "cases": list(rows),
    }
    if values["json_file"] != "-":
        _print(document)
    for text in notes:
        note(text)
    busy = sum(bool(row["busy"]) for row in rows)
    if busy:
        note(
            f"warning: other processes took more than half of the cores during {busy} of "
            f"{len(rows)} cases, marked *: their times are not the machine's"
        )
    if values["json_file"] is not None:
        _write(values["json_file"], json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if values["csv_file"] is not None:
        _write(values["csv_file"], results.csv_text(rows))
    if values.get("plot_file") is not None:
        from lampo.bench.plot import plot

        _write(values["plot_file"], plot(document))


def _print(document: dict[str, Any]) -> None:
    from lampo.bench import results

    fixed = [f"{k} {v}" for k, v in document["constants"].items() if v is not None]
    limits = [f"{name} {results.text(value)}" for name, value in document["limits"].items()]
    print(f"## {', '.join([document['benchmark'], *fixed])}\n")
    print(f"- {document['platform']['cpu']}, {document['isa'].get('chosen')}, ", end="")
    print(f"{document['threads'].get('chosen')} threads, {document['device']}")
    if limits:
        print(f"- limits: {'; '.join(limits)}")
    if document["cases"]:
        print(f"\n{results.markdown(document['cases'])}")


def _write(file: str, text: str) -> None:
    if file == "-":
        sys.stdout.write(text)
        return
    Path(file).expanduser().write_text(text, encoding="utf-8")
