# SPDX-License-Identifier: Apache-2.0
"""A configuration as the metadata of a GGUF file: the inverse of `config_from_gguf`."""

from __future__ import annotations

from typing import Any

from lampo.models.config import ModelConfig
from lampo.models.config_reader import GGUF_FIELDS
from lampo.models.rope import RopeConfig, yarn_mscale


def gguf_metadata(config: ModelConfig, name: str) -> dict[str, Any]:
    """The metadata of a configuration that was read from a config.json.

    Args:
        config: of the model.
        name: its architecture in GGUF files.

    Raises:
        ValueError: GGUF files cannot express it.
    """
    attention = config.layers[0].attention
    if any(layer != config.layers[0] for layer in config.layers):
        raise ValueError(
            "quantize: the layers' attention differs, by windows or rotary embedding, which is not "
            "written to GGUF files yet"
        )
    values: dict[str, Any] = {
        "num_hidden_layers": config.num_layers,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.layers[0].feed_forward.size,
        "num_attention_heads": attention.num_qo_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "vocab_size": config.vocab_size,
    }
    if attention.rope is None:
        values["layer_norm_epsilon"] = float(config.norm_eps)
    else:
        values["rms_norm_eps"] = float(config.norm_eps)
        values["head_dim"] = attention.head_dim
    if attention.window is not None:
        values["sliding_window"] = attention.window
    found = {f"{name}.{GGUF_FIELDS[key]}": value for key, value in values.items()}
    if attention.rope is not None:
        found[f"{name}.attention.value_length"] = attention.head_dim
        found |= {f"{name}.rope.{key}": value for key, value in _rope(attention.rope).items()}
    return found


def frequency_factors(rope: RopeConfig | None) -> dict[str, list[float]]:
    """Divisors of the rotary frequencies, by the names of their tensors."""
    if rope is None:
        return {}
    if rope.scaling == "llama3":
        exponents = range(0, rope.rotary_dim, 2)
        plain = [rope.theta ** (-i / rope.rotary_dim) for i in exponents]
        scaled = rope.inverse_frequencies().tolist()
        return {"rope_freqs.weight": [p / s for p, s in zip(plain, scaled, strict=True)]}
    if rope.long_factors is not None:
        return {
            "rope_factors_long.weight": list(rope.long_factors),
            "rope_factors_short.weight": list(rope.freq_factors or ()),
        }
    return {} if rope.freq_factors is None else {"rope_freqs.weight": list(rope.freq_factors)}


def _rope(rope: RopeConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"dimension_count": rope.rotary_dim, "freq_base": float(rope.theta)}
    # "llama3" is a tensor of factors; "dynamic" changes nothing within the model's own context.
    if rope.scaling in ("linear", "yarn"):
        found |= {"scaling.type": rope.scaling, "scaling.factor": float(rope.factor)}
    if rope.scaling == "longrope":
        found |= {
            "scaling.original_context_length": rope.original_max_position_embeddings,
            "scaling.attn_factor": rope.attention_factor,
        }
    if rope.scaling == "yarn":
        if not rope.truncate:
            raise ValueError("quantize: a GGUF file cannot express YaRN with truncate = false")
        found |= {
            "scaling.original_context_length": rope.original_max_position_embeddings,
            "scaling.yarn_beta_fast": float(rope.beta_fast),
            "scaling.yarn_beta_slow": float(rope.beta_slow),
            "scaling.yarn_attn_factor": rope.attention_factor / yarn_mscale(rope.factor),
        }
    return found
