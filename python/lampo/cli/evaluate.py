# SPDX-License-Identifier: Apache-2.0
"""``lampo eval``: perplexity of a model on a text, and its divergence from the exact model."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lampo.cli import options as o
from lampo.cli.job import Job
from lampo.cli.provenance import provenance
from lampo.cli.session import load_llm, open_files
from lampo.cli.terminal import print_table, read_text, show_logging, status

if TYPE_CHECKING:
    from lampo.evaluation import Evaluation


@o.with_options(*o.options_of(o.ModelOptions, max_num_seqs=64))
def evaluate(
    file: Annotated[str, typer.Argument(help="A text file in UTF-8; -: stdin.")],
    *,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Compare with the same model in float32, its cache too: the cost of this "
            "arithmetic.",
        ),
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Compare with another model of the same vocabulary, in float32: the cost of this "
            "format.",
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens of a window. Default: 1024.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", help="Tokens between windows. Default: half of a window."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", help="Use only so many tokens of the text.")
    ] = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    **options: Any,
) -> Job:
    """Score a text: perplexity, and with a reference the Kullback-Leibler divergence from it and
    the share of positions with the same best token.

    Windows overlap: every token is scored once, with at least half a window before it.
    """
    if exact and reference is not None:
        raise ValueError("reference: give --exact or --reference, not both")
    chosen = o.ModelOptions.of(options)
    other = None
    if exact or reference is not None:
        other = dataclasses.replace(
            chosen,
            model=chosen.model if exact else reference,
            dtype="float32",
            kv_cache_dtype="float32",
            device="cpu",
        )
    arguments = {"context": context, "stride": stride, "max_tokens": max_tokens}
    return functools.partial(_run, file, chosen, other, arguments, as_json, quiet)


def _run(
    file: str,
    chosen: o.ModelOptions,
    other: o.ModelOptions | None,
    arguments: dict[str, int | None],
    as_json: bool,
    quiet: bool,
) -> int:
    from lampo.evaluation import evaluate

    text = read_text(file)
    show_logging(quiet or as_json)
    still = quiet or as_json

    def show(done: int, total: int, perplexity: float) -> None:
        if not still:
            status.show(f"{done:,} of {total:,} tokens, perplexity {perplexity:.3f}")

    with load_llm(open_files(chosen, still), chosen) as llm:
        score = functools.partial(evaluate, llm, text, on_progress=show, **arguments)  # type: ignore[arg-type]
        if other is None:
            found = score()
        else:
            with load_llm(open_files(other, still), other) as exact:
                found = score(reference=exact)
        name = llm.path.name
    status.clear()
    if as_json:
        made = provenance()
        print(json.dumps({"model": name, **dataclasses.asdict(found), "made": made}, indent=2))
    else:
        print_evaluation(name, found)
    return 0


def print_evaluation(name: str, found: Evaluation) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("model", Text(name))
    table.add_row("tokens", f"{found.num_tokens:,}")
    table.add_row("perplexity", f"{found.perplexity:.4f} +- {found.perplexity_error:.4f}")
    if found.kl_divergence is not None and found.same_top is not None:
        table.add_row("perplexity of the reference", f"{found.reference_perplexity:.4f}")
        table.add_row(
            "KL divergence from it, nats", f"{found.kl_divergence:.6f} +- {found.kl_error:.6f}"
        )
        table.add_row("its 99th percentile", f"{found.kl_99:.6f}")
        table.add_row("same best token", f"{100 * found.same_top:.2f} %")
    print_table(table)
