# SPDX-License-Identifier: Apache-2.0
"""A whole model on the CUDA kernels, on the CPU: from the embedding to the drawn token."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from checkpoints import make_checkpoint, make_gguf
from cuda_on_cpu.extension import build_extension, use_cuda_kernels
from cuda_on_cpu.fixtures import skip_unless_executable
from lampo import LLM, SamplingParams
from lampo.models.registry import load_model

TEXTS = ["a", "Hello, world", "x" * 40]


@pytest.fixture(scope="module")
def cuda_kernels(tmp_path_factory) -> ModuleType:
    skip_unless_executable()
    return build_extension(tmp_path_factory.mktemp("cuda_kernels"))


@pytest.fixture(scope="module", params=["bfloat16", "Q4_0"])
def path(request, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model")
    if request.param == "bfloat16":
        make_checkpoint(folder)
        return folder
    make_gguf(folder / "m.gguf", quantization=request.param)
    return folder / "m.gguf"


@pytest.fixture
def bfloat16(monkeypatch) -> None:
    """Activations as on a GPU, whatever the weights."""
    monkeypatch.setattr("lampo.llm.load_model", partial(load_model, device=torch.device("cuda")))


def generate(path: Path, params: SamplingParams, run_ahead: bool = False, **options: Any):
    with LLM(path, page_size=16, max_num_seqs=4, max_model_len=128, **options) as llm:
        llm.shared_engine().engine._run_ahead = run_ahead
        return llm.generate(TEXTS, params)


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int8"])
def test_generates_as_the_cpu_does(path, cuda_kernels, monkeypatch, bfloat16, kv_cache_dtype):
    params = SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    expected = generate(path, params, kv_cache_dtype=kv_cache_dtype)
    use_cuda_kernels(cuda_kernels, monkeypatch)
    found = generate(path, params, kv_cache_dtype=kv_cache_dtype)
    for cpu, cuda in zip(expected, found, strict=True):
        prompt = [
            [table[token].logprob for token, table in zip(ids, tables, strict=True)]
            for ids, tables in (
                (o.prompt_token_ids[1:], o.prompt_logprobs[1:]) for o in (cpu, cuda)
            )
        ]
        difference = torch.tensor(prompt[0]) - torch.tensor(prompt[1])
        assert difference.numel() == 0 or difference.abs().max() < 0.05
        assert cpu.outputs[0].token_ids == cuda.outputs[0].token_ids


def test_draws_what_the_cpu_draws(path, cuda_kernels, monkeypatch, bfloat16):
    """Running ahead, in padded rows; the noise is a function of seed, position and token."""
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=4, max_tokens=8, ignore_eos=True)
    expected = generate(path, params)
    use_cuda_kernels(cuda_kernels, monkeypatch)
    for run_ahead in (False, True):
        found = generate(path, params, run_ahead=run_ahead)
        assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]
