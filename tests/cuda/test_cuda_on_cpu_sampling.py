# SPDX-License-Identifier: Apache-2.0
"""sample and token_logprobs of csrc/cuda/ on the CPU, under sanitizers: the bits of the CPU ops. No
GPU needed."""

from __future__ import annotations

import pytest
import torch
from test_sample import CASES, KINDS, Outputs, full, make_rows, ragged, run, same_everywhere

from cuda_on_cpu.client import Client
from lampo import ops

pytestmark = pytest.mark.long


def sample_there(
    client: Client,
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    *,
    order: str = "forward",
    **options: torch.Tensor,
) -> Outputs:
    """As test_sample.run, on the device."""
    batch_size, vocab_size = logits.shape
    if not isinstance(temperature, torch.Tensor):
        temperature = full(batch_size, temperature)
    options.setdefault("seeds", torch.arange(batch_size))
    kept = torch.full((batch_size, vocab_size + 3), 7, dtype=torch.uint8)
    processed = torch.full((batch_size, vocab_size + 3), 7.0)
    out = {
        "token_ids": torch.full((batch_size,), -7),
        "status": torch.full((batch_size,), -7, dtype=torch.int32),
        "logprobs": torch.full((batch_size, 2), 1.25e30),
        "kept": kept[:, :vocab_size],
        "num_kept": torch.full((batch_size,), -7, dtype=torch.int32),
        "processed_logprobs": processed[:, :vocab_size],
    }
    client.call("sample", order=order, logits=logits, temperature=temperature, **options, **out)
    for rows in (kept, processed):
        assert (rows[:, vocab_size:] == 7).all(), "wrote past a row"
    return Outputs(**out | {"kept": out["kept"].bool()})


def assert_same(there: Outputs, here: Outputs) -> None:
    for name, a, b in zip(Outputs._fields, there, here, strict=True):
        if name == "logprobs":
            a, b = a.view(torch.int32), b.view(torch.int32)  # NaN is what it is
        assert torch.equal(a, b), (name, a, b)


def check(client, logits, temperature=1.0, **options) -> None:
    assert_same(
        sample_there(client, logits, temperature, **options), run(logits, temperature, **options)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 1), (6, 5), (8, 300), (6, 2000), (3, 5003)], ids=str)
