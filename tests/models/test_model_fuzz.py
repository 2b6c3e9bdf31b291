# SPDX-License-Identifier: Apache-2.0
"""Mutants of model files: a working model or one clear error, never a crash or a blow-up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import model_mutants
import pytest
from checkpoints import make_checkpoint, make_gguf
from quantized_folders import LAYOUTS, quantize_folder
from tiny_tokenizers import gguf_metadata, make_backend, save

# As many as run in seconds, and as many as run in some minutes.
FEW, MANY = 100, 3000
# Mutants that are loaded alone: kinds, and numbers of mutants in every run and with `-m slow`,
# where they are 100,000.
LOADED = {
    "gguf": (50, 40_000),
    **dict.fromkeys(("awq", "w4a16 asymmetric", "fp8 blocks", "nf4 nested"), (40, 10_000)),
    **dict.fromkeys(("gptq act order", "nvfp4"), (0, 5_000)),
    **dict.fromkeys(("w8a8", "llm.int8"), (0, 5_000)),
}


def start_of(kind: str, folder: Path) -> tuple[str, Path]:
    """The kind of mutants, and the model that they start from."""
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 128}
    if kind == "gguf":
        make_gguf(folder / "m.gguf", quantization="Q4_0", rope="llama3", tied=False, **sizes)
        return "gguf", folder / "m.gguf"
    if kind == "sentencepiece":
        metadata = gguf_metadata(make_backend("zephyr"), "zephyr")
        make_gguf(
            folder / "m.gguf",
            quantization="Q8_0",
            rope="yarn",
            metadata=metadata,
            vocab_size=len(metadata["tokenizer.ggml.tokens"]),
            tokens=False,
            **sizes,
        )
        return "gguf", folder / "m.gguf"
    model = folder / "model"
    if kind in LAYOUTS:
        widths = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 64}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        make_checkpoint(model, tied=False, **sizes, **widths, **heads)
        quantize_folder(model, LAYOUTS[kind])
        return "quantized", model
    backend = make_backend("mistral" if kind == "shards" else "llama3")
    make_checkpoint(
        model,
        sharded=kind == "shards",
        generation={"temperature": 0.5, "eos_token_id": [1, 2]},
        rope="llama3" if kind == "shards" else "dynamic",
        vocab_size=backend.get_vocab_size(),
        **sizes,
    )
    save(backend, "mistral" if kind == "shards" else "llama3", model)
    return "folder", model


def run_mutants(kind: str, folder: Path, first: int, count: int, way: str = "run") -> None:
    mutants, start = start_of(kind, folder)
    command = [sys.executable, model_mutants.__file__, mutants, str(start), str(first), str(count)]
    command.append(way)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
    worked = int(ran.stdout.splitlines()[-1].split()[0])
    assert 0 < worked < count


@pytest.mark.parametrize("kind", ["gguf", "sentencepiece", "folder", "shards"])
def test_some_mutants(kind: str, tmp_path: Path) -> None:
    run_mutants(kind, tmp_path, 0, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["gguf", "sentencepiece", "folder", "shards"])
def test_many_mutants(kind: str, tmp_path: Path) -> None:
    run_mutants(kind, tmp_path, FEW, MANY)


@pytest.mark.parametrize("kind", [kind for kind, (few, _) in LOADED.items() if few])
def test_some_loaded_mutants(kind: str, tmp_path: Path) -> None:
    run_mutants(kind, tmp_path, 0, LOADED[kind][0], "load")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", LOADED)
def test_many_loaded_mutants(kind: str, tmp_path: Path) -> None:
    few, many = LOADED[kind]
    run_mutants(kind, tmp_path, few, many, "load")


def test_number_of_loaded_mutants() -> None:
    assert sum(many for _, many in LOADED.values()) == 100_000
