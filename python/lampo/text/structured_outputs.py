# SPDX-License-Identifier: Apache-2.0
"""Completions that match a JSON schema, a regular expression, a choice or a grammar.

llguidance (`pip install lampo[structured]`) turns these into a mask of allowed tokens before each
draw. Nothing is ignored: unsupported structures are refused when the request is made.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lampo.error_text import shortened, shown
from lampo.text.structured_limits import (
    check_choice,
    check_lark,
    check_regex,
    check_schema,
    closed_schema,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lampo.text.tokenizer import Tokenizer

# Limits on a grammar's compilation, steps and memory (2 KiB a state). llguidance counts about
# 14,000 units of fuel a millisecond.
_LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
_KINDS = ("json", "regex", "grammar", "choice", "json_object")
_FLAGS = ("json_object", "disable_any_whitespace", "disable_additional_properties")
# Between the parts of JSON. Without a bound a model may write spaces until its last token.
_WHITESPACE = r"[ ]|\n[ ]{0,20}"


@dataclass(frozen=True)
class StructuredOutputs:
    """The required form of a completion: exactly one of the first five fields.

    Attributes:
        json: a JSON schema, as a dict or as text.
        regex: a regular expression that matches all of the text; in Rust's syntax, \\d and \\w
            of ASCII only, without look-around and back references.
        grammar: a context-free grammar in llguidance's dialect of Lark. Known constructs that
            take minutes to compile are refused; there may be others.
        choice: the texts to choose from.
        json_object: True: any JSON object.
        disable_any_whitespace: JSON without whitespace between its parts. By default there may be
            a space, or a line break with up to 20 spaces.
        disable_additional_properties: objects of a schema that lists properties have no others.
            False: as the schema says. Schemas that combine others (allOf, a $ref or anyOf beside
            properties) are always taken as they are.

    Raises:
        ValueError, TypeError: a value of the wrong type or size, by name.
    """

    json: str | Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None
    json_object: bool = False
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = True

    def __post_init__(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {shown(getattr(self, name))}")
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise ValueError(
                f"structured_outputs: expected one of {', '.join(_KINDS)}, "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.json is not None:
            object.__setattr__(self, "json", check_schema(self.json))
        if self.regex is not None:
            check_regex("regex", self.regex)
        if self.grammar is not None:
            check_lark(self.grammar)
        if self.choice is not None:
            object.__setattr__(self, "choice", check_choice(self.choice))

    @property
    def kind(self) -> str:
        """Name of the field that is given."""
        return next(name for name in _KINDS if getattr(self, name) not in (None, False))


class Grammar:
    """The position of one completion in its structure."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def fork(self) -> Grammar:
        """A copy of the position, for another completion."""
        return Grammar(self._matcher.deep_copy())

    def fill(self, mask: NDArray[np.int32]) -> str | None:
        """Writes the mask of allowed next tokens.

        mask: [ceil(vocab_size / 32)] int32, contiguous; bit i % 32 of word i // 32 is token i.
        Returns: an error in one line; None on success.
        """
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return self._error() if self._matcher.is_error() else None

    def accept(self, token_id: int) -> str | None:
        """Advances by a token. Returns: an error in one line; None on success."""
        return None if self._matcher.consume_token(token_id) else self._error()

    @property
    def complete(self) -> bool:
        """Whether the structure is complete and nothing may follow."""
        return bool(self._matcher.is_stopped())

    def _error(self) -> str:
        return "structured_outputs: " + _reason(self._matcher.get_error())


