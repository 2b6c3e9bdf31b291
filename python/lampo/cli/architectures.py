# SPDX-License-Identifier: Apache-2.0
"""``lampo models``: the supported architectures."""

from __future__ import annotations

import functools
import json
from typing import Annotated, Any

import typer

from lampo.cli.job import Job
from lampo.cli.terminal import print_table


def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array on stdout.")
    ] = False,
) -> Job:
    """List the supported architectures: their names in config.json and in GGUF files.

    --json adds the classes in config.json, and the marks of their chat templates.
    """
    return functools.partial(_models, as_json)


def _models(as_json: bool) -> int:
    rows = _rows()
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model_type", "GGUF", "models", "beside Llama's block"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        features = ", ".join(row["features"])
        table.add_row(row["model_type"], row["gguf"], row["models"], features)
    print_table(table)
    return 0


def _rows() -> list[dict[str, Any]]:
    from lampo.models.registry import ARCHITECTURES, gguf_reader
    from lampo.text.chat_families import chat_family

    rows = []
    for architecture in sorted(ARCHITECTURES, key=lambda a: a.model_type):
        family = chat_family(architecture.model_type)
        rows.append(
            {
                "model_type": architecture.model_type,
                "class": architecture.hf_class,
                "gguf": gguf_reader(architecture).gguf_name,
                "models": architecture.models,
                "features": list(architecture.features),
                "stops": None if family is None else family.stops,
                "thoughts": None if family is None else family.thoughts,
                "calls": None if family is None else family.calls,
            }
        )
    return rows
