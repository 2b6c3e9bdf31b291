# SPDX-License-Identifier: Apache-2.0
"""Qwen3.5's files as they are published: beside a part for images, with a head for later tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint, make_gguf
from model_harness import Runner, twin_logits
from safetensors.torch import load_file, save_file
from test_architectures import case, largest_difference, tokens

from lampo.models.checkpoint import load_checkpoint
from lampo.models.loader import load_model


def publish(folder: Path, **changes: Any) -> None:
    """Turns a folder of the text model into one of all parts."""
    config = json.loads((folder / "config.json").read_text())
    outer = {
        "model_type": "qwen3_5",
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "text_config": config | changes,
        "vision_config": {"depth": 1, "model_type": "qwen3_5_vision"},
        "tie_word_embeddings": config["tie_word_embeddings"],
    }
    (folder / "config.json").write_text(json.dumps(outer))
    path = folder / "model.safetensors"
    state = {
        name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(path).items()
    }
    state |= {"model.visual.patch_embed.proj.weight": torch.zeros(4, 4)}
    state |= {"mtp.fc.weight": torch.zeros(4, 8), "mtp.norm.weight": torch.zeros(4)}
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
def test_beside_a_part_for_images(tmp_path: Path, tied: bool) -> None:
    twin = make_checkpoint(tmp_path, tied=tied, **case("qwen3_5_text"))
    publish(tmp_path, mtp_num_hidden_layers=1)
    ids = tokens(40)
    with load_checkpoint(tmp_path) as checkpoint:
        logits = Runner(load_model(checkpoint, "float32"))(ids)
    assert largest_difference(logits, twin_logits(twin, ids)) < 1e-4


def test_gguf_with_a_head_for_later_tokens(tmp_path: Path) -> None:
    """The last block is that head's: it is counted, and left out."""
    path = tmp_path / "model.gguf"
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    options = case("qwen3_5_text") | {"num_hidden_layers": 3, "layer_types": kinds}
    ahead = {"qwen35.nextn_predict_layers": 1}
    twin = make_gguf(path, quantization="F32", metadata=ahead, **options)
    twin.model.layers = twin.model.layers[:2]
    twin.config.num_hidden_layers = 2
    ids = tokens(40)
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.config.num_layers == 2
        logits = Runner(load_model(checkpoint, "auto"))(ids)
    assert largest_difference(logits, twin_logits(twin, ids)) < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types: expected a list of 2, each full_att"),
        ({"layer_types": ["full_attention", "mamba"]}, "layer_types: expected a list of 2, each"),
        ({"linear_num_value_heads": 3}, "linear_num_value_heads: expected a multiple of 2 key"),
        ({"linear_key_head_dim": 300}, "linear_key_head_dim: expected .*256"),
        ({"linear_conv_kernel_dim": 5}, "linear_conv_kernel_dim: expected"),
        ({"attn_output_gate": False}, "attn_output_gate: expected true"),
        ({"linear_value_head_dim": 40}, r"tensor model\.layers\.0\.linear_attn\."),
    ],
)
def test_configurations_that_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make_checkpoint(tmp_path, **case("qwen3_5_text"))
    publish(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path)
