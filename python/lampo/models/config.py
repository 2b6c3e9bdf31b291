# SPDX-License-Identifier: Apache-2.0
"""A model's configuration: sizes and constants, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lampo.models.rope import MAX_POSITIONS, RopeConfig
from lampo.weights.fields import Fields

MAX_VOCAB = 1 << 22


@dataclass(frozen=True)
class AttentionConfig:
    """The attention of one layer.

    Attributes:
        num_qo_heads, num_kv_heads, head_dim: the first is a multiple of the second.
        scale: factor of the scores before the softmax.
        rope: rotary embedding of q and k; None: no rotation.
        window: number of positions that a token sees, its own included; None: all.
        qkv_bias, out_bias: whether these projections have biases.
        qk_norm: whether each head of q and k has an RMS norm, before the rotation.
        joint_qk_norm: whether q has one RMS norm over all of its heads, and k likewise.
        soft_cap: bound of the scores' magnitudes: ``c tanh(s / c)``; None: none.
        growth: beta and length: queries at position p are multiplied by
            ``1 + beta ln(1 + floor(p / length))``; None: they are not.
        gated: whether a head's output has a gate, stored after the head's rows of q.
        sinks: whether each head has a logit that takes a share of the softmax, without a value.
    """

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeConfig | None = None
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    joint_qk_norm: bool = False
    soft_cap: float | None = None
    growth: tuple[float, int] | None = None
    gated: bool = False
    sinks: bool = False

    @property
    def q_rows(self) -> int:
        """Rows of the projection to q, with the gates."""
        return self.q_size * (2 if self.gated else 1)

    @property
    def q_size(self) -> int:
        """Elements of a token's query, all heads."""
        return self.num_qo_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of a token's key, all heads."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True)
class ExpertsConfig:
    """The choice of experts in one layer.

    Attributes:
        num_experts: all.
        top_k: experts per token.
        normalized: whether the weights of a token's experts sum to 1.
        swiglu_limit: as in ops.expert_linear; 0: the gate is silu.
        router_bias: whether the router has biases.
    """

    num_experts: int
    top_k: int
    normalized: bool = True
    swiglu_limit: float = 0.0
    router_bias: bool = False


@dataclass(frozen=True)
class ShortConvConfig:
    """A short convolution with two gates.

    Attributes:
        size: channels, hidden_size.
        width: taps, the token's own included.
        bias: whether the convolution and the projections have biases.
    """

    size: int
    width: int
    bias: bool = False


@dataclass(frozen=True)
class GatedDeltaConfig:
    """Linear attention by the gated delta rule.

    Attributes:
        num_key_heads, num_value_heads: the second is a multiple of the first.
        key_dim, value_dim: size of a head.
        width: taps of the convolution, the token's own included.
        tiled: whether value head h belongs to key head h % num_key_heads, as in GGUF files;
            otherwise a key head has consecutive value heads.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    width: int
    tiled: bool = False

    @property
    def key_size(self) -> int:
        """Elements of a token's q, and of its k, all heads."""
        return self.num_key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Elements of a token's v, all heads."""
        return self.num_value_heads * self.value_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: q, k and v."""
        return 2 * self.key_size + self.value_size


MixerConfig = AttentionConfig | ShortConvConfig | GatedDeltaConfig


@dataclass(frozen=True)
class FeedForwardConfig:
    """The feed-forward of one layer.

    Attributes:
        size: between its projections; of one expert.
        bias: whether its projections have biases.
        experts: None: it has none.
    """

    size: int
    bias: bool = False
    experts: ExpertsConfig | None = None


@dataclass(frozen=True)
class LayerConfig:
    """One block of a model."""

    mixer: MixerConfig
    feed_forward: FeedForwardConfig

    @property
    def attention(self) -> AttentionConfig:
        """The mixer of a block with attention."""
        assert isinstance(self.mixer, AttentionConfig)
        return self.mixer


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder, every field checked.

    Attributes:
        architecture: the `model_type` of config.json, or `general.architecture` of a GGUF file.
        vocab_size, hidden_size: rows and columns of the embedding.
        layers: the blocks, first to last; each may differ from its neighbours.
        norm_eps: epsilon of all norms.
        max_position_embeddings: length of the longest sequence that the model supports.
        tie_word_embeddings: whether the LM head is the embedding.
        bos_token_id, eos_token_ids, pad_token_id: None or empty if the file names none.
        embedding_scale: factor of the embedding.
        residual_scale: factor of what mixers and feed-forwards add to the residual stream.
        logit_scale: factor of the logits.
        logit_soft_cap: bound of the logits' magnitudes, as `soft_cap` of attention; None: none.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def kv_size(self) -> int:
        """Elements of a token's keys and values, all layers."""
        return sum(2 * attention.kv_size for attention in self.attentions)

    @property
    def attentions(self) -> list[AttentionConfig]:
        """The layers' attention, without layers of another kind."""
        mixers = [layer.mixer for layer in self.layers]
        return [mixer for mixer in mixers if isinstance(mixer, AttentionConfig)]


def generation_config_from_hf(
    d: Mapping[str, Any], vocab_size: int, source: str = "generation_config.json"
) -> dict[str, Any]:
    """The sampling defaults of a generation_config.json, checked; absent ones are left out.

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
        "bos_token_id": f.token_id("bos_token_id", vocab_size),
        "pad_token_id": f.token_id("pad_token_id", vocab_size),
        "eos_token_ids": f.token_ids("eos_token_id", vocab_size) or None,
    }
    return {key: value for key, value in values.items() if value is not None}