def test_same_as_on_the_cpu(client, generator, kind, shape):
    """Filters of all kinds, mixed with greedy rows. Rows of 5003 equal logits overflow the list."""
    batch_size, vocab_size = shape
    logits = make_rows(kind, shape, generator)
    pick = torch.randint(0, 8, (4, batch_size), generator=generator)
    small = torch.rand(2, batch_size, generator=generator)
    sizes = torch.tensor([0, 0, 0, 1, 5, 50, vocab_size // 2 + 1, vocab_size])
    check(
        client,
        logits,
        torch.tensor([1, 1, 0, 0.7, 0.3, 1.5, 10, 1e-3])[pick[0]],
        top_k=sizes[pick[1]].to(torch.int32),
        top_p=torch.where(pick[2] < 2, 1.0, torch.where(pick[2] < 5, 0.9, 1 - small[0])),
        min_p=torch.where(pick[3] < 5, 0.0, 0.2 * small[1] ** 3),
    )


@pytest.mark.parametrize("kind", ["flat", "peaked", "tied", "equal", "minus inf"])
@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 1e-6}, {"top_p": 0.5}, {"top_p": 0.9999}, {"top_k": 1}, {"top_k": 50},
        {"top_k": 4990}, {"top_k": 4990, "top_p": 0.7}, {"top_k": 40, "top_p": 0.99},
        {"top_k": 300, "top_p": 0.5, "min_p": 0.01}, {"min_p": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_filters(clients, generator, kind, options):
    dtypes = {"top_k": torch.int32}
    values = {k: full(2, v, dtypes.get(k, torch.float32)) for k, v in options.items()}
    for temperature in (0.8, 60.0):  # the second overflows the list
        check(clients["address"], make_rows(kind, (2, 5003), generator), temperature, **values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [40, 1000, 5003])
def test_penalties_bias_and_mask(client, generator, dtype, vocab_size):
    logits = (2 * torch.randn(5, vocab_size, generator=generator)).to(dtype)
    sizes = [0, 1, 7, 20, 13]
    ids, cu = ragged([torch.randperm(vocab_size, generator=generator)[:n].tolist() for n in sizes])
    bias_ids, cu_bias = ragged(
        [torch.randperm(vocab_size, generator=generator)[:n].tolist() for n in sizes[::-1]]
    )
    bias_values = 5 * torch.randn(len(bias_ids), generator=generator)
    bias_values[:4] = torch.tensor([-torch.inf, 100.0, torch.nan, torch.inf])
    words = -(-vocab_size // 32)
    step_one = {
        "penalty_ids": ids,
        "penalty_counts": torch.randint(0, 4, ids.shape, generator=generator, dtype=torch.int32),
        "cu_penalties": cu,
        "repetition_penalty": torch.tensor([1.0, 1.3, 0.8, 2.0, 1.0]),
        "presence_penalty": torch.tensor([0.5, 0.0, -1.0, 0.7, 0.1]),
        "frequency_penalty": torch.tensor([0.0, 0.25, 1.5, -0.5, 0.1]),
        "bias_ids": bias_ids,
        "bias_values": bias_values,
        "cu_bias": cu_bias,
        "allowed_mask": torch.randint(-(2**31), 2**31, (5, words), generator=generator).to(
            torch.int32
        ),
    }
    temperature = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0])
    parts = [{k: v for k, v in step_one.items() if word in k} for word in ("penal", "bias", "mask")]
    for part in (step_one, *parts):
        check(client, logits, temperature, **part)
        check(client, logits, temperature, top_p=full(5, 0.5), **part)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_any_slot_batch_stride_dtype_and_order(client, generator, options):
    """And so any number of CUDA blocks a row, which the batch's size decides."""
    logits, temperature, values = same_everywhere(
        5003, 7, "peaked", options, generator, torch.bfloat16
    )
    expected = run(logits, temperature, **values)
    assert_same(sample_there(client, logits, temperature, order="backward", **values), expected)
    apart = torch.zeros(7, 5111, dtype=torch.bfloat16)
    apart[:, 11:5014] = logits
    assert_same(sample_there(client, apart[:, 11:5014], temperature, **values), expected)
    aligned = torch.zeros(7, 5008)
    aligned[:, :5003] = logits
    assert_same(sample_there(client, aligned[:, :5003], temperature, **values), expected)
    for b in (0, 6):
        row = {k: v[b : b + 1].clone() for k, v in values.items()}
        alone = sample_there(client, logits[b : b + 1].clone(), temperature[:1], **row)
        assert_same(alone, tuple(x[b : b + 1] for x in expected))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 50}], ids=str)
def test_many_parts(clients, generator, options):
    """Five of a row of 20,000 tokens."""
    logits, temperature, values = same_everywhere(
        20_000, 1, "flat", options, generator, torch.float32
    )
    check(clients["address"], logits, temperature, **values)


def test_without_optional_arguments(client):
    logits = torch.randn(3, 300)
    token_ids, status = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int32)
    seeds = torch.arange(3)
    client.call(
        "sample", logits=logits, temperature=full(3, 1.0), seeds=seeds, token_ids=token_ids,
        status=status,
    )  # fmt: skip
    assert torch.equal(token_ids, ops.sample(logits, temperature=full(3, 1.0), seeds=seeds))
    assert not status.any()


