# SPDX-License-Identifier: Apache-2.0
"""``lampo list`` and ``lampo rm``: the models in the cache."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from typing import Annotated

import typer

from lampo.cli.job import EXIT_USER, Job
from lampo.cli.report import bytes_text
from lampo.cli.terminal import note, print_table


def list_models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array on stdout.")
    ] = False,
) -> Job:
    """List the models in the cache: what `lampo pull` and `-m` have fetched.

    The default model's folder is LAMPO_CACHE, that of others the Hugging Face hub's (HF_HOME).
    """
    return functools.partial(_list, as_json)


def remove(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Names as `lampo list` shows them; org/name stands for all of its GGUF files.",
            metavar="NAME...",
            autocompletion=lambda incomplete: _names(incomplete),
            show_default=False,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Job:
    """Remove models from the cache."""
    return functools.partial(_remove, models, yes)


def _names(incomplete: str) -> list[str]:
    from lampo.weights.cache import cached_models

    return [model.name for model in cached_models() if model.name.startswith(incomplete)]


def _list(as_json: bool) -> int:
    from lampo.weights.cache import cached_models

    found = cached_models()
    if as_json:
        print(json.dumps([dataclasses.asdict(model) for model in found], indent=2, default=str))
        return 0
    if not found:
        note("no model is in the cache; `lampo pull` fetches the default model")
        return 0
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("fetched", no_wrap=True)
    for model in found:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(model.modified))
        table.add_row(model.name, bytes_text(model.nbytes), day)
    print_table(table)
    return 0


def _remove(names: list[str], yes: bool) -> int:
    from lampo.weights.cache import find_cached

    found = {model.name: model for name in names for model in find_cached(name)}
    if not yes and not sys.stdin.isatty():
        raise ValueError("rm: stdin is no terminal to ask at; --yes removes without asking")
    for model in found.values():
        what = f"{model.name} ({bytes_text(model.nbytes)})"
        if not yes and not _confirmed(what):
            note("nothing more is removed")
            return EXIT_USER
        model.remove()
        note(f"removed {what}")
    return 0


def _confirmed(what: str) -> bool:
    print(f"remove {what}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
