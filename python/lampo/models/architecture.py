# SPDX-License-Identifier: Apache-2.0
"""The interface of an architecture: names, configuration, tensors, construction of a block."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from lampo.models.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
)
from lampo.models.config_reader import ConfigReader

if TYPE_CHECKING:
    import torch

    from lampo.models.layers import Block
    from lampo.models.projection import Norm
    from lampo.models.weight_loader import WeightLoader


@dataclass(frozen=True)
class StoredTensor:
    """Name and layout of a tensor in files.

    Attributes:
        gguf: its name in a GGUF file.
        shape: as the ops take it, rows first.
        transposed: whether safetensors store its transpose.
        less_one: whether safetensors store it less one.
        log_minus: whether safetensors store the logarithm of its negative.
        is_conv: whether safetensors store it as [rows, 1, columns].
    """

    gguf: str
    shape: tuple[int, ...]
    transposed: bool = False
    less_one: bool = False
    log_minus: bool = False
    is_conv: bool = False

    @property
    def shape_in_safetensors(self) -> tuple[int, ...]:
        if self.is_conv:
            return self.shape[0], 1, self.shape[1]
        return self.shape[::-1] if self.transposed else self.shape

    def from_safetensors(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a GGUF file has, and the ops take, in place of the content of safetensors."""
        if self.transposed:
            return tensor.t().contiguous()
        if self.is_conv:
            return tensor[:, 0]
        if self.less_one:
            return tensor.float() + 1
        return -tensor.float().exp() if self.log_minus else tensor


Tensors = dict[str, StoredTensor]  # by the name in safetensors


def matrix(
    name: str, gguf: str, rows: int, columns: int, *, bias: bool = False, transposed: bool = False
) -> Tensors:
    """The weight [rows, columns] of a linear, and its bias [rows] if it has one."""
    tensors = {f"{name}.weight": StoredTensor(f"{gguf}.weight", (rows, columns), transposed)}
    return tensors | (vector(f"{name}.bias", f"{gguf}.bias", rows) if bias else {})


def vector(name: str, gguf: str, size: int, *, less_one: bool = False) -> Tensors:
    """A tensor [size]; names include ".weight" or ".bias"."""
    return {name: StoredTensor(gguf, (size,), less_one=less_one)}


def attention_tensors(hidden_size: int, a: AttentionConfig, *, less_one: bool = False) -> Tensors:
    """The tensors of an attention, under the names that most architectures use.

    Args:
        hidden_size: width of the residual stream.
        a: the attention.
        less_one: whether safetensors store the norms of q and k less one.
    """
    norms: Tensors = {}
    if a.qk_norm or a.joint_qk_norm:
        for part, size in (("q", a.q_size), ("k", a.kv_size)):
            name, gguf = f"self_attn.{part}_norm.weight", f"attn_{part}_norm.weight"
            norms |= vector(name, gguf, a.head_dim if a.qk_norm else size, less_one=less_one)
    sinks: Tensors = {}
    if a.sinks:
        sinks = vector("self_attn.sinks", "attn_sinks.weight", a.num_qo_heads)
    return (
        norms
        | sinks
        | {
            **matrix("self_attn.q_proj", "attn_q", a.q_rows, hidden_size, bias=a.qkv_bias),
            **matrix("self_attn.k_proj", "attn_k", a.kv_size, hidden_size, bias=a.qkv_bias),
            **matrix("self_attn.v_proj", "attn_v", a.kv_size, hidden_size, bias=a.qkv_bias),
            **matrix("self_attn.o_proj", "attn_output", hidden_size, a.q_size, bias=a.out_bias),
        }
    )


def gated_tensors(hidden_size: int, f: FeedForwardConfig) -> Tensors:
    """The tensors of a gated feed-forward, or of a mixture of them, under the names that most
    architectures use."""
    if f.experts is not None:
        return _expert_tensors(hidden_size, f.size, f.bias, f.experts)
    return {
        **matrix("mlp.gate_proj", "ffn_gate", f.size, hidden_size, bias=f.bias),
        **matrix("mlp.up_proj", "ffn_up", f.size, hidden_size, bias=f.bias),
        **matrix("mlp.down_proj", "ffn_down", hidden_size, f.size, bias=f.bias),
    }


def _expert_tensors(hidden_size: int, size: int, bias: bool, e: ExpertsConfig) -> Tensors:
    router = matrix("mlp.gate", "ffn_gate_inp", e.num_experts, hidden_size, bias=e.router_bias)
    found = router
    for part, rows, columns in (
        ("gate", size, hidden_size),
        ("up", size, hidden_size),
        ("down", hidden_size, size),
    ):
        name, gguf = f"mlp.experts.{part}_proj", f"ffn_{part}_exps"
        shape = (e.num_experts, rows, columns)
        found[f"{name}.weight"] = StoredTensor(f"{gguf}.weight", shape)
        if bias:
            found[f"{name}.bias"] = StoredTensor(f"{gguf}.bias", shape[:2])
    return found


