# SPDX-License-Identifier: Apache-2.0
"""Seeded makers of tiny random checkpoints: folders by transformers, GGUF files by `gguf`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Every rope scaling, as `rope_parameters` of a config with max_position_embeddings = 256.
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "theta": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn_not_truncated": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "truncate": False,
    },
    "yarn_mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
}
# Every sequence of the tests is longer than the original length: transformers then has the long
# factors for all of its positions.
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0 + i / 12 for i in range(12)],
    "long_factor": [1.5 + i / 4 for i in range(12)],
}
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
# K-quants come in blocks of 256 columns.
SHAPE_256 = {**SHAPE, "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QUANTIZATIONS = [
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
]
# Types without kernels: dequantized at load.
DEQUANTIZED = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S TQ1_0 TQ2_0".split()  # noqa: SIM905


def make_model(
    *,
    architecture: str = "llama",
    tied: bool = True,
    rope: str = "default",
    attention_bias: bool = False,
    mlp_bias: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **shape: Any,
) -> Any:
    """A random model of transformers, in eval mode, with logits far from flat.

    `architecture` is a model_type; `shape` are fields of its configuration, by Llama's names.
    """
    import transformers

    torch.manual_seed(seed)
    options: dict[str, Any] = {
        **SHAPE,
        "rope_parameters": dict(ROPES[rope]),
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "initializer_range": 0.2,
        **shape,
    }
    if architecture == "mistral":
        options.setdefault("sliding_window", None)
    elif architecture == "llama":
        options |= {"attention_bias": attention_bias, "mlp_bias": mlp_bias}
    elif architecture == "gpt2":
        options = _gpt2_options(options)
    elif architecture in ("qwen3_moe", "mixtral", "gpt_oss"):
        experts = "num_experts" if architecture == "qwen3_moe" else "num_local_experts"
        options.setdefault(experts, 6)
        options.setdefault("num_experts_per_tok", 2)
        if architecture == "qwen3_moe":
            options.setdefault("moe_intermediate_size", 32)
        if architecture == "gpt_oss":
            options["rope_parameters"] = ROPES["yarn_not_truncated"]
    elif architecture == "lfm2":
        options = {"layer_types": ["conv", "full_attention"], "block_multiple_of": 32} | options
    elif architecture == "qwen3_5_text":
        options = {**_GATED_DELTA, **options}
    elif architecture == "gemma2":
        options.setdefault("query_pre_attn_scalar", options["head_dim"])
    elif architecture == "gemma3_text":
        options |= {"rope_parameters": None}
        options.setdefault("query_pre_attn_scalar", options["head_dim"])
    elif architecture == "olmo3":
        plain = {"rope_type": "default", "rope_theta": ROPES[rope]["rope_theta"]}
        kinds = {"full_attention": dict(ROPES[rope]), "sliding_attention": plain}
        options |= {"rope_parameters": kinds}
    elif architecture == "ministral3":
        options["rope_parameters"] = {**ROPES["yarn"], "mscale": 1.0, "mscale_all_dim": 1.0}
        options["rope_parameters"]["llama_4_scaling_beta"] = 0.1
    elif architecture == "phi3":
        options |= {"num_attention_heads": 2, "num_key_value_heads": 1} | shape
    config = transformers.AutoConfig.for_model(architecture, **options)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2)
            elif parameter.dim() == 1:  # norms: not all the same; some have one added
                one = 0 if architecture.startswith("gemma") else 1
                if architecture == "qwen3_5_text" and "linear_attn" not in name:
                    one = 0
                parameter.uniform_(one - 0.5, one + 0.5)
    return model.to(dtype).eval()


# Sizes of Qwen3.5's linear attention; a key head has two value heads.
_GATED_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}


def _gpt2_options(options: dict[str, Any]) -> dict[str, Any]:
    """The same sizes by GPT-2's names, and no dropout."""
    names = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
    left_out = ("num_key_value_heads", "head_dim", "rope_parameters")
    found = {names.get(key, key): value for key, value in options.items() if key not in left_out}
    found["n_head"] = found["n_embd"] // 32
    return found | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def experts_apart(state: dict[str, torch.Tensor], by_turns: bool) -> dict[str, torch.Tensor]:
    """The tensors of a model of transformers, with those of experts as lampo names them.

    by_turns: as Architecture.experts_by_turns.
    """
    found = {}
    for name, tensor in state.items():
        name = name.replace("mlp.router.", "mlp.gate.")
        begin, _, part = name.rpartition(".experts.")
        if not begin:
            found[name] = tensor
            continue
        kind = "bias" if part.endswith("_bias") else "weight"
        if by_turns and kind == "weight":
            tensor = tensor.transpose(1, 2)
        if part.startswith("down_proj"):
            found[f"{begin}.experts.down_proj.{kind}"] = tensor
            continue
        halves = (tensor[:, ::2], tensor[:, 1::2]) if by_turns else tensor.chunk(2, 1)
        for half, values in zip(("gate", "up"), halves, strict=True):
            found[f"{begin}.experts.{half}_proj.{kind}"] = values
    return found


