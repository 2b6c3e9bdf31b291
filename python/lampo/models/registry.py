# SPDX-License-Identifier: Apache-2.0
"""The supported architectures, looked up by the names in a model's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader, gguf_fields, hf_fields
from lampo.models.gemma3 import Gemma3
from lampo.models.gpt2 import GPT2
from lampo.models.lfm2 import LFM2
from lampo.models.llama import Llama
from lampo.models.mistral import Mistral
from lampo.models.qwen2 import Qwen2
from lampo.models.qwen3 import Qwen3
from lampo.models.qwen3_5 import Qwen35, Qwen35Text
from lampo.models.smollm3 import SmolLM3
from lampo.weights.fields import Fields

ARCHITECTURES: tuple[Architecture, ...] = (
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    SmolLM3(),
    Gemma3(),
    GPT2(),
    LFM2(),
    Qwen35Text(),
    Qwen35(),
)

_BY_MODEL_TYPE = {a.model_type: a for a in ARCHITECTURES}
_BY_GGUF_NAME = {a.gguf_name: a for a in ARCHITECTURES if a.gguf_name is not None}
# Architectures without GGUF files of their own.
_READ_BY = {"mistral": "llama", "qwen3_5": "qwen35"}


def gguf_reader(architecture: Architecture) -> Architecture:
    """The architecture that reads the GGUF files of another, which may be the same."""
    return _BY_GGUF_NAME[architecture.gguf_name or _READ_BY[architecture.model_type]]


def config_from_hf(
    values: Mapping[str, Any], source: str = "config.json"
) -> tuple[Architecture, ModelConfig]:
    """Reads a Hugging Face config.json. Fields without effect here are ignored.

    Raises:
        ValueError: one line naming the field, its value and what is supported.
    """
    fields = hf_fields(values, source)
    model_type = fields.choice("model_type", tuple(_BY_MODEL_TYPE))
    architecture = _BY_MODEL_TYPE[model_type]
    if architecture.nested is not None:
        inner = {**fields.mapping(architecture.nested), **_outer_fields(values)}
        fields = hf_fields(inner, f"{source}: {architecture.nested}")
    names = fields.get("architectures")
    known = architecture.hf_class, architecture.hf_base_class
    if names is not None and not (isinstance(names, list) and any(n in names for n in known)):
        expected = " or ".join(known)
        raise fields.error(
            "architectures", f"a list with {expected}, as model_type is {model_type}"
        )
    fields.names = architecture.field_names
    return architecture, architecture.config(ConfigReader(fields, model_type))


def _outer_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a model of several parts that hold for its language model."""
    names = ("architectures", "tie_word_embeddings")
    return {name: values[name] for name in names if name in values}


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    freq_factors: tuple[float, ...] | None = None,
    source: str = "GGUF",
) -> tuple[Architecture, ModelConfig]:
    """Reads the metadata of a GGUF file.

    Args:
        metadata: the key-value section.
        tensors: GGUF name -> shape, rows first.
        freq_factors: the content of rope_freqs.weight, if there is one.
        source: the file's name in errors.

    Raises:
        ValueError: as :func:`config_from_hf`.
    """
    known = tuple(_BY_GGUF_NAME)
    name = Fields(source, metadata).choice("general.architecture", known)
    architecture = _BY_GGUF_NAME[name]
    reader = ConfigReader(
        gguf_fields(metadata, name, source),
        name,
        tensors,
        freq_factors,
        architecture.interleaved_in_gguf,
    )
    return architecture, architecture.config(reader)
