# SPDX-License-Identifier: Apache-2.0
"""Quantized safetensors of each published layout: exact values, packed; contradictions refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from model_harness import Runner, twin_logits
from quantized_folders import E2M1, LAYOUTS, Layout, quantize_folder
from safetensors.torch import load_file, save_file

from lampo import ops
from lampo.models.checkpoint import load_checkpoint
from lampo.models.loader import load_model
from lampo.weights.fields import Fields
from lampo.weights.formats import CodedMatrix
from lampo.weights.quantized.folder import METHODS, QuantizedFolder
from lampo.weights.quantized.mxfp4 import mxfp4_matrices
from lampo.weights.safetensors import SafetensorsFolder

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_attention_heads": 8,
    "head_dim": 32,
    "num_key_value_heads": 2,
}
TOKENS = [3, 141, 59, 265, 35, 89, 79, 32, 38, 46, 264, 33, 83, 279, 50, 288] * 3


def open_folder(folder: Path, config: dict[str, Any]) -> QuantizedFolder:
    return QuantizedFolder(SafetensorsFolder(folder), Fields("config.json", config))


def write_linear(
    folder: Path, layout: Layout, rows: int, columns: int, seed: int = 0
) -> np.ndarray:
    """One linear "x" with a few large rows and columns; returns its values."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns), np.float32) * 0.05
    weight[0] *= 50
    weight[:, 1] *= 5
    tensors, values = layout.write(weight)
    save_file({f"x.{part}": t for part, t in tensors.items()}, folder / "model.safetensors")
    return values


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(48, 256), (200, 384), (8, 128)])
def test_values_are_exact(name: str, rows: int, columns: int, tmp_path: Path) -> None:
    """The matrix has the layout's values; packed they are the same, in the memory of the file."""
    layout = LAYOUTS[name]
    expected = torch.from_numpy(write_linear(tmp_path, layout, rows, columns))
    folder = open_folder(tmp_path, layout.config)
    assert folder.names() == ["x.weight"]
    assert folder.shape("x.weight") == (rows, columns)
    matrix = folder.load("x.weight")
    assert isinstance(matrix, CodedMatrix)
    assert torch.equal(matrix.dequantize(), expected)
    assert torch.equal(matrix.dequantize(torch.bfloat16), expected.bfloat16())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert matrix.nbytes <= size

    blocks = matrix.packed(ops.weight_formats())
    one_group = "act order" in name and columns == 128  # in which nothing is scattered
    assert (blocks and blocks.format) == ("int4_g128" if one_group else layout.format)
    if blocks is None:
        return
    weight = ops.pack_weight(blocks.blocks, blocks.format)
    assert torch.equal(ops.embedding(torch.arange(rows), weight), expected)
    if rows == 48:
        assert weight.nbytes <= 1.07 * matrix.nbytes
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
    found = ops.linear(x, weight, activation_bits=16)
    exact = x.double() @ expected.double().T
    assert float((found - exact).abs().max()) < 1e-3 * float(exact.std())


def test_scales_beyond_half(tmp_path: Path) -> None:
    """Scales that float16 has not exactly: a format with float32 ones, or bfloat16."""
    for name, scale in (("w4a16 groups of 32", 2.0**-30), ("w8a16", 2.0**-30)):
        layout = LAYOUTS[name]
        write_linear(tmp_path, layout, 16, 256)
        tensors = load_file(tmp_path / "model.safetensors")
        tensors["x.weight_scale"] = (tensors["x.weight_scale"].float() * scale).bfloat16()
        save_file(tensors, tmp_path / "model.safetensors")
        matrix = open_folder(tmp_path, layout.config).load("x.weight")
        assert isinstance(matrix, CodedMatrix)
        blocks = matrix.packed(ops.weight_formats())
        assert (blocks and blocks.format) == (None if "32" in name else "int8_g128")


def test_formats_of_a_gpu(tmp_path: Path) -> None:
    """Symmetric codes have a format there too, in other groups."""
    cuda = ["q4_0", "q4_1", "q8_0"]
    expected = {"gptq": "q4_0", "gptq asymmetric": None, "w8a8": "q8_0"}
    for name, format in expected.items():
        write_linear(tmp_path, LAYOUTS[name], 16, 256)
        matrix = open_folder(tmp_path, LAYOUTS[name].config).load("x.weight")
        assert isinstance(matrix, CodedMatrix)
        blocks = matrix.packed(cuda)
        assert (blocks and blocks.format) == format


