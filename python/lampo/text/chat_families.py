# SPDX-License-Identifier: Apache-2.0
"""The marks of chat templates by family: ends of answers, thoughts and tool calls.

Templates themselves come from a model's files; this table is what they do not say in a field.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatFamily:
    """Models whose templates have the same marks.

    Attributes:
        name: of the family.
        model_types: their `model_type` in config.json.
        stops: tokens that end an answer.
        thoughts: begin and end of a model's thoughts; None: it has none.
        calls: begin and end of a tool call, "" if it ends with the answer; None: it has no mark.
    """

    name: str
    model_types: tuple[str, ...]
    stops: tuple[str, ...]
    thoughts: tuple[str, str] | None = None
    calls: tuple[str, str] | None = None


_THINK = ("<think>", "</think>")
_TOOL_CALL = ("<tool_call>", "</tool_call>")
_CHATML = ("<|im_end|>", "<|endoftext|>")

CHAT_FAMILIES = (
    ChatFamily("Gemma 2, Gemma 3", ("gemma2", "gemma3_text"), ("<end_of_turn>", "<eos>")),
    ChatFamily(
        "gpt-oss (Harmony)",
        ("gpt_oss",),
        ("<|return|>", "<|call|>"),
        ("<|channel|>analysis<|message|>", "<|end|>"),
        ("<|channel|>commentary to=", "<|call|>"),
    ),
    ChatFamily("GPT-2", ("gpt2",), ("<|endoftext|>",)),
    ChatFamily("Granite 3", ("granite",), ("<|end_of_text|>",), _THINK, ("<|tool_call|>", "")),
    ChatFamily(
        "LFM2",
        ("lfm2",),
        ("<|im_end|>",),
        calls=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    ChatFamily(
        "Llama 3",
        ("llama",),
        ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
        calls=("<|python_tag|>", ""),
    ),
    ChatFamily("Mistral", ("mistral",), ("</s>",), calls=("[TOOL_CALLS]", "")),
    ChatFamily(
        "Ministral 3", ("ministral3",), ("</s>",), ("[THINK]", "[/THINK]"), ("[TOOL_CALLS]", "")
    ),
    ChatFamily("Mixtral", ("mixtral",), ("</s>",)),
    ChatFamily("OLMo 2", ("olmo2",), ("<|endoftext|>",)),
    ChatFamily("OLMo 3", ("olmo3",), _CHATML, _THINK, ("<function_calls>", "</function_calls>")),
    ChatFamily(
        "Phi-3, Phi-4-mini",
        ("phi3",),
        ("<|end|>", "<|endoftext|>"),
        _THINK,
        ("<|tool_call|>", "<|/tool_call|>"),
    ),
    ChatFamily("Qwen2, Qwen2.5", ("qwen2",), _CHATML, calls=_TOOL_CALL),
    ChatFamily("Qwen3", ("qwen3", "qwen3_moe"), _CHATML, _THINK, _TOOL_CALL),
    ChatFamily("Qwen3.5", ("qwen3_5_text",), _CHATML, _THINK, _TOOL_CALL),
    ChatFamily("SmolLM3", ("smollm3",), ("<|im_end|>",), _THINK, _TOOL_CALL),
)


def chat_family(model_type: str) -> ChatFamily | None:
    """The family of a model; None: it is not in the table."""
    return next((f for f in CHAT_FAMILIES if model_type in f.model_types), None)
