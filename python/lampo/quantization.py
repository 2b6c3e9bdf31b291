# SPDX-License-Identifier: Apache-2.0
"""Quantization of a model to a GGUF file, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lampo import ops
from lampo.models.checkpoint import Checkpoint, load_checkpoint
from lampo.models.gguf_metadata import frequency_factors, gguf_metadata
from lampo.models.registry import gguf_reader
from lampo.text.tokenizer_to_gguf import gguf_tokenizer
from lampo.weights import resolve_model
from lampo.weights.file_types import FILE_TYPES, FileType, check_file_type
from lampo.weights.formats import CodedMatrix, QuantizedTensor, ggml_type
from lampo.weights.gguf_writer import GGUFWriter, TensorPlan

_PIECE = 1 << 22  # weights, quantized at once
_QUANTIZATION_VERSION = 2  # of GGUF's block types
# Of the file that is read; those of the new one differ, or there are none.
_NOT_COPIED = (
    *("split.", "quantize.imatrix.", "general.alignment"),
    *("general.file_type", "general.quantization_version"),
)
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

Progress = Callable[[int, int], None]


def quantize(
    model: str | Path,
    target: str | Path,
    type: str = "q4_k_m",
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Writes a model as a GGUF file of a type, which lampo and llama.cpp read.

    Matrices get the formats that llama.cpp's converters choose for the type; norms and biases are
    float32. A tensor that has its format already is copied. The memory needed is one tensor and
    its blocks; all threads work.

        lampo.quantize("SmolLM2-135M-Instruct", "SmolLM2.gguf", "q5_k_m")

    Args:
        model: as for :class:`LLM`: a folder of safetensors, a GGUF file, or a name.
        target: the file to write, ending in .gguf; it appears once it is complete.
        type: "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m" and so on.
        overwrite: replace a file that exists.
        on_progress: called with the bytes of weights written, and their final number.

    Returns:
        the file.

    Raises:
        ValueError: an unknown type, a file that exists, a model that cannot be read or that GGUF
            cannot express, in one line. OSError: the file cannot be written.
    """
    check_file_type(type)
    with load_checkpoint(resolve_model(model)) as checkpoint:
        if any(layer.feed_forward.experts is not None for layer in checkpoint.config.layers):
            raise ValueError(
                "quantize: models with experts are not written to GGUF files yet; quantize them at "
                "load"
            )
        path = _checked_target(Path(target).expanduser(), checkpoint, overwrite)
        file_type = FILE_TYPES[type]
        if len(checkpoint.config.attentions) < checkpoint.config.num_layers:
            raise ValueError(
                f"quantize: {checkpoint.config.architecture} models are not written to GGUF files "
                "yet: they have layers without attention"
            )
        metadata = _metadata(checkpoint, file_type)
        plans = list(_plans(checkpoint, file_type))
        written = [TensorPlan(plan.name, plan.shape, plan.format) for _, plan in plans]
        total, done = sum(plan.nbytes for plan in written), 0

        def report(nbytes: int) -> None:
            if on_progress is not None:
                on_progress(done + nbytes, total)

        with GGUFWriter(path, metadata, written, checkpoint.gguf_kinds) as writer:
            for name, plan in plans:
                writer.add(_converted(_tensor(checkpoint, name, plan), plan, report))
                done += plan.nbytes
    return path


def _checked_target(path: Path, checkpoint: Checkpoint, overwrite: bool) -> Path:
    if path.suffix != ".gguf":
        raise ValueError(f"{path}: expected a name that ends in .gguf")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: no such folder: {path.parent}")
    if path.exists():
        if checkpoint.gguf_metadata is not None and os.path.samefile(path, checkpoint.path):
            raise ValueError(f"{path}: it is the model that is read")
        if not path.is_file():
            raise ValueError(f"{path}: it is no file")
        if not overwrite:
            raise ValueError(f"{path}: it exists; --force (overwrite=True) replaces it")
    return path


