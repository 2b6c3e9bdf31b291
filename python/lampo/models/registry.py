# SPDX-License-Identifier: Apache-2.0
"""The supported architectures, looked up by the names in a model's files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from lampo.error_text import shown
from lampo.models.architecture import Architecture
from lampo.models.config import ModelConfig
from lampo.models.config_reader import ConfigReader, gguf_fields, hf_fields
from lampo.models.gemma2 import Gemma2
from lampo.models.gemma3 import Gemma3
from lampo.models.gpt2 import GPT2
from lampo.models.gpt_oss import GptOss
from lampo.models.granite import Granite
from lampo.models.lfm2 import LFM2
from lampo.models.llama import Llama
from lampo.models.ministral3 import Ministral3
from lampo.models.mistral import Mistral
from lampo.models.mixtral import Mixtral
from lampo.models.olmo2 import Olmo2, Olmo3
from lampo.models.phi3 import Phi3
from lampo.models.qwen2 import Qwen2
from lampo.models.qwen3 import Qwen3
from lampo.models.qwen3_5 import Qwen35
from lampo.models.qwen3_moe import Qwen3MoE
from lampo.models.smollm3 import SmolLM3
from lampo.weights.fields import Fields

ARCHITECTURES: tuple[Architecture, ...] = (
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    SmolLM3(),
    Gemma2(),
    Gemma3(),
    Granite(),
    Ministral3(),
    Olmo2(),
    Olmo3(),
    Phi3(),
    GPT2(),
    LFM2(),
    Qwen35(),
    Qwen3MoE(),
    Mixtral(),
    GptOss(),
)

# Fields of any config.json, without effect here.
_OF_ALL_MODELS = {
    *("_name_or_path", "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype"),
    *("embd_pdrop", "eos_token_id", "initializer_range", "model_type", "pad_token_id"),
    *("pretraining_tp", "resid_pdrop", "tie_word_embeddings", "torch_dtype"),
    *("transformers_version", "unk_token_id", "use_cache"),
}
_MAX_SHOWN = 8

_BY_MODEL_TYPE = {a.model_type: a for a in ARCHITECTURES}
_BY_GGUF_NAME = {a.gguf_name: a for a in ARCHITECTURES if a.gguf_name is not None}
# Multimodal models whose text part is read: model_type -> the entry of `architectures`.
_MULTIMODAL = {
    "mistral3": "Mistral3ForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
}
# Architectures without GGUF files of their own.
_READ_BY = {"mistral": "llama", "mixtral": "llama", "olmo3": "olmo2"}


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
    known: tuple[str, ...] = ()
    if is_multimodal(values):
        known = (_MULTIMODAL[values["model_type"]],)
        fields = _text_fields(fields)
    if isinstance(name := fields.get("model_type"), str) and name not in _BY_MODEL_TYPE:

        def reader(architecture: Architecture) -> ConfigReader:
            own = Fields(source, fields.values, architecture.field_names)
            return ConfigReader(own, architecture.model_type)

        raise _unknown(fields, "model_type", name, _BY_MODEL_TYPE, reader)
    model_type = fields.choice("model_type", tuple(_BY_MODEL_TYPE))
    architecture = _BY_MODEL_TYPE[model_type]
    names = fields.get("architectures")
    known = known or (architecture.hf_class, architecture.hf_base_class)
    if names is not None and not (isinstance(names, list) and any(n in names for n in known)):
        expected = " or ".join(known)
        raise fields.error(
            "architectures", f"a list with {expected}, as model_type is {model_type}"
        )
    fields.names = architecture.field_names
    return architecture, architecture.config(ConfigReader(fields, model_type))


def is_multimodal(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a multimodal model with a text part that can be read."""
    return str(values.get("model_type")) in _MULTIMODAL


def _text_fields(fields: Fields) -> Fields:
    """The fields of the text part, with those of the whole that concern it."""
    text = fields.mapping("text_config")
    if not text:
        raise fields.error("text_config", "the fields of the text part")
    shared = ("architectures", "tie_word_embeddings", "bos_token_id", "eos_token_id")
    whole = {key: fields.values[key] for key in shared if key in fields.values}
    return Fields(f"{fields.source}: text_config", {"tie_word_embeddings": True, **text, **whole})


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    freq_factors: Mapping[str, tuple[float, ...]] | None = None,
    source: str = "GGUF",
) -> tuple[Architecture, ModelConfig]:
    """Reads the metadata of a GGUF file.

    Args:
        metadata: the key-value section.
        tensors: GGUF name -> shape, rows first.
        freq_factors: the content of rope_freqs.weight and the like, by name.
        source: the file's name in errors.

    Raises:
        ValueError: as :func:`config_from_hf`.
    """
    key = "general.architecture"
    fields = Fields(source, metadata)

    def reader(architecture: Architecture) -> ConfigReader:
        own = gguf_fields(metadata, name, source)
        return ConfigReader(own, name, tensors, freq_factors, architecture.interleaved_in_gguf)

    if isinstance(name := fields.get(key), str) and name not in _BY_GGUF_NAME:
        raise _unknown(fields, key, name, _BY_GGUF_NAME, reader)
    name = fields.choice(key, tuple(_BY_GGUF_NAME))
    architecture = _BY_GGUF_NAME[name]
    return architecture, architecture.config(reader(architecture))


def _unknown(
    fields: Fields,
    key: str,
    name: str,
    known: Mapping[str, Architecture],
    reader: Callable[[Architecture], ConfigReader],
) -> ValueError:
    """The error for an architecture that is not supported: the nearest one by the fields that it
    reads, and the fields that it does not."""

    def likeness(other: str) -> tuple[int, float]:
        return len(read[other]), difflib.SequenceMatcher(None, name, other).ratio()

    read: dict[str, set[str]] = {}
    for other, architecture in known.items():
        read[other] = set()
        try:
            tried = reader(architecture)
            read[other] = tried.fields.read
            architecture.config(tried)
        except ValueError:
            pass
        read[other] &= {name for name, value in fields.values.items() if value is not None}
    nearest = max(known, key=likeness)
    of_model = [
        field
        for field, value in fields.values.items()
        if value not in (None, False) and field not in _OF_ALL_MODELS | read[nearest]
        if not field.startswith(("general.", "tokenizer.", "quantize.", "split."))
    ]
    unread = ", ".join(shown(field) for field in of_model[:_MAX_SHOWN]) or "none"
    more = f" and {len(of_model) - _MAX_SHOWN} more" if len(of_model) > _MAX_SHOWN else ""
    return ValueError(
        f"{fields.source}: {key}: {shown(name)} is not supported (`lampo models` lists what is); "
        f"nearest is {nearest}, which does not read these of its fields: {unread}{more}"
    )
