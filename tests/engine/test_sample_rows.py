# SPDX-License-Identifier: Apache-2.0
"""Sequences to the tensors of ops.sample: the same values for prompts and decode steps."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from fake_runner import VOCAB_SIZE, make_request

from lampo import SamplingParams, ops
from lampo.engine.request import Sequence
from lampo.engine.sample_rows import row_dtypes, sample_arrays
from lampo.engine.step_inputs import StepInputs
from lampo.ops.sample_inputs import PER_ROW, SampleInputs

CPU = torch.device("cpu")
CUTS = {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125}
PENALTIES = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": -0.25}


def sequence(prompt: list[int], **options) -> Sequence:
    return make_request("a", prompt, **options).sequences[0]


def sample_inputs(rows: list[Sequence], vocab_size: int) -> tuple[SampleInputs, list[str | None]]:
    arrays, errors = sample_arrays(rows, vocab_size)
    return SampleInputs(**{n: torch.from_numpy(a) for n, a in arrays.items()}), errors


def test_only_what_changes_something_is_given():
    inputs, errors = sample_inputs([sequence([1, 2], seed=5), sequence([1])], VOCAB_SIZE)
    given = [f.name for f in fields(inputs) if getattr(inputs, f.name) is not None]
    assert given == ["temperature", "seeds", "positions"]
    assert inputs.seeds.tolist() == [5, 0] and inputs.positions.tolist() == [2, 1]
    assert errors == [None, None]


def test_every_field_of_a_row():
    rows = [sequence([1, 2]), sequence([3], **CUTS, **PENALTIES, logit_bias={4: 2.0})]
    inputs, _ = sample_inputs(rows, VOCAB_SIZE)
    for name, row in PER_ROW.items():
        values = getattr(inputs, name)
        assert values.dtype == row.dtype
        if name not in ("temperature", "seeds", "positions"):
            assert values.tolist() == [row.neutral, (CUTS | PENALTIES)[name]]
    assert inputs.penalty_ids.tolist() == [3] and inputs.cu_penalties.tolist() == [0, 0, 1]
    assert inputs.bias_ids.tolist() == [4] and inputs.cu_bias.tolist() == [0, 0, 1]
    assert inputs.bias_values.tolist() == [2.0] and inputs.allowed_mask is None


def test_a_decode_step_has_the_same_rows():
    rows = [sequence([1, 2, 3], **CUTS), sequence([3], top_k=-1, temperature=2.0, seed=9)]
    for one in rows:
        one.pages, one.num_computed = [0], len(one.token_ids) - 1
    step = StepInputs(3, 2, CPU)
    inputs, _ = sample_inputs(rows, VOCAB_SIZE)
    for some in (rows, rows[:1], rows):
        step.write(some, page_size=4)
        for name, row in PER_ROW.items():
            found = getattr(step.sample, name)
            expected = getattr(inputs, name)
            if expected is None:
                expected = torch.full((2,), row.neutral, dtype=row.dtype)
            assert torch.equal(found[: len(some)], expected[: len(some)]), name
            if name not in ("seeds", "positions"):
                padding = 0 if name == "temperature" else row.neutral
                assert found[len(some) :].tolist() == [padding] * (3 - len(some))


def test_every_per_row_field_has_its_parameter():
    params = SamplingParams().resolved({})
    for name in row_dtypes():
        assert name in ("seeds", "positions") or getattr(params, name) == PER_ROW[name].neutral


def test_a_mask_of_some_rows():
    rows = [sequence([1]), sequence([1], allowed_token_ids=[3, 40])]
    inputs, _ = sample_inputs(rows, VOCAB_SIZE)
    assert inputs.allowed_mask.numpy().view(np.uint32).tolist() == [[2**32 - 1] * 2, [8, 256]]


def test_fields_are_given_together_or_one_by_one():
    logits = torch.zeros(1, 8)
    inputs = ops.SampleInputs(temperature=torch.zeros(1))
    assert ops.sample(logits, inputs).tolist() == [0]
    with pytest.raises(TypeError, match="top_k: is a field of inputs"):
        ops.sample(logits, inputs, top_k=torch.ones(1, dtype=torch.int32))
    with pytest.raises(TypeError, match="top_j"):
        ops.sample(logits, temperature=torch.zeros(1), top_j=None)
    with pytest.raises(TypeError, match="temperature"):
        ops.sample(logits)
