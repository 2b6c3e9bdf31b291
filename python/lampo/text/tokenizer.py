# SPDX-License-Identifier: Apache-2.0
"""The tokenizer: text to token ids and back, and chats to token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lampo.text.chat_messages import checked_text
from lampo.text.chat_renderer import ChatRenderer, unmasked
from lampo.text.token_bytes import TokenBytes
from lampo.text.tokenizer_gguf import read_gguf
from lampo.text.tokenizer_source import TokenizerSource, read_directory

_LONG_TEXT = 4096  # characters
_CHARS_PER_TOKEN = 8  # more than languages and code have on average


class TooManyTokensError(ValueError):
    """A prompt has more tokens than fit.

    Attributes:
        count: "8300"; "more than 8192" for a text that was not encoded to its end.
    """

    def __init__(self, count: str, message: str) -> None:
        super().__init__(message)
        self.count = count


class Tokenizer:
    """Encodes text and chats, decodes tokens. Immutable, so threads may share it.

        tokenizer = Tokenizer.from_directory(Path("SmolLM2-135M-Instruct"))
        ids = tokenizer.encode_chat([{"role": "user", "content": "Why is the sky blue?"}])
        tokenizer.decode(ids)

    vocab_size: one more than the largest token id.
    bos_token_id: None if the model has none; whether `encode` adds it is the model's choice
        (`add_bos`).
    eos_token_ids: the end-of-sequence tokens that the tokenizer's files name.
    special_token_ids: control tokens; text encodes to them with `parse_special` only.
    chat_template: the source of the model's default template, None if it has none.
    """

    def __init__(self, source: TokenizerSource) -> None:
        self._source = source
        self._backend = source.backend
        self._bytes = TokenBytes(source)
        longest_first = sorted(source.special_tokens, key=len, reverse=True)
        patterns = [
            rf"(?<!\w){re.escape(text)}(?!\w)" if text in source.single_words else re.escape(text)
            for text in longest_first
        ]
        self._special = re.compile("|".join(patterns) or "(?!)")
        self._chats = ChatRenderer(
            source.chat_templates, source.template_variables, source.special_tokens, self._special
        )
        self.vocab_size = source.vocab_size
        self.add_bos = source.add_bos and source.bos_token_id is not None
        self.bos_token_id = source.bos_token_id
        self.eos_token_ids = source.eos_token_ids
        self.special_token_ids = frozenset(source.special_tokens.values())
        self._unspellable = self.special_token_ids - {source.unk_token_id}
        self.strip_leading_space = source.strip_leading_space
        self.chat_template = source.chat_templates.get("default")

    @classmethod
    def from_directory(cls, path: Path) -> Tokenizer:
        """Reads a model directory in Hugging Face's layout. Raises: ValueError naming the file."""
        return cls(read_directory(Path(path)))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Builds it from a GGUF file's metadata. Raises: ValueError naming the key."""
        return cls(read_gguf(metadata))

    def encode(
        self,
        text: str,
        *,
        add_bos: bool = True,
        parse_special: bool = False,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The token ids of a text.

        add_bos: prepend BOS, if the model uses it and the text does not begin with it.
        parse_special: read special tokens in the text as such; by default they are ordinary text.
        max_tokens: refuse a text of more tokens, early if it is much longer.
        Raises: TypeError if it is no string, ValueError if it has a lone surrogate,
            TooManyTokensError.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a string, got {type(text).__name__}")
        checked_text(text, "text")
        ids = self._encode(self._mark(text) if parse_special else text, max_tokens)
        return _at_most(max_tokens, self._with_bos(ids) if add_bos else ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ill-formed UTF-8 becomes U+FFFD; ids past the vocabulary, nothing."""
        skipped = self.special_token_ids if skip_special_tokens else frozenset()
        data = b"".join(
            [self._bytes[token_id] for token_id in token_ids if token_id not in skipped]
        )
        if self.strip_leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of the token; for special tokens those of their text."""
        return self._bytes[token_id]

    def token_to_text(self, token_id: int) -> str:
        """One token as text: its leading space kept, an incomplete character as U+FFFD."""
        return self._bytes[token_id].decode("utf-8", "replace")

    def id_to_token(self, token_id: int) -> str:
        """The token as the vocabulary spells it; empty for ids past the vocabulary."""
        if token_id < 0:
            raise ValueError(f"token_id: {token_id} is negative")
        return self._source.id_to_token(token_id) or ""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary."""
        token_id = self._source.special_tokens.get(token)
        return self._backend.token_to_id(token) if token_id is None else token_id

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """The token ids of a chat, by the model's template; BOS exactly once if the model uses it.

        messages: [{"role": "user", "content": "..."}, ...]; content may be a list of {"type":
            "text", "text": "..."}.
        add_generation_prompt: end with the beginning of the assistant's answer.
        continue_final_message: end within the last message, at the end of its text. By default an
            assistant's last message is continued; after all others an answer begins.
        template_kwargs: further variables of the template: chat_messages.TEMPLATE_ARGUMENTS.
        tools: JSON schemas of functions.
        max_tokens: as in `encode`.
        Special tokens come from the template only; in arguments they are ordinary text.
        Raises: ValueError naming the message and field, or with the template's message; also if
            the template writes nothing. TooManyTokensError.
        """
        text, unmask = self._chats.render(
            messages, add_generation_prompt, continue_final_message, template_kwargs, tools
        )
        try:
            ids = self._encode(unmasked(self._mark(text), unmask), max_tokens)
            ids = _at_most(max_tokens, self._with_bos(ids))
        except TooManyTokensError as error:
            raise _too_many("messages", error.count, max_tokens) from None
        if not ids:
            raise ValueError("messages: the chat template writes nothing for them")
        return ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The chat as text, for display; only `encode_chat` tells user text from special tokens."""
        text, unmask = self._chats.render(
            messages, add_generation_prompt, continue_final_message, template_kwargs, tools
        )
        return unmasked(text, unmask)

    def _mark(self, text: str) -> str:
        """The text with special tokens replaced by the backend's sentinels."""
        sentinels = self._source.sentinels
        return self._special.sub(lambda match: sentinels[match[0]], text)

    def _encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        if max_tokens is not None and self._is_much_longer(text, max_tokens):
            raise _too_many("prompt", f"more than {max_tokens}", max_tokens)
        ids = self._encode_text(text)
        renamed = self._source.sentinel_ids
        if not renamed:
            return ids
        if not self._unspellable.isdisjoint(ids):  # split the text of a special token
            cuts = [0, *(match.start() + 1 for match in self._special.finditer(text)), len(text)]
            ids = []
            for start, end in pairwise(cuts):
                ids += self._encode_text(text[start:end])
        return [renamed.get(token_id, token_id) for token_id in ids]

    def _is_much_longer(self, text: str, max_tokens: int) -> bool:
        """Whether the beginning of a long text alone has a quarter more than `max_tokens` tokens.

        A cut changes the tokens next to it only, so that such a text cannot fit. The cost is
        proportional to `max_tokens` for texts, and at most twice that of encoding all of it.
        """
        size = _CHARS_PER_TOKEN * (max_tokens + 64)
        while size < len(text):
            if len(self._encode_text(text[:size])) > max_tokens + max_tokens // 4 + 64:
                return True
            size *= 2
        return False

    def _encode_text(self, text: str) -> list[int]:
        if len(text) > _LONG_TEXT:  # a batch is faster, and releases the GIL
            batch = self._backend.encode_batch_fast([text], add_special_tokens=False)
            ids: list[int] = batch[0].ids
        else:
            ids = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _with_bos(self, ids: list[int]) -> list[int]:
        if self.add_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            return [self.bos_token_id, *ids]
        return ids


def _at_most(max_tokens: int | None, ids: list[int]) -> list[int]:
    if max_tokens is not None and len(ids) > max_tokens:
        raise _too_many("prompt", str(len(ids)), max_tokens)
    return ids


def _too_many(name: str, count: str, max_tokens: int | None) -> TooManyTokensError:
    message = f"{name}: has {count} tokens, expected at most {max_tokens}"
    return TooManyTokensError(count, message)
