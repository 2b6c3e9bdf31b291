# SPDX-License-Identifier: Apache-2.0
"""Options that commands share, derived from the fields of SamplingParams and ModelOptions."""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import typer

from lampo import sampling_params as s
from lampo.cli.job import Job
from lampo.llm_arguments import check_llm_arguments
from lampo.parameters import (
    Choice,
    Flag,
    Integer,
    Number,
    Parameter,
    Strings,
    Text,
    TokenIds,
    TokenValues,
    check_parameters,
    parameter,
    parameters,
)
from lampo.sampling_params import SamplingParams

C = TypeVar("C", bound=Callable[..., Job])
N = TypeVar("N", int, float)

MODEL, MEMORY = "model", "memory"
_PANELS = {
    MODEL: "Model",
    MEMORY: "Batches and memory",
    s.LENGTH: "Length and stopping",
    s.SAMPLING: "Sampling (defaults are the model's own)",
    s.PENALTIES: "Penalties and bias",
    s.OUTPUT: "Output",
}
_LETTERS = {"model": "-m", "max_tokens": "-n", "temperature": "-t"}
# Options that turn off a flag which is on by default.
_NEGATIONS = {
    "skip_special_tokens": ("--show-special-tokens", "Keep special tokens in the text."),
    "enable_prefix_caching": (
        "--no-prefix-caching",
        "Do not keep the pages of finished work for prompts that begin alike.",
    ),
}
# Help of options that do more than their parameters.
_HELP = {
    "n": "Completions of the prompt; more than one are not streamed.",
    "logprobs": "For every token, show this many of the most probable candidates, and how many of "
    "them temperature, top-k, top-p and min-p keep.",
}
_TYPES: dict[type, Any] = {
    Integer: int,
    Number: float,
    Text: str,
    Choice: str,
    Flag: bool,
    Strings: list[str],
    TokenIds: list[int],
    TokenValues: list[str],
}
_REPEATED = {Strings: "TEXT", TokenIds: "ID", TokenValues: "ID=VALUE"}  # their place in the help
_FLAGS = {"on": True, "off": False, "true": True, "false": False}


