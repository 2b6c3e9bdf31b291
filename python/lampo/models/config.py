# SPDX-License-Identifier: Apache-2.0
"""What a model is: read from config.json or GGUF metadata, by an allow-list of ranged fields."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from lampo.models.rope import MAX_POSITIONS, RopeConfig, rope_from_gguf, rope_from_hf
from lampo.weights.fields import Fields, shown

__all__ = ["ModelConfig", "RopeConfig", "generation_config_from_hf"]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
MAX_VOCAB = 1 << 22
MAX_HIDDEN = 1 << 17
MAX_INTERMEDIATE = 1 << 20
MAX_LAYERS = 1024
MAX_HEADS = 1024
MAX_HEAD_DIM = 1024
_MISTRAL_WINDOW = 4096  # what an absent sliding_window means there

# Fields that name code to run, or that change what the weights mean: refused, never ignored.
_REFUSED = {
    "auto_map": "it names code to run, and a model directory may not",
    "custom_pipelines": "it names code to run, and a model directory may not",
    "trust_remote_code": "it asks to run code, and a model directory may not",
    "quantization_config": "supported are F32, F16 and BF16 safetensors, or a GGUF file",
    "compression_config": "supported are F32, F16 and BF16 safetensors, or a GGUF file",
    "num_local_experts": "mixtures of experts are not supported",
    "is_encoder_decoder": "encoder-decoder models are not supported",
    "add_cross_attention": "cross attention is not supported",
}


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a Llama-family decoder, every field checked."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    sliding_window: int | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @classmethod
    def from_hf(cls, d: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Reads a Hugging Face config.json; fields that nobody here needs are ignored.

        Raises:
            ValueError: one line naming the field, its value and what is supported.
        """
        f = Fields(source, d)
        for key, reason in _REFUSED.items():
            if d.get(key):
                raise ValueError(f"{source}: {key} = {shown(d[key])} is not supported: {reason}")
        architecture = _hf_architecture(f)
        hidden_size = f.integer("hidden_size", 1, MAX_HIDDEN)
        num_qo_heads = f.integer("num_attention_heads", 1, MAX_HEADS)
        num_kv_heads = f.integer(
            "num_key_value_heads", 1, num_qo_heads, 8 if architecture == "mistral" else num_qo_heads
        )
        if num_qo_heads % num_kv_heads:
            raise f.error("num_key_value_heads", f"a divisor of num_attention_heads {num_qo_heads}")
        if not f.has("head_dim") and hidden_size % num_qo_heads:
            raise f.error("hidden_size", f"a multiple of num_attention_heads {num_qo_heads}")
        head_dim = f.integer("head_dim", 2, MAX_HEAD_DIM, hidden_size // num_qo_heads)
        if head_dim % 2:
            raise f.error("head_dim", f"an even number instead of {head_dim}")
        max_position_embeddings = f.integer("max_position_embeddings", 1, MAX_POSITIONS)
        vocab_size = f.integer("vocab_size", 1, MAX_VOCAB)
        return cls(
            architecture=architecture,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=f.integer("intermediate_size", 1, MAX_INTERMEDIATE),
            num_layers=f.integer("num_hidden_layers", 1, MAX_LAYERS),
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=f.number("rms_norm_eps", 0, 1, 1e-6, open_low=True),
            rope=rope_from_hf(f, head_dim, max_position_embeddings),
            max_position_embeddings=max_position_embeddings,
            tie_word_embeddings=f.boolean("tie_word_embeddings", False),
            attention_bias=architecture == "llama" and f.boolean("attention_bias", False),
            mlp_bias=architecture == "llama" and f.boolean("mlp_bias", False),
            hidden_act=f.choice("hidden_act", ("silu",), "silu"),
            sliding_window=_hf_sliding_window(f, architecture, max_position_embeddings),
            bos_token_id=f.integer("bos_token_id", 0, vocab_size - 1, None),
            eos_token_ids=f.integers("eos_token_id", 0, vocab_size - 1, 64),
            pad_token_id=_pad_token_id(f, "pad_token_id", vocab_size),
        )

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, tuple[int, ...]],
        freq_factors: tuple[float, ...] | None = None,
        source: str = "GGUF",
    ) -> ModelConfig:
        """Reads the metadata of a GGUF file of the llama architecture.

        Args:
            metadata: the key-value section.
            tensors: shape of each tensor, rows first, by its GGUF name.
            freq_factors: the content of rope_freqs.weight, if there is one.
        """
        f = Fields(source, metadata)
        a = f.choice("general.architecture", ("llama",))
        if f.integer(f"{a}.expert_count", 0, MAX_HIDDEN, 0):
            raise f.error(f"{a}.expert_count", "0: mixtures of experts are not supported")
        hidden_size = f.integer(f"{a}.embedding_length", 1, MAX_HIDDEN)
        num_qo_heads = f.integer(f"{a}.attention.head_count", 1, MAX_HEADS)
        num_kv_heads = f.integer(f"{a}.attention.head_count_kv", 1, num_qo_heads, num_qo_heads)
        if num_qo_heads % num_kv_heads:
            raise f.error(f"{a}.attention.head_count_kv", f"a divisor of {num_qo_heads} heads")
        key_length = f"{a}.attention.key_length"
        if not f.has(key_length) and hidden_size % num_qo_heads:
            raise f.error(f"{a}.embedding_length", f"a multiple of {num_qo_heads} heads")
        head_dim = f.integer(key_length, 2, MAX_HEAD_DIM, hidden_size // num_qo_heads)
        if head_dim % 2:
            raise f.error(key_length, f"an even number instead of {head_dim}")
        f.integer(f"{a}.attention.value_length", head_dim, head_dim, head_dim)
        context = f.integer(f"{a}.context_length", 1, MAX_POSITIONS)
        window = f.integer(f"{a}.attention.sliding_window", 0, MAX_POSITIONS, 0)
        if 0 < window < context:
            raise f.error(f"{a}.attention.sliding_window", f"0, or {context} (context) and more")
        vocab_size = _gguf_vocab_size(f, tensors, f"{a}.vocab_size")
        return cls(
            architecture=a,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=f.integer(f"{a}.feed_forward_length", 1, MAX_INTERMEDIATE),
            num_layers=f.integer(f"{a}.block_count", 1, MAX_LAYERS),
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=f.number(f"{a}.attention.layer_norm_rms_epsilon", 0, 1, open_low=True),
            rope=rope_from_gguf(f, a, head_dim, context, freq_factors),
            max_position_embeddings=context,
            tie_word_embeddings="output.weight" not in tensors,
            attention_bias="blk.0.attn_q.bias" in tensors,
            mlp_bias="blk.0.ffn_down.bias" in tensors,
            bos_token_id=f.integer("tokenizer.ggml.bos_token_id", 0, vocab_size - 1, None),
            eos_token_ids=_gguf_eos_token_ids(f, vocab_size),
            pad_token_id=_pad_token_id(f, "tokenizer.ggml.padding_token_id", vocab_size),
        )


def _hf_architecture(f: Fields) -> str:
    model_type = f.choice("model_type", tuple(ARCHITECTURES))
    names = f.values.get("architectures")
    expected = ARCHITECTURES[model_type]
    if names is not None and (not isinstance(names, list) or expected not in names):
        raise f.error("architectures", f"a list with {expected}, as model_type is {model_type}")
    return model_type


def _hf_sliding_window(f: Fields, architecture: str, context: int) -> int | None:
    """None, or an error: a window shorter than the context is not supported."""
    layer_types = f.values.get("layer_types") or []
    if not isinstance(layer_types, list) or any(t != "full_attention" for t in layer_types):
        raise f.error("layer_types", 'a list of "full_attention"')
    if architecture != "mistral":
        return None
    implied = _MISTRAL_WINDOW if "sliding_window" not in f.values else None
    window = f.integer("sliding_window", 1, MAX_POSITIONS, implied)
    if window is not None and window < context:
        said = "the default of mistral where the field is absent" if implied else "active"
        raise ValueError(
            f"{f.source}: sliding_window = {window} ({said}) is not supported: "
            f"expected null or at least max_position_embeddings, {context}"
        )
    return None


def _pad_token_id(f: Fields, key: str, vocab_size: int) -> int | None:
    """Old checkpoints write -1, or an id just past the vocabulary: both mean "none"."""
    token_id = f.integer(key, -1, MAX_VOCAB, None)
    return token_id if token_id is not None and 0 <= token_id < vocab_size else None


def _gguf_vocab_size(f: Fields, tensors: Mapping[str, tuple[int, ...]], key: str) -> int:
    shape = tensors.get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"{f.source}: tensor token_embd.weight: expected 2 dimensions, got {shape}"
        )
    vocab_size = shape[0]
    if vocab_size > MAX_VOCAB:
        raise ValueError(f"{f.source}: token_embd.weight: {vocab_size} rows, at most {MAX_VOCAB}")
    f.integer(key, vocab_size, vocab_size, vocab_size)
    tokens: Collection[Any] = f.values.get("tokenizer.ggml.tokens") or ()
    if not isinstance(tokens, list | tuple) or len(tokens) > vocab_size:
        raise ValueError(
            f"{f.source}: tokenizer.ggml.tokens: expected at most {vocab_size} strings, one for "
            f"each row of token_embd.weight, got {shown(tokens)}"
        )
    return vocab_size


