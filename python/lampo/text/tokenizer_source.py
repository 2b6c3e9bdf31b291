# SPDX-License-Identifier: Apache-2.0
"""The parts of a tokenizer, and reading them from a model directory.

The backend has special tokens under *sentinels*, random strings that no input can contain, and
never under their own text. User text is therefore always ordinary text. Only `Tokenizer` writes
sentinels.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lampo.error_text import shortened, shown

MAX_TOKENIZER_BYTES = 256 << 20
MAX_CONFIG_BYTES = 16 << 20
MAX_SPECIAL_CHARS = 256  # chats keep all beginnings of special tokens
MAX_SPECIAL_SQUARES = 1 << 26
WORD_BOUNDARY = "\u2581"  # SentencePiece writes a space as this character

_DECODERS = "ByteLevel, Metaspace, or a Sequence of Replace, ByteFallback, Fuse, Strip"


@dataclass(frozen=True)
class TokenizerSource:
    """The parts of a tokenizer from any kind of file."""

    backend: Backend  # has special tokens under their sentinels only
    id_to_token: Callable[[int], str | None]
    vocab_size: int  # one more than the largest token id
    special_tokens: Mapping[str, int]  # text -> token id
    sentinels: Mapping[str, str]  # text of a special token -> its sentinel
    sentinel_ids: Mapping[
        int, int
    ]  # id the backend gives a sentinel -> token id, where they differ
    literal_ids: frozenset[int]  # added tokens: not in byte-level spelling, nor names of bytes
    byte_level: bool  # else SentencePiece
    byte_fallback: bool  # SentencePiece: <0x0A> is a byte
    strip_leading_space: bool  # decoding drops the leading space that encoding adds
    add_bos: bool
    bos_token_id: int | None
    eos_token_ids: frozenset[int]
    unk_token_id: int | None = None
    single_words: frozenset[str] = frozenset()  # special tokens that are none inside of a word
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # "default", "tool_use", ...
    template_variables: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, ...


def make_sentinels(texts: Mapping[str, int]) -> dict[str, str]:
    """One unguessable string per special token, different in every process.

    texts: text -> token id.
    Raises: ValueError for special tokens with a cost out of proportion to their length.
    """
    for text, token_id in texts.items():
        if len(text) > MAX_SPECIAL_CHARS:
            raise ValueError(
                f"special token {token_id}: {len(text)} characters, expected at most "
                f"{MAX_SPECIAL_CHARS}"
            )
    squares = sum(len(text) ** 2 for text in texts)
    if squares > MAX_SPECIAL_SQUARES:
        raise ValueError(
            f"special tokens: the squares of their lengths add up to {squares}, expected at most "
            f"{MAX_SPECIAL_SQUARES}"
        )
    nonce = secrets.token_hex(8)
    return {text: f"\U0010fffd{nonce}:{token_id}\U0010fffd" for text, token_id in texts.items()}


def read_directory(path: Path) -> TokenizerSource:
    """Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

    Raises: ValueError naming the file and the fault.
    """
    backend = _read_backend(path / "tokenizer.json")
    config = _read_json(path / "special_tokens_map.json") | _read_json(
        path / "tokenizer_config.json"
    )
    named = {
        key: text
        for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        if (text := _token_text(config.get(key))) is not None
    }
    extra = config.get("additional_special_tokens") or []
    extra_texts = [_token_text(item) for item in extra] if isinstance(extra, list) else []

    added = backend.get_added_tokens_decoder()
    flags = {token.content: token for token in added.values()}
    special = {token.content: token_id for token_id, token in added.items() if token.special}
    for text in [*named.values(), *extra_texts]:
        token_id = backend.token_to_id(text) if text else None
        if text and token_id is not None:
            special[text] = token_id

    vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    if vocab_size == 0:
        raise ValueError(f"{path / 'tokenizer.json'}: the vocabulary is empty")
    with _library_errors(path / "tokenizer.json"):
        wants_bos = _wants_bos(backend, config, special.get(named.get("bos_token", "")))
    names = {token_id: text for text, token_id in special.items()}
    decoder = _read_decoder(backend, path / "tokenizer.json")

    # The library matches added tokens in text unless they are marked special and
    # `encode_special_tokens` is set.
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special]
    )
    backend.encode_special_tokens = True
    sentinels = make_sentinels(special)
    backend.add_tokens(
        [
            AddedToken(
                sentinel,
                normalized=False,
                lstrip=text in flags and flags[text].lstrip,
                rstrip=text in flags and flags[text].rstrip,
            )
            for text, sentinel in sentinels.items()
        ]
    )
    sentinel_ids = {
        backend.token_to_id(sentinels[text]): token_id for text, token_id in special.items()
    }

    def id_to_token(token_id: int) -> str | None:
        if token_id >= vocab_size:
            return None
        return names.get(token_id) or backend.id_to_token(token_id)

    eos = special.get(named.get("eos_token", ""))
    return TokenizerSource(
        backend=backend,
        id_to_token=id_to_token,
        vocab_size=vocab_size,
        special_tokens=special,
        sentinels=sentinels,
        sentinel_ids={key: value for key, value in sentinel_ids.items() if key is not None},
        literal_ids=frozenset(added) | frozenset(special.values()),
        **decoder,
        add_bos=wants_bos,
        bos_token_id=special.get(named.get("bos_token", "")),
        eos_token_ids=frozenset() if eos is None else frozenset({eos}),
        unk_token_id=special.get(named.get("unk_token", "")),
        single_words=frozenset(
            text for text in special if text in flags and flags[text].single_word
        ),
        chat_templates=_read_chat_templates(path, config),
        template_variables=named,
    )


def _read_text(path: Path, limit: int) -> str | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path}: {size} bytes, expected at most {limit}")
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path, MAX_CONFIG_BYTES)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({shortened(str(error))})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path}: it has a lone surrogate, which is no character") from None
    return value


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turns whatever the library raises into a ValueError. Its panics are no Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path}: not a tokenizer ({shortened(str(error))})") from None


def _read_backend(path: Path) -> Backend:
    text = _read_text(path, MAX_TOKENIZER_BYTES)
    if text is None:
        raise ValueError(f"{path}: no such file (lampo needs a tokenizer.json or a GGUF)")
    with _library_errors(path):
        # The library cuts merges behind the prefix's bytes, and a cut character ends the process.
        if json.loads(text)["model"].get("continuing_subword_prefix"):
            raise ValueError("model.continuing_subword_prefix is not supported")
        backend = Backend.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_decoder(backend: Backend, path: Path) -> dict[str, bool]:
    """The spelling of the tokens (byte-level or SentencePiece), from the decoder's steps."""
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    steps = state.get("decoders", [state])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return {"byte_level": True, "byte_fallback": False, "strip_leading_space": False}
    known = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    marks = [
        step.get("replacement") or step.get("pattern", {}).get("String")
        for step in steps
        if step.get("type") in ("Metaspace", "Replace")
    ]
    if not set(kinds) <= known or marks != [WORD_BOUNDARY]:
        raise ValueError(f"{path}: unsupported decoder {shown(kinds)}, expected {_DECODERS}")
    strips = any(
        (step["type"] == "Strip" and step.get("start", 0) > 0)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return {
        "byte_level": False,
        "byte_fallback": "ByteFallback" in kinds,
        "strip_leading_space": strips,
    }


def _wants_bos(backend: Backend, config: Mapping[str, Any], bos_token_id: int | None) -> bool:
    if bos_token_id is None:
        return False
    wanted = config.get("add_bos_token")
    if isinstance(wanted, bool):
        return wanted
    return list(backend.encode("").ids[:1]) == [bos_token_id]  # the post-processor decides


def _token_text(value: object) -> str | None:
    """Text of a token in a config: a string, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _read_chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                templates[str(item.get("name"))] = item["template"]
    text = _read_text(path / "chat_template.jinja", MAX_CONFIG_BYTES)
    return templates if text is None else templates | {"default": text}