def test_zero_point_0_of_gptq_v1(tmp_path: Path) -> None:
    """Version 1 stores it as 15: zero points less one, modulo 16."""
    layout = LAYOUTS["gptq asymmetric"]
    write_linear(tmp_path, layout, 16, 256)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["x.qzeros"].fill_(-1)
    save_file(tensors, tmp_path / "model.safetensors")
    matrix = open_folder(tmp_path, layout.config).load("x.weight")
    assert isinstance(matrix, CodedMatrix)
    assert bool((matrix.dequantize() >= 0).all())


def test_fp8_as_transformers(tmp_path: Path) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    layout = LAYOUTS["fp8 blocks"]
    write_linear(tmp_path, layout, 256, 384)
    tensors = load_file(tmp_path / "model.safetensors")
    matrix = open_folder(tmp_path, layout.config).load("x.weight")
    assert isinstance(matrix, CodedMatrix)
    expected = Fp8Dequantize(None)._dequantize_one(
        tensors["x.weight"], tensors["x.weight_scale_inv"], torch.float32
    )
    assert torch.equal(matrix.dequantize(), expected)


@pytest.mark.parametrize("name", ["F8_E8M0", "U8"])
def test_fp8_scales_that_are_exponents(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS["fp8 blocks"]
    write_linear(tmp_path, layout, 16, 256)
    tensors = load_file(tmp_path / "model.safetensors")
    exponents = torch.tensor([[120, 0]], dtype=torch.uint8)
    e8m0 = name == "F8_E8M0"
    tensors["x.weight_scale_inv"] = exponents.view(torch.float8_e8m0fnu) if e8m0 else exponents
    save_file(tensors, tmp_path / "model.safetensors")
    matrix = open_folder(tmp_path, layout.config).load("x.weight")
    assert isinstance(matrix, CodedMatrix)
    codes = tensors["x.weight"].float()
    expected = torch.cat([codes[:, :128] * 2.0**-7, codes[:, 128:] * 2.0**-127], 1)
    assert torch.equal(matrix.dequantize(), expected)


def test_mxfp4_as_transformers() -> None:
    """Experts of gpt-oss: exact in GGUF's MXFP4."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 16, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(100, 140, (3, 16, 4), dtype=torch.uint8, generator=generator)
    matrices = mxfp4_matrices(blocks, scales, "mlp.experts.down_proj")
    expected = convert_moe_packed_tensors(blocks, scales).transpose(1, 2)
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(3)
    by_table = torch.from_numpy(E2M1)[codes.int()] * torch.exp2(scales[..., None].float() - 127)
    for matrix, values, own in zip(matrices, expected, by_table, strict=True):
        assert matrix.format == "mxfp4"
        assert torch.equal(matrix.dequantize(), values.float())
        assert torch.equal(matrix.dequantize(), own.flatten(1))
        weight = ops.pack_weight(matrix.blocks, "mxfp4")
        assert torch.equal(ops.embedding(torch.arange(16), weight), values.float())
        assert weight.nbytes == matrix.nbytes + 16 * 4  # scales as bfloat16
    for bad in (blocks[..., :8], blocks.int(), blocks[0]):
        with pytest.raises(ValueError, match="down_proj_blocks: expected uint8"):
            mxfp4_matrices(bad, scales, "mlp.experts.down_proj")
    with pytest.raises(ValueError, match="down_proj_scales: expected uint8"):
        mxfp4_matrices(blocks, scales[:, :3], "mlp.experts.down_proj")
    with pytest.raises(ValueError, match="down_proj_scales: expected finite scales, found nan"):
        mxfp4_matrices(blocks, torch.full_like(scales, 255), "mlp.experts.down_proj")


MODELS = ["gptq asymmetric", "awq", "w4a16", "w8a8", "fp8 blocks", "nvfp4", "nf4 nested"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, architecture: str, tmp_path: Path) -> None:
    """Log-probabilities of transformers with the dequantized weights."""
    twin = make_checkpoint(
        tmp_path, architecture=architecture, tied=False, tokenizer=False, **SHAPE
    )
    values = quantize_folder(tmp_path, LAYOUTS[name])
    twin.load_state_dict(values)
    expected = twin_logits(twin, TOKENS).log_softmax(-1)
    with load_checkpoint(tmp_path) as checkpoint:
        exact = Runner(load_model(checkpoint, "float32"))(TOKENS).log_softmax(-1)
        rounded = Runner(load_model(checkpoint, "auto"))(TOKENS).log_softmax(-1)
    assert float((exact - expected).abs().max()) < 5e-4  # of logits up to 20
    assert float((expected.exp() * (expected - rounded)).sum(-1).mean()) < 0.02


def test_memory_of_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Packed weights stay packed, said by nothing; others are bfloat16, said once."""
    make_checkpoint(tmp_path, tied=False, tokenizer=False, **SHAPE)
    start = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    for name, ratio in (("awq", 0.0), ("fp8 rows", 0.0), ("nf4", 3.5), ("gptq act order", 3.7)):
        for file, content in start.items():
            (tmp_path / file).write_bytes(content)
        quantize_folder(tmp_path, LAYOUTS[name])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lampo"), load_checkpoint(tmp_path) as checkpoint:
            block = load_model(checkpoint).blocks[0]
        weights = block.mixer.qkv.weights + block.feed_forward.gate_up.weights
        if ratio:
            assert all(w.dtype == torch.bfloat16 for w in weights)
            assert len(caplog.messages) == 1
            assert f"dequantized to bfloat16 at load, in {ratio:.1f} times" in caplog.messages[0]
        else:
            assert [w.format for w in weights] == [LAYOUTS[name].format] * 2
            assert caplog.messages == []


def test_parts_in_different_formats(tmp_path: Path) -> None:
    """Linears that a list excludes stay dense beside quantized ones that read the same input."""
    twin = make_checkpoint(tmp_path, tied=False, tokenizer=False, **SHAPE)
    layout = LAYOUTS["awq"]
    layout.config["modules_to_not_convert"] = ["lm_head", "v_proj", "model.layers.0.mlp.up_proj"]
    values = quantize_folder(tmp_path, layout, ("v_proj", "model.layers.0.mlp.up_proj"))
    layout.config["modules_to_not_convert"] = None
    twin.load_state_dict(values)
    expected = twin_logits(twin, TOKENS).log_softmax(-1)
    with load_checkpoint(tmp_path) as checkpoint:
        model = load_model(checkpoint)
    kinds = [
        [getattr(w, "format", "dense") for w in projection.weights]
        for projection in (model.blocks[0].mixer.qkv, model.blocks[0].feed_forward.gate_up)
    ]
    assert kinds == [["int4_g128", "int4_g128", "dense"], ["int4_g128", "dense"]]
    found = Runner(model)(TOKENS).log_softmax(-1)
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 0.02


def test_quantize_replaces_bfloat16(tmp_path: Path) -> None:
    """`quantize` is for what no packed format holds, and leaves the others alone."""
    make_checkpoint(tmp_path, tied=False, tokenizer=False, **SHAPE)
    quantize_folder(tmp_path, LAYOUTS["nf4"])
    with load_checkpoint(tmp_path) as checkpoint:
        model = load_model(checkpoint, quantize="q8_0")
    assert [w.format for w in model.blocks[0].mixer.qkv.weights] == ["q8_0"]


Change = Callable[[dict[str, torch.Tensor]], Any]


def without(part: str) -> Change:
    return lambda t: t.pop(f"x.{part}")


def put(part: str, tensor: torch.Tensor) -> Change:
    return lambda t: t.update({f"x.{part}": tensor})


def nan_in(part: str) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"x.{part}"].view(-1)[:1].fill_(float("nan"))

    return change