@dataclass
class ModelOptions:
    """Which model, and how to load it: the arguments of `LLM`, and the number of threads.

    Raises:
        ValueError, TypeError: a value that does not fit, by name.
    """

    model: str | None = field(
        default=None,
        metadata=parameter(
            Text(),
            MODEL,
            "A GGUF file, a folder with config.json and safetensors, or a Hugging Face id "
            "(org/name, or org/name:Q4_0 for a GGUF file). Default: SmolLM2-135M-Instruct.",
        ),
    )
    dtype: str = field(
        default="auto",
        metadata=parameter(
            Text(),
            MODEL,
            "auto keeps weights as stored, blocks packed; float32 computes exactly; bfloat16.",
        ),
    )
    quantize: str | None = field(
        default=None,
        metadata=parameter(
            Text(),
            MODEL,
            "Quantize dense weights at load: q4_k, q5_k, q6_k, q8_0, q4_0, q4_1, q5_0, q5_1, "
            "iq4_xs, iq4_nl, q3_k or q2_k.",
        ),
    )
    activation_bits: int | None = field(
        default=None,
        metadata=parameter(
            Integer(8, 16),
            MODEL,
            "Precision of activations beside packed weights: 8, 9 or 16, which is nearly exact and "
            "reads prompts more slowly. Default: 8 or 9, by layer.",
        ),
    )
    device: str = field(
        default="cpu", metadata=parameter(Text(), MODEL, "cpu, cuda or cuda:<index>.")
    )
    kv_cache_dtype: str = field(
        default="auto",
        metadata=parameter(
            Text(),
            MODEL,
            "auto, float32, float16, bfloat16, or with half the memory int8 or fp8.",
        ),
    )
    max_model_len: int | None = field(
        default=None,
        metadata=parameter(
            Integer(1),
            MODEL,
            "Longest sequence, prompt and output, in tokens. Default: the model's context.",
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=parameter(
            Integer(1, 1024),
            MODEL,
            "Worker threads. Default: LAMPO_NUM_THREADS, else the cores this process may use.",
        ),
    )
    kv_cache_memory: int | None = field(
        default=None,
        metadata=parameter(
            Integer(1, 1 << 50),
            MEMORY,
            "Bytes for the KV cache, at most. Default: half of the free memory, but no more than "
            "4 GiB unless one sequence needs it; on a GPU what weights and workspace leave.",
        ),
    )
    page_size: int = field(
        default=64,
        metadata=parameter(
            Integer(1, 256), MEMORY, "Tokens per page of the KV cache, a power of two. Default: 64."
        ),
    )
    max_num_seqs: int = field(
        default=64,
        metadata=parameter(
            Integer(1, 4096), MEMORY, "Sequences that are decoded together. Default: {}."
        ),
    )
    max_num_batched_tokens: int = field(
        default=512,
        metadata=parameter(
            Integer(1, 1 << 20),
            MEMORY,
            "Prompt tokens computed in one step; smaller steps delay others less. Default: 512.",
        ),
    )
    enable_prefix_caching: bool = field(
        default=True,
        metadata=parameter(
            Flag(), MEMORY, "Keep the pages of finished work for prompts that begin alike."
        ),
    )

    def __post_init__(self) -> None:
        check_parameters(self)
        check_llm_arguments(
            dtype=self.dtype,
            quantize=self.quantize,
            activation_bits=self.activation_bits,
            kv_cache_dtype=self.kv_cache_dtype,
            page_size=self.page_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ModelOptions:
        """Reads them from a command's values; `threads` goes to LAMPO_NUM_THREADS."""
        options = cls(**_read(cls, values))
        if options.threads is not None:
            os.environ["LAMPO_NUM_THREADS"] = str(options.threads)
        return options

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `LLM`, but for those that `ModelFiles` has."""
        skipped = ("model", "threads", "max_model_len")
        return {k: v for k, v in vars(self).items() if k not in skipped}


def _option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


Json = Annotated[
    bool,
    _option("Output", "--json", help="Print one JSON object, and nothing else, on stdout."),
]
Quiet = Annotated[
    bool, _option("Output", "--quiet", "-q", help="No statistics and notes, only warnings.")
]
Raw = Annotated[
    bool,
    _option(
        "Model",
        "--raw",
        help="Continue the prompt as it is. By default it becomes a user's message in the model's "
        "chat template, if the model has one.",
    ),
]
System = Annotated[
    str | None, _option("Model", "--system", help="A system message that starts the conversation.")
]


def options_of(
    dataclass: Any, *, without: Collection[str] = (), **defaults: Any
) -> list[inspect.Parameter]:
    """A command's options, one per parameter of SamplingParams or ModelOptions.

    Args:
        dataclass: one of them.
        without: names without an option.
        defaults: the command's own, instead of the parameters'.
    """
    return [
        _option_of(name, found, defaults.get(name, default))
        for name, (found, default) in parameters(dataclass).items()
        if name not in without and type(found.kind) in _TYPES
    ]


def with_options(*options: inspect.Parameter) -> Callable[[C], C]:
    """Gives a command these options, before its own; it takes their values as ``**options``."""

    def add(command: C) -> C:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = [p for p in own if p.kind is not p.KEYWORD_ONLY]
        listed = [*first, *options, *own[len(first) :]]
        command.__signature__ = signature.replace(parameters=listed)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in listed}
        return command

    return add


def sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters among a command's values.

    Raises: ValueError, TypeError: one that does not fit, by name.
    """
    return SamplingParams(**_read(SamplingParams, values))


def option_names(dataclass: Any) -> list[str]:
    """The parameters of a dataclass that a text can set."""
    return [name for name, (p, _) in parameters(dataclass).items() if type(p.kind) in _TYPES]


def parse_parameter(dataclass: Any, name: str, text: str) -> Any:
    """The value of one parameter, as :func:`option_names` lists them; not checked for its range.

    Lists are separated by spaces, with a shell's quotes around strings that have some.

    Raises: ValueError: the text is of another type.
    """
    kind = parameters(dataclass)[name][0].kind
    match kind:
        case Flag():
            if text.lower() not in _FLAGS:
                raise ValueError(f"{name}: expected one of {', '.join(_FLAGS)}, got {text!r}")
            return _FLAGS[text.lower()]
        case Integer():
            return _number(int, name, text)
        case Number():
            return _number(float, name, text)
        case Strings():
            return shlex.split(text)
        case TokenIds():
            return [_number(int, name, word) for word in text.split()]
        case TokenValues():
            return dict(_token_value(name, word) for word in text.split())
    return text


def _number(type: type[N], name: str, text: str) -> N:
    try:
        return type(text)
    except ValueError:
        wanted = "an integer" if type is int else "a number"
        raise ValueError(f"{name}: expected {wanted}, got {text!r}") from None


def _option_of(name: str, found: Parameter, default: Any) -> inspect.Parameter:
    kind, settings = type(found.kind), {}
    option, help = "--" + name.replace("_", "-"), _HELP.get(name, found.help)
    if name in _NEGATIONS:
        (option, help), default = _NEGATIONS[name], False
    annotation = _TYPES[kind]
    if kind in _REPEATED:
        default, help = None, f"{help} May be repeated."
        settings["metavar"] = _REPEATED[kind]
        if kind is not TokenValues:
            option = option.removesuffix("s")
    if name == "threads":  # not checked by the library
        settings |= {"min": found.kind.low, "max": found.kind.high}  # type: ignore[attr-defined]
    names = [option, *([_LETTERS[name]] if name in _LETTERS else [])]
    if default is None:
        annotation = annotation | None
    info = _option(_PANELS[found.group], *names, help=help.replace("{}", str(default)), **settings)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, info],
    )


def _read(dataclass: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass among a command's values, but for options that were not given."""
    fields = {}
    for name, (found, _) in parameters(dataclass).items():
        value = values.get(name)
        if value is None or (type(found.kind) in _REPEATED and not value):
            continue
        if name in _NEGATIONS:
            value = not value
        elif isinstance(found.kind, TokenValues):
            value = dict(_token_value(name, text) for text in value)
        fields[name] = value
    return fields


def _token_value(name: str, text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError:
        raise ValueError(f"{name}: expected ID=VALUE, got {text!r}") from None
