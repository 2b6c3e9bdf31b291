# SPDX-License-Identifier: Apache-2.0
"""Writes a model of a known shape with random weights, which suffice to measure speed.

    python benchmarks/make_random_model.py Llama-3.1-8B FOLDER                   # 16 GB
    python benchmarks/make_random_model.py Llama-3.1-8B FOLDER --format q4_0     # 5 GB

FOLDER gets config.json, model.safetensors in bfloat16 and an invented tokenizer, or model.gguf with
matrices of that format and the embedding and LM head in Q8_0; `LLM(FOLDER)` loads either. The same
shape gives the same weights. They have a mean of 0 and a deviation of 1 / sqrt(columns), or of
about 0.02 in blocks, which keeps activations in range; norms are 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lampo.models.architecture import Tensors
from lampo.models.registry import config_from_hf

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/support"))
from checkpoints import write_gguf, write_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def shape(
    layers: int, hidden: int, intermediate: int, heads: tuple[int, int, int], vocab: int,
    context: int, tied: bool, rope: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """config.json; heads: num_attention_heads, num_key_value_heads, head_dim."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "rope_parameters": rope,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


PLAIN_ROPE = {"rope_type": "default", "rope_theta": 100000.0}
SHAPES = {
    "Llama-3.1-8B": shape(
        32, 4096, 14336, (32, 8, 128), 128256, 131072, False, LLAMA3_ROPE | {"factor": 8.0}
    ),
    "Llama-3.1-8B-quarter": shape(  # with 8 of its 32 layers
        8, 4096, 14336, (32, 8, 128), 128256, 131072, False, LLAMA3_ROPE | {"factor": 8.0}
    ),
    "Llama-3.2-1B": shape(
        16, 2048, 8192, (32, 8, 64), 128256, 131072, True, LLAMA3_ROPE | {"factor": 32.0}
    ),
    "SmolLM2-135M": shape(30, 576, 1536, (9, 3, 64), 49152, 8192, True, PLAIN_ROPE),
    "tiny": shape(2, 64, 96, (4, 2, 32), 320, 512, True, PLAIN_ROPE),
}
BLOCK = 1 << 24  # number of random values, which repeat

# GGUF's blocks of 32 weights: their bytes, and the high byte of their f16 scale and minimum. The
# low bytes are random, so a scale is in [2^-8, 2^-7) (2^-12 for 8 bits), a minimum -8 times that.
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}
SCALE = {"q4_0": 0x1C, "q4_1": 0x1C, "q8_0": 0x0C}
MINIMUM = {"q4_1": 0xA8}


def random_blocks(name: str, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """[rows, row_bytes] uint8: a random matrix in one of GGUF's formats."""
    nbytes = BLOCK_BYTES[name]
    count = rows * columns // 32
    generator = torch.Generator().manual_seed(seed)
    size = (min(count, BLOCK // 32), nbytes)
    blocks = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    blocks[:, 1] = SCALE[name]
    if name in MINIMUM:
        blocks[:, 3] = MINIMUM[name]
    return blocks.repeat(-(-count // len(blocks)), 1)[:count].reshape(rows, -1)


def tensors_of(config: dict[str, Any]) -> Tensors:
    architecture, known = config_from_hf(config)
    return architecture.tensors(known)


def write_packed_model(name: str, folder: Path, weight_format: str) -> int:
    """model.gguf; returns the bytes of the weights."""
    import gguf

    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[name]
    total = 0

    def tensors() -> Iterator[tuple[str, np.ndarray, Any]]:
        nonlocal total
        for seed, (tensor, stored) in enumerate(tensors_of(config).items()):
            size = stored.shape
            if len(size) == 1:
                data, kind = np.ones(size, dtype=np.float32), None
            else:
                outer = tensor.startswith(("model.embed_tokens", "lm_head"))
                form = "q8_0" if outer else weight_format
                data = random_blocks(form, size[0], size[1], seed).numpy()
                kind = gguf.GGMLQuantizationType[form.upper()]
            total += data.nbytes
            yield stored.gguf, data, kind

    write_gguf(folder / "model.gguf", SimpleNamespace(**config), tensors())
    return total


def write_model(name: str, folder: Path) -> int:
    """config.json, model.safetensors and a tokenizer; returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[name]
    tensors = {name: stored.shape for name, stored in tensors_of(config).items()}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, config["vocab_size"])
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(BLOCK, generator=generator)

    # The format: 8 bytes of length, a JSON header with each tensor's place, then the tensors.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, size in tensors.items():
        begin, end = end, end + 2 * math.prod(size)
        header[tensor] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size in tensors.values():
            count = math.prod(size)
            start = file.tell() % max(BLOCK - count, 1)  # gives tensors different beginnings
            values = block[start : start + count] * size[-1] ** -0.5
            data = values.bfloat16() if len(size) == 2 else torch.ones(size).bfloat16()
            bytes_of_block = data.view(torch.uint8).numpy().data
            for _ in range(count // len(data)):
                file.write(bytes_of_block)
            file.write(bytes_of_block[: 2 * (count % len(data))])
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=("bf16", *BLOCK_BYTES), default="bf16")
    args = parser.parse_args()
    if args.format == "bf16":
        nbytes = write_model(args.shape, args.folder)
    else:
        nbytes = write_packed_model(args.shape, args.folder, args.format)
    print(f"{args.folder}: {nbytes / 1e9:.2f} GB of weights, random")


if __name__ == "__main__":
    main()