I32 = torch.int32
BAD_TENSORS: list[tuple[str, Change, str]] = [
    ("gptq", without("qzeros"), r"'x\.qzeros': expected I32 \[2, 2\], found no such tensor"),
    ("gptq", without("scales"), r"'x\.scales': expected F16/BF16/F32 \[2, 16\], found no such"),
    ("gptq", put("scales", torch.ones(3, 16)), r"'x\.scales': expected .*, found F32 \[3, 16\]"),
    (
        "gptq",
        put("qweight", torch.zeros(32, 16)),
        r"'x\.qweight': expected I32 \[n, n\], found F32",
    ),
    ("gptq", put("qweight", torch.zeros(31, 16, dtype=I32)), r"'x\.qweight': .* found 248"),
    ("gptq", put("qweight", torch.zeros(32, 12, dtype=I32)), "multiple of 8 columns, found 12"),
    ("gptq", put("g_idx", torch.zeros(7, dtype=I32)), r"'x\.g_idx': expected I32 \[256\]"),
    ("gptq", put("g_idx", torch.full((256,), 2, dtype=I32)), "numbers below 2, found 2"),
    ("gptq", put("g_idx", torch.full((256,), -1, dtype=I32)), "numbers below 2, found -1"),
    ("gptq", nan_in("scales"), r"'x\.scales': expected finite scales, found nan"),
    ("gptq", put("weight", torch.ones(16, 256)), "expected one weight, found a quantized and a"),
    ("awq", without("qzeros"), r"'x\.qzeros': expected I32 \[2, 2\], found no such tensor"),
    (
        "awq",
        put("qzeros", torch.zeros(2, 3, dtype=I32)),
        r"expected I32 \[2, 2\], found I32 \[2, 3",
    ),
    ("awq", nan_in("scales"), r"'x\.scales': expected finite scales, found nan"),
    ("w4a16", without("weight_scale"), r"'x\.weight_scale': expected .*, found no such tensor"),
    ("w4a16", without("weight_shape"), r"'x\.weight_shape': expected I64/I32 \[2\], found no such"),
    ("w4a16", put("weight_shape", torch.tensor([16, 255])), "4 or 8 bits for 255 columns"),
    (
        "w4a16",
        put("weight_shape", torch.tensor([16, 128])),
        "expected int4 by config_groups, found",
    ),
    ("w4a16", put("weight_shape", torch.tensor([15, 256])), "expected 16 rows, found 15"),
    ("w4a16", put("weight_shape", torch.tensor([-1, 256])), "two positive numbers, found"),
    ("w4a16", put("weight_scale", torch.ones(16, 4)), r"\[16, 2\], found F32 \[16, 4\]"),
    ("w4a16", put("weight_g_idx", torch.full((256,), 9)), "numbers below 2, found 9"),
    ("w4a16", put("weight_zero_point", torch.ones(16, 2)), r"expected I32 \[2, 2\], found F32"),
    ("w8a8", put("weight_scale", torch.ones(16, 2)), r"expected .*\[16, 1\] or \[16\], found F32"),
    ("w8a8", nan_in("weight_scale"), r"'x\.weight_scale': expected finite scales, found nan"),
    (
        "w8a8",
        put("weight", torch.ones(16, 256).to(torch.float8_e4m3fn)),
        "int8 by config_groups, fo",
    ),
    ("fp8 blocks", without("weight_scale_inv"), r"'x\.weight_scale': expected .* found no such"),
    ("fp8 blocks", put("weight_scale_inv", torch.ones(2, 2)), r"\[1, 2\], found F32 \[2, 2\]"),
    ("fp8 blocks", nan_in("weight_scale_inv"), "expected finite scales, found nan"),
    (
        "fp8",
        put("weight", torch.ones(16, 256)),
        r"'x\.weight': expected F8_E4M3 \[n, n\], found F32",
    ),
    ("nvfp4", without("weight_global_scale"), r"'x\.weight_global_scale': expected F32"),
    ("nvfp4", put("weight_global_scale", torch.zeros(1)), "a number that is not 0, found 0"),
    ("nvfp4", put("weight_scale", torch.ones(16, 16)), r"expected F8_E4M3 \[16, 16\], found F32"),
    ("nf4", without("weight.quant_map"), r"'x\.weight\.quant_map': expected F32 \[16\], found no"),
    (
        "nf4",
        without("weight.quant_state.bitsandbytes__nf4"),
        "expected U8 .*, found no such tensor",
    ),
    ("nf4", put("weight.absmax", torch.ones(3)), r"expected F32/U8 \[64\], found F32 \[3\]"),
    ("nf4", nan_in("weight.absmax"), "expected finite scales, found nan"),
    (
        "nf4 nested",
        without("weight.nested_absmax"),
        r"nested_absmax': expected F32 \[1\], found no",
    ),
    ("llm.int8", without("SCB"), r"'x\.SCB': expected .*\[16\], found no such tensor"),
    ("llm.int8", put("SCB", torch.ones(15)), r"'x\.SCB': expected .*\[16\], found F32 \[15\]"),
]