def make_checkpoint(
    folder: Path,
    *,
    sharded: bool = False,
    tokenizer: bool = True,
    generation: dict[str, Any] | None = None,
    **model_options: Any,
) -> Any:
    """Writes a folder with config.json, safetensors and a tokenizer; returns the model."""
    model = make_model(**model_options)
    model.save_pretrained(folder, max_shard_size="60KB" if sharded else "5GB")
    (folder / "generation_config.json").write_text(json.dumps(generation or {}))
    if tokenizer:
        write_tokenizer(folder, model.config.vocab_size)
    return model


def vocabulary(size: int) -> list[str]:
    """Special tokens, GPT-2's characters for the 256 bytes, one merge, and fillers up to `size`."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*SPECIAL_TOKENS, *sorted(ByteLevel.alphabet()), "ab"]
    return tokens + [f"<|filler_{i}|>" for i in range(len(tokens), size)]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer.json with one merge, and a ChatML template."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokens = vocabulary(vocab_size)
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[("a", "b")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL_TOKENS[1], "eos_token": SPECIAL_TOKENS[2]}
    config["chat_template"] = CHAT_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def interleave_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of q or k in GGUF's order: channel i of the first half, then i of the second."""
    by_half = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return by_half.swapaxes(1, 2).reshape(weight.shape)


# What the `gguf` package can quantize to.
_QUANTIZED = ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0")


def quantized(weight: np.ndarray, quantization: str, seed: int = 0) -> np.ndarray:
    """Rows in a GGUF type: bytes, or plain floats.

    The `gguf` package cannot quantize to all: random blocks of small values replace them.
    """
    import gguf
    from quantized_weights import random_blocks

    kind = gguf.GGMLQuantizationType[quantization]
    if quantization == "BF16":
        return gguf.quants.quantize(weight, kind).view(np.uint8)
    if quantization in _QUANTIZED:
        return gguf.quants.quantize(weight, kind)
    generator = torch.Generator().manual_seed(seed)
    blocks = random_blocks(*weight.shape, quantization.lower(), generator)
    with np.errstate(all="ignore"):
        spread = float(gguf.quants.dequantize(blocks.numpy(), kind).std())
    generator = torch.Generator().manual_seed(seed)
    scale = 0.01 * float(weight.std()) / spread
    return random_blocks(*weight.shape, quantization.lower(), generator, scale=scale).numpy()


