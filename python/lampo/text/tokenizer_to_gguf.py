# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a model directory as the `tokenizer.*` keys of a GGUF file.

tokenizer_gguf.py reads them back. The name of the pre-tokenizer is found by comparison: the one
that cuts a text with all kinds of characters into the same words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from lampo.text.pre_tokenizers import PRE_TOKENIZERS, WHOLE_WORDS, make_pre_tokenizer
from lampo.text.tokenizer_gguf import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from lampo.text.tokenizer_source import TokenizerSource, read_directory

# Contractions, digits, breaks, spaces, marks, cases, scripts, symbols: what the patterns differ in.
_PROBE = (
    "I'm sure they'LL say: it's 1234567 (or 12.5%), isn't it?\n\n  \tdef f(x_1):\r\n"
    "    return x**2 <= 10 + 'd'  # ÀÉÎ naïve e\u0301t\u0301 camelCaseWord HTTPServer\n"
    " Ünïcödé Ελληνικά кириллица १२३ हिन्दी العربية ١٢٣ 中文字符 日本語かな 한국어 "
    "12 3456 $x^2$ ~`|<a=b> a,b。c！ — «x» …\u00a0\u3000 \U0001f600\U0001f680 /path/to//x\n"
    "\n\n!?\n\n   ;;   \n Աբգ ᏣᎳᎩ 𝐀𝐁 ²³ Ⅻ ...!!!\t\t x'Re WE'VE \n"
)


def gguf_tokenizer(path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """The tokenizer's keys.

    Args:
        path: a model directory with a tokenizer.json.
        vocab_size: rows of the embedding; ids without a token get names of their own.
        eos_token_ids: tokens that end a generation.

    Raises:
        ValueError: naming the file and the fault: a kind of tokenizer that GGUF has no name for.
    """
    source = read_directory(path)
    file = path / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8-sig"))
    model = state["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"{file}: model.type: expected BPE, got {model['type']}")
    tokens, types = _tokens(source, state, vocab_size)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    found: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }
    if source.byte_level:
        found |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _pre_tokenizer(file, bool(model.get("ignore_merges"))),
            "tokenizer.ggml.merges": merges,
        }
    else:
        found |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": _scores(tokens, merges),
            "tokenizer.ggml.add_space_prefix": source.strip_leading_space,
        }
    found["tokenizer.ggml.add_bos_token"] = source.add_bos
    found |= _special_ids(source, vocab_size, eos_token_ids)
    for name, template in source.chat_templates.items():
        key = "tokenizer.chat_template"
        found[key if name == "default" else f"{key}.{name}"] = template
    return found


def _tokens(
    source: TokenizerSource, state: dict[str, Any], vocab_size: int
) -> tuple[list[str], list[int]]:
    """The text of each id and its type."""
    added = {token["id"]: token for token in state.get("added_tokens", ())}
    special = set(source.special_tokens.values())
    tokens, types = [], []
    for i in range(vocab_size):
        text = source.id_to_token(i)
        kind = NORMAL
        if text is None:
            text, kind = f"[PAD{i}]", UNUSED
        elif i == source.unk_token_id and not source.byte_level:
            kind = UNKNOWN
        elif i in special:
            kind = CONTROL
        elif i in added:
            kind = USER_DEFINED
        elif source.byte_fallback and len(text) == 6 and text.startswith("<0x"):
            kind = BYTE
        tokens.append(text)
        types.append(kind)
    return tokens, types


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """A score per token, the higher the earlier a merge makes it."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        rank.setdefault("".join(merge.split(" ")), i)
    return [-float(rank.get(token, 0)) for token in tokens]


def _pre_tokenizer(file: Path, ignore_merges: bool) -> str:
    backend = Backend.from_str(file.read_text(encoding="utf-8-sig"))
    words = _words(backend.pre_tokenizer)
    for name in PRE_TOKENIZERS:
        if (name in WHOLE_WORDS) == ignore_merges and _words(make_pre_tokenizer(name)) == words:
            return name
    raise ValueError(f"{file}: pre_tokenizer: it is none that GGUF files have a name for")


def _words(pre_tokenizer: Any) -> list[tuple[str, tuple[int, int]]]:
    return [] if pre_tokenizer is None else list(pre_tokenizer.pre_tokenize_str(_PROBE))


def _special_ids(
    source: TokenizerSource, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> dict[str, int]:
    pad = source.special_tokens.get(source.template_variables.get("pad_token", ""))
    # The model's first, then the tokenizer's: a GGUF file has places for two.
    ends = list(dict.fromkeys([*eos_token_ids, *sorted(source.eos_token_ids)]))
    own = [i for i in ends if i in source.eos_token_ids]
    eos = own[0] if own else ends[0] if ends else None
    others = [i for i in ends if i != eos]
    found = {
        "bos": source.bos_token_id,
        "eos": eos,
        "eot": others[0] if others else None,
        "unknown": source.unk_token_id,
        "padding": pad,
    }
    return {
        f"tokenizer.ggml.{name}_token_id": value
        for name, value in found.items()
        if value is not None and value < vocab_size
    }