@pytest.mark.parametrize(("name", "change", "reason"), BAD_TENSORS)
def test_contradicting_tensors(name: str, change: Change, reason: str, tmp_path: Path) -> None:
    write_linear(tmp_path, LAYOUTS[name], 16, 256)
    path = tmp_path / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)

    def load() -> None:
        folder = open_folder(tmp_path, LAYOUTS[name].config)
        folder.shape("x.weight")
        folder.load("x.weight")

    with pytest.raises(ValueError, match=reason) as info:
        load()
    assert str(info.value).startswith(str(tmp_path))
    assert "\n" not in str(info.value)


def group_with(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, **weights}}}}


BAD_CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("gptq", {"quant_method": "exl2"}, "quant_method: expected one of fp8, .*, got 'exl2'"),
    ("gptq", {"quant_method": None}, "quant_method: expected one of .*, it is missing"),
    ("gptq", {"bits": 3}, "bits: expected 4 or 8, got 3"),
    ("gptq", {"bits": True}, "bits: expected an integer"),
    ("gptq", {"bits": 8}, "'x.qweight': expected a multiple of 128 columns, found 128|qzeros"),
    ("gptq", {"group_size": 0}, "group_size: expected -1, or a positive multiple of 32, got 0"),
    ("gptq", {"group_size": 96}, "'x.qweight': expected a multiple of 96 columns, found 256"),
    ("gptq", {"group_size": "x"}, "group_size: expected an integer from -1"),
    (
        "gptq",
        {"checkpoint_format": None, "format": "marlin"},
        "format: expected one of gptq, gptq_v2",
    ),
    ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format: expected one of gptq, gptq_v2"),
    ("gptq", {"modules_to_not_convert": ["x"]}, "'x' is excluded from quantization, but 'x' is"),
    ("gptq", {"modules_to_not_convert": [1]}, "modules_to_not_convert: expected a list of names"),
    ("gptq", {"modules_to_not_convert": "x"}, "modules_to_not_convert: expected a list of modules"),
    ("gptq", {"quant_method": "fp8"}, "quant_method is 'fp8', but no tensor in .* is quantized"),
    ("awq", {"version": "gemv"}, "version: expected gemm, got 'gemv'"),
    ("awq", {"bits": 8}, "bits: expected 4, got 8"),
    ("awq", {"group_size": 32}, r"'x\.qzeros': expected I32 \[8, 2\], found I32 \[2, 2\]"),
    ("w4a16", {"config_groups": {}}, "config_groups: expected 1 to 64 groups"),
    ("w4a16", {"config_groups": {"g": 7}}, "config_groups: 'g': expected an object, got 7"),
    ("w4a16", {"format": "marlin-24"}, "format: expected one of pack-quantized, .*'marlin-24'"),
    (
        "w4a16",
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config: expected none",
    ),
    ("w4a16", {"transform_config": {"config_groups": {"u": {}}}}, "expected no transforms of act"),
    (
        "w4a16",
        {"config_groups": {"g": {"weights": None}}},
        "expected no weights by config_groups, found int4",
    ),
    ("w4a16", {"ignore": ["x"]}, "'x' is excluded from quantization, but 'x' is quantized"),
    ("w4a16", group_with(num_bits=2), "config_groups: weights: num_bits: expected 4 or 8, got 2"),
    ("w4a16", group_with(type="bool"), "weights: type: expected one of int, float, got 'bool'"),
    ("w4a16", group_with(num_bits=8), "expected int8 by config_groups, found int4"),
    ("w4a16", group_with(strategy="group", group_size=96), "a multiple of 96 columns, found 256"),
    (
        "w4a16",
        group_with(strategy="group", group_size=48),
        "group_size: expected -1, or a positive",
    ),
    (
        "w4a16",
        group_with(strategy="channel"),
        r"expected .*\[16, 1\] or \[16\], found BF16 \[16, 2",
    ),
    (
        "fp8 blocks",
        {"weight_block_size": [128]},
        "weight_block_size: expected two positive integers",
    ),
    ("fp8 blocks", {"weight_block_size": [64, 64]}, r"\[1, 4\], found F32 \[1, 2\]"),
    ("fp8 blocks", {"weight_block_size": None}, r"'x\.weight_scale': expected .*found no such"),
    ("fp8 blocks", {"fmt": "e5m2"}, "fmt: expected one of e4m3"),
    ("nf4", {"load_in_8bit": True}, "load_in_4bit: expected either it or load_in_8bit"),
]