def test_values_out_of_range_touch_nothing(client, generator):
    """Values that the CPU op refuses: no access out of bounds, and other rows are unchanged."""
    logits = torch.randn(6, 700, generator=generator)
    odd = torch.tensor([torch.nan, -1.0, torch.inf, 2.0])
    good = torch.tensor([0.7, 0.7])
    options = {
        "top_k": torch.tensor([-5, 2**31 - 1, -(2**31), 701, 20, 20], dtype=torch.int32),
        "top_p": torch.cat([odd, good]),
        "min_p": torch.cat([odd.flip(0), 0.1 * good]),
        "positions": torch.tensor([-1, 2**62, -(2**63), 5, 6, 7]),
        "penalty_ids": torch.tensor([700, -1, 2**31 - 1, -(2**31), 3, 4], dtype=torch.int32),
        "penalty_counts": torch.tensor([1, 1, 1, 1, 1, -1], dtype=torch.int32),
        "cu_penalties": torch.tensor([0, -7, 9, 2**31 - 1, 4, 6, 6], dtype=torch.int32),
        "repetition_penalty": torch.tensor([0.0, torch.nan, -1.0, torch.inf, 1.2, 1.2]),
        "bias_ids": torch.tensor([-3, 999, 5], dtype=torch.int32),
        "bias_values": torch.tensor([1.0, 2.0, 3.0]),
        "cu_bias": torch.tensor([1, 2**31 - 1, -(2**31), 3, 2, 3, 1], dtype=torch.int32),
    }
    temperature = torch.cat([odd, good])
    token_ids, status, *_ = sample_there(client, logits, temperature, **options)
    assert (((token_ids >= 0) & (token_ids < 700) & (status == 0)) | (status == 1)).all()
    for b, penalty_ids, bias_ids in ((4, [3, 4], [5]), (5, [], [])):
        row = {k: v[b : b + 1] for k, v in options.items() if len(v) == 6 and "penalty_" not in k}
        row["penalty_ids"], row["cu_penalties"] = ragged([penalty_ids])
        row["penalty_counts"] = torch.tensor([1, -1][: len(penalty_ids)], dtype=torch.int32)
        row["bias_ids"], row["cu_bias"] = ragged([bias_ids])
        row["bias_values"] = torch.tensor([3.0][: len(bias_ids)])
        expected = run(logits[b : b + 1], temperature[b : b + 1], seeds=torch.tensor([b]), **row)
        assert int(token_ids[b]) == int(expected[0])


def table_there(client, logits, token_ids, num_top, order="forward"):
    rows = len(logits)
    out = {
        "logprob": torch.full((rows,), 1.25e30),
        "rank": torch.full((rows,), -7, dtype=torch.int32),
        "top_ids": torch.full((rows, num_top), -7, dtype=torch.int32),
        "top_logprobs": torch.full((rows, num_top), 1.25e30),
    }
    client.call("token_logprobs", order=order, logits=logits, token_ids=token_ids, **out)
    return tuple(out.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_token_logprobs(client, generator, kind, dtype):
    for shape in [(5, 1), (5, 5), (4, 300), (3, 5003)]:
        logits = make_rows(kind, shape, generator).to(dtype)
        token_ids = torch.randint(shape[1], (shape[0],), generator=generator)
        token_ids[0] = -1
        # Of a large vocabulary a few counts: on the CPU its blocks take seconds.
        counts = {1, 30} if shape[1] > 300 else {n for n in (0, 1, 5, 30, 300) if n <= shape[1]}
        for num_top in sorted(counts):
            expected = ops.token_logprobs(logits, token_ids, num_top)
            order = "backward" if num_top == 1 else "forward"
            actual = table_there(client, logits, token_ids, num_top, order)
            for a, b in zip(actual, expected, strict=True):
                assert torch.equal(a.view(torch.int32), b.view(torch.int32)), (shape, num_top)


def test_token_logprobs_of_ids_out_of_range(client):
    logits = torch.randn(4, 300)
    token_ids = torch.tensor([300, -2, 2**62, 299])
    logprob, rank, *_ = table_there(client, logits, token_ids, 2)
    assert logprob[:3].isnan().all() and rank[:3].tolist() == [0, 0, 0]
    assert torch.equal(logprob[3:], ops.token_logprobs(logits[3:], token_ids[3:])[0])


def test_no_rows(client):
    nothing = torch.zeros(0, 8)
    assert sample_there(client, nothing)[0].shape == (0,)
    assert table_there(client, nothing, torch.zeros(0, dtype=torch.int64), 2)[0].shape == (0,)
