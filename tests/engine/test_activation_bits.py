# SPDX-License-Identifier: Apache-2.0
"""LLM(activation_bits=...): the precision of activations beside packed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_gguf

from lampo import LLM, evaluate


def divergence(path: Path, activation_bits: int | None) -> float:
    options: Any = {"kv_cache_dtype": "float32"}
    with (
        LLM(path, activation_bits=activation_bits, **options) as llm,
        LLM(path, dtype="float32") as exact,
    ):
        found = evaluate(llm, list(range(5, 100)), reference=exact).kl_divergence
    assert found is not None
    return found


def test_more_bits_are_closer_to_the_exact_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    make_gguf(path, quantization="Q4_1", initializer_range=0.1)
    by_bits = {bits: divergence(path, bits) for bits in (8, 9, 16)}
    assert by_bits[16] < 1e-3 * by_bits[8]
    assert by_bits[9] < by_bits[8]
    assert by_bits[9] < divergence(path, None) < by_bits[8]


def test_precision_of_every_layer(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    make_gguf(path, quantization="Q4_1", num_hidden_layers=4)

    def bits_of(**options: Any) -> list[list[int]]:
        with LLM(path, **options) as llm:
            runner: Any = llm.shared_engine().engine.runner
            blocks = runner.model.blocks
            assert runner.model.lm_head.activation_bits.packed == options.get("activation_bits", 9)
            parts = [
                (b.mixer.qkv, b.mixer.out, b.feed_forward.gate_up, b.feed_forward.down)
                for b in blocks
            ]
        return [[part.activation_bits.packed for part in block] for block in parts]

    inner, edge = [9, 8, 9, 8], [9, 8, 9, 9]
    assert bits_of() == [edge, inner, inner, edge]
    assert bits_of(activation_bits=16) == 4 * [4 * [16]]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="activation_bits: expected one of 8, 9, 16, got 10"):
        LLM(tmp_path, activation_bits=10)