class Architecture(ABC):
    """One family of models. A subclass takes a file in this folder and a line in registry.py.
    Its block is Llama's, unless it has methods of its own for that.

    Its module imports no torch: a configuration is read, and refused, before torch is imported.

    Attributes:
        model_type: the field of config.json.
        hf_class, hf_base_class: the entry of `architectures` in config.json, with an LM head and
            without one.
        gguf_name: `general.architecture` of GGUF files; None: there are none, or another
            architecture reads them.
        field_names: Llama's name of a field -> the name in its config.json, where they differ.
        interleaved_in_gguf: whether GGUF files store q and k for rotary pairs (2 i, 2 i + 1).
        embedding, layer, norm, head: names of its parts, in safetensors and in GGUF files.
        positions: likewise for a table of positions, added to the embedding; None: no table.
        experts_by_turns: whether safetensors with all experts in one tensor have columns of gate
            and up by turns, as [experts, hidden_size, 2 * size].
        optional_prefix: beginning of all names that some safetensors leave out.
        models: published models that have it, for lists.
        features: its differences from Llama, for lists.
        unused: pattern of the names of tensors in files that the model does not need.
    """

    model_type: ClassVar[str]
    hf_class: ClassVar[str]
    hf_base_class: ClassVar[str]
    gguf_name: ClassVar[str | None] = None
    field_names: ClassVar[Mapping[str, str]] = {}
    interleaved_in_gguf: ClassVar[bool] = False
    embedding: ClassVar[tuple[str, str]] = ("model.embed_tokens", "token_embd")
    layer: ClassVar[tuple[str, str]] = ("model.layers.{}.", "blk.{}.")
    norm: ClassVar[tuple[str, str]] = ("model.norm", "output_norm")
    positions: ClassVar[tuple[str, str] | None] = None
    head: ClassVar[tuple[str, str]] = ("lm_head", "output")
    experts_by_turns: ClassVar[bool] = False
    optional_prefix: ClassVar[str] = "model."
    models: ClassVar[str] = ""
    features: ClassVar[tuple[str, ...]] = ()
    # Tables that are computed, and copies of tied weights.
    unused: ClassVar[re.Pattern[str]] = re.compile(
        r"rope_freqs\.weight|.*attn_rot_embd\.weight|.*rotary_emb\.inv_freq"
    )

    @abstractmethod
    def config(self, reader: ConfigReader) -> ModelConfig:
        """Reads the configuration, from config.json or GGUF metadata.

        Raises:
            ValueError: one line naming the file, the field, the expectation and the value.
        """

    def layer_tensors(self, config: ModelConfig, layer: LayerConfig) -> Tensors:
        """The tensors of one block, by their names without the prefix :attr:`layer`: Llama's."""
        size = config.hidden_size
        return {
            **vector("input_layernorm.weight", "attn_norm.weight", size),
            **attention_tensors(size, layer.attention),
            **vector("post_attention_layernorm.weight", "ffn_norm.weight", size),
            **gated_tensors(size, layer.feed_forward),
        }

    def block(self, loader: WeightLoader, layer: LayerConfig) -> Block:
        """Builds one block, Llama's; `loader` takes the names of :meth:`layer_tensors`."""
        return loader.block(
            loader.rms_norm("input_layernorm"),
            loader.attention(layer.attention),
            loader.rms_norm("post_attention_layernorm"),
            loader.gated_feed_forward(layer.feed_forward),
        )

    def outer_tensors(self, config: ModelConfig) -> Tensors:
        """The tensors outside of blocks, except the LM head's."""
        sizes = config.vocab_size, config.hidden_size
        norm, norm_gguf = self.norm
        return {
            **matrix(*self.embedding, *sizes),
            **vector(f"{norm}.weight", f"{norm_gguf}.weight", config.hidden_size),
        }

    def is_unused(self, name: str, config: ModelConfig) -> bool:
        """Whether the model does not need a tensor of a file, by its name there."""
        return self.unused.fullmatch(name) is not None

    def final_norm(self, loader: WeightLoader) -> Norm:
        return loader.rms_norm(self.norm[0])

    def gguf_scales(self, config: ModelConfig) -> dict[str, float]:
        """Factors and soft caps as metadata of a GGUF file, by names after "<gguf_name>.".

        Raises:
            ValueError: such files cannot express them.
        """
        a = config.layers[0].attention
        if a.scale != a.head_dim**-0.5:
            raise ValueError("quantize: a GGUF file cannot express this model's scale of scores")
        return {}

    def tensors(self, config: ModelConfig) -> Tensors:
        """All tensors of a model of this configuration."""
        found = self.outer_tensors(config)
        name, gguf = self.layer
        for i, layer in enumerate(config.layers):
            for part, stored in self.layer_tensors(config, layer).items():
                found[name.format(i) + part] = replace(stored, gguf=gguf.format(i) + stored.gguf)
        if not config.tie_word_embeddings:
            found |= matrix(*self.head, config.vocab_size, config.hidden_size)
        return found
