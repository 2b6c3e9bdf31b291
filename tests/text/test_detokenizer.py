# SPDX-License-Identifier: Apache-2.0
"""Streaming gives what decoding at once gives, in whole characters."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import gguf_metadata, make_backend

from lampo.text.detokenizer import StreamDecoder
from lampo.text.tokenizer import Tokenizer

FAMILIES = ["chatml", "zephyr"]  # byte-level, and SentencePiece with byte tokens
GOLDEN = json.loads((Path(__file__).parents[1] / "data/smollm2_tokens.json").read_text())
TEXTS = [row["text"] for row in GOLDEN] + [
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "e\u0301 n\u0303 \u1112\u1161\u11ab",
    "\U0010ffff\ue000\ufffd",
    " leading",
    "  two",
    "",
]


@cache
def tokenizer(family: str) -> Tokenizer:
    return Tokenizer.from_gguf(gguf_metadata(make_backend(family), family))


def stream(family: str, ids: list[int], **options: object) -> list[str]:
    decoder = StreamDecoder(tokenizer(family), **options)  # type: ignore[arg-type]
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


def byte_ids(family: str, data: bytes) -> list[int]:
    """One token per byte."""
    t = tokenizer(family)
    single = {t.token_bytes(i): i for i in range(t.vocab_size) if len(t.token_bytes(i)) == 1}
    if family == "zephyr":  # ASCII letters are tokens of their own there; take the byte tokens
        single = {bytes([byte]): t.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return [single[bytes([byte])] for byte in data]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_stream_equals_decode_on_odd_texts(family: str, skip_special_tokens: bool) -> None:
    t = tokenizer(family)
    for text in TEXTS:
        for parse_special in (False, True):
            ids = t.encode(text, parse_special=parse_special)
            whole = t.decode(ids, skip_special_tokens=skip_special_tokens)
            pieces = stream(family, ids, skip_special_tokens=skip_special_tokens)
            assert "".join(pieces) == whole
            assert pieces[-1] == ""
            if not parse_special:
                assert t.decode(ids) == text


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_stream_equals_decode_on_any_ids(family: str, data: st.DataObject) -> None:
    t = tokenizer(family)
    ids = data.draw(st.lists(st.integers(0, t.vocab_size + 3), max_size=40))
    for skip in (True, False):
        pieces = stream(family, ids, skip_special_tokens=skip)
        assert "".join(pieces) == t.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=24))
@example(data=b"\xed\xa0")  # the beginning of a surrogate
@example(data=b"a\xed\xbf\x80\xed")
def test_any_bytes_decode_as_python_decodes_them(family: str, data: bytes) -> None:
    ids = byte_ids(family, data)
    pieces = stream(family, ids, prompt_token_ids=byte_ids(family, b"x"))
    assert "".join(pieces) == data.decode("utf-8", "replace")
    assert len(pieces[-1]) <= 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["é", "日", "🙂", "\U0010ffff"])
def test_character_comes_whole_with_its_last_byte(family: str, text: str) -> None:
    data = text.encode()
    pieces = stream(family, byte_ids(family, data))
    assert pieces == [""] * (len(data) - 1) + [text, ""]


@pytest.mark.parametrize("family", FAMILIES)
def test_ill_formed_bytes_are_not_held(family: str) -> None:
    pieces = stream(family, byte_ids(family, b"\x80" * 1000 + b"\xf0\x9f"))
    assert "".join(pieces[:1000]) == "\ufffd" * 1000
    assert pieces[1000:] == ["", "", "\ufffd"]


@pytest.mark.parametrize("family", FAMILIES)
def test_character_split_by_a_special_token(family: str) -> None:
    t = tokenizer(family)
    first, second = byte_ids(family, "é".encode())
    ids = [first, next(iter(t.eos_token_ids)), second]
    assert t.decode(ids) == "é" == "".join(stream(family, ids))
    shown = t.decode(ids, skip_special_tokens=False)
    assert shown == "".join(stream(family, ids, skip_special_tokens=False))
    assert shown.count("\ufffd") == 2


def test_first_space_of_sentencepiece() -> None:
    t = tokenizer("zephyr")
    ids = t.encode("the dog")
    assert ids[0] == t.bos_token_id
    assert "".join(stream("zephyr", ids)) == "the dog"
    prompt = t.encode("the fox")
    assert "".join(stream("zephyr", ids[1:], prompt_token_ids=prompt)) == " the dog"
    assert "".join(stream("zephyr", ids[1:], prompt_token_ids=[t.bos_token_id])) == "the dog"
    assert t.decode(t.encode("  two")) == "  two"
    assert t.decode(ids, skip_special_tokens=False) == "<s> the dog"


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_that_ends_within_a_character(family: str) -> None:
    prompt = byte_ids(family, b"abc \xf0\x9f")
    pieces = stream(family, byte_ids(family, b"\x99\x82!"), prompt_token_ids=prompt)
    assert pieces == ["", "🙂", "!", ""]


def test_every_token_streams_alone_as_it_decodes() -> None:
    for family in FAMILIES:
        t = tokenizer(family)
        for token_id in range(t.vocab_size):
            assert "".join(stream(family, [token_id])) == t.decode([token_id])
            expected = t.token_bytes(token_id).decode("utf-8", "replace")
            assert t.token_to_text(token_id) == expected


def test_long_streams_of_random_tokens() -> None:
    rng = random.Random(5)
    for family in FAMILIES:
        t = tokenizer(family)
        ids = [rng.randrange(t.vocab_size) for _ in range(20_000)]
        assert "".join(stream(family, ids)) == t.decode(ids)


def test_bad_ids() -> None:
    t = tokenizer("chatml")
    assert t.decode([t.vocab_size, 10**9]) == ""
    assert t.token_to_text(t.vocab_size) == t.id_to_token(t.vocab_size) == ""
    with pytest.raises(ValueError, match="-1 is negative"):
        t.decode([-1])
    with pytest.raises(ValueError, match="-1 is negative"):
        StreamDecoder(t).push(-1)
    with pytest.raises(ValueError, match="-1 is negative"):
        t.id_to_token(-1)
