# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: the layouts of their files, quantized experts, wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from checkpoints import make_checkpoint, make_gguf, make_model
from model_harness import Runner, twin_logits
from safetensors.torch import load_file, save_file

from lampo import ops
from lampo.models.checkpoint import load_checkpoint
from lampo.models.decoder import Decoder
from lampo.models.loader import load_model
from lampo.quantization import quantize
from lampo.weights.formats import CodedMatrix

IDS = torch.randint(320, (60,), generator=torch.Generator().manual_seed(1)).tolist()
MODELS = ("qwen3_moe", "mixtral", "gpt_oss")


def logits_of(path: Path, dtype: str = "float32", **options: Any) -> torch.Tensor:
    with load_checkpoint(path) as checkpoint:
        return Runner(load_model(checkpoint, dtype, **options))(IDS)


def divergence(actual: torch.Tensor, expected: torch.Tensor) -> float:
    p, q = expected.log_softmax(-1), actual.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral"])
def test_all_experts_in_one_tensor(tmp_path: Path, architecture: str) -> None:
    """As transformers keeps them in memory: the same tensors as in published files."""
    model = make_model(architecture=architecture)
    loaded = []
    for original in (True, False):
        folder = tmp_path / str(original)
        model.save_pretrained(folder, save_original_format=original)
        with load_checkpoint(folder) as checkpoint:
            loaded.append({name: checkpoint.load(name) for name in checkpoint.names()})
    published, fused = loaded
    assert published.keys() == fused.keys()
    for name, tensor in published.items():
        found = fused[name]
        assert isinstance(tensor, torch.Tensor) and isinstance(found, torch.Tensor)
        assert torch.equal(tensor, found), name


