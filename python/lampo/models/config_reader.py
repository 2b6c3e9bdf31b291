# SPDX-License-Identifier: Apache-2.0
"""Reading of an architecture's configuration from config.json or GGUF metadata: an allow-list of
fields with ranges, and a list of fields that must not stay unread."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from lampo.error_text import shown
from lampo.models.config import (
    MAX_VOCAB,
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
)
from lampo.models.rope import MAX_POSITIONS, RopeConfig, rope_from_gguf, rope_from_hf
from lampo.weights.fields import REQUIRED, Fields

MAX_HIDDEN = 1 << 17
MAX_INTERMEDIATE = 1 << 20
MAX_LAYERS = 1024
MAX_HEADS = 1024
MAX_EXPERTS = 4096
MAX_EXPERTS_PER_TOKEN = 64
MAX_HEAD_SCALE = 1 << 16
HEAD_DIMS = range(4, 257, 4)  # sizes that the attention kernels support; on CUDA every second

# Names of fields in a GGUF file, after "<architecture>.".
GGUF_FIELDS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "vocab_size": "vocab_size",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "norm_topk_prob": "expert_weights_norm",
}
_GGUF_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "eot_token_id": "tokenizer.ggml.eot_token_id",
    "eom_token_id": "tokenizer.ggml.eom_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")

# Fields that name code to run, or another kind of weights: refused, never ignored.
_REFUSED = {
    "auto_map": "it names code to run, and a model directory may not",
    "custom_pipelines": "it names code to run, and a model directory may not",
    "trust_remote_code": "it asks to run code, and a model directory may not",
    "is_encoder_decoder": "encoder-decoder models are not supported",
    "add_cross_attention": "cross attention is not supported",
}
# Fields that change results, with their neutral values, which do not. A field that the model's
# architecture does not read must have a neutral value.
_OFF: tuple[Any, ...] = (None, False, 0, [], {})
_CHANGES_RESULTS: dict[str, tuple[Any, ...]] = {
    "alibi": _OFF,
    "attention_bias": _OFF,
    "attention_chunk_size": _OFF,
    "attention_multiplier": _OFF,
    "attn_logit_softcapping": _OFF,
    "attn_temperature_tuning": _OFF,
    "clip_qkv": _OFF,
    "embedding_multiplier": (*_OFF, 1),
    "final_logit_softcapping": _OFF,
    "first_k_dense_replace": _OFF,
    "hidden_activation": _OFF,
    "kv_lora_rank": _OFF,
    "layer_types": _OFF,
    "logit_scale": (*_OFF, 1),
    "logits_scaling": (*_OFF, 1),
    "mlp_bias": _OFF,
    "moe_intermediate_size": _OFF,
    "n_routed_experts": _OFF,
    "no_rope_layers": _OFF,
    "num_experts": _OFF,
    "num_kv_shared_layers": _OFF,
    "num_local_experts": _OFF,
    "parallel_attn": _OFF,
    "partial_rotary_factor": (*_OFF, 1),
    "q_lora_rank": _OFF,
    "position_embedding_type": (None, "rope", "absolute"),
    "qk_layernorm": _OFF,
    "qkv_bias": _OFF,
    "query_pre_attn_scalar": _OFF,
    "residual_multiplier": (*_OFF, 1),
    "rope_local_base_freq": _OFF,
    "rope_scaling": _OFF,
    "rotary_pct": (*_OFF, 1),
    "routed_scaling_factor": (*_OFF, 1),
    "scale_attn_by_inverse_layer_idx": _OFF,
    "scale_attn_weights": (None, True),
    "shared_expert_intermediate_size": _OFF,
    "sliding_window": _OFF,
    "use_bias": _OFF,
    "use_bidirectional_attention": _OFF,
    "use_parallel_residual": _OFF,
    "use_qk_norm": _OFF,
    "use_sliding_window": _OFF,
}
_CHANGES_RESULTS_GGUF: dict[str, tuple[Any, ...]] = {
    "attention.causal": (None, True),
    "attention.clamp_kqv": _OFF,
    "attention.key_length_swa": _OFF,
    "attention.kv_lora_rank": _OFF,
    "attention.max_alibi_bias": _OFF,
    "attention.q_lora_rank": _OFF,
    "attention.scale": _OFF,
    "attention.shared_kv_layers": _OFF,
    "attention.sliding_window": _OFF,
    "attention.sliding_window_pattern": _OFF,
    "attention.temperature_length": _OFF,
    "attention.temperature_scale": _OFF,
    "attn_logit_softcapping": _OFF,
    "embedding_scale": (*_OFF, 1),
    "expert_count": _OFF,
    "expert_gating_func": (None, 0, 1),
    "expert_shared_count": _OFF,
    "expert_weights_scale": (*_OFF, 1),
    "final_logit_softcapping": _OFF,
    "logit_scale": (*_OFF, 1),
    "residual_scale": (*_OFF, 1),
    "rope.dimension_sections": _OFF,
    "rope.freq_base_swa": _OFF,
    "ssm.state_size": _OFF,
    "use_parallel_residual": _OFF,
}


class ConfigReader:
    """Reads the fields of one model from either kind of file, under Hugging Face's names.

    Args:
        fields: of a config.json, or the metadata of a GGUF file.
        architecture: `model_type`, or `general.architecture`.
        tensors: GGUF name -> shape of the tensors in a GGUF file, rows first; None: the
            fields are a config.json's.
        freq_factors: the content of rope_freqs.weight and the like, by name.
        interleaved: whether q and k of a GGUF file are stored for rotary pairs (2 i, 2 i + 1).
    """

    def __init__(
        self,
        fields: Fields,
        architecture: str,
        tensors: Mapping[str, tuple[int, ...]] | None = None,
        freq_factors: Mapping[str, tuple[float, ...]] | None = None,
        interleaved: bool = False,
    ) -> None:
        self.fields = fields
        self.architecture = architecture
        self.tensors = tensors
        self.freq_factors = freq_factors or {}
        self._interleaved = interleaved
        self.hidden_size = fields.integer("hidden_size", 1, MAX_HIDDEN)
        self.num_layers = fields.integer("num_hidden_layers", 1, MAX_LAYERS)
        self.context = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)

    def bias(self, field: str, tensor: str) -> bool:
        """Whether some projections have biases, by the tensors of a GGUF file, or by a field.

        Args:
            field: its name in config.json; absent means no biases.
            tensor: the GGUF name of one of the biases.
        """
        if self.tensors is not None:
            return tensor in self.tensors
        return self.fields.boolean(field, False)

    def attention(
        self,
        *,
        default_kv_heads: int | None = None,
        default_head_dim: int | None = None,
        rotary: bool = True,
        default_theta: float = 1e4,
        window: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm: bool = False,
        joint_qk_norm: bool = False,
    ) -> AttentionConfig:
        """Heads and rotary embedding, the same in all layers.

        Args:
            default_kv_heads: for a config.json without the field; None: as many as query heads.
            default_head_dim: likewise; None: hidden_size over query heads.
            rotary: whether q and k are rotated.
            default_theta: base of the rotary embedding for a config.json without the field.
            window, qkv_bias, out_bias, qk_norm, joint_qk_norm: as in
                :class:`AttentionConfig`.
        """
        f = self.fields
        num_qo_heads = f.integer("num_attention_heads", 1, MAX_HEADS)
        if default_kv_heads is None or self.tensors is not None:
            default_kv_heads = num_qo_heads
        default_kv_heads = min(default_kv_heads, num_qo_heads)
        num_kv_heads = f.integer("num_key_value_heads", 1, num_qo_heads, default_kv_heads)
        if num_qo_heads % num_kv_heads:
            name = f.name("num_attention_heads")
            raise f.error("num_key_value_heads", f"a divisor of {name} {num_qo_heads}")
        if f.has("head_dim"):
            head_dim, named = f.integer("head_dim", 1, MAX_HIDDEN), "head_dim"
        elif default_head_dim is not None and self.tensors is None:
            head_dim, named = default_head_dim, "head_dim"
        elif self.hidden_size % num_qo_heads:
            name = f.name("num_attention_heads")
            raise f.error("hidden_size", f"a multiple of {name} {num_qo_heads}")
        else:
            head_dim, named = self.hidden_size // num_qo_heads, "hidden_size"
        if head_dim not in HEAD_DIMS:
            by = "" if named == "head_dim" else f" of {num_qo_heads} heads"
            raise f.error(
                named,
                f"a head_dim{by} that is a multiple of 4 up to 256, instead of {head_dim}",
            )
        if self.tensors is not None:
            value_length = f"{self.architecture}.attention.value_length"
            f.integer(value_length, head_dim, head_dim, head_dim)
        return AttentionConfig(
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            scale=head_dim**-0.5,
            rope=self.rope(head_dim, default_theta) if rotary else None,
            window=window,
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            qk_norm=qk_norm,
            joint_qk_norm=joint_qk_norm,
        )

    def rope(self, head_dim: int, default_theta: float = 1e4) -> RopeConfig:
        """The rotary embedding, the same in all layers."""
        if self.tensors is None:
            return rope_from_hf(self.fields, head_dim, self.context, default_theta)
        return rope_from_gguf(
            self.fields,
            self.architecture,
            head_dim,
            self.context,
            self.freq_factors.get("rope_freqs.weight"),
            interleaved=self._interleaved,
        )

    def window(self, default: int | None = None) -> int | None:
        """The attention window; None also if it covers the whole context.

        Args:
            default: the window where a config.json has no such field.
        """
        f = self.fields
        in_gguf = self.tensors is not None
        implied = None if in_gguf or "sliding_window" in f.values else default
        window = f.integer("sliding_window", 0 if in_gguf else 1, MAX_POSITIONS, implied)
        return None if not window or window >= self.context else window

    def layer_windows(self) -> list[int | None]:
        """The windows of all layers. With `use_sliding_window` the layers named in `layer_types`
        have one, or without that field the layers from `max_window_layers` on."""
        f = self.fields
        if self.tensors is not None:
            return [self.window()] * self.num_layers
        used = f.boolean("use_sliding_window", False)
        first = f.integer("max_window_layers", 0, MAX_LAYERS, 28)
        window = self.window(default=4096) if used else None
        f.get("sliding_window")
        types = f.get("layer_types")
        if types is None:
            return [window if i >= first else None for i in range(self.num_layers)]
        known = {"full_attention": None} | ({"sliding_attention": window} if used else {})
        if (
            not isinstance(types, list)
            or len(types) != self.num_layers
            or not all(isinstance(t, str) and t in known for t in types)
        ):
            names = " or ".join(known)
            raise f.error("layer_types", f"a list of {self.num_layers}, each {names}")
        return [known[t] for t in types]

    def layer_types(self, kinds: tuple[str, ...]) -> list[str]:
        """The kind of every layer, by the list `layer_types`."""
        types = self.fields.get("layer_types")
        if (
            not isinstance(types, list)
            or len(types) != self.num_layers
            or not all(isinstance(t, str) and t in kinds for t in types)
        ):
            expected = f"a list of {self.num_layers}, each {' or '.join(kinds)}"
            raise self.fields.error("layer_types", expected)
        return types

    def sliding_layers(self, period: int) -> list[bool]:
        """Whether each layer has a window: by a list, or by the period of those that have none.

        Args:
            period: layers from one of full attention to the next in a file that does not say.
        """
        f = self.fields
        key = "layer_types"
        if self.tensors is not None:
            key = f"{self.architecture}.attention.sliding_window_pattern"
        types = f.get(key)
        known = {True: True, False: False, "sliding_attention": True, "full_attention": False}
        if isinstance(types, list):
            if len(types) != self.num_layers or not all(
                isinstance(t, bool | str) and t in known for t in types
            ):
                each = "each sliding_attention or full_attention"
                raise f.error(key, f"a list of {self.num_layers}, {each}")
            return [known[t] for t in types]
        if self.tensors is None:
            if types is not None:
                raise f.error(key, f"a list of {self.num_layers}")
            key = "sliding_window_pattern"
        period = f.integer(key, 1, MAX_LAYERS, period)
        return [(i + 1) % period != 0 for i in range(self.num_layers)]

    def feed_forward(
        self,
        *,
        activations: tuple[str, ...] = ("silu",),
        default_size: int | None = None,
        bias: bool = False,
    ) -> FeedForwardConfig:
        """The feed-forward, the same in all layers.

        Args:
            activations: the values of `hidden_act` that this architecture accepts, the default
                first. GGUF files have no such field.
            default_size: for a file without the field; None: the field is required.
            bias: whether its projections have biases.
        """
        f = self.fields
        if self.tensors is None:
            f.choice("hidden_act", activations, activations[0])
        if default_size is None:
            return FeedForwardConfig(f.integer("intermediate_size", 1, MAX_INTERMEDIATE), bias)
        size = f.integer("intermediate_size", 1, MAX_INTERMEDIATE, default_size)
        return FeedForwardConfig(size, bias)

    def experts(
        self,
        *,
        size: str,
        normalized: bool = True,
        bias: bool = False,
        router_bias: bool = False,
        swiglu_limit: float = 0.0,
    ) -> FeedForwardConfig:
        """A mixture of experts, the same in all layers.

        Args:
            size: the field with the size of an expert.
            normalized, router_bias, swiglu_limit: as in :class:`ExpertsConfig`.
            bias: whether the experts' projections have biases.
        """
        f = self.fields
        if self.tensors is None:
            f.choice("hidden_act", ("silu",), "silu")
        # Published files have the first name, those that transformers writes the second.
        name = "num_experts" if f.has("num_experts") else "num_local_experts"
        num_experts = f.integer(name, 1, MAX_EXPERTS)
        top_k = f.integer("num_experts_per_tok", 1, min(MAX_EXPERTS_PER_TOKEN, num_experts))
        width = f.integer(size, 1, MAX_INTERMEDIATE)
        for name, value in ((size, width), ("hidden_size", self.hidden_size)):
            if value % 16:
                raise f.error(name, "a multiple of 16 in a model with experts")
        experts = ExpertsConfig(num_experts, top_k, normalized, swiglu_limit, router_bias)
        return FeedForwardConfig(width, bias, experts)

    def layers(
        self,
        attention: AttentionConfig,
        feed_forward: FeedForwardConfig,
        windows: list[int | None] | None = None,
    ) -> tuple[LayerConfig, ...]:
        """Layers that are equal, except for their windows."""
        if windows is None:
            return (LayerConfig(attention, feed_forward),) * self.num_layers
        return tuple(
            LayerConfig(replace(attention, window=window), feed_forward) for window in windows
        )

    def model(
        self,
        layers: tuple[LayerConfig, ...],
        *,
        norm_eps: str = "rms_norm_eps",
        default_eps: float = 1e-6,
        tied: bool = False,
        **scales: Any,
    ) -> ModelConfig:
        """The whole configuration.

        Args:
            layers: the blocks' configurations.
            norm_eps: the field with the norms' epsilon.
            default_eps: for a config.json without it.
            tied: whether the LM head of a config.json without `tie_word_embeddings` is the
                embedding. For a GGUF file its tensors decide.
            scales: fields of :class:`ModelConfig`, from `embedding_scale` on.

        Raises:
            ValueError: an unread field changes results.
        """
        f = self.fields
        # Required in a GGUF file; an old config.json may lack it.
        eps_default: Any = default_eps if self.tensors is None else REQUIRED
        eps = f.number(norm_eps, 0, 1, eps_default, open_low=True)
        if self.tensors is None:
            vocab_size = f.integer("vocab_size", 1, MAX_VOCAB)
            tied = f.boolean("tie_word_embeddings", tied)
        else:
            vocab_size = _gguf_vocab_size(f, self.tensors)
            tied = "output.weight" not in self.tensors
        # The tokenizer of a GGUF file warns of wrong ids.
        warn = self.tensors is None
        ends = ("eos_token_id",) if self.tensors is None else _GGUF_ENDS
        eos = [i for key in ends for i in f.token_ids(key, vocab_size, warn=warn)]
        config = ModelConfig(
            architecture=self.architecture,
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            layers=layers,
            norm_eps=eps,
            max_position_embeddings=self.context,
            tie_word_embeddings=tied,
            bos_token_id=f.token_id("bos_token_id", vocab_size, warn=warn),
            eos_token_ids=tuple(dict.fromkeys(eos)),
            pad_token_id=f.token_id("pad_token_id", vocab_size, warn=warn),
            **scales,
        )
        self._refuse_unread()
        return config

    def _refuse_unread(self) -> None:
        f = self.fields
        known = _CHANGES_RESULTS
        if self.tensors is not None:
            prefix = f"{self.architecture}."
            known = {prefix + name: values for name, values in _CHANGES_RESULTS_GGUF.items()}
        for name in sorted((known.keys() & f.values.keys()) - f.read):
            value = f.values[name]
            all_full = isinstance(value, list) and set(map(str, value)) == {"full_attention"}
            if value not in known[name] and not all_full:
                raise ValueError(
                    f"{f.source}: {name} = {shown(value)} is not supported: expected "
                    f"none, as {self.architecture} models have no such field"
                )


def hf_fields(values: Mapping[str, Any], source: str) -> Fields:
    """The fields of a config.json.

    Raises:
        ValueError: a field names code to run, or weights of another kind.
    """
    for key, reason in _REFUSED.items():
        if values.get(key):
            raise ValueError(f"{source}: {key} = {shown(values[key])} is not supported: {reason}")
    return Fields(source, values)


def gguf_fields(metadata: Mapping[str, Any], architecture: str, source: str) -> Fields:
    """The metadata of a GGUF file, with Hugging Face's names."""
    names = {hf: f"{architecture}.{name}" for hf, name in GGUF_FIELDS.items()}
    return Fields(source, metadata, names | _GGUF_TOKENS)


def _gguf_vocab_size(f: Fields, tensors: Mapping[str, tuple[int, ...]]) -> int:
    shape = tensors.get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"{f.source}: tensor token_embd.weight: expected 2 dimensions, got {shape}"
        )
    vocab_size = shape[0]
    if vocab_size > MAX_VOCAB:
        raise ValueError(f"{f.source}: token_embd.weight: {vocab_size} rows, at most {MAX_VOCAB}")
    f.integer("vocab_size", vocab_size, vocab_size, vocab_size)
    tokens: Collection[Any] = f.values.get("tokenizer.ggml.tokens") or ()
    if not isinstance(tokens, list | tuple) or len(tokens) > vocab_size:
        raise ValueError(
            f"{f.source}: tokenizer.ggml.tokens: expected at most {vocab_size} strings, one for "
            f"each row of token_embd.weight, got {shown(tokens)}"
        )
    return vocab_size
