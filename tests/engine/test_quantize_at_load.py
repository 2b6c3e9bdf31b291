# SPDX-License-Identifier: Apache-2.0
"""LLM(quantize=...): dense weights become packed while they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import SHAPE_256, make_checkpoint, make_gguf

from lampo import LLM, SamplingParams, evaluate
from lampo.cli.main import main


@pytest.mark.parametrize(
    ("quantize", "matrix", "outer"),
    [("q4_k", "q4_k", "q6_k"), ("q8_0", "q8_0", "q8_0"), ("q6_k", "q6_k", "q6_k")],
)
@pytest.mark.parametrize("tied", [True, False])
def test_formats(tmp_path: Path, quantize: str, matrix: str, outer: str, tied: bool) -> None:
    make_checkpoint(tmp_path, tied=tied, initializer_range=0.05, **SHAPE_256)
    with LLM(tmp_path, quantize=quantize) as llm, LLM(tmp_path, dtype="float32") as exact:
        parts = llm.inspector().outline()
        formats = {part.format for part in parts if part.layer is not None and len(part.shape) == 2}
        assert formats == {matrix}
        assert {p.format for p in parts if p.layer is None and len(p.shape) == 2} == {outer}
        assert llm.weight_bytes < 0.4 * exact.weight_bytes
        ids = list(range(5, 60))
        found = evaluate(llm, ids, reference=exact)
        assert found.kl_divergence is not None and found.kl_divergence < 0.04
        llm.generate([ids], SamplingParams(max_tokens=4))


def test_narrow_matrices_and_packed_ones(tmp_path: Path) -> None:
    """Widths that are no multiple of 256 take blocks of 32; what is packed stays as it is."""
    make_checkpoint(tmp_path / "dense")
    with LLM(tmp_path / "dense", quantize="q4_k") as llm:
        parts = llm.inspector().outline()
        assert {p.format for p in parts if p.name == "mixer.qkv"} == {"q5_0"}
        assert {p.format for p in parts if p.name == "embedding.tokens"} == {"q8_0"}
    make_gguf(tmp_path / "m.gguf", quantization="Q4_1")
    with LLM(tmp_path / "m.gguf", quantize="q8_0") as llm:
        parts = llm.inspector().outline()
        assert {p.format for p in parts if len(p.shape) == 2} == {"q4_1"}


def test_gpt2_positions_stay_dense(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, architecture="gpt2", num_attention_heads=2)
    with LLM(tmp_path, quantize="q8_0") as llm:
        formats = {p.name: p.format for p in llm.inspector().outline()}
        assert formats["embedding.positions"] == "float32"
        assert formats["embedding.tokens"] == "q8_0"


def test_bad_arguments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"quantize: expected one of q2_k, .*, got 'q9'"):
        LLM(tmp_path, quantize="q9")
    with pytest.raises(ValueError, match="quantize: needs dtype 'auto', got 'float32'"):
        LLM(tmp_path, quantize="q8_0", dtype="float32")
    assert main(["generate", "-m", str(tmp_path), "--quantize", "q9", "x"]) == 2
    assert "quantize: expected one of" in capfd.readouterr().err
