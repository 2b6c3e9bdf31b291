# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from lampo import SamplingParams, StructuredOutputs
from lampo.sampling_params import CHAT_DEFAULTS, chat_config, settings_text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, r"temperature: expected a value in \[0, 100\], got -1"),
        ({"temperature": math.nan}, "temperature: expected a value in .*, got nan"),
        ({"temperature": math.inf}, "temperature: .* got inf"),
        ({"temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"temperature": True}, "temperature: expected a number, got True"),
        ({"top_p": 0}, r"top_p: expected a value in \(0, 1\], got 0"),
        ({"top_p": 1.01}, r"top_p: .* got 1.01"),
        ({"min_p": -0.1}, "min_p: .* got -0.1"),
        ({"top_k": -2}, r"top_k: expected a value in \[-1, 2147483647\], got -2"),
        ({"top_k": 1.5}, "top_k: expected an integer, got 1.5"),
        ({"max_tokens": -1}, "max_tokens: .* got -1"),
        ({"max_tokens": 2**40}, "max_tokens: "),
        ({"max_tokens": 3, "max_new_tokens": 4}, "max_new_tokens: is an alias of max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens: expected at most max_tokens, 3, got 4"),
        ({"n": 0}, r"n: expected a value in \[1, 128\], got 0"),
        ({"n": 10**9}, "n: expected a value in"),
        ({"seed": 2**63}, "seed: expected a value in"),
        ({"seed": 1.0}, "seed: expected an integer"),
        ({"presence_penalty": 2.1}, "presence_penalty: .* got 2.1"),
        ({"frequency_penalty": -2.1}, "frequency_penalty: .* got -2.1"),
        ({"repetition_penalty": 0}, r"repetition_penalty: expected a value in \(0, 100\], got 0"),
        ({"stop": ""}, r"stop\[0\]: expected 1 to 1024 characters, got 0"),
        ({"stop": ["a", ""]}, r"stop\[1\]: expected 1 to 1024 characters, got 0"),
        ({"stop": [3]}, r"stop\[0\]: expected a string, got 3"),
        ({"stop": 3}, "stop: expected a string or a list of strings, got 3"),
        ({"stop": ["x"] * 65}, "stop: expected at most 64 strings, got 65"),
        ({"stop": "x" * 1025}, r"stop\[0\]: expected 1 to 1024 characters, got 1025"),
        ({"bad_words": [""]}, r"bad_words\[0\]: expected 1 to 256 characters, got 0"),
        ({"bad_words": ["a"] * 257}, "bad_words: expected at most 256 strings, got 257"),
        ({"bad_words": {"a": 1}}, "bad_words: expected a string or a list of strings"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids\[0\]: .* got -1"),
        ({"stop_token_ids": "12"}, "stop_token_ids: expected a list of token ids, got '12'"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids: expected at most 1024 ids"),
        ({"logit_bias": {1: 101}}, r"logit_bias\[1\]: expected a value in \[-100, 100\], got 101"),
        ({"logit_bias": {"a": 1}}, "logit_bias: expected an integer, got 'a'"),
        ({"logit_bias": [1]}, r"logit_bias: expected a mapping .*, got \[1\]"),
        ({"logprobs": 257}, "logprobs: .* got 257"),
        ({"prompt_logprobs": -2}, "prompt_logprobs: .* got -2"),
        ({"ignore_eos": 1}, "ignore_eos: expected a bool, got 1"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output: expected a bool"),
        ({"temperature": np.zeros(2)}, "temperature: expected a number"),
        ({"top_k": np.float32(2)}, "top_k: expected an integer"),
        ({"stop_token_ids": b"ab"}, "stop_token_ids: expected a list of token ids"),
        ({"top_k": 10**5000}, r"top_k: expected a value in \[-1, "),
        ({"allowed_token_ids": []}, "allowed_token_ids: expected at least one id, or None"),
        ({"allowed_token_ids": [-1]}, r"allowed_token_ids\[0\]: .* got -1"),
        ({"allowed_token_ids": [1.0]}, r"allowed_token_ids\[0\]: expected an integer, got 1.0"),
        ({"allowed_token_ids": range(2**20 + 1)}, "allowed_token_ids: expected at most 1048576"),
        ({"allowed_token_ids": 7}, "allowed_token_ids: expected a list of token ids, got 7"),
        ({"logprobs_mode": "both"}, "logprobs_mode: expected one of raw, processed, got 'both'"),
        ({"logprobs_mode": ["raw"]}, "logprobs_mode: expected one of"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs: expected lampo.Structured"),
        (
            {"structured_outputs": StructuredOutputs(regex="a"), "min_tokens": 1},
            "min_tokens: does not go with structured_outputs",
        ),
    ],
)
def test_bad_values(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        SamplingParams(**fields)


def test_alias_and_normal_forms():
    params = SamplingParams(max_new_tokens=5, stop="x", stop_token_ids=[1, 2], temperature=1)
    assert params.max_tokens == 5
    assert params.stop == ("x",)
    assert params.stop_token_ids == (1, 2)
    assert isinstance(params.temperature, float)


def test_defaults_come_from_the_model_and_explicit_values_win():
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "max_new_tokens": 7, "do_sample": True}
    params = SamplingParams(top_p=0.5).resolved(config)
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.6, 0.5, 50, 7)
    assert SamplingParams().resolved({"do_sample": False, "temperature": 0.6}).temperature == 0
    neutral = SamplingParams().resolved({})
    assert (neutral.temperature, neutral.top_p, neutral.top_k, neutral.min_p) == (1.0, 1.0, 0, 0.0)
    assert neutral.max_tokens == 256
    assert SamplingParams(min_tokens=300).resolved({}).max_tokens == 300


def test_settings_of_chats():
    """The model's own where it names some; else those that other engines have for chats."""
    own = {"temperature": 0.6, "max_new_tokens": 9}
    assert chat_config(own) == own
    assert chat_config({"do_sample": False}) == {"do_sample": False}
    assert chat_config({"max_new_tokens": 9}) == {"max_new_tokens": 9, **CHAT_DEFAULTS}
    params = SamplingParams(top_p=0.5).resolved(chat_config({}))
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.5, 0.05)
    neutral = SamplingParams().resolved({})
    assert (neutral.temperature, neutral.top_k, neutral.top_p, neutral.min_p) == (1.0, 0, 1.0, 0.0)


def test_settings_text():
    def text(**fields):
        return settings_text(SamplingParams(**fields).resolved({}))

    assert text(temperature=0) == "greedy"
    assert text() == "temperature 1"
    assert text(temperature=0.25, top_k=7, top_p=0.9) == "temperature 0.25, top-k 7, top-p 0.9"
    assert text(min_p=0.05) == "temperature 1, min-p 0.05"


def test_none_is_the_default_everywhere():
    names = [f.name for f in dataclasses.fields(SamplingParams)]
    assert SamplingParams(**dict.fromkeys(names)) == SamplingParams()


def test_numbers_of_numpy_and_torch():
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_p=torch.tensor(0.25),
        top_k=np.int64(7),
        max_tokens=torch.tensor(9),
        stop_token_ids=np.array([1, 2]),
        allowed_token_ids=torch.tensor([3, 4]),
        logit_bias={np.int32(5): np.float64(1.5)},
    )
    assert params == SamplingParams(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        max_tokens=9,
        stop_token_ids=(1, 2),
        allowed_token_ids=(3, 4),
        logit_bias={5: 1.5},
    )
    assert type(params.top_k) is int and type(params.temperature) is float