def tile_heads(data: np.ndarray, name: str, c: Any) -> np.ndarray:
    """A tensor of linear attention with its value heads in GGUF's order: the first of every key
    head, then the second ones."""
    part = name.split("linear_attn.")[-1].removesuffix(".weight")
    rows = {"in_proj_z": c.linear_value_head_dim, "in_proj_a": 1, "in_proj_b": 1}
    rows |= {"A_log": 1, "dt_bias": 1}
    key_heads, heads = c.linear_num_key_heads, c.linear_num_value_heads

    def tiled(values: np.ndarray, head_dim: int) -> np.ndarray:
        by_head = values.reshape(key_heads, heads // key_heads, head_dim, *values.shape[1:])
        return by_head.swapaxes(0, 1).reshape(values.shape)

    if part in ("in_proj_qkv", "conv1d"):
        values = heads * c.linear_value_head_dim
        return np.concatenate([data[:-values], tiled(data[-values:], c.linear_value_head_dim)])
    if part == "out_proj":
        return tiled(data.T, c.linear_value_head_dim).T
    return tiled(data, rows[part]) if part in rows else data


def make_gguf(
    path: Path,
    *,
    quantization: str = "Q4_0",
    model: Any = None,
    tokens: bool = True,
    metadata: dict[str, Any] | None = None,
    left_out: tuple[str, ...] = (),
    **model_options: Any,
) -> Any:
    """Writes a GGUF file and returns the transformers model it was made from.

    Matrices get the quantization, norms and biases F32, q and k rows GGUF's order. `metadata`
    replaces or adds keys; None as value leaves one out. `left_out`: endings of the GGUF names of
    tensors that are not written.
    """
    import gguf

    from lampo.models.registry import config_from_hf, gguf_reader

    if model is None:
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[quantization]][0]
        shape = SHAPE_256 if size > 32 else {}
        model = make_model(**{**shape, **model_options})
    c = model.config
    architecture, config = config_from_hf(c.to_dict())
    gguf_name = gguf_reader(architecture).gguf_name
    assert gguf_name is not None
    state = experts_apart(model.state_dict(), architecture.experts_by_turns)

    def tensors() -> Iterator[tuple[str, np.ndarray, Any]]:
        for index, (name, stored) in enumerate(architecture.tensors(config).items()):
            data = stored.from_safetensors(state[name]).float().numpy()
            if "linear_attn" in name:
                data = tile_heads(data, name, c)
            attention = config.attentions[0]
            heads = (("q", attention.num_qo_heads), ("k", attention.num_kv_heads))
            for part, num_heads in heads:
                if gguf_reader(architecture).interleaved_in_gguf and f".{part}_proj." in name:
                    data = interleave_rows(data, num_heads)
            data, raw_dtype = np.ascontiguousarray(data), None
            is_matrix = name.endswith(".weight") and data.ndim > 1 and not stored.is_conv
            if is_matrix and "ffn_gate_inp" not in stored.gguf:
                rows = quantized(data.reshape(-1, data.shape[-1]), quantization, seed=index)
                data = rows.reshape(*data.shape[:-1], -1)
                raw_dtype = gguf.GGMLQuantizationType[quantization]
            if not stored.gguf.endswith(left_out):
                yield stored.gguf, data, raw_dtype

    write_gguf(
        path,
        c,
        tensors(),
        architecture=gguf_name,
        tokens=tokens,
        metadata=metadata,
        feed_forward_length=config.layers[0].feed_forward.size,
    )
    return model


