# SPDX-License-Identifier: Apache-2.0
"""LLM, from prompts to results, on tiny random models."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch
from checkpoints import make_checkpoint, make_gguf
from model_harness import all_pages_available, twin_logits

from lampo import _C, LLM, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
TEXTS = ["a", "Hello, world", "the quick brown fox " * 5, "x" * 70, "1 2 3 4 5", "ünïcödé 🙂"]


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


def ids_of(outputs: Any) -> list[list[int]]:
    return [completion.token_ids for output in outputs for completion in output.outputs]


def test_greedy_is_transformers_choice(llm, folder):
    twin = folder[1]
    for output in llm.generate(TEXTS, GREEDY):
        generated = output.outputs[0].token_ids
        assert len(generated) == 20
        logits = twin_logits(twin, output.prompt_token_ids + generated)
        expected = logits[len(output.prompt_token_ids) - 1 : -1].argmax(-1)
        assert generated == expected.tolist()


def test_shape_of_results(llm):
    output = llm.generate("Hello", change(GREEDY, n=3))[0]
    assert output.prompt == "Hello"
    assert output.prompt_token_ids == llm.tokenizer.encode("Hello")
    assert [c.index for c in output.outputs] == [0, 1, 2]
    completion = output.outputs[0]
    assert completion.text == llm.tokenizer.decode(completion.token_ids)
    assert completion.finish_reason == "length"
    assert completion.logprobs is None
    assert output.prompt_logprobs is None
    metrics = output.metrics
    assert metrics.time_to_first_token > 0
    assert metrics.time_per_output_token > 0
    assert metrics.num_prompt_tokens == len(output.prompt_token_ids)
    assert metrics.num_output_tokens == 60


def test_prompts_as_text_ids_one_or_many(llm):
    ids = llm.tokenizer.encode("Hello")
    expected = ids_of(llm.generate("Hello", GREEDY))
    assert ids_of(llm.generate(["Hello"], GREEDY)) == expected
    assert ids_of(llm.generate(ids, GREEDY)) == expected
    assert ids_of(llm.generate([ids, "Hello"], GREEDY)) == expected * 2
    assert llm.generate(ids, GREEDY)[0].prompt is None
    assert llm.generate([], GREEDY) == []


SEEDED = change(GREEDY, temperature=0.9, top_p=0.9, seed=11)


@pytest.mark.parametrize(
    ("quantization", "params"),
    [("F32", GREEDY), ("F32", SEEDED), ("Q4_0", SEEDED), ("Q4_1", GREEDY), ("Q8_0", SEEDED)],
)
def test_a_batch_gives_each_prompt_its_own_tokens(isa, tmp_path, params, quantization):
    """Bit for bit, logprobs too: alone, in a batch, in small steps, with any number of threads."""
    make_gguf(tmp_path / "m.gguf", quantization=quantization)
    params = change(params, logprobs=0)
    threads = _C.num_threads()
    try:
        with LLM(tmp_path / "m.gguf", page_size=16) as llm:
            alone = [llm.generate(text, params)[0].outputs[0] for text in TEXTS]
            assert llm.generate(TEXTS, params)[2].outputs[0] == alone[2]
            together = [o.outputs[0] for o in llm.generate(TEXTS, params)]
        _C.set_num_threads(1)
        with LLM(
            tmp_path / "m.gguf", page_size=64, max_num_batched_tokens=7, max_num_seqs=4
        ) as llm:
            in_steps = [o.outputs[0] for o in llm.generate(TEXTS, params)]
    finally:
        _C.set_num_threads(threads)
    assert together == alone
    assert in_steps == alone


def test_too_little_cache_for_all_at_once(folder):
    """Sequences wait for pages; the results stay the same."""
    with LLM(folder[0], dtype="float32") as llm:
        expected = ids_of(llm.generate(TEXTS * 2, GREEDY))
    config = llm.config
    token = 2 * config.num_layers * config.layers[0].attention.kv_size * 4
    with LLM(folder[0], dtype="float32", page_size=16, kv_cache_memory=256 * token) as llm:
        assert llm.shared_engine().engine.pool.num_pages == 16
        assert ids_of(llm.generate(TEXTS * 2, GREEDY)) == expected


@pytest.mark.parametrize(
    ("name", "bytes_per_element", "bytes_per_vector"),
    [("bfloat16", 2, 0), ("fp8", 1, 4), ("fp8_e4m3", 1, 4), ("int8", 1, 4)],
)
def test_memory_of_the_cache_by_its_type(folder, name, bytes_per_element, bytes_per_vector):
    """Eight bits halve it, plus a scale per key and value. And it generates."""
    with LLM(folder[0], page_size=16, kv_cache_dtype=name) as llm:
        config, pool = llm.config, llm.shared_engine().engine.pool
        attention = config.layers[0].attention
        vectors = 2 * config.num_layers * attention.num_kv_heads * 16
        expected = vectors * (attention.head_dim * bytes_per_element + bytes_per_vector)
        assert pool.bytes_per_page == expected
        assert (
            sum(tensor.nbytes for tensor in pool.cache.paged_tensors()) == pool.num_pages * expected
        )
        assert len(llm.generate("Hello", GREEDY)[0].outputs[0].token_ids) == 20


def test_same_seed_same_tokens_other_seed_others(llm):
    params = SamplingParams(temperature=1.5, max_tokens=12, seed=5, ignore_eos=True, n=2)
    first = ids_of(llm.generate("Hello", params))
    assert ids_of(llm.generate("Hello", params)) == first
    assert first[0] != first[1]
    assert ids_of(llm.generate("Hello", change(params, n=1, seed=6)))[0] == first[1]
    assert ids_of(llm.generate("Hello", change(params, seed=7))) != first
    unseeded = change(params, seed=None, n=1, max_tokens=30)
    assert ids_of(llm.generate("Hello", unseeded)) != ids_of(llm.generate("Hello", unseeded))


def test_logprobs(llm, folder):
    params = change(GREEDY, temperature=1.0, seed=3, logprobs=4, prompt_logprobs=2)
    output = llm.generate("Hello, world", params)[0]
    completion = output.outputs[0]
    ids = output.prompt_token_ids + completion.token_ids
    expected = twin_logits(folder[1], ids).double().log_softmax(-1)
    assert output.prompt_logprobs[0] is None
    tables = output.prompt_logprobs + completion.logprobs
    assert len(tables) == len(ids)
    for i, table in enumerate(tables[1:]):
        wanted = 2 if i + 1 < len(output.prompt_token_ids) else 4
        chosen = ids[i + 1]
        top = expected[i].topk(wanted).indices.tolist()
        assert set(table) == {*top, chosen}
        assert [table[t].rank for t in top] == list(range(1, wanted + 1))
        for token_id, entry in table.items():
            assert entry.logprob == pytest.approx(float(expected[i, token_id]), abs=1e-4)
            assert entry.rank == 1 + int((expected[i] > expected[i, token_id]).sum())
            assert entry.decoded_token == llm.tokenizer.token_to_text(token_id)


def test_logprobs_zero_is_the_chosen_token_alone(llm):
    completion = llm.generate("Hello", change(GREEDY, logprobs=0))[0].outputs[0]
    assert [list(table) for table in completion.logprobs] == [[t] for t in completion.token_ids]


def test_scoring_without_generating(llm):
    output = llm.generate("Hello", SamplingParams(max_tokens=0, prompt_logprobs=0))[0]
    assert output.outputs[0].token_ids == []
    assert output.outputs[0].finish_reason == "length"
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.metrics.time_to_first_token is None


def test_max_tokens_zero(llm):
    completion = llm.generate("Hello", SamplingParams(max_tokens=0))[0].outputs[0]
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", [], "length")


def test_stop_strings_and_tokens(llm):
    free = llm.generate("Hello", change(GREEDY, max_tokens=40))[0].outputs[0]
    text = free.text
    stop = text[5:8]
    stopped = llm.generate("Hello", change(GREEDY, max_tokens=40, stop=["never", stop]))[0]
    completion = stopped.outputs[0]
    assert completion.text == text[: text.index(stop)]
    assert completion.finish_reason == "stop"
    assert completion.stop_reason == stop
    token = free.token_ids[3]
    first = free.token_ids.index(token)
    completion = llm.generate("Hello", change(GREEDY, stop_token_ids=[token]))[0].outputs[0]
    assert completion.token_ids == free.token_ids[: first + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", token)


def test_end_of_sequence_min_tokens_and_ignore_eos(llm):
    (eos,) = llm.eos_token_ids
    biased = SamplingParams(temperature=0, max_tokens=6, logit_bias={eos: 100})
    completion = llm.generate("Hello", biased)[0].outputs[0]
    assert completion.token_ids == [eos]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert completion.text == ""
    completion = llm.generate("Hello", change(biased, min_tokens=3))[0].outputs[0]
    assert len(completion.token_ids) == 4
    assert completion.token_ids.index(eos) == 3
    completion = llm.generate("Hello", change(biased, ignore_eos=True))[0].outputs[0]
    assert completion.token_ids == [eos] * 6
    assert completion.finish_reason == "length"


def test_penalties_and_bias(llm, folder):
    free = llm.generate("Hello", change(GREEDY, max_tokens=30))[0].outputs[0].token_ids
    banned = change(GREEDY, max_tokens=30, logit_bias=dict.fromkeys(set(free), -100.0))
    assert not set(llm.generate("Hello", banned)[0].outputs[0].token_ids) & set(free)
    prompt = list(range(20, 220))
    free = llm.generate(prompt, change(GREEDY, max_tokens=30))[0].outputs[0].token_ids
    strong = SamplingParams(
        temperature=0,
        max_tokens=30,
        ignore_eos=True,
        repetition_penalty=1.5,
        presence_penalty=2.0,
        frequency_penalty=2.0,
    )
    generated = llm.generate(prompt, strong)[0].outputs[0].token_ids
    logits = twin_logits(folder[1], prompt + generated)[len(prompt) - 1 : -1].clone()
    for i, row in enumerate(logits):
        seen = torch.tensor(prompt + generated[:i])
        row[seen] = torch.where(row[seen] > 0, row[seen] / 1.5, row[seen] * 1.5)
        counts = torch.tensor(generated[:i], dtype=torch.int64).bincount(minlength=len(row))
        row -= 2.0 * counts + 2.0 * (counts > 0)
    assert generated == logits.argmax(-1).tolist()
    assert generated != free


def test_processed_logprobs_are_those_of_the_draw(llm, folder):
    prompt = list(range(20, 60))
    params = SamplingParams(
        temperature=0.7,
        top_k=12,
        top_p=0.9,
        min_p=0.02,
        seed=2,
        max_tokens=12,
        ignore_eos=True,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias={70: 1.5, 71: -2.0},
        allowed_token_ids=list(range(10, 200)),
        logprobs=20,
        logprobs_mode="processed",
    )
    completion = llm.generate(prompt, params)[0].outputs[0]
    generated = completion.token_ids
    raw = llm.generate(prompt, change(params, logprobs_mode="raw"))[0].outputs[0]
    assert raw.token_ids == generated
    assert raw.logprobs != completion.logprobs
    logits = twin_logits(folder[1], prompt + generated)[len(prompt) - 1 : -1].double()
    for i, row in enumerate(logits):
        seen = torch.tensor(sorted({*prompt, *generated[:i]}))
        row[seen] = torch.where(row[seen] > 0, row[seen] / 1.2, row[seen] * 1.2)
        counts = torch.tensor(generated[:i], dtype=torch.int64).bincount(minlength=len(row))
        row -= 0.3 * counts + 0.5 * (counts > 0)
        row[70] += 1.5
        row[71] -= 2.0
        row[:10] = row[200:] = -torch.inf
        row /= 0.7
        order = row.argsort(descending=True)[:12]
        p = row[order].softmax(-1)
        kept = order[: int((p.cumsum(-1) < 0.9).sum()) + 1]
        p = row.softmax(-1)
        kept = kept[p[kept] >= 0.02 * p.max()]
        expected = row[kept].log_softmax(-1)
        table = completion.logprobs[i]
        assert next(iter(table)) == generated[i]
        assert set(table) == set(kept.tolist())
        for rank, (token_id, logprob) in enumerate(zip(kept.tolist(), expected, strict=True)):
            assert table[token_id].rank == rank + 1
            assert table[token_id].logprob == pytest.approx(float(logprob), abs=1e-3)


def test_processed_logprobs_of_a_greedy_choice(llm):
    params = change(GREEDY, logprobs=3, logprobs_mode="processed")
    completion = llm.generate("Hello", params)[0].outputs[0]
    assert completion.token_ids == llm.generate("Hello", GREEDY)[0].outputs[0].token_ids
    for token_id, table in zip(completion.token_ids, completion.logprobs, strict=True):
        assert {key: (e.logprob, e.rank) for key, e in table.items()} == {token_id: (0.0, 1)}


def test_allowed_tokens(llm):
    allowed = [31, 32, 33, 64, 95, 319]
    free = SamplingParams(temperature=2.0, max_tokens=40, seed=1)
    completion = llm.generate("Hello", change(free, allowed_token_ids=allowed))[0].outputs[0]
    assert set(completion.token_ids) == set(allowed)
    one = llm.generate("Hello", change(free, allowed_token_ids=[7, 7]))[0].outputs[0]
    assert one.token_ids == [7] * 40
    (eos,) = llm.eos_token_ids
    ended = llm.generate("Hello", change(free, allowed_token_ids=[eos]))[0].outputs[0]
    assert (ended.token_ids, ended.finish_reason) == ([eos], "stop")
    banned = change(free, allowed_token_ids=[eos], min_tokens=1)
    first, second = llm.generate(["Hello", "world"], [banned, free])
    assert "masks left none" in first.outputs[0].error
    assert second.outputs == llm.generate("world", free)[0].outputs


def test_bad_words(llm):
    """Words of one token, of several, and of several that begin alike."""
    letters = llm.tokenizer.encode("xyz")
    params = SamplingParams(
        temperature=1.0, max_tokens=200, seed=1, ignore_eos=True, allowed_token_ids=letters
    )
    free = llm.generate("Hello", params)[0].outputs[0].text
    assert all(word in free for word in ("z", "xy", "yxx"))
    banned = change(params, bad_words=["xy", "yxx", "yyyy"], logit_bias={letters[0]: 0.5})
    text = llm.generate("Hello", banned)[0].outputs[0].text
    assert not any(word in text for word in ("xy", "yxx", "yyyy"))
    assert "x" in text and "yyy" in text
    assert "z" not in llm.generate("Hello", change(params, bad_words="z"))[0].outputs[0].text
    everything = change(params, bad_words=["x", "y", "z"])
    assert "masks left none" in llm.generate("Hello", everything)[0].outputs[0].error
    lone = change(params, bad_words=["\ud800"])
    with pytest.raises(ValueError, match="lone surrogate"):
        llm.generate("Hello", lone)


def test_stop_strings_in_the_output_and_the_first_to_be_complete(llm):
    params = change(GREEDY, max_tokens=40)
    text = llm.generate("Hello", params)[0].outputs[0].text
    inner, outer = text[8:10], text[5:12]
    assert text.index(inner) > 3 and inner not in outer[:4]
    for stops in ([outer, inner], [inner, outer, text[9:10] + "never"]):
        completion = llm.generate("Hello", change(params, stop=stops))[0].outputs[0]
        assert completion.stop_reason == inner
        assert completion.text == text[: text.index(inner)]
        kept = change(params, stop=stops, include_stop_str_in_output=True)
        completion = llm.generate("Hello", kept)[0].outputs[0]
        assert completion.text == text[: text.index(inner) + len(inner)]
        pieces = list(llm.stream("Hello", kept))
        assert "".join(p.text for p in pieces) == completion.text


@pytest.mark.parametrize("min_tokens", [0, 3, 6, 7, 8, 30])
def test_min_tokens_and_stop_strings(llm, min_tokens):
    """A stop string counts once it is completed by token min_tokens or a later one."""
    params = change(GREEDY, max_tokens=40, min_tokens=min_tokens)
    ids = llm.generate("Hello", change(GREEDY, max_tokens=40))[0].outputs[0].token_ids
    texts = [llm.tokenizer.decode(ids[: i + 1]) for i in range(40)]
    stop = texts[-1][4:7]
    begin = len(texts[min_tokens - 2]) if min_tokens > 1 else 0
    ends = [i for i in range(begin + 1, len(texts[-1]) + 1) if texts[-1][:i].endswith(stop)]
    completion = llm.generate("Hello", change(params, stop=stop))[0].outputs[0]
    if ends:
        assert (completion.text, completion.stop_reason) == (texts[-1][: ends[0] - 3], stop)
    else:
        assert (completion.text, completion.finish_reason) == (texts[-1], "length")
    assert ends or min_tokens > 5


def test_a_row_with_extras_leaves_the_other_rows_alone(llm):
    plain = change(GREEDY, temperature=0.8, seed=3)
    odd = change(plain, repetition_penalty=1.4, logit_bias=dict.fromkeys(range(0, 320, 3), -1.0))
    alone = [llm.generate(text, plain)[0].outputs[0] for text in TEXTS]
    for at in range(len(TEXTS)):
        params = [odd if i == at else plain for i in range(len(TEXTS))]
        found = [o.outputs[0] for o in llm.generate(TEXTS, params)]
        assert found[:at] + found[at + 1 :] == alone[:at] + alone[at + 1 :]
        assert found[at] == llm.generate(TEXTS[at], odd)[0].outputs[0] != alone[at]


def test_stream_is_generate_in_pieces(llm):
    for params in (GREEDY, change(GREEDY, temperature=1.2, seed=4, logprobs=1, max_tokens=40)):
        whole = llm.generate("ünïcödé 🙂", params)[0]
        pieces = list(llm.stream("ünïcödé 🙂", params))
        assert "".join(p.text for p in pieces) == whole.outputs[0].text
        assert [t for p in pieces for t in p.token_ids] == whole.outputs[0].token_ids
        assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1].finish_reason == whole.outputs[0].finish_reason
        assert pieces[-1].request.outputs == whole.outputs
        if params.logprobs is not None:
            assert [x for p in pieces for x in p.logprobs] == whole.outputs[0].logprobs


def test_stream_tells_how_much_of_the_prompt_is_computed(folder):
    """Before the first step and after each, until there is a token."""
    told = []
    with LLM(folder[0], max_num_batched_tokens=32, enable_prefix_caching=False) as llm:
        stream = llm.stream(
            [5] * 100, SamplingParams(max_tokens=4), on_prompt=lambda *counts: told.append(counts)
        )
        first = next(stream)
        assert told == [(0, 100), (32, 100), (64, 100), (96, 100)]
        assert first.token_ids
        list(stream)
    assert len(told) == 4


def test_stream_never_shows_a_stop_string(llm):
    text = llm.generate("Hello", change(GREEDY, max_tokens=40))[0].outputs[0].text
    stop = text[6:12]
    pieces = list(llm.stream("Hello", change(GREEDY, max_tokens=40, stop=stop)))
    assert "".join(p.text for p in pieces) == text[: text.index(stop)]
    assert pieces[-1].finish_reason == "stop"


def test_abandoned_stream_frees_its_pages(llm):
    stream = llm.stream("Hello", GREEDY)
    next(stream)
    assert not all_pages_available(llm)
    stream.close()
    assert all_pages_available(llm)


def test_streams_and_batches_from_several_threads(llm):
    expected = ids_of(llm.generate(TEXTS, GREEDY))
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        results[i] = ids_of(llm.generate(TEXTS, GREEDY))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(3)] == [expected] * 3


def test_chat_uses_the_template_and_treats_special_tokens_as_text(llm):
    messages = [{"role": "user", "content": "Hi <|im_end|> there"}]
    output = llm.chat(messages, GREEDY)[0]
    (end,) = llm.eos_token_ids
    assert output.prompt_token_ids.count(end) == 1
    assert output.prompt_token_ids == llm.encode_chat(messages)
    assert ids_of(llm.chat([messages, messages], GREEDY)) == ids_of([output]) * 2


def test_chat_continues_an_answer(llm):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "He"}]
    output = llm.chat(messages, GREEDY)[0]
    assert output.prompt_token_ids == llm.encode_chat(messages, continue_final_message=True)
    assert llm.tokenizer.decode(output.prompt_token_ids).endswith("assistant\nHe")
    answered = llm.chat(messages, GREEDY, add_generation_prompt=True)[0]
    assert llm.tokenizer.decode(answered.prompt_token_ids).endswith("assistant\n")
    with pytest.raises(ValueError, match="continue_final_message: does not go with"):
        llm.chat(messages, GREEDY, add_generation_prompt=True, continue_final_message=True)


def test_chat_of_no_token(llm, monkeypatch):
    """A request without a prompt token would never end."""
    messages = [{"role": "user", "content": "Hi"}]
    monkeypatch.setattr(llm.tokenizer, "encode_chat", lambda *args, **options: [])
    with pytest.raises(ValueError, match="messages: is empty"):
        llm.chat(messages, GREEDY)
    with pytest.raises(ValueError, match=r"messages\[0\]: is empty"):
        llm.chat([messages, messages], GREEDY)


def test_defaults_are_the_models_and_said_once(folder, caplog):
    with caplog.at_level(logging.DEBUG, "lampo"), LLM(folder[0]) as llm:
        assert (
            len(llm.generate("Hello", SamplingParams(ignore_eos=True))[0].outputs[0].token_ids) == 9
        )
    lines = [r.message for r in caplog.records if "sampling defaults" in r.message]
    assert lines == ["sampling defaults of the model: temperature=0.8, top_p=0.95, max_tokens=9"]


def test_a_context_costs_nothing_until_it_is_used(tmp_path):
    """A file may name any length: of 2^24 positions only those in use are computed."""
    path = tmp_path / "m.gguf"
    make_gguf(path, metadata={"llama.context_length": 1 << 24})
    memory = psutil.Process().memory_info().rss
    params = SamplingParams(max_tokens=3, temperature=0)
    with LLM(path, max_num_seqs=2) as long:
        found = ids_of(long.generate([[5, 6, 7]], params))
        assert long.max_model_len > 1 << 20  # by the machine's memory
        assert psutil.Process().memory_info().rss - memory < 500 << 20
    make_gguf(path)
    with LLM(path) as short:
        assert found == ids_of(short.generate([[5, 6, 7]], params))


def test_context_is_a_limit(llm):
    assert llm.max_model_len == 256
    completion = llm.generate([5] * 250, change(GREEDY, max_tokens=100))[0].outputs[0]
    assert len(completion.token_ids) == 6
    assert completion.finish_reason == "length"


def test_close_is_idempotent_and_final(folder):
    llm = LLM(folder[0])
    llm.close()
    llm.close()
    with pytest.raises(RuntimeError, match="this LLM is closed"):
        llm.generate("Hello")


def test_a_row_without_finite_logits_fails_its_request_alone(folder):
    with LLM(folder[0], dtype="float32") as llm:
        decoder = llm.shared_engine().engine.runner.model
        logits = decoder.logits

        def broken(hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
            rows = logits(hidden, out)
            if len(rows) == 2:
                rows[0] = float("nan")
            return rows

        decoder.logits = broken
        outputs = llm.generate(["Hello", "world"], GREEDY)
        assert outputs[0].outputs[0].finish_reason == "error"
        assert "no finite logit" in outputs[0].outputs[0].error
        decoder.logits = logits
        assert ids_of(outputs[1:]) == ids_of(llm.generate("world", GREEDY))


CUTS = SamplingParams(
    temperature=0.8, top_p=0.7, min_p=0.001, seed=5, max_tokens=8, ignore_eos=True
)


def test_num_kept(llm):
    """As many tokens as the processed table lists, whichever log-probabilities are wanted."""
    (processed,) = llm.generate("Hello", change(CUTS, logprobs=256, logprobs_mode="processed"))
    output = processed.outputs[0]
    assert output.num_kept == [len(table) for table in output.logprobs]
    assert min(output.num_kept) > 1 and max(output.num_kept) < 256
    for table in output.logprobs:
        assert sum(math.exp(entry.logprob) for entry in table.values()) == pytest.approx(1)
    (raw,) = llm.generate("Hello", change(CUTS, logprobs=0, n=2))
    assert raw.outputs[0].token_ids == output.token_ids
    assert raw.outputs[0].num_kept == output.num_kept
    assert [len(c.num_kept) for c in raw.outputs] == [8, 8]
    (none,) = llm.generate("Hello", CUTS)
    assert none.outputs[0].num_kept is None and none.prompt_num_kept is None
    (greedy,) = llm.generate("Hello", change(CUTS, temperature=0, logprobs=0))
    assert greedy.outputs[0].num_kept == [1] * 8
    (everything,) = llm.generate("Hello", change(CUTS, top_p=1, min_p=0, logprobs=0))
    assert everything.outputs[0].num_kept == [llm.config.vocab_size] * 8
    (few,) = llm.generate("Hello", change(CUTS, top_p=1, logprobs=0, allowed_token_ids=[5, 6, 7]))
    assert set(few.outputs[0].num_kept) <= {1, 2, 3}
    pieces = list(llm.stream("Hello", change(CUTS, logprobs=0)))
    assert [kept for piece in pieces for kept in piece.num_kept] == output.num_kept


def test_num_kept_of_a_prompt(llm):
    """What would be kept after each of its tokens, as if the prompt ended there."""
    prompt = llm.encode("Hello there")
    params = change(CUTS, logprobs=0, prompt_logprobs=0, max_tokens=1)
    (scored,) = llm.generate([prompt], params)
    assert scored.prompt_num_kept[0] is None
    for i in range(1, len(prompt)):
        (shorter,) = llm.generate([prompt[:i]], params)
        assert scored.prompt_num_kept[i] == shorter.outputs[0].num_kept[0]
    (penalized,) = llm.generate([prompt], change(params, presence_penalty=1))
    assert penalized.prompt_num_kept == [None] * len(prompt)
    assert len(penalized.prompt_logprobs) == len(prompt)