def with_mxfp4_experts(folder: Path) -> None:
    """Replaces gpt-oss's experts by blocks and scales, as published, of the nearest values."""
    path = folder / "model.safetensors"
    state = load_file(path)
    kind = gguf.GGMLQuantizationType.MXFP4
    for name in [name for name in state if name.endswith(("up_proj", "down_proj"))]:
        weight = state.pop(name).transpose(1, 2)  # [experts, rows, columns]
        rows, columns = weight.shape[1:]
        blocks = torch.from_numpy(gguf.quants.quantize(weight.flatten(0, 1).numpy(), kind))
        blocks = blocks.view(-1, rows, columns // 32, 17)
        halves = blocks[..., 1:]
        codes = torch.cat([halves & 15, halves >> 4], -1)
        state[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        state[f"{name}_scales"] = blocks[..., 0].contiguous()
    save_file(state, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))


def test_mxfp4_experts(tmp_path: Path) -> None:
    """Their values in float32, and packed: as a model with those values."""
    model = make_checkpoint(tmp_path, architecture="gpt_oss", tied=False)
    with_mxfp4_experts(tmp_path)
    with load_checkpoint(tmp_path) as checkpoint:
        for i, layer in enumerate(model.model.layers):
            experts, parts = layer.mlp.experts, []
            for part in ("gate", "up", "down"):
                matrix = checkpoint.load(f"model.layers.{i}.mlp.experts.{part}_proj.weight")
                assert isinstance(matrix, CodedMatrix) and matrix.format == "mxfp4"
                parts.append(matrix.dequantize().unflatten(0, (experts.num_experts, -1)))
            gate, up, down = parts
            with torch.no_grad():
                both = torch.stack([gate, up], 2).flatten(1, 2)
                before = experts.gate_up_proj.clone()
                experts.gate_up_proj.copy_(both.transpose(1, 2))
                experts.down_proj.copy_(down.transpose(1, 2))
            # The codes are in the order of the file: values are near the original ones.
            assert (experts.gate_up_proj - before).norm() < 0.2 * before.norm()
    expected = twin_logits(model, IDS)
    difference = (logits_of(tmp_path).log_softmax(-1) - expected.log_softmax(-1)).abs().max()
    assert float(difference) < 1e-4
    with load_checkpoint(tmp_path) as checkpoint:
        packed = load_model(checkpoint, "auto")
        formats = {w.format for b in packed.blocks for w in b.feed_forward.gate_up.weights}
        assert formats == {"mxfp4"}
    assert divergence(Runner(packed)(IDS), expected) < 0.05


@pytest.mark.parametrize("architecture", MODELS)
def test_quantized_at_load(tmp_path: Path, architecture: str) -> None:
    model = make_checkpoint(tmp_path, architecture=architecture, tied=False)
    expected = twin_logits(model, IDS)
    assert divergence(logits_of(tmp_path, "auto", quantize="q8_0"), expected) < 0.05


def test_gate_and_up_in_different_formats(tmp_path: Path) -> None:
    """Two products and the gate: near the exact model, as with both in one format."""
    path = tmp_path / "model.gguf"
    twin = make_gguf(path, architecture="qwen3_moe", quantization="Q8_0", norm_topk_prob=True)
    with load_checkpoint(path) as checkpoint:
        decoder = load_model(checkpoint, "auto")
    expected = Runner(decoder)(IDS)
    for block in decoder.blocks:
        experts = block.feed_forward.gate_up
        (weight,) = experts.weights
        rows = ops.embedding(torch.arange(weight.shape[0]), weight)
        gate, up = rows.unflatten(0, (-1, 2, 16)).unbind(1)
        experts.weights = [gate.flatten(0, 1), up.flatten(0, 1)]
    # Sizes of buffers are found when a decoder is made.
    apart = Decoder(
        decoder.config,
        decoder.embedding,
        decoder.blocks,
        decoder.norm,
        decoder.lm_head,
        dtype=decoder.dtype,
        max_model_len=decoder.max_model_len,
        device=decoder.device,
    )
    assert divergence(Runner(apart)(IDS), expected) < 0.01
    assert divergence(expected, twin_logits(twin, IDS)) < 0.05


def changed(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


def test_experts_that_are_missing_or_differ(tmp_path: Path) -> None:
    """Named before a weight is read."""
    first = "model.layers.1.mlp.experts"

    def fails(change: Any, message: str) -> None:
        make_checkpoint(tmp_path, architecture="qwen3_moe")
        changed(tmp_path, change)
        with pytest.raises(ValueError, match=message) as info:
            load_checkpoint(tmp_path)
        assert "\n" not in str(info.value)

    fails(
        lambda state: state.pop(f"{first}.2.up_proj.weight"),
        r"tensor 'model.layers.1.mlp.experts.2.up_proj.weight' is missing",
    )
    fails(
        lambda state: state.update({f"{first}.3.down_proj.weight": torch.zeros(64, 48)}),
        r"\.1\.mlp.experts.3.down_proj.weight': expected shape \(64, 32\), .*got \(64, 48\)",
    )
    fails(
        lambda state: [state.pop(f"{first}.5.{part}_proj.weight") for part in ("gate", "up")],
        r"experts.gate_proj.weight: expected shape \(6, 32, 64\) by the .*got \(5, 32, 64\)",
    )
    fails(
        lambda state: [state.pop(f"{first}.{i}.up_proj.weight") for i in range(6)],
        r"tensor model.layers.1.mlp.experts.up_proj.weight is missing",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts_per_tok": 7}, "num_experts_per_tok: expected an integer from 1 to 6"),
        ({"num_local_experts": 0}, "num_local_experts: expected an integer from 1"),
        ({"moe_intermediate_size": 24}, "moe_intermediate_size: expected a multiple of 16"),
        ({"mlp_only_layers": "all"}, "mlp_only_layers: expected a list of layers"),
        ({"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size = 64 is not"),
    ],
)
def test_wrong_fields(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    make_checkpoint(tmp_path, architecture="qwen3_moe")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path)


def test_what_experts_cannot_do_yet(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, architecture="mixtral")
    message = "device: models with experts run on device='cpu'"
    with load_checkpoint(tmp_path) as checkpoint, pytest.raises(ValueError, match=message):
        load_model(checkpoint, device=torch.device("cuda"))
    with pytest.raises(ValueError, match="quantize: models with experts are not written"):
        quantize(str(tmp_path), str(tmp_path / "out.gguf"), "q8_0")


def test_ends_of_messages_in_a_gguf_file(tmp_path: Path) -> None:
    """Harmony's: an answer, and the call of a tool, which eos_token_id does not name."""
    names = [f"<|{i}|>" for i in range(320)]
    names[7], names[9] = "<|return|>", "<|call|>"
    make_gguf(
        tmp_path / "model.gguf",
        quantization="F32",
        architecture="gpt_oss",
        metadata={"tokenizer.ggml.tokens": names, "tokenizer.ggml.eos_token_id": 7},
    )
    with load_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert checkpoint.config.eos_token_ids == (7, 9)
