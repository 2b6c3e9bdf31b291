# SPDX-License-Identifier: Apache-2.0
"""The options of commands: every argument of the library has one, and it arrives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from lampo import LLM, SamplingParams
from lampo.cli import options
from lampo.cli.app import command
from lampo.cli.main import main
from lampo.cli.options import ModelOptions
from lampo.cli.terminal import status
from lampo.parameters import parameters
from lampo.server.protocol import ChatRequest, CompletionRequest

# One value for every sampling parameter that has an option, as typed and as it arrives.
SAMPLING = {
    "n": ("--n 2", 2),
    "max_tokens": ("-n 5", 5),
    "min_tokens": ("--min-tokens 3", 3),
    "temperature": ("-t 0.5", 0.5),
    "top_p": ("--top-p 0.25", 0.25),
    "top_k": ("--top-k 7", 7),
    "min_p": ("--min-p 0.125", 0.125),
    "repetition_penalty": ("--repetition-penalty 1.5", 1.5),
    "presence_penalty": ("--presence-penalty 0.5", 0.5),
    "frequency_penalty": ("--frequency-penalty -0.5", -0.5),
    "logit_bias": ("--logit-bias 3=1.5 --logit-bias 4=-2", {3: 1.5, 4: -2.0}),
    "allowed_token_ids": ("--allowed-token-id 3 --allowed-token-id 4", (3, 4)),
    "bad_words": ("--bad-word a --bad-word b", ("a", "b")),
    "seed": ("--seed 9", 9),
    "stop": ("--stop a --stop b", ("a", "b")),
    "include_stop_str_in_output": ("--include-stop-str-in-output", True),
    "stop_token_ids": ("--stop-token-id 3 --stop-token-id 4", (3, 4)),
    "ignore_eos": ("--ignore-eos", True),
    "logprobs": ("--logprobs 2", 2),
    "prompt_logprobs": ("--prompt-logprobs 1", 1),
    "logprobs_mode": ("--logprobs-mode processed", "processed"),
    "skip_special_tokens": ("--show-special-tokens", False),
}
MODEL = {
    "model": ("-m name", "name"),
    "dtype": ("--dtype float32", "float32"),
    "quantize": ("--quantize q4_k", "q4_k"),
    "activation_bits": ("--activation-bits 16", 16),
    "device": ("--device cuda:1", "cuda:1"),
    "kv_cache_dtype": ("--kv-cache-dtype int8", "int8"),
    "max_model_len": ("--max-model-len 99", 99),
    "threads": ("--threads 2", 2),
    "kv_cache_memory": ("--kv-cache-memory 1000000", 1000000),
    "page_size": ("--page-size 16", 16),
    "max_num_seqs": ("--max-num-seqs 3", 3),
    "max_num_batched_tokens": ("--max-num-batched-tokens 77", 77),
    "enable_prefix_caching": ("--no-prefix-caching", False),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The objects that commands make of their options; the commands end after that."""
    found: dict[str, Any] = {}

    def take(kind: str) -> Callable[..., Any]:
        real = ModelOptions.of if kind == "model" else options.sampling_params

        def of(values: Any) -> Any:
            found[kind] = real(values)
            if kind == "model":
                raise ValueError("stop: here")
            return found[kind]

        return of

    monkeypatch.setenv("LAMPO_NUM_THREADS", "1")
    monkeypatch.setattr(ModelOptions, "of", take("model"))
    monkeypatch.setattr(options, "sampling_params", take("sampling"))
    return found


def test_every_parameter_has_an_option() -> None:
    assert list(SAMPLING) == [name for name in parameters(SamplingParams) if name in SAMPLING]
    assert set(parameters(SamplingParams)) - set(SAMPLING) == {"structured_outputs"}
    assert list(MODEL) == list(parameters(ModelOptions))


def test_model_options_are_the_arguments_of_llm() -> None:
    arguments = inspect.signature(LLM.__init__).parameters
    others = ("self", "on_progress")
    expected = {name: p.default for name, p in arguments.items() if name not in others}
    found = {name: default for name, (_, default) in parameters(ModelOptions).items()}
    assert found.pop("threads") is None
    assert found == expected


def test_fields_of_the_server() -> None:
    for body in (ChatRequest, CompletionRequest):
        assert set(parameters(SamplingParams)) - set(body.model_fields) <= {"prompt_logprobs"}
        for name in ("top_p", "stop", "bad_words", "structured_outputs"):
            assert body.model_fields[name].description == parameters(SamplingParams)[name][0].help


@pytest.mark.parametrize("name", SAMPLING)
@pytest.mark.parametrize("command_name", ["generate", "chat"])
def test_sampling_options(taken: dict[str, Any], command_name: str, name: str) -> None:
    typed, expected = SAMPLING[name]
    arguments = [command_name, *(["Hello"] if command_name == "generate" else []), *typed.split()]
    assert main(arguments) == 2
    if command_name == "chat" and name in ("n", "logprobs", "prompt_logprobs", "logprobs_mode"):
        assert not taken, "a conversation has no such option"
        return
    default = SamplingParams()
    for other in parameters(SamplingParams):
        value = getattr(taken["sampling"], other)
        assert value == (expected if other == name else getattr(default, other))


@pytest.mark.parametrize("name", MODEL)
@pytest.mark.parametrize("command_name", ["generate", "chat", "serve", "bench serve"])
def test_model_options(taken: dict[str, Any], command_name: str, name: str) -> None:
    typed, expected = MODEL[name]
    arguments = command_name.split() + typed.split()
    arguments += {"generate": ["Hello"], "serve": ["--port", "0"]}.get(command_name, [])
    assert main(arguments) == 2
    few = command_name in ("generate", "chat")
    default = ModelOptions(max_num_seqs=8 if few else 64)
    for other in parameters(ModelOptions):
        value = getattr(taken["model"], other)
        assert value == (expected if other == name else getattr(default, other))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--page-size 0", "page_size: expected a value in [1, 256], got 0"),
        ("--max-num-seqs 0", "max_num_seqs: expected a value in [1, 4096], got 0"),
        ("--kv-cache-memory x", "--kv-cache-memory"),
        ("--logit-bias 3", "logit_bias: expected ID=VALUE, got '3'"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], typed: str, message: str) -> None:
    assert main(["generate", "Hello", *typed.split()]) == 2
    assert message in capsys.readouterr().err


def test_help_names_every_option_once() -> None:
    commands: Any = command()
    for path in (["generate"], ["chat"], ["serve"], ["bench", "serve"], ["profile"]):
        found = commands
        for name in path:
            found = found.commands[name]
        names = [option for parameter in found.params for option in parameter.opts]
        assert len(set(names)) == len(names) > 10
        assert all(p.help for p in found.params if p.name != "help")


def test_arguments_arrive_at_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from lampo.cli import session

    found: dict[str, Any] = {}
    monkeypatch.setattr(session, "fetch", lambda model, bar: model)
    monkeypatch.setattr("lampo.weights.read_ahead.read_ahead", lambda path: None)
    monkeypatch.setattr(
        "lampo.model_files.ModelFiles",
        lambda model, length: found.update(model=model, max_model_len=length),
    )
    monkeypatch.setattr("lampo.llm.LLM", lambda files, **values: found.update(values))
    left_out = ("threads", "device", "quantize")  # the last does not go with a dtype
    chosen = {k: v for k, (_, v) in MODEL.items() if k not in left_out}
    session.open_llm(ModelOptions(**chosen), quiet=True)
    assert found.pop("on_progress") == status.show
    assert found == {**chosen, "device": "cpu", "quantize": None}
