# SPDX-License-Identifier: Apache-2.0
"""The division of a GPU's memory. Pure arithmetic: no GPU needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint

from lampo.engine.kv_pool import page_bytes
from lampo.engine.memory_plan import MemoryPlan, held_bytes, plan_memory, temporary_bytes
from lampo.models.checkpoint import load_checkpoint
from lampo.models.decoder import Decoder
from lampo.models.loader import load_model
from lampo.models.step import State, StepLimits

GB = 10**9


class Weighty(Decoder):
    """A small model that says it has 3 GB of weights."""

    nbytes = 3 * GB

    @classmethod
    def of(cls, model: Decoder) -> Decoder:
        model.__class__ = cls
        return model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Decoder:
    """The plan of a GPU with weights of 3 GB."""
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder)
    with load_checkpoint(folder) as checkpoint:
        return Weighty.of(load_model(checkpoint, "bfloat16"))


def limits(max_num_seqs: int = 64, max_num_batched_tokens: int = 512) -> StepLimits:
    return StepLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_pages_per_seq=100,
        page_size=16,
        device=torch.device("cpu"),
    )


def plan(model: Decoder, **changes: Any) -> MemoryPlan:
    page = page_bytes(model.keeps, 16, torch.bfloat16)
    arguments: dict[str, Any] = {"free": 8 * GB, "page_bytes": page, "pages_per_seq": 100}
    return plan_memory(model, limits(), **(arguments | changes))


def total(found: MemoryPlan) -> int:
    cache = found.num_pages * found.page_bytes
    return found.weights + found.held + found.temporary + found.reserve + cache


def test_the_cache_gets_what_is_left(model):
    found = plan(model, pages_per_seq=1 << 16)
    assert 8 * GB - found.page_bytes < total(found) <= 8 * GB
    assert found.describe().startswith("GPU memory: weights 3.00 GB, workspace 0.0")
    assert f"({found.num_pages} pages of 16 tokens), reserve 0.81 GB; 8.00 GB were free" in (
        found.describe()
    )


def test_no_more_pages_than_are_ever_used(model):
    assert plan(model).num_pages == 100 * 64
    page = page_bytes(model.keeps, 16, torch.bfloat16)
    assert plan(model, kv_cache_memory=200 * page).num_pages == 200


def test_the_workspace_grows_with_the_step(model):
    config = model.config
    widths = config.hidden_size + config.layers[0].feed_forward.size
    assert held_bytes(model, limits(1, 1000)) > 1000 * widths * 2
    assert temporary_bytes(model, limits(1, 1000)) > 1000 * config.layers[0].feed_forward.size * 2
    more = held_bytes(model, limits(64)) - held_bytes(model, limits(1))
    assert more > 63 * config.vocab_size * 4


def test_states_take_memory_from_the_pages(model, monkeypatch):
    page = page_bytes(model.keeps, 16, torch.bfloat16)
    before = plan(model, pages_per_seq=1 << 16)
    monkeypatch.setattr(Weighty, "keeps", (State(((1000,),)),), raising=False)
    after = plan(model, pages_per_seq=1 << 16, page_bytes=page, num_slots=1000)
    states = 1000 * 4032  # 4,000 bytes, to the next cache line
    assert after.held - before.held == states
    assert before.num_pages - after.num_pages in (states // page, states // page + 1)


def test_what_does_not_fit(model):
    with pytest.raises(ValueError, match=r"free memory of 2.00 GB: weights 3.00 GB, .* 8-bit kv_"):
        plan(model, free=2 * GB)
    with pytest.raises(ValueError, match=r"GB of KV cache for one sequence of max_model_len"):
        plan(model, pages_per_seq=1 << 30)
    with pytest.raises(ValueError, match=r"kv_cache_memory: 6.00 GB do not fit .* at most 4.1"):
        plan(model, kv_cache_memory=6 * GB)
    with pytest.raises(ValueError, match=r"kv_cache_memory: 10 bytes hold 0 pages"):
        plan(model, kv_cache_memory=10)
