# SPDX-License-Identifier: Apache-2.0
"""The recorded decode step inside an LLM, and its profile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint

import lampo
from lampo import _C, LLM, SamplingParams, ops
from lampo.cli.main import main
from lampo.engine.decode_step import DecodeStep, Drawn
from lampo.engine.request import Sequence
from lampo.engine.runner import decode_bucket
from lampo.models.decoder import Decoder
from lampo.profiling import read_bandwidth

TEXTS = ["a", "Hello, world", "x" * 70]
NUM_LAYERS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def llm(folder) -> Iterator[LLM]:
    # Without pages that another instruction set has filled.
    with LLM(folder, page_size=16, max_num_seqs=4, enable_prefix_caching=False) as llm:
        yield llm


def chosen_logprobs(llm: LLM, params: SamplingParams) -> list[list[tuple[int, float]]]:
    found = []
    for output in llm.generate(TEXTS, params):
        completion = output.outputs[0]
        tables = zip(completion.token_ids, completion.logprobs, strict=True)
        found.append([(token_id, table[token_id].logprob) for token_id, table in tables])
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replayed_steps_equal_eager_ones(llm, isa, temperature):
    check_replayed_equal_eager(llm, temperature)


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "int8"])
def test_replayed_steps_equal_eager_ones_with_8_bit_caches(folder, isa, kv_cache_dtype):
    with LLM(folder, page_size=16, max_num_seqs=4, kv_cache_dtype=kv_cache_dtype) as llm:
        check_replayed_equal_eager(llm, temperature=1.0)


def check_replayed_equal_eager(llm: LLM, temperature: float) -> None:
    """Log-probabilities of generated tokens, to the bit, when they come back as a prompt."""
    params = SamplingParams(
        temperature=temperature, seed=3, max_tokens=24, ignore_eos=True, logprobs=0
    )
    generated = chosen_logprobs(llm, params)
    for text, tokens in zip(TEXTS, generated, strict=True):
        prompt = llm.tokenizer.encode(text) + [token_id for token_id, _ in tokens]
        again = llm.generate([prompt], SamplingParams(max_tokens=0, prompt_logprobs=0))[0]
        assert again.prompt_logprobs is not None
        scored = again.prompt_logprobs[-len(tokens) :]
        assert [(t, table[t].logprob) for (t, _), table in zip(tokens, scored, strict=True)] == (
            tokens
        )


def test_recorded_again_for_another_number_of_threads(llm):
    params = SamplingParams(temperature=0.7, seed=1, max_tokens=8, ignore_eos=True, logprobs=0)
    expected = chosen_logprobs(llm, params)
    before = _C.num_threads()
    try:
        for count in (1, 3, before):
            _C.set_num_threads(count)
            assert chosen_logprobs(llm, params) == expected
    finally:
        _C.set_num_threads(before)


def test_an_interrupted_recording_is_not_replayed(folder, monkeypatch):
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    with LLM(folder, page_size=16) as llm:
        step = "lampo.models.decoder.Decoder.logits"
        with monkeypatch.context() as patched:
            calls = []

            def interrupted(
                self: Decoder, hidden: torch.Tensor, out: torch.Tensor | None = None
            ) -> torch.Tensor:
                calls.append(hidden)
                if len(calls) == 2:  # the first is that of the prompt
                    raise KeyboardInterrupt
                return logits(self, hidden, out)

            logits = Decoder.logits
            patched.setattr(step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.generate(["Hello"], params)
        after = llm.generate(["Hello"], params)[0].outputs[0].token_ids
    with LLM(folder, page_size=16) as llm:
        assert llm.generate(["Hello"], params)[0].outputs[0].token_ids == after


def test_parameters_follow_the_sequence(llm):
    """Greedy, sampled and biased requests take turns in the same row of the same recording."""

    def run(**settings: Any) -> list[int]:
        params = SamplingParams(max_tokens=6, ignore_eos=True, **settings)
        return llm.generate(["Hello"], params)[0].outputs[0].token_ids

    greedy, sampled = run(temperature=0), run(temperature=5.0, seed=9)
    banned = {greedy[3]: -100.0}
    biased = run(temperature=0, logit_bias=banned)
    assert greedy != sampled and biased[:3] == greedy[:3] and biased[3] != greedy[3]
    assert run(temperature=0) == greedy
    assert run(temperature=5.0, seed=9) == sampled
    assert run(temperature=0, logit_bias=banned) == biased


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 3.0, "top_p": 0.7},
        {"temperature": 2.0, "top_k": 20, "min_p": 0.02},
    ],
)
def test_the_recorded_draw_is_the_sampler_s(llm, settings):
    """A bias of nothing takes the draw out of the recording, and changes no token."""
    recorded, apart = (
        [
            output.outputs[0].token_ids
            for output in llm.generate(
                TEXTS,
                SamplingParams(
                    seed=11, max_tokens=20, ignore_eos=True, logit_bias=bias, **settings
                ),
            )
        ]
        for bias in ({}, {3: 0.0})
    )
    assert recorded == apart


def test_running_ahead_changes_no_token(llm, monkeypatch):
    """As on a GPU: the next step reads the drawn tokens from the previous step's output."""
    settings = [{"temperature": 0.0}, {"temperature": 2.0, "top_p": 0.9}, {"temperature": 1.0}]
    params = [
        SamplingParams(seed=5, max_tokens=n, ignore_eos=True, **s)
        for n, s in zip((20, 9, 30), settings, strict=True)
    ]
    expected = llm.generate(TEXTS, params)
    calls = []
    run = DecodeStep.run

    def counted(self: DecodeStep, sequences: list[Sequence], *, ahead: bool = False) -> Drawn:
        calls.append(ahead)
        return run(self, sequences, ahead=ahead)

    monkeypatch.setattr(DecodeStep, "run", counted)
    monkeypatch.setattr(llm.shared_engine().engine, "_run_ahead", True)
    found = llm.generate(TEXTS, params)
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]
    # Each time that one ends, a step waits for its tokens.
    assert calls.count(True) == 29 - 3 and calls.count(False) == 3


