# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats

from lampo import _C, ops
from lampo.bench import reference

# Tokens whose cumulative mass (or probability, for min-p) is so near to the bound, relatively, may
# fall on either side: the op's masses are rounded to 24 bits, the reference's are float64.
MARGIN = 4e-6


@pytest.fixture
def threads():
    before = _C.num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


def run(logits: torch.Tensor, temperature: float | torch.Tensor = 1.0, **options):
    """All outputs of one call."""
    batch_size, vocab_size = logits.shape
    if not isinstance(temperature, torch.Tensor):
        temperature = torch.full((batch_size,), temperature)
    options.setdefault("seeds", torch.arange(batch_size))
    out = {
        "token_ids": torch.full((batch_size,), -7),
        "status": torch.full((batch_size,), -7, dtype=torch.int32),
        "logprobs": torch.full((batch_size, 2), 1.25e30),
        "kept": torch.ones(batch_size, vocab_size, dtype=torch.bool),
        "num_kept": torch.full((batch_size,), -7, dtype=torch.int32),
        "processed_logprobs": torch.full((batch_size, vocab_size), 1.25e30),
    }
    before = logits.clone()
    assert ops.sample(logits, temperature=temperature, **out, **options) is out["token_ids"]
    assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "logits were modified"
    outputs = Outputs(**out)
    check_consistent(outputs)
    return outputs


class Outputs(NamedTuple):
    token_ids: torch.Tensor
    status: torch.Tensor
    logprobs: torch.Tensor
    kept: torch.Tensor
    num_kept: torch.Tensor
    processed_logprobs: torch.Tensor


def check_consistent(outputs: Outputs) -> None:
    """Checks that redundant outputs agree to the bit."""
    token_ids, status, logprobs, kept, num_kept, processed = outputs
    assert torch.equal(num_kept, kept.sum(1, dtype=torch.int32))
    assert torch.equal(num_kept == 0, status == 1)
    assert (processed[~kept] == -torch.inf).all()
    drawn = processed.gather(1, token_ids.clamp(min=0)[:, None])[:, 0]
    assert torch.equal(drawn[status == 0], logprobs[status == 0, 1])


