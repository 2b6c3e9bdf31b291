# SPDX-License-Identifier: Apache-2.0
"""The model on a GPU, captured and running ahead, against the CPU."""

from __future__ import annotations

import pytest
import torch
from checkpoints import make_checkpoint

from lampo import LLM, SamplingParams
from lampo.weights.default_model import cached_default_model

pytestmark = pytest.mark.gpu

TEXTS = ["a", "Hello, world", "x" * 70]
# Mean difference of log-probabilities. Measured with the kernels on the CPU: 0.012, 0.012 and
# 0.021; 8 bits of fp8 alone cost 0.08.
TOLERANCE = {"bfloat16": 0.02, "int8": 0.02, "fp8": 0.04}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    return path


def tokens(llm: LLM, params: SamplingParams) -> list[list[int]]:
    ids = [output.outputs[0].token_ids for output in llm.generate(TEXTS, params)]
    assert [len(row) for row in ids] == [params.max_tokens] * len(TEXTS), "a step failed"
    return ids


@pytest.mark.parametrize("kv_cache_dtype", TOLERANCE)
def test_logprobs_are_the_cpu_s(gpu, folder, kv_cache_dtype):
    """Log-probabilities of the CPU's tokens, within the error of bfloat16 activations."""
    shape = {"dtype": "bfloat16", "kv_cache_dtype": kv_cache_dtype, "page_size": 16}
    with LLM(folder, **shape) as llm:
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        prompts = [
            output.prompt_token_ids + output.outputs[0].token_ids
            for output in llm.generate(TEXTS, params)
        ]
    found = []
    for device in ("cpu", str(gpu)):
        with LLM(folder, device=device, **shape) as llm:
            outputs = llm.generate(prompts, SamplingParams(max_tokens=0, prompt_logprobs=0))
            found.append([
                table[token].logprob
                for output in outputs
                for token, table in zip(
                    output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True
                )
            ])  # fmt: skip
    difference = torch.tensor(found[0]) - torch.tensor(found[1])
    assert difference.abs().mean() < TOLERANCE[kv_cache_dtype], difference.abs().max()


def test_captured_steps_equal_eager_ones(gpu, folder, monkeypatch):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=20, ignore_eos=True)
    with LLM(folder, device=str(gpu), page_size=16) as llm:
        captured = tokens(llm, params)
        assert tokens(llm, params) == captured
        monkeypatch.setattr(
            "lampo.engine.cuda_decode_step.CudaDecodeStep._capture", lambda self: None
        )
    with LLM(folder, device=str(gpu), page_size=16) as llm:
        assert tokens(llm, params) == captured
        monkeypatch.setattr(llm.shared_engine().engine, "_run_ahead", False)
        assert tokens(llm, params) == captured


@pytest.mark.real_gpu
def test_smollm2(gpu):
    """Greedy text of the default model begins as on the CPU."""
    path = cached_default_model()
    if path is None:
        pytest.skip("the default model is not in the cache: lampo pull")
    params = SamplingParams(temperature=0, max_tokens=16)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    texts = []
    for device in ("cpu", str(gpu)):
        with LLM(path, device=device, max_model_len=1024) as llm:
            texts.append(llm.chat(messages, params)[0].outputs[0].text)
    assert texts[0][:20] == texts[1][:20]