def _metadata(checkpoint: Checkpoint, file_type: FileType) -> dict[str, Any]:
    """The key-value section: that of a GGUF file, or one made from a folder's files."""
    found: dict[str, Any]
    if checkpoint.gguf_metadata is not None:
        copied: Mapping[str, Any] = checkpoint.gguf_metadata
        found = {key: v for key, v in copied.items() if not key.startswith(_NOT_COPIED)}
    else:
        config = checkpoint.config
        name = gguf_reader(checkpoint.architecture).gguf_name
        assert name is not None
        scales = checkpoint.architecture.gguf_scales(config)
        found = {
            "general.architecture": name,
            "general.type": "model",
            "general.name": checkpoint.path.resolve().name,
            **gguf_metadata(config, name),
            **{f"{name}.{key}": value for key, value in scales.items()},
            **gguf_tokenizer(checkpoint.path, config.vocab_size, checkpoint.eos_token_ids),
        }
    versions = {
        "general.file_type": file_type.number,
        "general.quantization_version": _QUANTIZATION_VERSION,
    }
    return found | versions


def _plans(checkpoint: Checkpoint, file_type: FileType) -> Iterator[tuple[str, TensorPlan]]:
    """All tensors to write, with the names under which the checkpoint has them."""
    config = checkpoint.config
    attention = config.layers[0].attention
    for name, factors in frequency_factors(attention.rope).items():
        yield "", TensorPlan(name, (len(factors),), "f32")
    for name, stored in checkpoint.architecture.tensors(config).items():
        format = "f32"
        if len(stored.shape) == 2:
            format = file_type.of_tensor(
                stored.gguf,
                stored.shape[1],
                tied=config.tie_word_embeddings,
                num_layers=config.num_layers,
                group_size=attention.num_qo_heads // attention.num_kv_heads,
            )
        yield name, TensorPlan(stored.gguf, stored.shape, format)


def _tensor(checkpoint: Checkpoint, name: str, plan: TensorPlan) -> torch.Tensor | CodedMatrix:
    """A tensor with its rows in the order of GGUF files."""
    attention = checkpoint.config.layers[0].attention
    if not name:
        return torch.tensor(frequency_factors(attention.rope)[plan.name])
    tensor = checkpoint.load(name)
    interleaved = gguf_reader(checkpoint.architecture).interleaved_in_gguf
    if checkpoint.gguf_metadata is None and interleaved:
        part = plan.name.split(".")[-2]
        heads = {"attn_q": attention.num_qo_heads, "attn_k": attention.num_kv_heads}.get(part)
        if heads is not None:
            tensor = tensor if isinstance(tensor, torch.Tensor) else tensor.dequantize()
            # Channels i of both halves of a head side by side.
            halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
            return halves.transpose(1, 2).reshape(tensor.shape)
    return tensor


def _converted(
    tensor: torch.Tensor | CodedMatrix, plan: TensorPlan, report: Callable[[int], None]
) -> torch.Tensor:
    """The tensor's bytes in the planned format, computed in pieces."""
    if isinstance(tensor, QuantizedTensor) and tensor.format == plan.format:
        report(plan.nbytes)
        return tensor.blocks
    rows, columns = plan.shape if len(plan.shape) == 2 else (1, plan.shape[0])
    _, kind = ggml_type(plan.format)
    row_bytes = kind.row_bytes(columns)
    out = torch.empty(rows, row_bytes, dtype=torch.uint8)
    for start in range(0, rows, max(1, _PIECE // columns)):
        piece = slice(start, min(start + max(1, _PIECE // columns), rows))
        part = _dense(tensor, piece) if len(plan.shape) == 2 else tensor
        assert isinstance(part, torch.Tensor)
        if plan.format in _DTYPES:
            out[piece].view(_DTYPES[plan.format])[:] = part
        else:
            ops.quantize_weight(part, plan.format, blocks=out[piece])
        report(piece.stop * row_bytes)
    return out


def _dense(tensor: torch.Tensor | CodedMatrix, rows: slice) -> torch.Tensor:
    """Rows of a matrix."""
    if isinstance(tensor, torch.Tensor):
        return tensor[rows]
    return tensor.rows(rows.start, rows.stop)