def full(batch_size: int, value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((batch_size,), value, dtype=dtype)


def make_rows(kind: str, shape: tuple[int, int], g: torch.Generator) -> torch.Tensor:
    batch_size, vocab_size = shape
    x = torch.randn(shape, generator=g)
    if kind == "flat":
        return x
    if kind == "peaked":
        return 4 * x
    if kind == "spiky":
        return 0.1 * x + 12 * (torch.rand(shape, generator=g) < 3 / vocab_size)
    if kind == "zipf":
        order = torch.argsort(torch.rand(shape, generator=g), dim=1)
        return -1.1 * torch.log(order + 1.0) + 0.05 * x
    if kind == "ascending":
        return (4 * x).sort(dim=1).values
    if kind == "tied":
        return (2 * x).round()
    if kind == "equal":
        return torch.zeros(shape) - 3.5
    if kind == "signed zeros":
        return torch.where(x > 0.5, x, torch.where(x > 0, 0.0, -0.0))
    if kind == "huge":
        return x * 1e37
    if kind == "nan":
        return torch.where(torch.rand(shape, generator=g) < 0.5, torch.nan, x)
    if kind == "minus inf":
        return torch.where(torch.rand(shape, generator=g) < 0.9, -torch.inf, 2 * x)
    if kind == "plus inf":
        return torch.where(torch.rand(shape, generator=g) < 3 / vocab_size, torch.inf, x)
    assert kind == "one finite"
    out = torch.full(shape, -torch.inf)
    out[torch.arange(batch_size), torch.randint(vocab_size, (batch_size,), generator=g)] = x[:, 0]
    return out


KINDS = [
    "flat",
    "peaked",
    "spiky",
    "zipf",
    "ascending",
    "tied",
    "equal",
    "signed zeros",
    "huge",
    "nan",
    "minus inf",
    "plus inf",
    "one finite",
]
# (batch size, vocabulary): widths on both sides of the vectors, the blocks and the list.
SHAPES = [(60, 1), (60, 3), (60, 17), (60, 255), (40, 257), (20, 4097), (4, 49152), (2, 128256)]


def kept_bounds(
    logits: torch.Tensor, temperature: float | torch.Tensor = 1.0, top_k=0, top_p=1.0, min_p=0.0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per row of processed logits the references for slightly tighter and looser bounds."""
    filters = [torch.as_tensor(x).expand(len(logits)).tolist() for x in (temperature, top_k)]
    filters += [torch.as_tensor(x).double().expand(len(logits)).tolist() for x in (top_p, min_p)]
    bounds = []
    for row, t, k, p, m in zip(logits, *filters, strict=True):
        if t == 0 or not (row > -torch.inf).any():
            one = torch.nn.functional.one_hot(row.argmax(), len(row)).bool()
            one &= row > -torch.inf
            bounds.append((one, one))
            continue
        less = p * (1 - MARGIN) if p < 1 else p
        least = reference.kept_tokens(row, t, k, less, m * (1 + MARGIN))
        most = reference.kept_tokens(row, t, k, p * (1 + MARGIN), m * (1 - MARGIN))
        bounds.append((least, most))
    return bounds


def check_kept(bounds: list[tuple[torch.Tensor, torch.Tensor]], outputs) -> None:
    token_ids, status, logprobs, kept, *_ = outputs
    for b, (least, most) in enumerate(bounds):
        assert not (least & ~kept[b]).any(), f"row {b}: missing {(least & ~kept[b]).nonzero()}"
        assert not (kept[b] & ~most).any(), f"row {b}: too many {(kept[b] & ~most).nonzero()}"
        if most.any():
            assert kept[b, token_ids[b]] and status[b] == 0
        else:
            assert (int(token_ids[b]), int(status[b])) == (-1, 1)
            assert logprobs[b].isnan().all()


@pytest.fixture
def each_isa():
    """Switches through the kernel tables that this CPU can run."""
    before = _C.cpu_isa()

    def switch():
        for isa in _C.runnable_isas():
            _C.set_cpu_isa(isa)
            yield isa

    yield switch
    _C.set_cpu_isa(before)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_set_equals_the_sort_based_one(each_isa, generator, kind):
    rows = loose = 0
    for shape in SHAPES:
        logits = make_rows(kind, shape, generator)
        batch_size, vocab_size = shape
        pick = torch.randint(0, 8, (4, batch_size), generator=generator)
        small = torch.rand(2, batch_size, generator=generator)
        sizes = torch.tensor([0, 0, 0, 1, 5, 50, vocab_size // 2 + 1, vocab_size])
        filters = {
            "temperature": torch.tensor([1, 1, 1, 0.7, 0.3, 1.5, 10, 1e-3])[pick[0]],
            "top_k": sizes[pick[1]].to(torch.int32),
            "top_p": torch.where(pick[2] < 2, 1.0, torch.where(pick[2] < 5, 0.9, 1 - small[0])),
            "min_p": torch.where(pick[3] < 5, 0.0, 0.2 * small[1] ** 3),
        }
        bounds = kept_bounds(reference.processed_logits(logits), **filters)
        for _ in each_isa():
            check_kept(bounds, run(logits, **filters))
        loose += sum(not torch.equal(least, most) for least, most in bounds)
        rows += batch_size
    assert loose <= 2 + rows // 20, f"{loose} of {rows} rows could fall on either side"


@pytest.mark.parametrize("kind", KINDS)
def test_processed_logprobs(each_isa, generator, kind):
    """Log-probabilities among the candidates, compared with float64."""
    for batch_size, vocab_size in [(24, 1), (24, 17), (24, 300), (12, 5000)]:
        logits = make_rows(kind, (batch_size, vocab_size), generator)
        pick = torch.randint(0, 6, (4, batch_size), generator=generator)
        filters = {
            "temperature": torch.tensor([1, 0, 0.7, 0.3, 1.5, 10])[pick[0]],
            "top_k": torch.tensor([0, 0, 1, 5, 50, vocab_size])[pick[1]].to(torch.int32),
            "top_p": torch.tensor([1, 1, 0.9, 0.99, 0.5, 0.1])[pick[2]],
            "min_p": torch.tensor([0, 0, 0, 0, 0.01, 0.2])[pick[3]],
        }
        exact = reference.processed_logits(logits)
        for _ in each_isa():
            found = run(logits, **filters)
            for b in range(batch_size):
                kept = found.kept[b]
                temperature = float(filters["temperature"][b])
                p = reference.probabilities(exact[b], temperature or 1.0) * kept
                if temperature == 0:
                    p = kept.double()
                expected = torch.log(p / p.sum())[kept & (p > 0)]
                values = found.processed_logprobs[b][kept & (p > 0)]
                torch.testing.assert_close(values.double(), expected, rtol=2e-7, atol=1e-6)


def test_processed_logprobs_without_cuts_are_the_raw_ones(each_isa, generator):
    logits = torch.randn(3, 5000, generator=generator)
    top, ids = logits.max(1).values, torch.arange(3)
    for _ in each_isa():
        found = run(logits)
        assert found.num_kept.tolist() == [5000] * 3
        assert torch.equal(found.logprobs[:, 0], found.logprobs[:, 1])
        expected, _, top_ids, _ = ops.token_logprobs(logits, ids, 1)
        assert torch.equal(found.processed_logprobs[ids, ids], expected)
        assert torch.equal(logits[ids, top_ids[:, 0].long()], top)


def test_outputs_that_are_not_wanted(generator):
    """Each output alone is what it is with the others; rows of outputs may lie apart."""
    logits = make_rows("zipf", (4, 1000), generator)
    inputs = {"temperature": full(4, 0.8), "top_p": full(4, 0.8), "seeds": torch.arange(4)}
    expected = run(logits, **inputs)
    apart = torch.full((4, 1009), 7.0)
    ops.sample(logits, **inputs, processed_logprobs=apart[:, :1000])
    assert torch.equal(apart[:, :1000], expected.processed_logprobs)
    assert (apart[:, 1000:] == 7).all()
    num_kept = torch.zeros(4, dtype=torch.int32)
    tokens = ops.sample(logits, **inputs, num_kept=num_kept)
    assert torch.equal(num_kept, expected.num_kept) and torch.equal(tokens, expected.token_ids)


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("kind", ["flat", "peaked", "zipf", "ascending", "equal"])
def test_top_p_alone(generator, kind, top_p):
    logits = make_rows(kind, (2, 50_000), generator)
    p = full(2, top_p)
    check_kept(kept_bounds(logits, top_p=p), run(logits, top_p=p))


@pytest.mark.parametrize("top_k", [1, 2, 50, 200, 1000, 30_000, 49_999, 50_000, 60_000])
@pytest.mark.parametrize("kind", ["flat", "tied", "ascending", "equal", "minus inf"])
def test_top_k_alone(generator, kind, top_k):
    logits = make_rows(kind, (2, 50_000), generator)
    k = full(2, top_k, torch.int32)
    check_kept(kept_bounds(logits, top_k=k), run(logits, top_k=k))


def test_greedy_takes_the_first_of_the_largest(isa, generator):
    for vocab_size in (1, 5, 16, 255, 1000, 128256):
        logits = torch.randn(4, vocab_size, generator=generator).round()
        token_ids, status, logprobs, kept, *_ = run(logits, 0.0)
        assert torch.equal(token_ids, logits.argmax(1))
        assert torch.equal(kept.nonzero()[:, 1], token_ids)
        assert (status == 0).all() and (logprobs[:, 1] == 0).all()
    assert int(ops.sample(torch.tensor([[0.0, -0.0, 0.0]]), temperature=torch.zeros(1))) == 0


def test_greedy_and_sampled_rows_mix(generator):
    logits = torch.randn(6, 1000, generator=generator)
    temperature = torch.tensor([0, 1, 0, 0.5, 1, 0.0])
    token_ids, *_ = run(logits, temperature)
    alone = [
        run(logits[b : b + 1], temperature[b : b + 1], seeds=torch.tensor([b]))[0] for b in range(6)
    ]
    assert torch.equal(token_ids, torch.cat(alone))
    assert torch.equal(token_ids[[0, 2, 5]], logits[[0, 2, 5]].argmax(1))


def test_rows_without_a_candidate(isa):
    logits = torch.full((3, 300), -torch.inf)
    logits[1, 7] = 0.0
    logits[2] = torch.nan
    for temperature in (0.0, 1.0):
        token_ids, status, logprobs, kept, *_ = run(logits, temperature, top_p=full(3, 0.9))
        assert token_ids.tolist() == [-1, 7, -1]
        assert status.tolist() == [1, 0, 1]
        assert logprobs.isnan().all(1).tolist() == [True, False, True]
        assert kept.sum(1).tolist() == [0, 1, 0]


def test_infinite_logits_share_all_probability(isa):
    logits = torch.randn(400, 300)
    logits[:, [5, 17, 280]] = torch.inf
    token_ids, _, logprobs, kept, *_ = run(logits)
    assert set(token_ids.tolist()) == {5, 17, 280}
    assert torch.allclose(logprobs, torch.tensor(1 / 3).log(), atol=1e-6)
    assert kept.sum(1).eq(3).all()
    assert run(logits, 0.0)[0].eq(5).all()


def ragged(rows: list[list[int]], dtype: torch.dtype = torch.int32):
    cu = torch.tensor([0, *np.cumsum([len(row) for row in rows])], dtype=torch.int32)
    return torch.tensor([x for row in rows for x in row], dtype=dtype), cu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [40, 1000, 10_003])
def test_penalties_bias_and_mask(each_isa, generator, dtype, vocab_size):
    batch_size = 5
    logits = (2 * torch.randn(batch_size, vocab_size, generator=generator)).to(dtype)
    sizes = [0, 1, 7, 20, 13]
    ids, cu = ragged([torch.randperm(vocab_size, generator=generator)[:n].tolist() for n in sizes])
    bias_ids, cu_bias = ragged(
        [torch.randperm(vocab_size, generator=generator)[:n].tolist() for n in sizes[::-1]]
    )
    bias_values = 5 * torch.randn(len(bias_ids), generator=generator)
    bias_values[:2] = torch.tensor([-torch.inf, 100.0])
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
        "allowed_mask": torch.randint(-(2**31), 2**31, (batch_size, words), generator=generator).to(
            torch.int32
        ),
    }
    expected = reference.processed_logits(logits, **step_one)
    half = full(batch_size, 0.5)
    nucleus = kept_bounds(expected, top_p=half)
    everything = kept_bounds(expected)
    raw = torch.log_softmax(logits.double(), dim=1)
    parts = (
        {k: v for k, v in step_one.items() if "penal" in k},
        {k: v for k, v in step_one.items() if "bias" in k},
        {"allowed_mask": step_one["allowed_mask"]},
    )
    alone = [kept_bounds(reference.processed_logits(logits, **part), top_p=half) for part in parts]
    for _ in each_isa():
        check_kept(nucleus, run(logits, top_p=half, **step_one))
        check_kept(everything, run(logits, **step_one))
        token_ids, _, logprobs, _, *_ = run(logits, 0.0, **step_one)
        assert torch.equal(token_ids, expected.argmax(1))
        chosen = raw.gather(1, token_ids[:, None])[:, 0]
        assert torch.allclose(logprobs[:, 0].double(), chosen, atol=1e-5)
        for bounds, part in zip(alone, parts, strict=True):
            check_kept(bounds, run(logits, top_p=half, **part))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs(isa, generator, options, dtype):
    logits = (2 * torch.randn(40, 3000, generator=generator)).to(dtype)
    temperature = torch.rand(40, generator=generator) + 0.3
    dtypes = {"top_k": torch.int32}
    values = {k: full(40, v, dtypes.get(k, torch.float32)) for k, v in options.items()}
    token_ids, _, logprobs, kept, *_ = run(logits, temperature, **values)
    at = token_ids[:, None]
    raw = torch.log_softmax(logits.double(), dim=1).gather(1, at)[:, 0]
    scaled = (logits.double() / temperature.double()[:, None]).masked_fill(~kept, -torch.inf)
    processed = torch.log_softmax(scaled, dim=1).gather(1, at)[:, 0]
    # Relative to a probability; about 4 ulp of the exponent of the least likely tokens.
    assert torch.allclose(logprobs[:, 0].double(), raw, atol=3e-6, rtol=3e-7)
    assert torch.allclose(logprobs[:, 1].double(), processed, atol=3e-6, rtol=3e-7)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_raw_logprobs_are_those_of_token_logprobs(isa, generator, temperature):
    logits = torch.randn(5, 3000, generator=generator)
    for options in ({}, {"top_p": full(5, 0.8)}, {"top_k": full(5, 9, torch.int32)}):
        token_ids, _, logprobs, _, *_ = run(logits, temperature, **options)
        assert torch.equal(logprobs[:, 0], ops.token_logprobs(logits, token_ids)[0])


def chi_square(counts: torch.Tensor, p: torch.Tensor) -> float:
    """P-value of observed counts, cells with fewer than 5 expected thrown together."""
    expected = p.double() * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare].double(), counts[rare].sum().double()[None]])
    cells = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if cells[-1] == 0:
        assert observed[-1] == 0, "a token of probability 0 was drawn"
        observed, cells = observed[:-1], cells[:-1]
    return float(
        stats.chisquare(
            observed.numpy(), cells.numpy() * float(observed.sum() / cells.sum())
        ).pvalue
    )


@pytest.mark.parametrize(
    ("kind", "vocab_size", "options"),
    [
        ("flat", 7, {}),
        ("flat", 700, {}),
        ("peaked", 700, {}),
        ("zipf", 3000, {}),
        ("flat", 700, {"top_p": 0.6}),
        ("peaked", 3000, {"top_p": 0.9}),
        ("flat", 700, {"top_k": 30}),
        ("zipf", 3000, {"min_p": 0.05}),
        ("zipf", 3000, {"top_k": 200, "top_p": 0.95, "min_p": 0.001}),
        ("tied", 300, {"top_p": 0.5}),
    ],
)
@pytest.mark.parametrize("vary", ["seeds", "positions"])
def test_frequencies(generator, kind, vocab_size, options, vary):
    draws = 40_000
    row = make_rows(kind, (1, vocab_size), generator)
    logits = row.expand(draws, -1)
    counter = torch.arange(draws)
    dtypes = {"top_k": torch.int32}
    values = {k: full(draws, v, dtypes.get(k, torch.float32)) for k, v in options.items()}
    values |= {"seeds": full(draws, 99, torch.int64), vary: counter * 7919 + 5}
    token_ids = ops.sample(logits, temperature=full(draws, 0.8), **values)
    kept = reference.kept_tokens(row[0], 0.8, **options)
    p = reference.probabilities(row[0], 0.8) * kept
    counts = torch.bincount(token_ids, minlength=vocab_size)
    assert chi_square(counts, p / p.sum()) > 1e-4


def test_small_probabilities_are_drawn_as_often_as_they_should(generator):
    """The noise keeps its precision where rare tokens win: 64 tokens of probability 2^-14 each."""
    row = torch.zeros(1, 65)
    row[0, 64] = float(np.log(2.0**14 - 64))
    draws = 200_000
    token_ids = ops.sample(
        row.expand(draws, -1), temperature=full(draws, 1.0), seeds=torch.arange(draws)
    )
    rare = int((token_ids < 64).sum())
    expected = draws * 64 / 2**14
    assert abs(rare - expected) < 4.5 * expected**0.5


def test_draws_of_successive_positions_are_independent(generator):
    row = torch.zeros(1, 8)
    draws = 64_000
    token_ids = ops.sample(
        row.expand(draws, -1),
        temperature=full(draws, 1.0),
        seeds=full(draws, 3, torch.int64),
        positions=torch.arange(draws),
    )
    pairs = torch.bincount(token_ids[:-1] * 8 + token_ids[1:], minlength=64)
    assert chi_square(pairs, torch.full((64,), 1 / 64)) > 1e-4


CASES = [{}, {"top_p": 0.9}, {"top_k": 40}, {"top_k": 2000, "top_p": 0.7}, {"min_p": 0.02}]


def same_everywhere(vocab_size: int, batch_size: int, kind: str, options: dict, g, dtype):
    logits = make_rows(kind, (batch_size, vocab_size), g).to(dtype)
    dtypes = {"top_k": torch.int32}
    values = {k: full(batch_size, v, dtypes.get(k, torch.float32)) for k, v in options.items()}
    values |= {"seeds": torch.arange(batch_size) - 2, "positions": torch.arange(batch_size) ** 7}
    return logits, full(batch_size, 0.9), values


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("kind", ["flat", "peaked", "zipf", "tied", "plus inf"])
def test_same_token_on_every_isa_and_thread_count(generator, threads, kind, options):
    dtypes = [torch.float32, torch.bfloat16]
    for (vocab_size, batch_size), dtype in zip([(50_000, 3), (5_003, 4)], dtypes, strict=True):
        logits, temperature, values = same_everywhere(
            vocab_size, batch_size, kind, options, generator, dtype
        )
        before = _C.cpu_isa()
        expected = run(logits, temperature, **values)
        try:
            for isa in _C.runnable_isas():
                _C.set_cpu_isa(isa)
                for count in (1, 2, 5):
                    threads(count)
                    for a, b in zip(run(logits, temperature, **values), expected, strict=True):
                        assert torch.equal(a, b), (isa, count)
        finally:
            _C.set_cpu_isa(before)


@pytest.mark.parametrize("options", CASES)
def test_same_token_for_any_slot_batch_stride_and_dtype(isa, generator, options):
    logits, temperature, values = same_everywhere(
        3000, 7, "peaked", options, generator, torch.bfloat16
    )
    expected = run(logits, temperature, **values)
    order = torch.randperm(7, generator=generator)
    shuffled = run(logits[order], temperature, **{k: v[order] for k, v in values.items()})
    apart = torch.zeros(7, 3333, dtype=torch.bfloat16)
    apart[:, 11:3011] = logits
    strided = run(apart[:, 11:3011], temperature, **values)
    as_float = run(logits.float(), temperature, **values)
    repeated = run(logits, temperature, **values)
    for i in range(4):
        assert torch.equal(shuffled[i], expected[i][order])
        assert torch.equal(strided[i], expected[i])
        assert torch.equal(as_float[i], expected[i])
        assert torch.equal(repeated[i], expected[i])
    for b in range(7):
        alone = run(
            logits[b : b + 1], temperature[:1], **{k: v[b : b + 1] for k, v in values.items()}
        )
        for i in range(4):
            assert torch.equal(alone[i][0], expected[i][b])


def test_seed_and_position_change_the_token():
    logits = torch.zeros(1, 100_000)
    tokens = {
        (seed, position): int(
            ops.sample(
                logits,
                temperature=full(1, 1.0),
                seeds=torch.tensor([seed]),
                positions=torch.tensor([position]),
            )
        )
        for seed in (0, 1, -1, 2**40, 2**62)
        for position in (0, 1, 2**33)
    }
    assert len(set(tokens.values())) == len(tokens)


def test_opcheck(generator):
    logits = torch.randn(2, 100, generator=generator)
    arguments = [logits, full(2, 1.0), None, full(2, 0.9), None, torch.arange(2), *[None] * 11]
    arguments += [torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32), None, None]
    arguments += [torch.zeros(2, dtype=torch.int32), torch.zeros(2, 100)]
    arguments += [torch.zeros(ops.sampling_workspace_size(100), dtype=torch.uint8)]
    torch.library.opcheck(torch.ops.lampo.sample.default, tuple(arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(8)}, r"logits: expected shape \[\*, \*\], got \[8\]"),
        ({"logits": torch.zeros(2, 8, dtype=torch.float16)}, "logits: expected float32 or bfloat"),
        ({"logits": torch.zeros(2, 16)[:, ::2]}, "logits: expected a contiguous last dimension"),
        ({"logits": torch.zeros(2, 0)}, "vocab_size: expected 1 to 2"),
        ({"temperature": torch.zeros(3)}, r"temperature: expected shape \[2\], got \[3\]"),
        ({"temperature": torch.tensor([1.0, -1.0])}, "temperature: expected a finite value >= 0"),
        ({"temperature": torch.tensor([1.0, torch.nan])}, "temperature: expected .* at index 1"),
        ({"temperature": torch.tensor([1.0, torch.inf])}, "temperature: expected a finite value"),
        ({"temperature": 1.0}, "temperature: expected a tensor .*, got float"),
        ({"top_k": torch.tensor([1, 2])}, "top_k: expected int32, got int64"),
        ({"top_k": torch.tensor([1, -2], dtype=torch.int32)}, "top_k: expected .* got -2"),
        ({"top_p": torch.tensor([0.5, 0.0])}, r"top_p: expected a value in \(0, 1\], got 0"),
        ({"top_p": torch.tensor([torch.nan, 0.5])}, "top_p: expected .*, got nan at index 0"),
        ({"top_p": torch.tensor([1.5, 0.5])}, "top_p: expected .*, got 1.5"),
        ({"min_p": torch.tensor([0.5, -0.1])}, r"min_p: expected a value in \[0, 1\], got -0.1"),
        ({"seeds": None}, "seeds: expected a tensor, which may be left out only where temp"),
        ({"seeds": torch.zeros(2)}, "seeds: expected int64, got float32"),
        ({"positions": torch.zeros(1, dtype=torch.int64)}, r"positions: expected shape \[2\]"),
        ({"penalty_ids": torch.zeros(1, dtype=torch.int32)}, "cu_penalties: expected together"),
        ({"bias": (8, 1)}, "bias_ids: expected ids of the vocabulary, got 8 at index 0"),
        ({"bias": (-1, 1)}, "bias_ids: expected ids of the vocabulary, got -1"),
        ({"bias": (3, 2)}, "cu_bias: expected offsets that do not fall and end at 1 at most"),
        ({"repetition_penalty": torch.tensor([1.0, 0.0])}, "repetition_penalty: .* > 0, got 0"),
        ({"presence_penalty": torch.tensor([1.0, torch.inf])}, "presence_penalty: .* finite"),
        ({"allowed_mask": torch.zeros(2, 2, dtype=torch.int32)}, r"allowed_mask: .* \[2, 1\]"),
        ({"token_ids": torch.zeros(2, dtype=torch.int32)}, "token_ids: expected int64"),
        ({"status": torch.zeros(2)}, "status: expected int32, got float32"),
        ({"logprobs": torch.zeros(2, 3)}, r"logprobs: expected shape \[2, 2\]"),
        ({"kept": torch.zeros(2, 9, dtype=torch.bool)}, r"kept: expected shape \[2, 8\]"),
        ({"num_kept": torch.zeros(2)}, "num_kept: expected int32, got float32"),
        ({"num_kept": torch.zeros(3, dtype=torch.int32)}, r"num_kept: expected shape \[2\]"),
        ({"processed_logprobs": torch.zeros(2, 9)}, r"processed_logprobs: expected shape \[2, 8\]"),
        ({"processed_logprobs": torch.zeros(2, 8).int()}, "processed_logprobs: expected float32"),
        ({"workspace": torch.zeros(10, dtype=torch.uint8)}, "workspace: expected at least"),
    ],
)
def test_bad_arguments(change, message):
    change = dict(change)
    if "bias" in change:
        token, entries = change.pop("bias")
        change["bias_ids"] = torch.tensor([token], dtype=torch.int32)
        change["bias_values"] = torch.zeros(1)
        change["cu_bias"] = torch.tensor([0, 1, entries], dtype=torch.int32)
    arguments = {
        "logits": torch.zeros(2, 8),
        "temperature": torch.ones(2),
        "seeds": torch.zeros(2, dtype=torch.int64),
    } | change
    with pytest.raises((ValueError, TypeError), match=message):
        ops.sample(arguments.pop("logits"), **arguments)


def test_no_rows():
    token_ids = ops.sample(torch.zeros(0, 8), temperature=torch.zeros(0))
    assert token_ids.shape == (0,)
