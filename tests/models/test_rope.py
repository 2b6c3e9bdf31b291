# SPDX-License-Identifier: Apache-2.0
"""Rotary embedding: tables against transformers, their bits, their memory, and refusals."""

from __future__ import annotations

import math
from typing import Any

import psutil
import pytest
import torch
from checkpoints import ROPES, SHAPE, make_model

from lampo.models.config import ModelConfig
from lampo.models.registry import config_from_hf
from lampo.models.rope import MAX_POSITIONS, RopeConfig, RotaryTable


def from_hf(values: dict[str, Any]) -> ModelConfig:
    return config_from_hf(values)[1]


def rope_of(config: ModelConfig) -> RopeConfig:
    rope = config.layers[0].attention.rope
    assert rope is not None
    return rope


@pytest.mark.parametrize("name", ROPES)
def test_rope_against_transformers(name: str) -> None:
    model = make_model(rope=name)
    config = from_hf(model.config.to_dict())
    assert rope_of(config).scaling == ROPES[name]["rope_type"]
    embedding = model.model.rotary_emb
    frequencies = rope_of(config).inverse_frequencies()
    assert frequencies.dtype == torch.float64
    torch.testing.assert_close(frequencies.float(), embedding.inv_freq, rtol=2e-6, atol=0)

    length = SHAPE["max_position_embeddings"]
    table = table_of(rope_of(config), length)
    assert table.shape == (length, rope_of(config).rotary_dim)
    assert table.dtype == torch.float32
    cos, sin = embedding(torch.zeros(1), torch.arange(length)[None])
    half = rope_of(config).rotary_dim // 2
    # transformers computes angles in f32: off by their rounding, up to 256 * 2^-23.
    torch.testing.assert_close(table[:, :half], cos[0, :, :half], rtol=0, atol=6e-5)
    torch.testing.assert_close(table[:, half:], sin[0, :, :half], rtol=0, atol=6e-5)


def test_dynamic_rope_beyond_the_trained_length() -> None:
    model = make_model(rope="dynamic")
    rope = rope_of(from_hf(model.config.to_dict()))
    cos, _ = model.model.rotary_emb(torch.zeros(1), torch.arange(1000)[None])
    table = table_of(rope, 1000)
    torch.testing.assert_close(table[:, : rope.rotary_dim // 2], cos[0, :, :16], rtol=0, atol=3e-4)


def test_rope_table_is_exact_far_out() -> None:
    rope = RopeConfig(theta=10000.0, rotary_dim=8)
    table = table_of(rope, 100_001)
    frequencies = [10000.0 ** (-i / 8) for i in range(0, 8, 2)]
    expected = [math.cos(100_000 * f) for f in frequencies]
    expected += [math.sin(100_000 * f) for f in frequencies]
    torch.testing.assert_close(table[100_000], torch.tensor(expected), rtol=0, atol=1e-7)


def table_of(rope: RopeConfig, num_positions: int) -> torch.Tensor:
    table = RotaryTable(rope, num_positions)
    table.reach(num_positions)
    return table.cos_sin


@pytest.mark.parametrize(
    "arguments",
    [
        {"theta": 1.0},
        {"theta": math.nan},
        {"rotary_dim": 7},
        {"scaling": "longrope"},
        {"original_max_position_embeddings": 0, "scaling": "yarn"},
        {"freq_factors": (1.0,)},
        {"freq_factors": (1.0, 1.0, 0.0, 1.0)},
        {"freq_factors": (1.0, 1.0, math.nan, 1.0)},
    ],
)
def test_rope_config_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RopeConfig(**{"theta": 10000.0, "rotary_dim": 8, **arguments})


@pytest.mark.parametrize("max_positions", [0, -1, 1 << 40])
def test_rotary_table_refuses(max_positions: int) -> None:
    with pytest.raises(ValueError, match="max_positions"):
        RotaryTable(RopeConfig(theta=10000.0, rotary_dim=8), max_positions)


@pytest.mark.parametrize("name", ROPES)
def test_rotary_table_has_the_bits_of_torch(name: str) -> None:
    """In whatever pieces it is computed: the formula by torch, at once."""
    rope = rope_of(from_hf({**make_model(rope=name).config.to_dict(), "head_dim": 128}))
    length = 40_000
    angles = torch.outer(
        torch.arange(length, dtype=torch.float64), rope.inverse_frequencies(length)
    )
    expected = torch.cat([angles.cos(), angles.sin()], dim=1) * rope.attention_factor
    table = RotaryTable(rope, length)
    for num_positions in (1, 1000, 1025, 5, 30_000, length, length + 1):
        table.reach(num_positions)
        got = table.cos_sin[:num_positions]
        assert torch.equal(got, expected[:num_positions].float())


def test_rotary_table_takes_memory_for_reached_positions_alone() -> None:
    """A file may name any context: 2^24 positions of 256 channels would be 17 GB."""
    process = psutil.Process()
    before = process.memory_info().rss
    table = RotaryTable(RopeConfig(theta=10000.0, rotary_dim=64), MAX_POSITIONS)
    table.reach(3000)
    assert process.memory_info().rss - before < 100 << 20
    assert table.cos_sin[2999].any()
    assert not table.cos_sin[MAX_POSITIONS - 1].any()
