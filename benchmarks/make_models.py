# SPDX-License-Identifier: Apache-2.0
"""Writes the default model in every format that the benchmarks compare.

    LAMPO_PEERS=DIRECTORY python benchmarks/make_models.py

All are made from one model: the weights of the default file, which is Q4_1, dequantized.
DIRECTORY/models gets

    Q4_0.gguf, Q8_0.gguf    matrices quantized by the gguf package, the tied embedding Q8_0 as in
    BF16.gguf               the default file (BF16: all matrices); norms stay F32
    wide.gguf               the same function in float32, with widths that are multiples of 256, as
                            K-quants need: see widened()
    IQ4_XS.gguf, Q4_K_M.gguf, Q5_K_M.gguf, Q6_K.gguf    wide.gguf, quantized by lampo
    hf/                     safetensors in float32 with config and tokenizer, by transformers
    int4/, int8/            OpenVINO's weight compression of hf/ by optimum-cli, where LAMPO_PEERS
                            has OpenVINO: int4 in groups of 64, as 128 does not divide 576; else its
                            defaults

Quantizing dequantized weights again costs quality, not speed. Existing files stay.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

import lampo
import peers
from lampo.models.checkpoint import load_checkpoint
from lampo.weights import resolve_model

GGUF_FORMATS = {
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "BF16": gguf.GGMLQuantizationType.BF16,
}
FILE_TYPES = {
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}
OPENVINO_OPTIONS = {"int4": ["--group-size", "64"], "int8": []}


def requantize(source: Path, target: Path, name: str) -> None:
    """The same metadata and tensors, matrices in another format."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], element)
    writer.add_file_type(FILE_TYPES[name])
    for tensor in reader.tensors:
        kind = GGUF_FORMATS[name]
        if tensor.name == "token_embd.weight" and name == "Q4_0":
            kind = gguf.GGMLQuantizationType.Q8_0
        if len(tensor.shape) == 1:
            kind = gguf.GGMLQuantizationType.F32
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WIDE_HEADS, WIDE_KV_HEADS = 12, 4
WIDE_SIZE = 768  # of 576: 64 channels per head


def widened(source: Path, target: Path) -> None:
    """The default model with more channels and heads, which are zero, as an F32 file.

    The norms' weights and epsilon are changed such that its function stays. Channels change places:
    weights that shared a Q4_1 block of the source, and have at most 16 values, do not share a block
    of a file made from this one.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    size = fields["llama.embedding_length"].contents()
    eps = fields["llama.attention.layer_norm_rms_epsilon"].contents()
    changed = {
        "llama.embedding_length": WIDE_SIZE,
        "llama.attention.head_count": WIDE_HEADS,
        "llama.attention.head_count_kv": WIDE_KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": eps * size / WIDE_SIZE,
        "general.file_type": gguf.LlamaFileType.ALL_F32,
    }
    for key, field in fields.items():
        if key == "general.architecture":
            continue
        element = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        value = changed.get(key, field.contents())
        writer.add_key_value(key, value, field.types[0], element)

    kv_heads = fields["llama.attention.head_count_kv"].contents()
    group = fields["llama.attention.head_count"].contents() // kv_heads
    head_dim = size // group // kv_heads
    generator = np.random.default_rng(0)
    hidden = generator.permutation(size)
    for tensor in reader.tensors:
        part = tensor.name.removesuffix(".weight").rpartition(".")[2]
        layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else 0
        of_layer = np.random.default_rng(layer + 1)
        inner = of_layer.permutation(fields["llama.feed_forward_length"].contents())
        heads = [of_layer.permutation(head_dim) for _ in range(kv_heads)]
        values = np.concatenate([head + head_dim * i for i, head in enumerate(heads)])
        readers = [heads[i // group] + head_dim * i for i in range(group * kv_heads)]
        outputs = np.concatenate(readers)
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if data.ndim == 1:
            data = data[hidden] * np.float32((size / WIDE_SIZE) ** 0.5)
            data = np.pad(data, (0, WIDE_SIZE - size))
        elif part == "attn_output":
            data = _padded(data[hidden][:, outputs], WIDE_SIZE, WIDE_HEADS * head_dim)
        elif part == "ffn_down":
            data = _padded(data[hidden][:, inner], WIDE_SIZE, len(inner))
        else:
            rows = {"ffn_gate": inner, "ffn_up": inner, "attn_v": values}.get(part)
            count = {"attn_q": WIDE_HEADS * head_dim, "attn_k": WIDE_KV_HEADS * head_dim}
            count["attn_v"] = count["attn_k"]
            data = data[:, hidden] if rows is None else data[rows][:, hidden]
            data = _padded(data, count.get(part, len(data)), WIDE_SIZE)
        writer.add_tensor(tensor.name, np.ascontiguousarray(data, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _padded(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.pad(matrix, ((0, rows - matrix.shape[0]), (0, columns - matrix.shape[1])))


def export_hf(source: Path, target: Path) -> None:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/support"))
    import transformers
    from model_harness import transformers_twin

    with load_checkpoint(source) as checkpoint:
        transformers_twin(checkpoint).save_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(target)


def main() -> None:
    if peers.FOLDER is None:
        sys.exit("make_models: LAMPO_PEERS is not set, see install_peers")
    directory = peers.FOLDER / "models"
    directory.mkdir(parents=True, exist_ok=True)

    source = resolve_model(None)
    for name in GGUF_FORMATS:
        target = directory / f"{name}.gguf"
        if not target.exists():
            print(f"writing {target.name}", flush=True)
            requantize(source, target, name)
    wide = directory / "wide.gguf"
    if not wide.exists():
        print("writing wide.gguf", flush=True)
        widened(source, wide)
    for name in peers.WIDE:
        target = directory / f"{name}.gguf"
        if not target.exists():
            print(f"writing {target.name}", flush=True)
            lampo.quantize(wide, target, name.lower())
    folder = directory / "hf"
    if not folder.exists():
        print("writing hf/", flush=True)
        export_hf(source, folder)
    optimum = Path(peers.OPENVINO_PYTHON).with_name("optimum-cli")
    if not peers.installed("OpenVINO"):
        print("OpenVINO is not installed: no int4/, int8/")
        return
    for name, extra in OPENVINO_OPTIONS.items():
        if not (directory / name).exists():
            print(f"writing {name}/", flush=True)
            command = [str(optimum), "export", "openvino", "--model", str(folder), "--task"]
            command += ["text-generation-with-past", "--weight-format", name, *extra]
            subprocess.run([*command, str(directory / name)], check=True)


if __name__ == "__main__":
    main()