@pytest.mark.parametrize(("name", "change", "reason"), BAD_CONFIGS)
def test_contradicting_configs(
    name: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    write_linear(tmp_path, LAYOUTS[name], 16, 256)
    with pytest.raises(ValueError, match=reason) as info:
        open_folder(tmp_path, LAYOUTS[name].config | change).shape("x.weight")
    assert "\n" not in str(info.value)


def test_state_of_nf4(tmp_path: Path) -> None:
    """The JSON beside a 4-bit matrix is checked like every other file."""
    layout = LAYOUTS["nf4"]
    write_linear(tmp_path, layout, 16, 256)
    path = tmp_path / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    state = "x.weight.quant_state.bitsandbytes__nf4"
    good = json.loads(bytes(tensors[state].tolist()))
    for bad, reason in (
        (b"{", "expected JSON, found bytes that cannot be read"),
        (b"[]", "expected a JSON object, found"),
        (b"[" * 4000, "expected JSON, found"),
        (b" " * 5000, "at most 4096 bytes, found 5000"),
        (json.dumps(good | {"shape": [16, -1]}).encode(), "shape: expected two positive integers"),
        (json.dumps(good | {"shape": [1 << 30, 1 << 30]}).encode(), r"'x\.weight': expected U8"),
        (json.dumps(good | {"blocksize": 0}).encode(), "blocksize: expected an integer from 1"),
    ):
        tensors[state] = torch.tensor(list(bad), dtype=torch.uint8)
        save_file(tensors, path)
        with pytest.raises(ValueError, match=reason) as info:
            open_folder(tmp_path, layout.config).shape("x.weight")
        assert "\n" not in str(info.value)


def test_errors_of_a_folder(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tied=False, tokenizer=False, **SHAPE)
    quantize_folder(tmp_path, LAYOUTS["awq"])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())

    def refused(change: dict[str, Any], reason: str) -> None:
        path.write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=reason) as info:
            load_checkpoint(tmp_path)
        assert str(info.value).startswith(str(tmp_path))

    refused({"quantization_config": None}, "has no place in a llama model|is not supported")
    refused({"quantization_config": 7}, "quantization_config: expected an object, got 7")
    refused({"quantization_config": {}}, "quantization_config: quant_method: expected one of")
    refused({"intermediate_size": 385}, r"expected shape \(385, 256\) .* got \(384, 256\)")


