# SPDX-License-Identifier: Apache-2.0
"""Options that commands share, one for each field of SamplingParams and for the model.

Ranges are not repeated here: SamplingParams and LLM check values and name them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lampo.sampling_params import SamplingParams

_MODEL = "Model"
_LENGTH = "Length and stopping"
_SAMPLING = "Sampling (defaults are the model's own)"
_PENALTIES = "Penalties and bias"
_OUTPUT = "Output"


def _option(panel: str, *names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


Model = Annotated[
    str | None,
    _option(
        _MODEL,
        "--model",
        "-m",
        help="A GGUF file, a folder with config.json and safetensors, or a Hugging Face id "
        "(org/name, or org/name:Q4_0 for a GGUF file). Default: SmolLM2-135M-Instruct.",
    ),
]
Dtype = Annotated[
    str,
    _option(
        _MODEL,
        "--dtype",
        help="auto keeps weights as stored, 4- and 8-bit blocks packed; float32 computes exactly; "
        "bfloat16.",
    ),
]
Device = Annotated[
    str,
    _option(_MODEL, "--device", help="cpu, cuda or cuda:<index>."),
]
KvCacheDtype = Annotated[
    str,
    _option(
        _MODEL,
        "--kv-cache-dtype",
        help="auto, float32, float16, bfloat16, or with half the memory int8 or fp8.",
    ),
]
MaxModelLen = Annotated[
    int | None,
    _option(
        _MODEL,
        "--max-model-len",
        help="Longest sequence, prompt and output, in tokens. Default: the model's context.",
    ),
]
Threads = Annotated[
    int | None,
    _option(
        _MODEL,
        "--threads",
        help="Worker threads. Default: LAMPO_NUM_THREADS, else the cores this process may use.",
        min=1,
        max=1024,
    ),
]

MaxTokens = Annotated[
    int | None,
    _option(
        _LENGTH, "--max-tokens", "-n", help="Most tokens to generate. Default: the model's, or 256."
    ),
]
MinTokens = Annotated[
    int, _option(_LENGTH, "--min-tokens", help="Do not stop before this many tokens.")
]
Stop = Annotated[
    list[str] | None,
    _option(_LENGTH, "--stop", help="Stop before this string. May be repeated."),
]
StopTokenIds = Annotated[
    list[int] | None,
    _option(_LENGTH, "--stop-token-id", help="Stop at this token id. May be repeated."),
]
IgnoreEos = Annotated[
    bool, _option(_LENGTH, "--ignore-eos", help="Go on after an end-of-sequence token.")
]

Temperature = Annotated[
    float | None,
    _option(_SAMPLING, "--temperature", "-t", help="Divides the logits; 0 is greedy."),
]
TopP = Annotated[
    float | None,
    _option(
        _SAMPLING, "--top-p", help="Keep the most probable tokens whose mass reaches this; 1: all."
    ),
]
TopK = Annotated[
    int | None,
    _option(_SAMPLING, "--top-k", help="Keep this many of the most probable tokens; 0: all."),
]
MinP = Annotated[
    float | None,
    _option(_SAMPLING, "--min-p", help="Keep tokens of this share of the best one's probability."),
]
Seed = Annotated[
    int | None,
    _option(_SAMPLING, "--seed", help="Makes the draw reproducible. Default: random."),
]
N = Annotated[
    int,
    _option(_SAMPLING, "--n", help="Completions of the prompt; more than one are not streamed."),
]

RepetitionPenalty = Annotated[
    float | None,
    _option(
        _PENALTIES,
        "--repetition-penalty",
        help="Above 1, makes tokens of the prompt and output less likely.",
    ),
]
PresencePenalty = Annotated[
    float,
    _option(
        _PENALTIES, "--presence-penalty", help="Subtracted from logits of tokens in the output."
    ),
]
FrequencyPenalty = Annotated[
    float,
    _option(_PENALTIES, "--frequency-penalty", help="The same, once for every occurrence."),
]
LogitBias = Annotated[
    list[str] | None,
    _option(
        _PENALTIES,
        "--logit-bias",
        help="Add VALUE to the logit of token ID. May be repeated.",
        metavar="ID=VALUE",
    ),
]

Logprobs = Annotated[
    int | None,
    _option(
        _OUTPUT,
        "--logprobs",
        help="For every token, show this many of the most probable candidates, and how many of "
        "them temperature, top-k, top-p and min-p keep.",
    ),
]
PromptLogprobs = Annotated[
    int | None,
    _option(_OUTPUT, "--prompt-logprobs", help="The same for every token of the prompt."),
]
ShowSpecialTokens = Annotated[
    bool, _option(_OUTPUT, "--show-special-tokens", help="Keep special tokens in the text.")
]
Json = Annotated[
    bool, _option(_OUTPUT, "--json", help="Print one JSON object, and nothing else, on stdout.")
]
Quiet = Annotated[
    bool, _option(_OUTPUT, "--quiet", "-q", help="No statistics and notes, only warnings.")
]
Raw = Annotated[
    bool,
    _option(
        _MODEL,
        "--raw",
        help="Continue the prompt as it is. By default it becomes a user's message in the model's "
        "chat template, if the model has one.",
    ),
]
System = Annotated[
    str | None, _option(_MODEL, "--system", help="A system message that starts the conversation.")
]


def sampling_params(values: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters among a command's values.

    Raises: ValueError, TypeError: one that does not fit, by name.
    """
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    fields = {k: v for k, v in values.items() if k in names and v is not None}
    if "logit_bias" in fields:
        fields["logit_bias"] = dict(map(_bias, fields["logit_bias"]))
    if values.get("show_special_tokens"):
        fields["skip_special_tokens"] = False
    return SamplingParams(**fields)


def _bias(text: str) -> tuple[int, float]:
    token_id, _, value = text.partition("=")
    try:
        return int(token_id), float(value)
    except ValueError:
        raise ValueError(f"logit_bias: expected ID=VALUE, got {text!r}") from None


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Which model, and how to load it."""

    model: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ModelOptions:
        """Reads them out of a command's values; `threads` goes where the kernels look for it."""
        if values.get("threads") is not None:
            os.environ["LAMPO_NUM_THREADS"] = str(values["threads"])
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})
