# SPDX-License-Identifier: Apache-2.0
"""``lampo bench compare``: two result files, row by row."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated

import typer

from lampo.cli import options
from lampo.cli.job import EXIT_INTERNAL, Job
from lampo.cli.terminal import note


def compare(
    a: Annotated[Path, typer.Argument(help="Results of `lampo bench`, as --json wrote them.")],
    b: Annotated[Path, typer.Argument(help="Others of the same benchmark, later ones.")],
    *,
    fail_above: Annotated[
        float | None,
        typer.Option(
            "--fail-above",
            help="Exit with 1 if a case of lampo is slower by more than this ratio, such as 1.05, "
            "and by more than the noise.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> Job:
    """Compare two runs: ratios of medians, and whether the quartiles lie apart.

    A ratio is b over a: below 1 b is faster. Rows whose quartiles overlap are the same.
    """
    return functools.partial(_run, a, b, fail_above, as_json)


def _run(a: Path, b: Path, fail_above: float | None, as_json: bool) -> int:
    from lampo.bench import compare as comparison

    if fail_above is not None and not 0 < fail_above < 1e6:
        raise ValueError(f"fail_above: expected a value in (0, 1e6), got {fail_above}")
    found = comparison.compare(comparison.read(a), comparison.read(b))
    failing = found.slower_than(fail_above) if fail_above is not None else []
    if as_json:
        print(json.dumps(found.document() | {"failing": len(failing)}, indent=2))
    else:
        if found.pairs:
            print(comparison.markdown(found))
        else:
            note("the files have no case in common")
        for file, names in ((a, found.only_a), (b, found.only_b)):
            for name in names:
                print(f"only in {file.name}: {name}")
    for warning in found.warnings:
        note(f"warning: the runs differ in {warning}")
    if any(pair.busy for pair in found.pairs):
        note("warning: the machine was busy during the rows that are marked *")
    for pair in failing:
        note(f"slower: {pair.case}: {pair.ratio:.3f}")
    return EXIT_INTERNAL if failing else 0
