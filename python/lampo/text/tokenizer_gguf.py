# SPDX-License-Identifier: Apache-2.0
"""Builds a tokenizer from the `tokenizer.*` keys of a GGUF file.

Two kinds occur. `gpt2` is byte-level BPE: the file lists the merges, and `tokenizer.ggml.pre` names
the patterns that split text into words first. `llama` is SentencePiece BPE: the file lists a score
per token, and of all adjacent pairs that form a token, the one with the best score is merged first;
`_merges_from_scores` converts the scores to a list of merges.

The vocabulary goes to the library's constructors as Python objects; JSON would take five times as
long. The vocabulary has control tokens under their sentinels, so no text can encode to them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from lampo.error_text import shortened, shown
from lampo.text.pre_tokenizers import PRE_TOKENIZERS, WHOLE_WORDS, make_pre_tokenizer
from lampo.text.tokenizer_source import (
    WORD_BOUNDARY,
    TokenizerSource,
    make_sentinels,
)

logger = logging.getLogger("lampo")

# Values of tokenizer.ggml.token_type.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

MAX_TOKEN_CHARS = 1024  # deriving merges costs the square of a token's length

# End tokens by their text: GGUF has keys for one or two, models have more, and some files give them
# a wrong type.
_END_TOKENS = frozenset(
    {
        "</s>",
        "<EOT>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<eos>",
        "<|call|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|end|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<|return|>",
        "<｜end▁of▁sentence｜>",
        "[EOS]",
        "[EOT]",
        "_<EOT>",
    }
)


def read_gguf(metadata: Mapping[str, Any]) -> TokenizerSource:
    """Reads the tokenizer of a GGUF file from its metadata.

    metadata: plain Python values under GGUF's keys. add_eos_token is ignored, since lampo encodes
        prompts only.
    Raises: ValueError naming the key and the fault.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"tokenizer.ggml.model: {shown(model)} is not supported, expected gpt2 or llama"
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    ids = _token_ids(metadata, len(tokens))
    types = _token_types(metadata, tokens, ids)
    special = {
        text: i
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, UNKNOWN) and text
    }
    sentinels = make_sentinels(special)
    vocab = _vocabulary(tokens, special, sentinels)
    unk_token_id = ids.get("unknown")
    if unk_token_id is None and UNKNOWN in types:
        unk_token_id = types.index(UNKNOWN)

    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        pre = "default"
        if model == "gpt2":
            logger.warning(
                "tokenizer.ggml.pre: it is missing, and 'default' is assumed: the model's answers "
                "may be much worse; files of newer converters have it"
            )
    if model == "gpt2":
        backend = _byte_level(metadata, vocab, pre)
    else:
        normal = {text: i for i, text in enumerate(tokens) if types[i] == NORMAL}
        unk = None if unk_token_id is None else sentinels.get(tokens[unk_token_id])
        backend = _sentencepiece(metadata, vocab, normal, unk)
    literal = [
        text for text, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED and text
    ]
    backend.add_tokens(
        [AddedToken(text, normalized=False) for text in (*literal, *sentinels.values())]
    )

    named = {
        f"{key}_token": tokens[ids[key]]
        for key in ("bos", "eos", "unknown", "padding")
        if key in ids
    }
    renamed = {"unknown_token": "unk_token", "padding_token": "pad_token"}
    ends = {ids[key] for key in ("eos", "eot", "eom") if key in ids}
    ends |= {special[text] for text in _END_TOKENS & special.keys()}
    return TokenizerSource(
        backend=backend,
        id_to_token=lambda token_id: tokens[token_id] if token_id < len(tokens) else None,
        vocab_size=len(tokens),
        special_tokens=special,
        sentinels=sentinels,
        sentinel_ids={},
        literal_ids=frozenset(special.values()) | {vocab[text] for text in literal},
        byte_level=model == "gpt2",
        byte_fallback=True,
        strip_leading_space=model == "llama" and _flag(metadata, "add_space_prefix", True),
        add_bos=_flag(metadata, "add_bos_token", model == "llama" or pre in WHOLE_WORDS),
        bos_token_id=ids.get("bos"),
        eos_token_ids=frozenset(ends),
        unk_token_id=unk_token_id,
        chat_templates=_chat_templates(metadata),
        template_variables={renamed.get(key, key): text for key, text in named.items()},
    )


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int], pre: object) -> Backend:
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"tokenizer.ggml.pre: {shown(pre)} is not supported, "
            f"expected one of {', '.join(sorted(PRE_TOKENIZERS))}"
        )
    lines = _strings(metadata, "tokenizer.ggml.merges")
    bad = next((i for i, line in enumerate(lines) if " " not in line), None)
    if bad is not None:
        raise ValueError(
            f"tokenizer.ggml.merges[{bad}]: {shown(lines[bad])} is not two tokens and a space"
        )
    merges: Any = _Pairs(lines)
    try:
        bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in WHOLE_WORDS)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"tokenizer.ggml.merges: {shortened(str(error))}") from None
    backend = Backend(bpe)
    backend.pre_tokenizer = make_pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


