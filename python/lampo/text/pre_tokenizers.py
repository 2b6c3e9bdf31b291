# SPDX-License-Identifier: Apache-2.0
"""Pre-tokenizers of byte-level BPE, which split text into words, by their `tokenizer.ggml.pre`.

The patterns are part of a model's definition; merges never cross a split. With several patterns,
each one splits the pieces that the previous ones left whole.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BREAKS
)
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BREAKS
_QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    + _BREAKS
)
_NO_WORD = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWER_WORD, _UPPER_WORD = f"{_NO_WORD}{_UPPER}*{_LOWER}+", f"{_NO_WORD}{_UPPER}+{_LOWER}*"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
_TEKKEN = f"{_LOWER_WORD}|{_UPPER_WORD}" + r"|\p{N}" + _SYMBOLS + _BREAKS
_GPT4O = (
    f"{_LOWER_WORD}{_CONTRACTIONS}?|{_UPPER_WORD}{_CONTRACTIONS}?"
    + r"|\p{N}{1,3}"
    + _SYMBOLS
    + _BREAKS
)

# Letters with an upper or lower case, except those of some blocks.
_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10c6}-\x{10ff}\x{1c80}-\x{1c8f}\x{2cf4}-\x{2d2f}"
    r"\x{a78f}-\x{a7ff}\x{ab30}-\x{ab6f}\x{10570}-\x{105bf}\x{10d40}-\x{10d8f}"
    r"\x{16e40}-\x{16e9f}\x{1d400}-\x{1df2f}]]"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_PUNCTUATED = r" ?[^(\s|.,!?…。，、।۔،)]+"

_PATTERNS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "tekken": (_TEKKEN,),
    "gpt-4o": (_GPT4O,),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}"),
    "deepseek-llm": (
        r"[\r\n]",
        rf"\s?{_CASED}+",
        r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+",
        r"\s+$",
        _CJK,
        r"\p{N}+",
    ),
    "seed-coder": (
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + _BREAKS,
    ),
    "poro-chat": (_PUNCTUATED,),
    "viking": (_PUNCTUATED, r"\p{N}"),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
_SAME_AS = {
    "gpt-2": "mpt olmo jais phi-2 trillion granite-docling exaone4 mellum modern-bert gigachat",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe",
    "qwen2": "deepseek-r1-qwen kormo stablelm2 megrez hunyuan solar-open",
    "gpt-4o": "llama4 kanana2",
}
PRE_TOKENIZERS: dict[str, str] = {name: name for name in _PATTERNS} | {
    alias: name for name, aliases in _SAME_AS.items() for alias in aliases.split()
}
# Pre-tokenizers that keep a word of the vocabulary as one token, without merges, and add BOS.
WHOLE_WORDS = frozenset(name for name, like in PRE_TOKENIZERS.items() if like == "llama-bpe")
WHOLE_WORDS = WHOLE_WORDS - {"dbrx", "smaug-bpe"} | {"tekken"}


def make_pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """The splits, then the byte-level spelling. name: a key of PRE_TOKENIZERS."""
    splits = [
        pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in _PATTERNS[PRE_TOKENIZERS[name]]
    ]
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, spelling])
