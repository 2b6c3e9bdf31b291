# SPDX-License-Identifier: Apache-2.0
"""Arguments of LLM and of its calls: prompts and parameters of all kinds, and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from model_harness import all_pages_available

from lampo import LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def change(params: SamplingParams, **fields: Any) -> SamplingParams:
    return dataclasses.replace(params, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    path = tmp_path_factory.mktemp("model")
    generation = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 9, "do_sample": True}
    return path, make_checkpoint(path, generation=generation)


@pytest.fixture(scope="module")
def llm(folder) -> Iterator[LLM]:
    with LLM(folder[0], dtype="float32", page_size=16) as llm:
        yield llm
        # Whatever a test did, every page has come back.
        assert all_pages_available(llm)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", r"prompts\[0\]: is empty"),
        ([[]], r"prompts\[0\]: is empty"),
        ([[1], [2, 320]], r"prompts\[1\]\[1\]: expected a value in \[0, 319\], got 320"),
        ([[1, -1]], r"prompts\[0\]\[1\]: .* got -1"),
        ([["a"]], r"prompts\[0\]\[0\]: expected an integer, got 'a'"),
        ([3.5], r"prompts\[0\]: expected a text or a list of token ids, got 3.5"),
        (7, "prompts: expected a text, token ids or a list of them, got 7"),
        (b"text", "prompts: expected a text, token ids or a list of them, got b'text'"),
        ([b"text"], r"prompts\[0\]: expected a text or a list of token ids, got b'text'"),
        (np.array(5), r"prompts: expected a text or a list of token ids, got array\(5\)"),
        ({"prompt": "x"}, "prompts: expected a text, token ids or a list of them"),
        ([[1] * 256], r"prompts\[0\]: has 256 tokens, but the context of 256 leaves room for 255"),
    ],
)
def test_bad_prompts(llm, prompt, message):
    with pytest.raises((ValueError, TypeError), match=message):
        llm.generate(prompt, GREEDY)


def test_prompts_of_other_kinds(llm):
    """Arrays and tensors of ids, NumPy integers, generators of prompts."""
    ids = [5, 6, 7]
    expected = [list(o.outputs[0].token_ids) for o in llm.generate([ids, ids], GREEDY)]
    for prompts in (
        np.array([ids, ids]),
        torch.tensor([ids, ids]),
        [np.array(ids), tuple(np.int64(i) for i in ids)],
        (ids for _ in range(2)),
    ):
        outputs = llm.generate(prompts, GREEDY)
        assert [list(o.outputs[0].token_ids) for o in outputs] == expected
        assert outputs[0].prompt_token_ids == ids
        assert all(type(i) is int for i in outputs[0].prompt_token_ids)
    assert len(llm.generate(np.array(ids), GREEDY)) == 1


@pytest.mark.parametrize("params", [{"max_tokens": 3}, 5, [{}], "x"])
def test_params_of_another_kind(llm, params):
    with pytest.raises(TypeError, match=r"^sampling_params: expected SamplingParams, got "):
        llm.generate("a", params)


def test_generated_params(llm):
    outputs = llm.generate(["a", "b"], (GREEDY for _ in range(2)))
    assert len(outputs) == 2


def test_bad_arguments(llm, folder):
    with pytest.raises(ValueError, match="sampling_params: expected one or 2, got 3"):
        llm.generate(["a", "b"], [GREEDY] * 3)
    for fields in ({"logit_bias": {320: 1.0}}, {"stop_token_ids": [3, 320]}):
        with pytest.raises(ValueError, match=f"{next(iter(fields))}: token id 320 is not in the"):
            llm.generate("a", change(GREEDY, **fields))
    with pytest.raises(ValueError, match="allowed_token_ids: token id 320 is not in the vocab"):
        llm.generate("a", change(GREEDY, allowed_token_ids=[320]))
    with pytest.raises(ValueError, match="n: a stream has one completion, got 2"):
        llm.stream("a", change(GREEDY, n=2))
    with pytest.raises(ValueError, match="messages: expected at least one message"):
        llm.chat([])
    with pytest.raises(TypeError, match="messages: expected a list of messages, got 'Hi'"):
        llm.chat("Hi")
    for arguments, message in [
        ({"dtype": "float16"}, "dtype: expected one of auto, float32, bfloat16, got 'float16'"),
        ({"kv_cache_dtype": "int3"}, "kv_cache_dtype: expected one of auto, .* got 'int3'"),
        ({"page_size": 48}, "page_size: expected a power of two up to 256, got 48"),
        ({"max_model_len": 257}, r"max_model_len: expected a value in \[1, 256\], got 257"),
        ({"kv_cache_memory": 1000}, "kv_cache_memory: 1000 bytes hold 0 pages, but a sequence"),
        ({"max_num_seqs": 0}, "max_num_seqs: expected a value in"),
    ]:
        with pytest.raises(ValueError, match=message):
            LLM(folder[0], **arguments)
    with pytest.raises(ValueError, match="no-such-model"):
        LLM("./no-such-model")