def _gguf_eos_token_ids(f: Fields, vocab_size: int) -> tuple[int, ...]:
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    ids = [f.integer(key, 0, vocab_size - 1, None) for key in keys]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def generation_config_from_hf(
    d: Mapping[str, Any], vocab_size: int, source: str = "generation_config.json"
) -> dict[str, Any]:
    """The sampling defaults of a generation_config.json, each checked; only those that are there.

    Keys: do_sample, temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens,
    bos_token_id, pad_token_id, and eos_token_ids, a tuple.
    """
    f = Fields(source, d)
    values: dict[str, Any] = {
        "do_sample": f.boolean("do_sample", False) if f.has("do_sample") else None,
        "temperature": f.number("temperature", 0, 100, None),
        "top_p": f.number("top_p", 0, 1, None, open_low=True),
        "top_k": f.integer("top_k", 0, MAX_VOCAB, None),
        "min_p": f.number("min_p", 0, 1, None),
        "repetition_penalty": f.number("repetition_penalty", 0, 100, None, open_low=True),
        "max_new_tokens": f.integer("max_new_tokens", 1, MAX_POSITIONS, None),
        "bos_token_id": f.integer("bos_token_id", 0, vocab_size - 1, None),
        "pad_token_id": _pad_token_id(f, "pad_token_id", vocab_size),
        "eos_token_ids": f.integers("eos_token_id", 0, vocab_size - 1, 64) or None,
    }
    return {key: value for key, value in values.items() if value is not None}
