# SPDX-License-Identifier: Apache-2.0
"""Looking into a model: hidden states and attention weights against transformers, logits against
the generation's own report, decoding without a cache, and that nothing of it is left behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from model_harness import all_pages_available

from lampo import LLM, SamplingParams, ops

CASES = {
    "llama": {"rope": "llama3"},
    "mistral": {"sliding_window": 20},
    "qwen3": {"head_dim": 64},
    "gpt2": {"num_attention_heads": 2},
}


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("inspector")
    make_checkpoint(folder, num_hidden_layers=2)
    with LLM(folder, page_size=16, max_num_batched_tokens=32, max_num_seqs=4) as llm:
        yield llm


@pytest.mark.parametrize("name", CASES)
def test_states_and_weights_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """In chunks of 32 tokens, past a window."""
    twin = make_checkpoint(tmp_path, architecture=name, num_hidden_layers=2, **CASES[name])
    twin.set_attn_implementation("eager")
    ids = tokens(75)
    with torch.inference_mode():
        expected = twin(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
    with LLM(tmp_path, dtype="float32", page_size=16, max_num_batched_tokens=32) as llm:
        inspector = llm.inspector()
        found = inspector.inspect(ids, hidden=[0, 1, 2], attention=[1, 0])
        assert all_pages_available(llm)
        lens = inspector.logits(found.hidden[2])
    assert found.token_ids == ids
    for layer in (0, 1):  # the last of transformers' is normed
        difference = found.hidden[layer] - expected.hidden_states[layer][0]
        assert difference.abs().max() < 1e-4
        weights = found.attention[layer]
        assert (weights - expected.attentions[layer][0]).abs().max() < 1e-5
        assert (weights.sum(-1) - 1).abs().max() < 1e-5
        assert weights.triu(1).abs().max() == 0
    assert (found.logits - expected.logits[0]).abs().max() < 1e-3
    assert torch.equal(lens, found.logits)


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int8", "fp8"])
def test_weights_are_of_the_cache(tmp_path: Path, kv_cache_dtype: str) -> None:
    """The keys are read as the cache holds them: close to exact ones, and not equal."""
    make_checkpoint(tmp_path, num_hidden_layers=2)
    ids = tokens(40)
    found = {}
    for dtype in ("float32", kv_cache_dtype):
        with LLM(tmp_path, dtype="float32", kv_cache_dtype=dtype, page_size=16) as llm:
            found[dtype] = llm.inspector().inspect(ids, attention=[0]).attention[0]
    difference = (found["float32"] - found[kv_cache_dtype]).abs().max()
    assert 0 < difference < 0.1


def test_logits_are_those_of_a_generation(llm: LLM) -> None:
    """Every bit: the log-probabilities of prompt and output follow from the inspected logits."""
    prompt = tokens(50)
    params = SamplingParams(
        temperature=0.9, seed=1, max_tokens=20, ignore_eos=True, logprobs=0, prompt_logprobs=0
    )
    (result,) = llm.generate([prompt], params)
    output = result.outputs[0]
    ids = prompt + output.token_ids
    logits = llm.inspector().inspect(ids).logits
    own, _, _, _ = ops.token_logprobs(logits[:-1].contiguous(), torch.tensor(ids[1:]))
    assert result.prompt_logprobs is not None and output.logprobs is not None
    tables = [*result.prompt_logprobs[1:], *output.logprobs]
    reported = [table[i].logprob for table, i in zip(tables, ids[1:], strict=True) if table]
    assert own.tolist() == reported


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_logprobs_of_the_whole_vocabulary(llm: LLM, mode: str) -> None:
    params = SamplingParams(
        max_tokens=3, temperature=0.7, seed=2, logprobs=-1, prompt_logprobs=-1, logprobs_mode=mode
    )
    (result,) = llm.generate([tokens(5)], params)
    assert result.prompt_logprobs is not None and result.outputs[0].logprobs is not None
    for table in [*result.prompt_logprobs[1:], *result.outputs[0].logprobs]:
        assert table is not None and sorted(table) == list(range(llm.config.vocab_size))
        assert sorted(entry.rank for entry in table.values())[:3] == [1, 2, 3]
        assert math.fsum(math.exp(entry.logprob) for entry in table.values()) == pytest.approx(
            1, abs=1e-5
        )


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_tokens=30, ignore_eos=True),
        SamplingParams(temperature=1.0, seed=5, max_tokens=30, n=2),
        SamplingParams(
            temperature=0.8,
            seed=1,
            max_tokens=20,
            presence_penalty=1.5,
            repetition_penalty=1.3,
            logprobs=2,
        ),
    ],
    ids=["greedy", "two", "penalties"],
)
def test_without_a_cache_the_tokens_are_the_same(llm: LLM, params: SamplingParams) -> None:
    prompts = [tokens(40, seed=3), tokens(3, seed=4)]
    cached = llm.generate(prompts, params)
    uncached = llm.generate(prompts, params, use_cache=False)
    for one, other in zip(cached, uncached, strict=True):
        assert one.outputs == other.outputs
        assert other.metrics.cache_bytes == 0
        assert other.metrics.num_output_tokens == one.metrics.num_output_tokens
    assert all_pages_available(llm)


def test_embeddings_are_the_first_states(llm: LLM) -> None:
    ids = tokens(9)
    inspector = llm.inspector()
    rows = inspector.token_embeddings(ids)
    assert torch.equal(rows, inspector.inspect(ids, hidden=[0]).hidden[0].float())
    assert torch.equal(inspector.token_embeddings()[ids], rows)


def test_times_per_chunk(llm: LLM) -> None:
    inspector, ids = llm.inspector(), tokens(70)
    assert len(inspector.time_prefill(ids)) == 3  # of at most 32 tokens
    assert len(inspector.time_prefill(ids, 1)) == 70
    assert len(inspector.time_prefill(ids, 25)) == 3
    assert all(seconds > 0 for seconds in inspector.time_prefill(ids, 25))


def test_outline(llm: LLM) -> None:
    parts = llm.inspector().outline()
    assert [part.name for part in parts if part.layer is None] == [
        "embedding.tokens",
        "norm",
        "lm_head",
    ]
    assert [part.shape for part in parts if part.name == "mixer.out"] == [(64, 128)] * 2
    # The LM head is the embedding, counted once.
    assert parts[-1].num_parameters == 0
    assert sum(part.nbytes for part in parts) == llm.weight_bytes


def test_a_request_goes_on_around_an_inspection(llm: LLM) -> None:
    """An inspection between two pieces of a stream changes nothing of it."""
    params = SamplingParams(temperature=0.9, seed=8, max_tokens=24, ignore_eos=True)
    prompt = tokens(20, seed=9)
    (expected,) = llm.generate([prompt], params)
    found: list[int] = []
    for piece in llm.stream(prompt, params):
        found += piece.token_ids
        llm.inspector().inspect(tokens(37), hidden=[1], attention=[0])
        llm.inspector().time_prefill(tokens(5), 1)
    assert found == expected.outputs[0].token_ids
    assert all_pages_available(llm)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": [3]}, r"hidden\[0\]: expected a value in \[0, 2\], got 3"),
        ({"attention": [0, 2]}, r"attention\[1\]: expected a value in \[0, 1\], got 2"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": [999]}, r"prompt\[0\]: expected a value in \[0, 319\], got 999"),
        ({"prompt": [1] * 300}, "prompt: has 300 tokens"),
    ],
)
def test_bad_input(llm: LLM, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.inspector().inspect(arguments.pop("prompt", [1, 2]), **arguments)
    with pytest.raises(ValueError, match="chunk_size: expected a value in"):
        llm.inspector().time_prefill([1, 2], 0)


def test_weights_beyond_the_limit(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lampo.engine.inspector.MAX_WEIGHT_BYTES", 1000)
    with pytest.raises(ValueError, match="attention: the weights of 40 tokens in 1 layers take"):
        llm.inspector().inspect(tokens(40), attention=[0])


def test_too_few_pages(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, num_hidden_layers=2)
    with LLM(tmp_path, page_size=16, max_num_seqs=1, kv_cache_memory=1 << 17) as llm:
        total = llm.shared_engine().engine.pool.num_pages
        stream = llm.stream(
            tokens(200), SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        )
        next(stream)
        assert llm.shared_engine().engine.stats().num_free_pages < total
        if total * 16 < 2 * 200:
            with pytest.raises(ValueError, match="prompt: needs 13 pages of the KV cache, and"):
                llm.inspector().inspect(tokens(200))
        stream.close()
        llm.inspector().inspect(tokens(200))
        assert all_pages_available(llm)