def compile_grammar(
    wanted: StructuredOutputs,
    tokenizer: Tokenizer,
    vocab_size: int,
    eos_token_ids: frozenset[int],
) -> Grammar:
    """The beginning of the structure; its masks have `vocab_size` bits, rounded up to words.

    Raises:
        ValueError: llguidance is not installed or does not support the structure; one line.
    """
    import numpy as np

    library = _library()
    if not eos_token_ids:
        raise ValueError("structured_outputs: the model has no end-of-sequence token to end with")
    try:
        source = _source(wanted, library)
    except ValueError as error:
        raise _refused(wanted, str(error)) from None
    tokens = _token_table(library, tokenizer, vocab_size, eos_token_ids)
    limits = library.LLParserLimits(**_LIMITS)
    matcher = library.LLMatcher(tokens, source, log_level=0, limits=limits)
    # Some errors occur only in the first mask, which is the same for all completions.
    problems = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
    if problems:
        raise _refused(wanted, problems[0])
    grammar = Grammar(matcher)
    mask = np.zeros(-(-vocab_size // 32), dtype=np.int32)
    if grammar.fill(mask) is not None:
        raise _refused(wanted, matcher.get_error())
    if not mask.any():
        raise _refused(wanted, "no text matches it")
    return grammar


def _refused(wanted: StructuredOutputs, why: str) -> ValueError:
    return ValueError(f"structured_outputs.{wanted.kind}: {_reason(why)}")


def _reason(error: str) -> str:
    """A message of llguidance in one line: its first, and the reason, which comes after an excerpt.

    at 1(8): invalid regex "(" (in regex): regex parse error:
        (
        ^
    error: unclosed group
    """
    first, *others = error.strip().split("\n")
    reason = next((line for line in others if line.startswith("error: ")), "")
    if not reason:
        return shortened(first)
    return f"{shortened(first, 150)} {shortened(reason.removeprefix('error: '), 150)}"


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ValueError(
            "structured_outputs: needs llguidance: pip install 'lampo[structured]'"
        ) from None
    return llguidance


def _source(wanted: StructuredOutputs, library: Any) -> str:
    """The structure in llguidance's own form."""
    if wanted.regex is not None:
        regex = library.regex_to_lark(_without_anchors(wanted.regex), "dw")
        return _lark(f"start: /{regex}/")
    if wanted.grammar is not None:
        return _lark(wanted.grammar)
    if wanted.choice is not None:
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in wanted.choice)
        texts = texts.replace("\x7f", "\\u007f")  # a character that JSON allows and Lark does not
        return _lark(f"start: {texts}")
    # Overrides take precedence over a schema's "x-guidance".
    options: dict[str, Any] = {"lenient": False}
    if wanted.disable_any_whitespace:
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = _WHITESPACE
    schema = '{"type": "object"}' if wanted.json is None else str(wanted.json)
    if wanted.disable_additional_properties:
        schema = closed_schema(schema)
    return str(library.LLMatcher.grammar_from_json_schema(schema, overrides=options))


def _lark(grammar: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": grammar}]})


def _without_anchors(regex: str) -> str:
    """The expression without ^ and $: the whole text is matched anyway."""
    regex = regex.removeprefix("^")
    escapes = len(regex) - 1 - len(regex[:-1].rstrip("\\"))
    return regex[:-1] if regex.endswith("$") and escapes % 2 == 0 else regex


class _Vocabulary:
    """A tokenizer in llguidance's interface."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = sorted(i for i in tokenizer.special_token_ids if i < vocab_size)
        self._tokenizer = weakref.ref(tokenizer)
        special = frozenset(self.special_token_ids)
        self._ids = {token: i for i, token in enumerate(self.tokens) if token and i not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """Tokens of a forced text: the tokenizer's, if they spell it exactly.

        Those of a tokenizer that adds a leading space do not; then the longest tokens that fit.
        """
        data = text.encode()
        tokenizer = self._tokenizer()
        ids = [] if tokenizer is None else tokenizer.encode(text, add_bos=False)
        if b"".join([self.tokens[i] for i in ids if i < len(self.tokens)]) == data:
            return ids
        ids, at = [], 0
        while at < len(data):
            for end in range(min(at + self._longest, len(data)), at, -1):
                if (token_id := self._ids.get(data[at:end])) is not None:
                    ids.append(token_id)
                    break
            else:
                break  # llguidance continues byte by byte
            at = end
        return ids


_tables: weakref.WeakKeyDictionary[Tokenizer, dict[Any, Any]] = weakref.WeakKeyDictionary()
_tables_lock = threading.Lock()


def _token_table(
    library: Any, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: frozenset[int]
) -> Any:
    """llguidance's trie of the tokens, built once per tokenizer: 0.4 s for 49,152 tokens."""
    with _tables_lock:
        tables = _tables.setdefault(tokenizer, {})
        key = (vocab_size, eos_token_ids)
        if key not in tables:
            ends = sorted(i for i in eos_token_ids if i < vocab_size)
            vocabulary = _Vocabulary(tokenizer, vocab_size, ends[0])
            tables[key] = library.LLTokenizer(vocabulary, n_vocab=vocab_size, eos_token=ends)
        return tables[key]
