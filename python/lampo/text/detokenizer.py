# SPDX-License-Identifier: Apache-2.0
"""Text of token ids, all at once or streamed.

A token is a run of bytes, and text is UTF-8 decoded from the bytes of all tokens. An ill-formed
sequence becomes U+FFFD. A character may span tokens, so a stream holds back the bytes of an
incomplete character: at most 3.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lampo.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns tokens into text one at a time; the pieces add up to `Tokenizer.decode` of all.

    tokenizer: the tokenizer of the tokens.
    skip_special_tokens: leave control tokens out of the text.
    prompt_token_ids: the tokens before. With them, a SentencePiece tokenizer's first space is
        kept, and a character that begins in the prompt is completed.

        decoder = StreamDecoder(tokenizer)
        for token_id in generated:
            print(decoder.push(token_id), end="")
        print(decoder.flush())
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._bytes = tokenizer.token_bytes
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._strip_space = tokenizer.strip_leading_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if token_id not in self._skipped:
                tail = self._bytes(token_id) + tail
            if len(tail) >= 4:  # the longest character's bytes
                break
        if tail:
            self._strip_space = False
            self._utf8.decode(tail)

    def push(self, token_id: int) -> str:
        """The text that became final with this token; often one word, sometimes nothing."""
        if token_id in self._skipped:
            return ""
        data = self._bytes(token_id)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        text = self._utf8.decode(data)
        # Python's decoder waits for the last byte of a surrogate, which UTF-8 does not have.
        held = self._utf8.getstate()[0]
        if held[:1] == b"\xed" and held[1:] >= b"\xa0":
            text += self._utf8.decode(b"", final=True)
        return text

    def flush(self) -> str:
        """The remaining text: U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)
