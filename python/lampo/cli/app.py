# SPDX-License-Identifier: Apache-2.0
"""The commands and their common help."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from lampo.cli import bench_model, bench_serve
from lampo.cli.architectures import models
from lampo.cli.bench_compare import compare
from lampo.cli.bench_op import op
from lampo.cli.chat import chat
from lampo.cli.completion import completion, prepare_completion
from lampo.cli.doctor import doctor
from lampo.cli.evaluate import evaluate
from lampo.cli.explain import explain
from lampo.cli.generate import generate
from lampo.cli.job import Job
from lampo.cli.models import list_models, remove
from lampo.cli.profile import profile
from lampo.cli.pull import pull
from lampo.cli.quantize import quantize
from lampo.cli.serve import serve

# Panels cut names of options where a terminal is narrow; plain text wraps.
_MARKUP: Literal["rich"] | None = "rich" if shutil.get_terminal_size().columns >= 80 else None

app = typer.Typer(
    name="lampo",
    add_completion=False,
    rich_markup_mode=_MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from lampo import __version__

        print(f"lampo {__version__}")
        raise typer.Exit


def _print_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        print(ctx.get_help())
        raise typer.Exit


def _paragraphs(text: str | None) -> str:
    """The text with one line per paragraph, for the terminal to wrap."""
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


_EPILOG = _paragraphs(
    """
    lampo generate "Why is the sky blue?"

    lampo chat -m ~/models/Llama-3.2-1B-Instruct-Q4_0.gguf

    lampo serve

    lampo doctor

    Environment: LAMPO_CACHE (folder of the default model), LAMPO_NUM_THREADS, LAMPO_CPU_ISA
    (baseline, avx2, avx512), LAMPO_API_KEY (of the server), LAMPO_DEBUG=1 (tracebacks).

    Exit codes: 0; 2 for a mistake in arguments, files or environment; 130 after Ctrl-C; 141 when
    the reader of a pipe has gone; 1 for anything else.
    """
)


# typer's own --help has no default: inferring its type takes 0.1 s.
@app.callback(invoke_without_command=True, add_help_option=False, epilog=f"Examples:\n\n{_EPILOG}")
def _lampo(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
    help: Annotated[
        bool,
        typer.Option(
            "--help", "-h", callback=_print_help, is_eager=True, help="Show this message and exit."
        ),
    ] = False,
) -> None:
    """Fast decoding of transformer language models, on hand-written CUDA and CPU kernels."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


bench = typer.Typer(rich_markup_mode=_MARKUP)
app.add_typer(bench, name="bench")


@bench.callback(
    invoke_without_command=True,
    help="Measure ops and models, beside peers and the machine's limits, and under load.",
    epilog="Examples:\n\nlampo bench op paged_attention --seq-len 1k,4k\n\nlampo bench serve",
)
def _bench(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _add(
    function: Callable[..., Job], *examples: str, to: typer.Typer = app, name: str | None = None
) -> None:
    epilog = "\n\n".join(["Examples:", *examples])
    to.command(name, help=_paragraphs(function.__doc__), epilog=epilog)(function)


_add(
    generate,
    'lampo generate "Why is the sky blue?"',
    "echo 'Three colours:' | lampo generate --raw -n 20 -t 0",
    "lampo generate -f question.txt",
    'lampo generate --logprobs 5 --top-p 0.9 "Name a fruit."',
    'lampo generate --json -m org/name:Q4_0 "Hello" | jq -r .text',
)
_add(chat, "lampo chat", 'lampo chat --system "Answer in one sentence." -t 0.2 --top-p 0.9')
_add(
    explain,
    'lampo explain "Why is the sky blue?" -o sky.html',
    'lampo explain --text -t 1 --top-p 0.9 "Name a fruit."',
    'lampo explain --json --raw "1 + 1 =" | jq .tracks',
)
_add(
    evaluate,
    "lampo eval book.txt",
    "lampo eval --exact -n 4096 book.txt",
    "lampo eval -m org/name:Q4_K_M --reference org/name book.txt --json",
    name="eval",
)
_add(
    quantize,
    "lampo quantize ~/models/Llama-3.2-1B llama.gguf",
    "lampo quantize org/name name-q6.gguf --type q6_k",
)
_add(doctor, "lampo doctor", "lampo doctor --json | jq .isa")
_add(profile, "lampo profile", "lampo profile --depth 4096", "lampo profile -b 8 --threads 1")
_add(
    serve,
    "lampo serve",
    "LAMPO_API_KEY=... lampo serve --host 0.0.0.0 -m org/name:Q4_0",
    "curl localhost:8000/v1/models",
)
_add(
    op,
    "lampo bench op paged_attention --batch 1,8 --seq-len 1k,4k --heads 32/8x128 --dtype bf16,int8",
    "lampo bench op linear --shape 4096x14336 --rows 1,4,8 --dtype q4_0,bf16 --json linear.json",
    "lampo bench op rms_norm --kernel my.py:my_rms_norm",
    to=bench,
)
_add(
    bench_model.decode,
    "lampo bench decode --depth 0,1k,4k",
    "lampo bench decode model.gguf --kv-cache-dtype int8 --peers llama.cpp,transformers",
    to=bench,
)
_add(bench_model.prefill, "lampo bench prefill --prompt 128,512,2k", to=bench)
_add(bench_model.batch, "lampo bench batch model.gguf --batch 1,4,16,64", to=bench)
_add(
    compare,
    "lampo bench compare before.json after.json",
    "lampo bench compare before.json after.json --fail-above 1.05",
    to=bench,
)
_add(
    bench_serve.serve,
    "lampo bench serve -c 16 --input-len 64-256",
    "lampo bench serve --url http://127.0.0.1:8000 --request-rate 4 --json",
    to=bench,
)
_add(models, "lampo models", "lampo models --json | jq -r .[].class")
_add(list_models, "lampo list", "lampo list --json | jq -r .[].name", name="list")
_add(remove, "lampo rm org/name:Q4_0", "lampo rm --yes org/name", name="rm")
_add(pull, "lampo pull", "lampo pull HuggingFaceTB/SmolLM2-360M", "lampo pull org/name:Q4_0")
_add(
    completion,
    'eval "$(lampo completion bash)"  # in ~/.bashrc; zsh likewise',
    "lampo completion fish > ~/.config/fish/completions/lampo.fish",
)


def command() -> Any:
    """The click command; a subcommand returns a job for `main` to run, or nothing."""
    prepare_completion()
    return typer.main.get_command(app)
