# SPDX-License-Identifier: Apache-2.0
"""A whole model on a simulated GPU: from the embedding to the drawn token, as the CPU does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, make_gguf

from lampo import LLM, SamplingParams
from lampo.models.checkpoint import Checkpoint
from lampo.models.decoder import Decoder
from lampo.models.loader import load_model

pytestmark = pytest.mark.long

# Of log-probabilities, by the cache's type: what sums in another order, rounded to bfloat16 and to
# 8 bits, make of a random model. Measured: 0.02 and 0.08.
TOLERANCE = {"bfloat16": 0.05, "int8": 0.15}
TEXTS = ["a", "Hello, world", "x" * 40]


@pytest.fixture(scope="module", params=["bfloat16", "Q4_0", "Q4_K"])
def path(request, tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model")
    if request.param == "bfloat16":
        make_checkpoint(folder)
        return folder
    # With larger weights the wider model of K-quants loses 0.5 to an int8 cache alone.
    calm = {"initializer_range": 0.03} if request.param == "Q4_K" else {}
    make_gguf(folder / "m.gguf", quantization=request.param, **calm)
    return folder / "m.gguf"


@pytest.fixture
def as_on_a_gpu(monkeypatch) -> None:
    """Activations in bfloat16, whatever the weights, and 16 bits of them beside packed weights."""

    def load(
        checkpoint: Checkpoint, dtype: str, max_model_len: int, _: torch.device, **options: Any
    ) -> Decoder:
        options |= {"activation_bits": 16}
        return load_model(checkpoint, dtype, max_model_len, torch.device("cuda"), **options)

    monkeypatch.setattr("lampo.llm.load_model", load)


def generate(path: Path, params: SamplingParams, device: str, run_ahead: bool = True, **options):
    shape = {"page_size": 16, "max_num_seqs": 4, "max_model_len": 128}
    with LLM(path, device=device, **shape, **options) as llm:
        llm.shared_engine().engine._run_ahead = run_ahead and device == "cuda"
        return llm.generate(TEXTS, params)


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int8"])
def test_generates_as_the_cpu_does(path, simulated_gpu, as_on_a_gpu, kv_cache_dtype):
    params = SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, logprobs=4, prompt_logprobs=0
    )
    tolerance = TOLERANCE[kv_cache_dtype]
    expected = generate(path, params, "cpu", kv_cache_dtype=kv_cache_dtype)
    found = generate(path, params, "cuda", kv_cache_dtype=kv_cache_dtype)
    for cpu, cuda in zip(expected, found, strict=True):
        prompt = [
            [table[token].logprob for token, table in zip(ids, tables, strict=True)]
            for ids, tables in (
                (o.prompt_token_ids[1:], o.prompt_logprobs[1:]) for o in (cpu, cuda)
            )
        ]
        difference = torch.tensor(prompt[0]) - torch.tensor(prompt[1])
        assert difference.numel() == 0 or difference.abs().max() < tolerance
        assert_alike(cpu.outputs[0], cuda.outputs[0], tolerance)


def assert_alike(ours: Any, theirs: Any, tolerance: float) -> None:
    """The same tokens with close log-probabilities, up to a near tie."""
    steps = zip(ours.token_ids, theirs.token_ids, ours.logprobs, theirs.logprobs, strict=True)
    for token, other, table, other_table in steps:
        if token != other:  # from here on they say different things
            assert table[token].logprob - table[other].logprob < tolerance
            break
        assert abs(table[token].logprob - other_table[token].logprob) < tolerance


def test_draws_what_the_cpu_draws(path, simulated_gpu, as_on_a_gpu):
    """Running ahead, in padded rows; the noise is a function of seed, position and token."""
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=4, max_tokens=8, ignore_eos=True)
    expected = generate(path, params, "cpu")
    for run_ahead in (False, True):
        found = generate(path, params, "cuda", run_ahead)
        assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]


@pytest.mark.parametrize("architecture", ["lfm2", "qwen3_5_text"])
def test_models_with_states(simulated_gpu, as_on_a_gpu, tmp_path, architecture):
    """In captured steps and running ahead; the second time from saved states."""
    make_checkpoint(tmp_path, architecture=architecture, initializer_range=0.1)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=4)
    shape = {"page_size": 16, "max_num_seqs": 4, "max_model_len": 128, "max_num_batched_tokens": 16}
    results = []
    for device in ("cpu", "cuda"):
        with LLM(tmp_path, device=device, **shape) as llm:
            engine = llm.shared_engine().engine
            results += [llm.generate(TEXTS, params) for _ in range(2)]
            assert engine.scheduler.states.num_restored > 0
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            assert_alike(ours.outputs[0], theirs.outputs[0], TOLERANCE["bfloat16"])
