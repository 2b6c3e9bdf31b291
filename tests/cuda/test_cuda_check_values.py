# SPDX-License-Identifier: Apache-2.0
"""Values out of range on a GPU: said with LAMPO_CHECK_VALUES=1, else harmless."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lampo import ops

pytestmark = pytest.mark.gpu


def attend(gpu: torch.device, **wrong: Any) -> None:
    """One token after each of two others, in pages of 8."""
    values = {"page_table": [[0, 1], [2, 99]], "seq_lens": [9, 8], "cu_seqlens_q": [0, 1, 2]}
    indices = {
        name: torch.tensor(wrong.get(name, value), dtype=torch.int32, device=gpu)
        for name, value in values.items()
    }
    q = torch.zeros(2, 4, 64, dtype=torch.bfloat16, device=gpu)
    cache = torch.zeros(3, 2, 8, 64, dtype=torch.bfloat16, device=gpu)
    ops.paged_attention(q, cache, cache, **indices)


def append(gpu: torch.device, slots: list[int], positions: list[int]) -> None:
    k = torch.zeros(2, 2, 64, dtype=torch.bfloat16, device=gpu)
    cache = torch.zeros(3, 2, 8, 64, dtype=torch.bfloat16, device=gpu)
    ops.append_kv(
        None,
        k,
        k,
        cache,
        cache.clone(),
        torch.tensor(slots, device=gpu),
        positions=torch.tensor(positions, device=gpu),
        cos_sin=torch.zeros(16, 64, device=gpu),
    )


def embed(gpu: torch.device, ids: list[int]) -> None:
    table = torch.zeros(10, 64, dtype=torch.bfloat16, device=gpu)
    ops.embedding(torch.tensor(ids, device=gpu), table)


WRONG = {
    r"page_table: sequence 1, entry 0: expected a page in \[0, 3\), got 3": (
        lambda gpu: attend(gpu, page_table=[[0, 1], [3, 0]])
    ),
    r"page_table: sequence 0, entry 1: expected a page in \[0, 3\), got -1": (
        lambda gpu: attend(gpu, page_table=[[0, -1], [2, 0]])
    ),
    r"seq_lens: sequence 0: expected a length in \[0, 16\]": (
        lambda gpu: attend(gpu, seq_lens=[17, 8])
    ),
    r"cu_seqlens_q: sequence 1: expected ascending values": (
        lambda gpu: attend(gpu, cu_seqlens_q=[0, 2, 1])
    ),
    r"slot_mapping: token 1: expected a slot in \[-1, 24\), got 24": (
        lambda gpu: append(gpu, [0, 24], [0, 1])
    ),
    r"positions: token 0: expected a position in \[0, 16\), got 16": (
        lambda gpu: append(gpu, [-1, 23], [16, 15])
    ),
    r"token_ids: expected ids in \[0, 10\), got -1 at 1": lambda gpu: embed(gpu, [9, -1]),
}


@pytest.mark.parametrize("message", WRONG)
def test_check_values(gpu, message, monkeypatch):
    WRONG[message](gpu)  # clamped, or skipped
    monkeypatch.setenv("LAMPO_CHECK_VALUES", "1")
    with pytest.raises(ValueError, match=message):
        WRONG[message](gpu)


def test_check_values_of_what_is_right(gpu, monkeypatch):
    monkeypatch.setenv("LAMPO_CHECK_VALUES", "1")
    attend(gpu)  # a page that nobody needs may be anything
    append(gpu, [-1, 23], [0, 15])
    embed(gpu, [0, 9])
