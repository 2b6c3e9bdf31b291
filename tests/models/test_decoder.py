# SPDX-License-Identifier: Apache-2.0
"""A step of which only some outputs are wanted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from checkpoints import make_checkpoint, make_gguf

from lampo.engine.kv_pool import KVPool
from lampo.models.checkpoint import load_checkpoint
from lampo.models.decoder import Decoder
from lampo.models.loader import load_model
from lampo.models.step import Cache, Step

PAGE_SIZE = 16
LENGTHS = [5, 70, 1, 33]  # of which the last sequence has 20 in the cache already
NEW = [5, 70, 1, 13]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "Q4_1"])
def model(request, tmp_path_factory) -> Decoder:
    path, dtype = tmp_path_factory.mktemp("model"), request.param
    if dtype == "Q4_1":
        path, dtype = path / "tiny.gguf", "auto"
        make_gguf(path, quantization="Q4_1")
    else:
        make_checkpoint(path)
    with load_checkpoint(path) as checkpoint:
        return load_model(checkpoint, dtype)


def ragged_step(model: Decoder) -> Step:
    generator = torch.Generator().manual_seed(3)
    page_table = torch.randperm(24, generator=generator).to(torch.int32).view(4, 6)
    positions = [torch.arange(n - new, n) for n, new in zip(LENGTHS, NEW, strict=True)]
    slots = [
        row[at // PAGE_SIZE].long() * PAGE_SIZE + at % PAGE_SIZE
        for row, at in zip(page_table, positions, strict=True)
    ]
    vocab_size = model.config.vocab_size
    return Step(
        token_ids=torch.randint(vocab_size, (sum(NEW),), generator=generator),
        positions=torch.cat(positions),
        slot_mapping=torch.cat(slots),
        cu_seqlens_q=torch.tensor([0, *NEW]).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor(LENGTHS, dtype=torch.int32),
        page_table=page_table,
    )


def run(model: Decoder, step: Step, kv_dtype: torch.dtype) -> tuple[torch.Tensor, Cache]:
    cache = KVPool(model.keeps, 24, PAGE_SIZE, kv_dtype).cache
    generator = torch.Generator().manual_seed(4)
    for tensor in cache.paged_tensors():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 3)
    model.reach(max(LENGTHS))
    return model.forward(step, cache).clone(), cache


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("last_of", [[], [0], [1, 3], [0, 1, 2, 3]])
def test_the_last_layer_computes_what_is_wanted(model, kv_dtype, last_of):
    step = ragged_step(model)
    expected, expected_cache = run(model, step, kv_dtype)
    wanted = replace(step, last_of=torch.tensor(last_of, dtype=torch.int64))
    hidden, cache = run(model, wanted, kv_dtype)
    ends = step.cu_seqlens_q[1:].long() - 1
    assert hidden.shape == (len(last_of), model.config.hidden_size)
    assert torch.equal(hidden, expected[ends[wanted.last_of]])
    for tensor, like in zip(cache.paged_tensors(), expected_cache.paged_tensors(), strict=True):
        assert torch.equal(tensor, like)