def test_a_step_with_rows_to_spare(llm):
    """Buckets of a GPU: rows without a sequence change nothing, in the cache neither."""
    engine = llm.shared_engine().engine
    runner: Any = engine.runner
    pool = engine.pool
    params = SamplingParams(temperature=1.5, seed=2, max_tokens=8, ignore_eos=True)
    sequences = [llm.request(text, params).sequences[0] for text in TEXTS]
    page = 0
    for sequence in sequences:
        count = -(-len(sequence.token_ids) // pool.page_size)
        sequence.pages = list(range(page, page + count))
        page += count
    pool.fill_randomly(list(range(page + 1)))
    for sequence in sequences:
        sequence.num_computed = len(sequence.token_ids) - 1
    exact = runner.decode_step(3).run(sequences)
    untouched = [t[page].clone() for t in pool.cache.paged_tensors()]
    logits = torch.empty(4, llm.config.vocab_size)
    scratch = torch.empty(
        ops.sampling_workspace_size(llm.config.vocab_size, batch_size=4), dtype=torch.uint8
    )
    wide = DecodeStep(runner.model, pool, logits, 40, scratch)
    for rows in (sequences, sequences[:1], sequences):
        found = wide.run(rows)
        assert found.token_ids == exact.token_ids[: len(rows)]
        assert torch.equal(found.logits, exact.logits[: len(rows)])
    assert all(map(torch.equal, untouched, (t[page] for t in pool.cache.paged_tensors())))


def test_buckets():
    assert [decode_bucket(n, 48) for n in (1, 2, 3, 4, 5, 31, 33, 48)] == [
        *(1, 2, 4, 4, 8, 32, 48, 48)
    ]


def test_profile(llm):
    found = lampo.profile(llm, batch_size=2, depth=40, repeats=5)
    calls = {op.name: op.calls for op in found.ops}
    assert calls["paged_attention"] == calls["append_kv"] == NUM_LAYERS
    assert calls["embedding"] == calls["sample"] == 1
    assert sum(n for name, n in calls.items() if name.startswith("linear")) == 4 * NUM_LAYERS + 1
    attention = llm.config.layers[0].attention
    kv = 2 * 41 * attention.kv_size * 2
    q = 2 * attention.q_size * 4
    (attention,) = [op for op in found.ops if op.name == "paged_attention"]
    assert attention.nbytes == NUM_LAYERS * 2 * (kv + q)
    assert found.ops == sorted(found.ops, key=lambda op: -op.seconds)
    assert 0 < found.seconds < 1 and found.read_bandwidth > 1e8
    assert found.share_of_limit == pytest.approx(
        found.nbytes / found.read_bandwidth / found.seconds
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"batch_size: expected .* got 0"),
        ({"batch_size": 5}, r"batch_size: expected .* got 5"),
        ({"depth": -1}, r"depth: expected .* got -1"),
        ({"depth": 1 << 20}, r"depth: expected .* got 1048576"),
        ({"repeats": 0}, r"repeats: expected .* got 0"),
    ],
)
def test_profile_bad_arguments(llm, arguments, message):
    with pytest.raises(ValueError, match=message):
        lampo.profile(llm, **arguments)


def test_profile_command(folder, capsys):
    command = ["profile", "-m", str(folder), "-b", "2", "--repeats", "3"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch_size"] == 2 and found["seconds"] > 0
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "paged_attention" in text and "batch 2, 0 tokens in the cache" in text
    assert main([*command, "--depth", "-3"]) == 2
    assert "depth: expected" in capsys.readouterr().err


def test_read_bandwidth_of_a_small_buffer():
    assert all(rate > 1e8 for rate in read_bandwidth(1 << 20, 2, repeats=2))
