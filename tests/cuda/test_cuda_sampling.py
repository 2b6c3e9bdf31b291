# SPDX-License-Identifier: Apache-2.0
"""sample and token_logprobs on a GPU: the CPU ops' tokens, at full size."""

from __future__ import annotations

import pytest
import torch
from test_sample import CASES, full, make_rows, run, same_everywhere

from lampo import ops

pytestmark = pytest.mark.gpu


def assert_same(gpu, logits, temperature, **options):
    batch_size, vocab_size = logits.shape
    out = {
        "token_ids": torch.full((batch_size,), -7, device=gpu),
        "status": torch.full((batch_size,), -7, dtype=torch.int32, device=gpu),
        "logprobs": torch.full((batch_size, 2), 1.25e30, device=gpu),
        "kept": torch.ones(batch_size, vocab_size, dtype=torch.bool, device=gpu),
        "num_kept": torch.full((batch_size,), -7, dtype=torch.int32, device=gpu),
        "processed_logprobs": torch.full((batch_size, vocab_size), 1.25e30, device=gpu),
    }
    options.setdefault("seeds", torch.arange(batch_size))
    there = {k: v.to(gpu) for k, v in options.items()}
    ops.sample(logits.to(gpu), temperature=temperature.to(gpu), **out, **there)
    here = run(logits, temperature, **options)
    for name in ("status", "kept", "num_kept", "token_ids"):
        assert torch.equal(out[name].cpu(), getattr(here, name)), name
    for name in ("logprobs", "processed_logprobs"):
        # The logarithm of a double may differ in its last place.
        torch.testing.assert_close(
            out[name].cpu(), getattr(here, name), rtol=2e-7, atol=1e-9, equal_nan=True
        )


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("kind", ["flat", "peaked", "zipf", "tied", "equal", "nan", "plus inf"])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_same_token_as_on_the_cpu(gpu, generator, kind, options, batch_size):
    dtype = torch.bfloat16 if kind == "zipf" else torch.float32
    logits, temperature, values = same_everywhere(
        128_256, batch_size, kind, options, generator, dtype
    )
    assert_same(gpu, logits, temperature, **values)


@pytest.mark.parametrize("options", CASES, ids=str)
def test_512_rows(gpu, generator, options):
    """More than go through the kernels at once."""
    logits, temperature, values = same_everywhere(
        128_256, 512, "peaked", options, generator, torch.bfloat16
    )
    temperature[::7] = 0
    assert_same(gpu, logits, temperature, **values)


def test_widths_and_filters(gpu, generator):
    for vocab_size in (1, 5, 257, 4097, 50_257):
        logits = make_rows("peaked", (40, vocab_size), generator)
        pick = torch.randint(0, 4, (3, 40), generator=generator)
        assert_same(
            gpu,
            logits,
            torch.tensor([0.0, 0.7, 1.0, 30.0])[pick[0]],
            top_k=torch.tensor([0, 1, 50, 4000])[pick[1]].int(),
            top_p=torch.tensor([1.0, 0.9, 0.5, 1e-3])[pick[2]],
            allowed_mask=torch.randint(
                -(2**31), 2**31, (40, -(-vocab_size // 32)), generator=generator
            ).int(),
        )


def test_graph(gpu, generator):
    """Captured once, replayed on other logits."""
    logits = make_rows("flat", (4, 50_000), generator)
    there = torch.zeros_like(logits, device=gpu)
    values = {"temperature": full(4, 0.8), "top_p": full(4, 0.9), "seeds": torch.arange(4)}
    given = {k: v.to(gpu) for k, v in values.items()}
    token_ids = torch.full((4,), -7, device=gpu)
    status = torch.full((4,), -7, dtype=torch.int32, device=gpu)
    size = ops.sampling_workspace_size(50_000, gpu, 4)
    workspace = torch.empty(size, dtype=torch.uint8, device=gpu)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.sample(there, token_ids=token_ids, status=status, workspace=workspace, **given)
    for scale in (1.0, 3.0):
        there.copy_(scale * logits)
        graph.replay()
        assert torch.equal(token_ids.cpu(), ops.sample(scale * logits, **values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_top", [0, 20, 1000])
def test_token_logprobs(gpu, generator, dtype, num_top):
    logits = make_rows("tied", (130, 128_256), generator).to(dtype)
    token_ids = torch.randint(-1, 128_256, (130,), generator=generator)
    expected = ops.token_logprobs(logits, token_ids, num_top)
    actual = ops.token_logprobs(logits.to(gpu), token_ids.to(gpu), num_top)
    for i in (1, 2):
        assert torch.equal(actual[i].cpu(), expected[i])
    for i in (0, 3):
        torch.testing.assert_close(
            actual[i].cpu(), expected[i], rtol=2e-7, atol=1e-9, equal_nan=True
        )
