# SPDX-License-Identifier: Apache-2.0
"""Writes a model of a known shape with random bfloat16 weights: speed needs no trained ones.

    python benchmarks/make_random_model.py Llama-3.1-8B FOLDER        # 16 GB

FOLDER gets config.json, model.safetensors and a made-up tokenizer, for `LLM(FOLDER)`. The same
shape gives the same weights. They are normal with a deviation of 1 / sqrt(columns), which keeps
activations in range; norms are 1.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from lampo.models.config import ModelConfig
from lampo.weights.checkpoint import expected_shapes

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from checkpoints import write_tokenizer

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
    "Llama-3.2-1B": shape(
        16, 2048, 8192, (32, 8, 64), 128256, 131072, True, LLAMA3_ROPE | {"factor": 32.0}
    ),
    "SmolLM2-135M": shape(30, 576, 1536, (9, 3, 64), 49152, 8192, True, PLAIN_ROPE),
    "tiny": shape(2, 64, 96, (4, 2, 32), 320, 512, True, PLAIN_ROPE),
}
BLOCK = 1 << 24  # random numbers that are made; they repeat


def write_model(name: str, folder: Path) -> int:
    """Returns the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[name]
    tensors = expected_shapes(ModelConfig.from_hf(config))
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
            start = file.tell() % max(BLOCK - count, 1)  # so that tensors do not begin alike
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
    args = parser.parse_args()
    nbytes = write_model(args.shape, args.folder)
    print(f"{args.folder}: {nbytes / 1e9:.2f} GB of weights, random")


if __name__ == "__main__":
    main()