def write_gguf(
    path: Path,
    c: Any,
    tensors: Iterable[tuple[str, np.ndarray, Any]],
    *,
    architecture: str = "llama",
    tokens: bool = True,
    metadata: dict[str, Any] | None = None,
    feed_forward_length: int | None = None,
) -> None:
    """A GGUF file of a config with transformers' names and of tensors with GGUF's.

    tensors: name, data, and the GGML type where the data are bytes. "llama3" rope becomes
    rope_freqs.weight, as llama.cpp's converter does.
    """
    import gguf

    a = architecture
    values: dict[str, Any] = {
        f"{a}.block_count": c.num_hidden_layers,
        f"{a}.context_length": c.max_position_embeddings,
        f"{a}.embedding_length": c.hidden_size,
        f"{a}.attention.head_count": c.num_attention_heads,
        f"{a}.vocab_size": c.vocab_size,
    }
    rope = getattr(c, "rope_parameters", None)
    if a == "gemma3":
        values[f"{a}.attention.sliding_window_pattern"] = [
            kind == "sliding_attention" for kind in c.layer_types
        ]
        values[f"{a}.rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    if a == "gemma2":
        values[f"{a}.attn_logit_softcapping"] = float(c.attn_logit_softcapping)
        values[f"{a}.final_logit_softcapping"] = float(c.final_logit_softcapping)
    if a == "granite":
        values |= {
            f"{a}.embedding_scale": float(c.embedding_multiplier),
            f"{a}.attention.scale": float(c.attention_multiplier),
            f"{a}.residual_scale": float(c.residual_multiplier),
            f"{a}.logit_scale": float(c.logits_scaling),
        }
    if a == "mistral3":
        values[f"{a}.attention.temperature_scale"] = float(rope["llama_4_scaling_beta"])
        values[f"{a}.rope.scaling.yarn_log_multiplier"] = float(rope["mscale_all_dim"])
    if a == "olmo2" and getattr(c, "layer_types", None):
        values[f"{a}.attention.sliding_window_pattern"] = [
            kind == "sliding_attention" for kind in c.layer_types
        ]
        rope = rope["full_attention"]
    if a == "gpt2":
        values[f"{a}.feed_forward_length"] = c.n_inner
        values[f"{a}.attention.layer_norm_epsilon"] = float(c.layer_norm_epsilon)
    else:
        values[f"{a}.feed_forward_length"] = feed_forward_length or c.intermediate_size
        eps = c.norm_eps if a == "lfm2" else c.rms_norm_eps
        values[f"{a}.attention.layer_norm_rms_epsilon"] = float(eps)
        values[f"{a}.attention.head_count_kv"] = c.num_key_value_heads
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        values |= {
            f"{a}.attention.key_length": head_dim,
            f"{a}.attention.value_length": head_dim,
            f"{a}.rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1)),
            f"{a}.rope.freq_base": float(rope["rope_theta"]),
        }
        if a == "lfm2":
            values[f"{a}.shortconv.l_cache"] = c.conv_L_cache
            values[f"{a}.attention.head_count_kv"] = [
                c.num_key_value_heads if kind == "full_attention" else 0 for kind in c.layer_types
            ]
        if a == "qwen35":
            values |= {
                f"{a}.rope.dimension_count": head_dim // 4,
                f"{a}.rope.dimension_sections": [11, 11, 10, 0],
                f"{a}.full_attention_interval": c.layer_types.index("full_attention") + 1,
                f"{a}.ssm.conv_kernel": c.linear_conv_kernel_dim,
                f"{a}.ssm.state_size": c.linear_key_head_dim,
                f"{a}.ssm.group_count": c.linear_num_key_heads,
                f"{a}.ssm.time_step_rank": c.linear_num_value_heads,
                f"{a}.ssm.inner_size": c.linear_num_value_heads * c.linear_value_head_dim,
            }
        if getattr(c, "sliding_window", None):
            values[f"{a}.attention.sliding_window"] = c.sliding_window
    num_experts = getattr(c, "num_local_experts", None) or getattr(c, "num_experts", None)
    if num_experts:
        values[f"{a}.expert_count"] = num_experts
        values[f"{a}.expert_used_count"] = c.num_experts_per_tok
        if a != "llama":
            size = getattr(c, "moe_intermediate_size", c.intermediate_size)
            values[f"{a}.expert_feed_forward_length"] = size
    if rope and rope["rope_type"] in ("linear", "yarn"):
        values[f"{a}.rope.scaling.type"] = rope["rope_type"]
        values[f"{a}.rope.scaling.factor"] = float(rope["factor"])
    if rope and rope["rope_type"] == "yarn":
        length = rope["original_max_position_embeddings"]
        values[f"{a}.rope.scaling.original_context_length"] = length
    if rope and rope["rope_type"] == "longrope":
        length = rope["original_max_position_embeddings"]
        factor = c.max_position_embeddings / length
        values[f"{a}.rope.scaling.original_context_length"] = length
        values[f"{a}.rope.scaling.attn_factor"] = float(
            np.sqrt(1 + np.log(factor) / np.log(length))
        )
    if tokens:
        names = vocabulary(c.vocab_size)
        values |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": names,
            "tokenizer.ggml.token_type": [3 if n.startswith("<|") else 1 for n in names],
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
            "tokenizer.chat_template": CHAT_TEMPLATE,
        }
    values |= metadata or {}

    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in values.items():
        _add_value(writer, key, value)
    if rope and rope["rope_type"] == "llama3":
        factors = _llama3_factors(rope, c.head_dim)
        writer.add_tensor("rope_freqs.weight", factors)
    if rope and rope["rope_type"] == "longrope":
        for part in ("long", "short"):
            factors = np.array(rope[f"{part}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{part}.weight", factors)
    for name, data, raw_dtype in tensors:
        writer.add_tensor(name, data, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


def _llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """The divisors of the frequencies by Llama 3's scaling."""
    length, low, high = (
        rope["original_max_position_embeddings"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
    )
    factors = []
    for i in range(0, head_dim, 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (i / head_dim)
        smooth = np.clip((length / wave - low) / (high - low), 0, 1)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)
