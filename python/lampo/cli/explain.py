# SPDX-License-Identifier: Apache-2.0
"""``lampo explain``: decodes one prompt and draws how, as a page or in the terminal."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lampo.cli import options as o
from lampo.cli.job import Job
from lampo.cli.provenance import command
from lampo.cli.session import load_llm, open_files
from lampo.cli.terminal import note, read_text, show_logging, status
from lampo.explain import PARAMETERS
from lampo.sampling_params import SamplingParams

DEFAULT_FILE = "explanation.html"
_OTHERS = [f.name for f in dataclasses.fields(SamplingParams) if f.name not in PARAMETERS]


@o.with_options(
    *o.options_of(o.ModelOptions, max_num_seqs=8), *o.options_of(SamplingParams, without=_OTHERS)
)
def explain(
    prompt: Annotated[
        str, typer.Argument(help="The prompt; -: read from stdin.", show_default=False)
    ],
    *,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help=f"The file of the page, replaced. Default: {DEFAULT_FILE}."
        ),
    ] = None,
    as_text: Annotated[
        bool, typer.Option("--text", help="Draw in the terminal, on stdout, instead of a page.")
    ] = False,
    attention_layer: Annotated[
        list[int] | None,
        typer.Option(
            "--attention-layer",
            metavar="LAYER",
            help="A layer, from 0, with attention weights on the page. May be repeated. Default: "
            "as many as 1 MB holds.",
        ),
    ] = None,
    raw: o.Raw = False,
    system: o.System = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    **options: Any,
) -> Job:
    """Decode one prompt, and draw how: a page with pictures of tokens, embeddings, blocks,
    attention, probabilities, decoding strategies, times and the KV cache, from the real run.

    The page is one file, without network access; prompt and answer have at most 512 tokens.
    """
    if as_text + as_json + (output is not None) > 1:
        raise ValueError("output: choose one of --output, --text and --json")
    if raw and system is not None:
        raise ValueError("system: a raw prompt has no messages; leave out --raw or --system")
    model, params = o.ModelOptions.of(options), o.sampling_params(options)
    target = None if as_text or as_json else Path(output or DEFAULT_FILE).expanduser()
    if target is not None:
        _check_target(target)
    arguments = {"system": system, "raw": raw, "attention_layers": attention_layer or None}
    return functools.partial(_run, prompt, model, params, arguments, target, as_json, quiet)


def _run(
    prompt: str,
    model: o.ModelOptions,
    params: SamplingParams,
    arguments: dict[str, Any],
    target: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    if prompt == "-":
        prompt = read_text("-")
    show_logging(quiet)
    report = (lambda _: None) if quiet else status.show
    with load_llm(open_files(model, quiet), model) as llm:
        found = llm.explain(prompt, params, **arguments, command=command(), on_progress=report)
    status.clear()
    if as_json:
        print(found.json())
    elif target is None:
        from lampo.explain.terminal import print_explanation

        print_explanation(found.data, sys.stdout)
    else:
        size = len(found.save(target).read_bytes())
        if not quiet:
            note(f"{target}: {size / 1e6:.1f} MB; open it in a browser")
    return 0


def _check_target(target: Path) -> None:
    """Raises OSError where the page cannot be written, before the model is loaded."""
    if target.is_dir():
        raise IsADirectoryError(21, "is a folder, expected a file", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "the folder does not exist", str(target.parent))
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise PermissionError(13, "cannot be written", str(target))
