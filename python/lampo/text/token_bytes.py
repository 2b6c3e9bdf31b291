# SPDX-License-Identifier: Apache-2.0
"""The bytes of tokens."""

from __future__ import annotations

import re

from lampo.text.tokenizer_source import WORD_BOUNDARY, TokenizerSource

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes a printable byte as itself and the n-th other one as U+0100 + n."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


_ALPHABET = _byte_level_alphabet()


class TokenBytes:
    """The bytes of all tokens, looked up once per token."""

    def __init__(self, source: TokenizerSource) -> None:
        self._source = source
        self._cache: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        """Ids past the vocabulary (padding rows of an embedding) have no bytes."""
        try:
            return self._cache[token_id]
        except KeyError:
            return self._cache.setdefault(int(token_id), self._look_up(int(token_id)))

    def _look_up(self, token_id: int) -> bytes:
        if token_id < 0:
            raise ValueError(f"token_ids: {token_id} is negative")
        source = self._source
        token = source.id_to_token(token_id) if token_id < source.vocab_size else None
        if token is None:
            return b""
        literal = token_id in source.literal_ids
        if source.byte_level and literal:
            return token.encode()
        if source.byte_level:
            try:
                return bytes([_ALPHABET[char] for char in token])
            except KeyError:  # not in the byte-level alphabet: plain text
                return token.encode()
        if source.byte_fallback and not literal and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.replace(WORD_BOUNDARY, " ").encode()
