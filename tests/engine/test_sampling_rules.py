# SPDX-License-Identifier: Apache-2.0
"""The arrays that the sampler reads, against what they stand for, and what a step costs."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lampo import SamplingParams
from lampo.engine.sampling_rules import PenaltyCounts, SamplingRules, token_mask

VOCAB_SIZE = 300
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=400)


def make_rules(prompt: Sequence[int] = (), vocab_size: int = VOCAB_SIZE, **fields: Any) -> Any:
    tokenizer: Any = None  # only a grammar needs it
    return SamplingRules(
        SamplingParams(**fields).resolved({}),
        list(prompt),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        eos_token_ids=frozenset({2}),
    )


@given(prompt=TOKENS, output=TOKENS, repetition=st.booleans())
def test_penalty_counts(prompt, output, repetition):
    rules = make_rules(prompt, repetition_penalty=1.5 if repetition else 1.0, presence_penalty=1)
    both = [PenaltyCounts(rules), PenaltyCounts(rules)]  # share the rules, and nothing else
    for token_id in output:
        both[0].add(token_id)
    for counts, expected in zip(both, (Counter(output), Counter()), strict=True):
        listed = dict.fromkeys(prompt if repetition else [], 0) | expected
        assert len(counts.ids) == len(listed)
        assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == listed


@given(st.sets(st.integers(0, VOCAB_SIZE - 1)))
def test_token_mask(allowed):
    mask = token_mask(tuple(allowed), VOCAB_SIZE)
    assert mask.dtype == np.int32 and mask.shape == (10,)
    assert {i for i in range(320) if mask[i // 32] >> (i % 32) & 1} == allowed


def test_biases_and_banned_stop_tokens():
    rules = make_rules(logit_bias={2: 5.0, 7: -1.0}, stop_token_ids=[9])
    ids, values = rules.biases([], False)
    assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == {2: 5.0, 7: -1.0}
    ids, values = rules.biases([], True)
    banned = -float("inf")
    assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == {2: banned, 7: -1.0, 9: banned}
    assert rules.biases([], True)[0] is ids  # made once
    assert make_rules(ignore_eos=True).stop_ids == frozenset()


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"temperature": 0.5, "top_p": 0.5, "stop": "x"}, False),
        ({"logprobs": 0}, False),
        ({"presence_penalty": 0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"logit_bias": {1: 1.0}}, True),
        ({"allowed_token_ids": [1]}, True),
        ({"logprobs": 1, "logprobs_mode": "processed"}, True),
        ({"logprobs_mode": "processed"}, False),
    ],
)
def test_which_requests_need_a_draw_of_their_own(fields, needs):
    assert make_rules(**fields).needs_own_draw is needs


def test_a_token_costs_microseconds_whatever_the_prompt():
    prompt = list(range(65536))
    rules = make_rules(prompt, vocab_size=65536, repetition_penalty=1.2)
    counts = PenaltyCounts(rules)
    times = []
    for token_id in range(2000):
        begin = time.perf_counter()
        counts.add(token_id * 31 % 70000)
        assert len(counts.ids) == len(counts.counts)
        times.append(time.perf_counter() - begin)
    assert statistics.median(times) < 20e-6
