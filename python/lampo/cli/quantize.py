# SPDX-License-Identifier: Apache-2.0
"""``lampo quantize``: write a model as a GGUF file."""

from __future__ import annotations

import functools
import time
from typing import Annotated

import typer

from lampo.cli import options as o
from lampo.cli.job import Job
from lampo.cli.pull import ByteBar, FetchBar, fetch
from lampo.cli.report import bytes_text
from lampo.cli.terminal import note, show_logging


def quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder of safetensors, a GGUF file, or a Hugging Face id.", metavar="IN"
        ),
    ],
    file: Annotated[str, typer.Argument(help="The GGUF file to write.", metavar="OUT")],
    *,
    type: Annotated[
        str,
        typer.Option(
            "--type",
            "-t",
            help="f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, q4_k_s, q4_1, "
            "q4_0, iq4_nl, iq4_xs, q3_k_l, q3_k_m, q3_k_s or q2_k.",
        ),
    ] = "q4_k_m",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace OUT if it exists.")] = False,
    quiet: o.Quiet = False,
) -> Job:
    """Write a model as a GGUF file, quantized; lampo and llama.cpp read it.

    Matrices get the formats that llama.cpp's converters choose for the type: q4_k_m is Q4_K with
    Q6_K where it matters most. The memory needed is one tensor; OUT appears once it is complete.
    """
    from lampo.weights.file_types import check_file_type

    type = type.lower()
    check_file_type(type)
    return functools.partial(_run, model, file, type, force, quiet)


def _run(model: str, file: str, type: str, force: bool, quiet: bool) -> int:
    path = fetch(model, FetchBar(quiet))
    from lampo.quantization import quantize

    show_logging(quiet)
    begin = time.monotonic()
    with ByteBar("quantizing", quiet) as bar:
        found = quantize(path, file, type, overwrite=force, on_progress=bar.update)
    if not quiet:
        seconds = time.monotonic() - begin
        note(f"{found.name}: {bytes_text(found.stat().st_size)} in {seconds:.1f} s")
    print(found)
    return 0