class _Pairs(Sequence[tuple[str, str]]):
    """Merge lines (two tokens and a space) as pairs, created one at a time.

    A list of 50,000 tuples triggers the garbage collector, which takes longer than all other work.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for line in self._lines:
            left, _, right = line.partition(" ")
            yield left, right

    def __getitem__(self, index: Any) -> Any:
        left, _, right = self._lines[index].partition(" ")
        return left, right


def _sentencepiece(
    metadata: Mapping[str, Any], vocab: dict[str, int], normal: Mapping[str, int], unk: str | None
) -> Backend:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocab):
        raise ValueError(
            f"tokenizer.ggml.scores: expected one number for each of {len(vocab)} tokens"
        )
    bpe = models.BPE(
        vocab=vocab,
        merges=_merges_from_scores(normal, scores),
        unk_token=unk,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Backend(bpe)
    steps: list[Any] = [normalizers.Replace(" ", WORD_BOUNDARY)]
    if _flag(metadata, "add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(WORD_BOUNDARY))
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(WORD_BOUNDARY, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def _merges_from_scores(
    normal: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """All pairs that form a token, best score first, then longest left part first."""
    ranked: list[tuple[float, int, tuple[str, str]]] = []
    for token, token_id in normal.items():
        if len(token) > MAX_TOKEN_CHARS:
            raise ValueError(
                f"tokenizer.ggml.tokens[{token_id}]: {len(token)} characters, "
                f"expected at most {MAX_TOKEN_CHARS}"
            )
        score = -scores[token_id]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                ranked.append((score, -cut, (left, right)))
    ranked.sort()
    return [pair for _, _, pair in ranked]


def _vocabulary(
    tokens: Sequence[str], special: Mapping[str, int], sentinels: Mapping[str, str]
) -> dict[str, int]:
    """A unique name per id: the library requires ids without gaps."""
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(vocab) != len(tokens):
        seen: dict[str, int] = {}
        vocab = {}
        for i, text in enumerate(tokens):
            if text and seen.setdefault(text, i) != i:
                raise ValueError(
                    f"tokenizer.ggml.tokens[{i}]: {shown(text)} is token {seen[text]} already"
                )
            vocab[text or f"\U0010fffd{i}"] = i
    for text, token_id in special.items():
        del vocab[text]
        vocab[sentinels[text]] = token_id
    return vocab


def _token_types(
    metadata: Mapping[str, Any], tokens: Sequence[str], ids: Mapping[str, int]
) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        types = [NORMAL] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.token_type: expected one number for each of {len(tokens)} tokens"
        )
    types = list(types)
    for i, text in enumerate(tokens):
        if text in _END_TOKENS and types[i] != NORMAL:
            types[i] = CONTROL
    for key in ("bos", "eos", "eot", "eom"):
        if key in ids and types[ids[key]] != NORMAL:
            types[ids[key]] = CONTROL
    return types


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(type(item) is str for item in value):
        raise ValueError(f"{key}: expected a list of strings")
    return value


def _token_ids(metadata: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """The ids of the special tokens that the file names. One outside of the vocabulary means
    "none", as in other engines."""
    found = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{key}: expected a token id, got {shown(value)}")
        if 0 <= value < vocab_size:
            found[name] = value
        elif value != -1:
            logger.warning("%s: %d is ignored: it is not one of %d ids", key, value, vocab_size)
    return found


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise ValueError(f"tokenizer.ggml.{name}: expected true or false, got {shown(value)}")
    return value


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    return {
        key[len(prefix) + 1 :] or "default": value
        for key, value in metadata.items()
        if (key == prefix or key.startswith(prefix + ".")) and isinstance(value, str)
    }