def test_quantized_gpt2_is_refused(tmp_path: Path) -> None:
    """Its linears are stored transposed, so that a square one could be read wrongly."""
    make_checkpoint(tmp_path, architecture="gpt2", tokenizer=False, num_attention_heads=2)
    path = tmp_path / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    name = next(key for key in tensors if key.endswith("h.0.attn.c_proj.weight"))
    weight = tensors.pop(name).numpy()
    written, _ = LAYOUTS["gptq rows"].write(weight)
    linear = name.removesuffix(".weight")
    save_file(tensors | {f"{linear}.{part}": t for part, t in written.items()}, path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = LAYOUTS["gptq rows"].config
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantized gpt2 models are not supported"):
        load_checkpoint(tmp_path)


def test_scales_of_caches_are_left_out(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tied=False, tokenizer=False, **SHAPE)
    quantize_folder(tmp_path, LAYOUTS["w8a8"])
    path = tmp_path / "model.safetensors"
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
    save_file(tensors, path)
    with load_checkpoint(tmp_path) as checkpoint:
        assert not any("scale" in name for name in checkpoint.names())


def test_every_method_is_here() -> None:
    methods = {layout.config["quant_method"] for layout in LAYOUTS.values()}
    assert methods | {"fbgemm_fp8"} == set(METHODS)
