# SPDX-License-Identifier: Apache-2.0
"""Writes the default model in every format that the benchmarks compare.

    LAMPO_PEERS=DIRECTORY python benchmarks/make_models.py

All are made from one model: the weights of the default file, which is Q4_1, dequantized.
DIRECTORY/models gets

    Q4_0.gguf, Q8_0.gguf    matrices quantized by the gguf package, the tied embedding Q8_0 as in
    BF16.gguf               the default file (BF16: all matrices); norms stay F32
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
