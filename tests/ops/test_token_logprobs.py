# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from test_sample import make_rows

from lampo import _C, ops
from lampo.bench import reference

SHAPES = [(6, 1), (6, 5), (5, 300), (4, 5000), (2, 49152)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["flat", "peaked", "zipf", "tied", "nan", "minus inf", "equal"])
def test_token_logprobs(isa, generator, kind, dtype):
    for shape in SHAPES:
        logits = make_rows(kind, shape, generator).to(dtype)
        logits[:, -1] = 1.0  # at least one finite
        token_ids = torch.randint(shape[1], (shape[0],), generator=generator)
        log_p, expected_rank, order = reference.token_logprobs(logits, token_ids)
        for num_top in (0, 1, 5, 20, shape[1] // 2, shape[1]):
            if num_top > shape[1] or (num_top > 20 and shape[1] > 5000):
                continue
            logprob, rank, top_ids, top_logprobs = ops.token_logprobs(logits, token_ids, num_top)
            expected = log_p.gather(1, token_ids[:, None])[:, 0]
            assert torch.allclose(logprob.double(), expected, atol=2e-6, rtol=2e-7)
            assert torch.equal(rank.long(), expected_rank)
            top = order[:, :num_top]
            assert torch.equal(top_ids.long(), top)
            assert torch.allclose(top_logprobs.double(), log_p.gather(1, top), atol=2e-6, rtol=2e-7)


def test_against_torch(generator):
    logits = torch.randn(3, 128256, generator=generator) * 3
    token_ids = torch.tensor([5, 128255, 70000])
    logprob, _, top_ids, top_logprobs = ops.token_logprobs(logits, token_ids, 20)
    expected = torch.log_softmax(logits, dim=1)
    assert torch.allclose(logprob, expected.gather(1, token_ids[:, None])[:, 0], atol=2e-5)
    values, ids = expected.topk(20)
    assert torch.equal(top_ids.long(), ids)
    assert torch.allclose(top_logprobs, values, atol=2e-5)


def test_same_on_every_isa_and_thread_count(generator):
    logits = torch.randn(3, 20_000, generator=generator).round(decimals=1)
    token_ids = torch.tensor([0, 19_999, 77])
    isa, threads = _C.cpu_isa(), _C.num_threads()
    expected = ops.token_logprobs(logits, token_ids, 30)
    try:
        for name in _C.runnable_isas():
            _C.set_cpu_isa(name)
            for count in (1, 2, 5):
                _C.set_num_threads(count)
                for a, b in zip(ops.token_logprobs(logits, token_ids, 30), expected, strict=True):
                    assert torch.equal(a, b)
    finally:
        _C.set_cpu_isa(isa)
        _C.set_num_threads(threads)


def test_no_token_and_infinite_logits(isa):
    logits = torch.zeros(3, 40)
    logits[1, [3, 30]] = torch.inf
    logits[2] = -torch.inf
    logprob, rank, top_ids, top_logprobs = ops.token_logprobs(logits, torch.tensor([-1, 30, 0]), 3)
    assert logprob[0].isnan() and rank.tolist() == [0, 1, 1]
    assert torch.allclose(logprob[1], torch.tensor(0.5).log())
    assert logprob[2].isnan()  # as log_softmax has it
    assert top_ids.tolist() == [[0, 1, 2], [3, 30, 0], [0, 1, 2]]
    assert top_logprobs[1, 2] == -torch.inf


def test_opcheck(generator):
    logits = torch.randn(2, 100, generator=generator)
    outputs = (
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(2, 4, dtype=torch.int32),
        torch.zeros(2, 4),
        torch.zeros(ops.sampling_workspace_size(100), dtype=torch.uint8),
    )
    torch.library.opcheck(
        torch.ops.lampo.token_logprobs.default, (logits, torch.tensor([3, 9]), *outputs)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": torch.tensor([0, 8])}, "token_ids: expected ids of .*, got 8 at index 1"),
        ({"token_ids": torch.tensor([0, -2])}, "token_ids: expected ids of the vocabulary, or -1"),
        ({"token_ids": torch.tensor([0])}, r"token_ids: expected shape \[2\], got \[1\]"),
        ({"num_top": 9}, r"num_top: expected a value in \[0, 8\], got 9"),
        ({"logprob": torch.zeros(3)}, r"logprob: expected shape \[2\], got \[3\]"),
        ({"rank": torch.zeros(2)}, "rank: expected int32, got float32"),
        ({"top_logprobs": torch.zeros(2, 4)}, r"top_logprobs: expected shape \[2, 3\]"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"token_ids": torch.tensor([0, 1]), "num_top": 3} | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.token_logprobs(torch.zeros(2, 8), **arguments)
