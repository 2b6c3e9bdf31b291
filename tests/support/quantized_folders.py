# SPDX-License-Identifier: Apache-2.0
"""Writers of quantized safetensors, layout by layout, with the values that they stand for.

The layouts are packed code by code from their descriptions, independently of the loaders.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        config: quantization_config.
        write: weight [out, in] float32 -> the linear's tensors by the ends of their names, and the
            values that they stand for, in float32.
        format: the packed format that holds it; None: bfloat16.
    """

    config: dict[str, Any]
    write: Callable[[np.ndarray], tuple[Tensors, np.ndarray]]
    format: str | None


def rounded(
    weight: np.ndarray, bits: int, group: int, symmetric: bool, scale_type: torch.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes in 0 .. 2^bits - 1, scales and zero points in float32, of groups along rows."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // group, group)
    top = 2**bits - 1
    if symmetric:
        scale = np.abs(groups).max(2) / (top // 2)
        zero = np.full_like(scale, (top + 1) // 2)
    else:
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        scale = (high - low) / top
        zero = np.clip(np.round(-low / scale), 0, top)
    scale = torch.from_numpy(scale).to(scale_type).float().numpy()
    codes = np.clip(np.round(groups / scale[..., None]) + zero[..., None], 0, top)
    return codes.reshape(rows, columns).astype(np.int64), scale, zero


def values_of(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, order: np.ndarray | None = None
) -> np.ndarray:
    """scale (code - zero), in float64 and rounded once."""
    if order is None:
        order = np.arange(codes.shape[1]) // (codes.shape[1] // scale.shape[1])
    exact = (codes - zero[:, order]) * scale[:, order].astype(np.float64)
    return exact.astype(np.float32)


def words(codes: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """Codes along the last axis in 32-bit words; field i has the code places[i] of its word."""
    count = 32 // bits
    parts = codes.reshape(*codes.shape[:-1], -1, count).astype(np.uint32)
    word = np.zeros(parts.shape[:-1], np.uint32)
    for i, place in enumerate(places or range(count)):
        word |= parts[..., place] << np.uint32(bits * i)
    return torch.from_numpy(word.view(np.int32).copy())


def gptq(
    bits: int,
    group: int,
    *,
    symmetric: bool,
    format: str | None,
    version: str = "gptq",
    act_order: bool = False,
    index: bool = True,
) -> Layout:
    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        columns = weight.shape[1]
        size = columns if group == -1 else group
        order = np.arange(columns) // size
        if act_order:
            order = np.random.default_rng(columns).permutation(order)
        by_group = np.argsort(order, kind="stable")
        codes, scale, zero = rounded(weight[:, by_group], bits, size, symmetric, torch.float16)
        back = np.empty_like(codes)
        back[:, by_group] = codes
        stored = (zero.astype(np.int64) - (version == "gptq")) % 2**bits
        tensors = {
            "qweight": words(back, bits).t().contiguous(),
            "qzeros": words(stored.T, bits),
            "scales": torch.from_numpy(scale.T.copy()).half(),
        }
        if index:
            tensors["g_idx"] = torch.from_numpy(order.astype(np.int32))
        return tensors, values_of(back, scale, zero, order)

    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order,
        "sym": symmetric,
        "checkpoint_format": version,
        "damp_percent": 0.01,
        "true_sequential": True,
    }
    return Layout(config, write, format)


def awq(group: int, format: str | None) -> Layout:
    places = (0, 2, 4, 6, 1, 3, 5, 7)

    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        codes, scale, zero = rounded(weight, 4, group, False, torch.float16)
        return {
            "qweight": words(codes.T, 4, places),
            "qzeros": words(zero.T.astype(np.int64), 4, places),
            "scales": torch.from_numpy(scale.T.copy()).half(),
        }, values_of(codes, scale, zero)

    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return Layout(config, write, format)


def compressed(
    kind: str, bits: int, strategy: str, type: str = "int", **weights: Any
) -> dict[str, Any]:
    scheme = {"num_bits": bits, "type": type, "strategy": strategy, "symmetric": True, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
        "ignore": ["lm_head", "re:.*(a+)+$"],
        "kv_cache_scheme": None,
    }


def pack_quantized(
    bits: int, group: int, *, symmetric: bool, format: str | None, scales: torch.dtype
) -> Layout:
    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        rows, columns = weight.shape
        size = columns if group == -1 else group
        codes, scale, zero = rounded(weight, bits, size, symmetric, scales)
        tensors = {
            "weight_packed": words(codes, bits),
            "weight_scale": torch.from_numpy(scale).to(scales),
            "weight_shape": torch.tensor([rows, columns]),
        }
        if not symmetric:
            count = 32 // bits
            padded = np.pad(zero.astype(np.int64), ((0, -rows % count), (0, 0)))
            tensors["weight_zero_point"] = words(padded.T, bits).t().contiguous()
        return tensors, values_of(codes, scale, zero)

    strategy = "channel" if group == -1 else "group"
    config = compressed("pack-quantized", bits, strategy, symmetric=symmetric)
    if group != -1:
        config["config_groups"]["group_0"]["weights"]["group_size"] = group
    return Layout(config, write, format)


def int_quantized(scales: torch.dtype, format: str | None, *, symmetric: bool = True) -> Layout:
    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        codes, scale, zero = rounded(weight, 8, weight.shape[1], symmetric, scales)
        tensors = {
            "weight": torch.from_numpy((codes - 128).astype(np.int8)),
            "weight_scale": torch.from_numpy(scale).to(scales),
        }
        if not symmetric:
            tensors["weight_zero_point"] = torch.from_numpy((zero - 128).astype(np.int8))
        return tensors, values_of(codes, scale, zero)

    return Layout(compressed("int-quantized", 8, "channel", symmetric=symmetric), write, format)


def fp8_codes(weight: np.ndarray, scale: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Codes of weight / scale, and their values; scale [out, in]."""
    codes = torch.from_numpy(weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, codes.float().numpy() * scale


def fp8(config: dict[str, Any], name: str, shape: str, scales: torch.dtype) -> Layout:
    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        rows, columns = weight.shape
        height, width = {
            "block": (128, 128),
            "row": (1, columns),
            "flat row": (1, columns),
            "all": (rows, columns),
        }[shape]
        grid = -(-rows // height), -(-columns // width)
        padded = np.zeros((grid[0] * height, grid[1] * width), np.float32)
        padded[:rows, :columns] = np.abs(weight)
        top = padded.reshape(grid[0], height, grid[1], width).max((1, 3))
        scale = torch.from_numpy(top / 448).to(scales).float()
        whole = scale.numpy().repeat(height, 0).repeat(width, 1)[:rows, :columns]
        codes, values = fp8_codes(weight, whole)
        stored = scale[0, 0] if shape == "all" else scale
        stored = scale.flatten() if shape == "flat row" else stored
        return {"weight": codes, name: stored.to(scales)}, values

    return Layout(config, write, "fp8_g128")


def nvfp4() -> Layout:
    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        rows, columns = weight.shape
        groups = weight.reshape(rows, -1, 16)
        top = np.float32(448 * 6 / np.abs(weight).max())
        factor = np.float32(1) / top
        scales = torch.from_numpy(np.abs(groups).max(2) / 6 * top).to(torch.float8_e4m3fn)
        unit = factor * scales.float().numpy()
        codes = np.abs(groups[..., None] / unit[..., None, None] - E2M1).argmin(-1)
        codes = codes.reshape(rows, columns).astype(np.uint8)
        return {
            "weight_packed": torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4),
            "weight_scale": scales,
            "weight_global_scale": torch.tensor([top]),
            "input_global_scale": torch.ones(1),
        }, E2M1[codes] * unit.repeat(16, 1)

    config = compressed("nvfp4-pack-quantized", 4, "tensor_group", "float", group_size=16)
    return Layout(config, write, "nvfp4_g128")


def bitsandbytes_4bit(*, nested: bool) -> Layout:
    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        flat = weight.reshape(-1, 64)
        absmax = np.abs(flat).max(1).astype(np.float32)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32"}
        state["shape"] = list(weight.shape)
        tensors: Tensors = {"weight.quant_map": torch.from_numpy(NF4)}
        if nested:
            table = np.linspace(-1, 1, 256, dtype=np.float32)
            offset = np.float32(absmax.mean())
            padded = np.pad(absmax - offset, (0, -len(absmax) % 256)).reshape(-1, 256)
            outer = np.abs(padded).max(1).astype(np.float32)
            indices = np.abs((padded / outer[:, None])[..., None] - table).argmin(-1)
            absmax = (table[indices] * outer[:, None]).flatten()[: len(absmax)] + offset
            tensors |= {
                "weight.absmax": torch.from_numpy(indices.flatten()[: len(absmax)]).byte(),
                "weight.nested_absmax": torch.from_numpy(outer),
                "weight.nested_quant_map": torch.from_numpy(table),
            }
            state |= {"nested_blocksize": 256, "nested_dtype": "float32"}
            state["nested_offset"] = float(offset)
        else:
            tensors["weight.absmax"] = torch.from_numpy(absmax)
        codes = np.abs((flat / absmax[:, None])[..., None] - NF4).argmin(-1).astype(np.uint8)
        pairs = codes.reshape(-1, 2)
        tensors["weight"] = torch.from_numpy(pairs[:, :1] << 4 | pairs[:, 1:])
        encoded = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
        tensors["weight.quant_state.bitsandbytes__nf4"] = torch.from_numpy(encoded)
        return tensors, (NF4[codes] * absmax[:, None]).reshape(weight.shape)

    config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_skip_modules": None,
    }
    return Layout(config, write, None)


def bitsandbytes_8bit() -> Layout:
    def write(weight: np.ndarray) -> tuple[Tensors, np.ndarray]:
        absmax = np.abs(weight).max(1).astype(np.float32)
        codes = np.round(weight * (127 / absmax[:, None])).astype(np.int8)
        scale = absmax * np.float32(1 / 127)
        return {
            "weight": torch.from_numpy(codes),
            "SCB": torch.from_numpy(absmax),
            "weight_format": torch.zeros((), dtype=torch.uint8),
        }, codes * scale[:, None]

    config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
    return Layout(config, write, "int8_g128")


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
_F16, _BF16, _F32 = torch.float16, torch.bfloat16, torch.float32

# For 256 or 384 columns.
LAYOUTS: dict[str, Layout] = {
    "gptq": gptq(4, 128, symmetric=True, format="int4_g128"),
    "gptq asymmetric": gptq(4, 128, symmetric=False, format="int4_g128"),
    "gptq groups of 64": gptq(4, 64, symmetric=False, format="int4_g64", index=False),
    "gptq groups of 32": gptq(4, 32, symmetric=True, format="q4_0"),
    "gptq groups of 32 asymmetric": gptq(4, 32, symmetric=False, format="int4_g32"),
    "gptq rows": gptq(4, -1, symmetric=False, format="int4_g128"),
    "gptq act order": gptq(4, 128, symmetric=True, act_order=True, format=None),
    "gptq v2": gptq(4, 128, symmetric=False, version="gptq_v2", format="int4_g128"),
    "gptq 8 bits": gptq(8, 128, symmetric=True, format="int8_g128"),
    "gptq 8 bits asymmetric": gptq(8, -1, symmetric=False, format="int8_g128"),
    "gptq 8 bits groups of 32": gptq(8, 32, symmetric=True, format="q8_0"),
    "awq": awq(128, "int4_g128"),
    "awq groups of 64": awq(64, "int4_g64"),
    "awq groups of 32": awq(32, "int4_g32"),
    "w4a16": pack_quantized(4, 128, symmetric=True, scales=_BF16, format="int4_g128"),
    "w4a16 asymmetric": pack_quantized(4, 128, symmetric=False, scales=_BF16, format="int4_g128"),
    "w4a16 groups of 32": pack_quantized(4, 32, symmetric=True, scales=_BF16, format="q4_0"),
    "w4a16 rows": pack_quantized(4, -1, symmetric=True, scales=_BF16, format="int4_g128"),
    "w8a16": pack_quantized(8, -1, symmetric=True, scales=_BF16, format="int8_g128"),
    "w8a8": int_quantized(_BF16, "int8_g128"),
    "w8a8 f32 scales": int_quantized(_F32, "int8_g128"),
    "w8a8 asymmetric": int_quantized(_BF16, "int8_g128", symmetric=False),
    "fp8 blocks": fp8(_FP8 | {"weight_block_size": [128, 128]}, "weight_scale_inv", "block", _F32),
    "fp8 rows": fp8(_FP8, "weight_scale", "flat row", _F32),
    "fp8": fp8(_FP8, "weight_scale", "all", _F32),
    "float-quantized rows": fp8(
        compressed("float-quantized", 8, "channel", "float"), "weight_scale", "row", _BF16
    ),
    "float-quantized blocks": fp8(
        compressed("float-quantized", 8, "block", "float", block_structure="128x128"),
        "weight_scale",
        "block",
        _F32,
    ),
    "nvfp4": nvfp4(),
    "nf4": bitsandbytes_4bit(nested=False),
    "nf4 nested": bitsandbytes_4bit(nested=True),
    "llm.int8": bitsandbytes_8bit(),
}


def quantize_folder(
    folder: Path, layout: Layout, ignore: tuple[str, ...] = ("lm_head",)
) -> dict[str, torch.Tensor]:
    """Quantizes the linears of a folder's blocks in place; returns all weights' values.

    Args:
        folder: of one safetensors file.
        layout: the layout.
        ignore: linears whose names have one of these parts stay as they are.
    """
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    values: dict[str, torch.Tensor] = {}
    stored: Tensors = {}
    for name, tensor in load_file(path).items():
        linear = name.removesuffix(".weight")
        left_out = any(f".{part}." in f".{linear}." for part in ignore)
        if tensor.dim() != 2 or ".layers." not in name or left_out:
            stored[name] = values[name] = tensor.clone()
            continue
        tensors, found = layout.write(tensor.float().numpy())
        stored |= {f"{linear}.{part}": t.contiguous().clone() for part, t in tensors.items()}
        values[name] = torch.from_numpy(found)
    save_file(stored, path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = layout.config
    (folder / "config.json").write_text(json.dumps(config))
    return values
