# SPDX-License-Identifier: Apache-2.0
"""Checks the messages of a chat, and keeps user text from becoming special tokens.

A template prints user text between special tokens of its own. To tell the two apart afterwards, the
first character of a special token in a user's string is replaced by a private-use character before
rendering, and restored after the template's special tokens have been found. The length and the
results of string operations (`trim`, `startswith`, slices) stay the same. A template that searches
user text for a special token, as in `content.split('</think>')`, finds it (`chat_sandbox`).

`mask` replaces complete special tokens, and partial ones at both ends of a string. A template that
slices strings could still assemble one. `mask_all` replaces every first character: no template can
bypass that, but it may change a template's decisions ("</think>" begins with the same "<").
`Tokenizer.encode_chat` uses `mask`, and `mask_all` to check the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from lampo.error_text import shortened, shown

MAX_DEPTH = 32
MAX_ROLE_CHARS = 64
_ROLES = """
    assistant developer document environment function ipython model observation system tool user
"""
KNOWN_ROLES = frozenset(_ROLES.split())
TEMPLATE_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "builtin_tools": (list,),
    "custom_instructions": (str,),
    "date_string": (str,),
    "documents": (list,),
    "enable_thinking": (bool,),
    "keep_past_thinking": (bool,),
    "model_identity": (str,),
    "preserve_thinking": (bool,),
    "python_tools": (list,),
    "reasoning_effort": (str,),
    "thinking": (bool,),
    "thinking_budget": (int,),
    "tools_in_user_message": (bool,),
    "xml_tools": (list,),
}


# Without one of these an assistant's message needs content.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def check_messages(messages: object) -> list[dict[str, Any]]:
    """A copy in plain JSON types.

    messages: a list of {"role": str, "content": str or [{"type": "text", "text": str}, ...], ...};
        an assistant's content may be absent beside tool calls or reasoning. Other fields at None,
        and empty lists of tool calls, count as absent.
    Returns: the messages with content: a string, a list of text parts, or None.
    Raises: ValueError naming the message and the field.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages: expected a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages: expected at least one message")
    return [_check_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _check_message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(
            f"{where}: expected a dict with role and content, got {type(message).__name__}"
        )
    plain: dict[str, Any] = plain_value(message, where)
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str) or not role or len(role) > MAX_ROLE_CHARS:
        raise ValueError(
            f"{where}.role: expected 1 to {MAX_ROLE_CHARS} characters, got {shown(role)}"
        )
    plain = {
        name: value
        for name, value in plain.items()
        if value is not None and (name, value) != ("tool_calls", [])
    }
    if isinstance(content, list):
        content = [_text_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    elif content is None:
        if role != "assistant" or not any(plain.get(name) for name in _INSTEAD_OF_CONTENT):
            raise ValueError(f"{where}.content: missing, expected a string")
    elif not isinstance(content, str):
        raise ValueError(
            f"{where}.content: expected a string or a list of text parts, got {shown(content)}"
        )
    return {**plain, "content": content}


def _text_part(part: object, where: str) -> dict[str, str]:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise ValueError(f'{where}: expected {{"type": "text", "text": ...}}, got {shown(kind)}')
    text = part.get("text")
    if not isinstance(text, str):
        raise ValueError(f"{where}.text: expected a string, got {shown(text)}")
    return {"type": "text", "text": text}


def check_ending(
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool | None,
    continue_final_message: bool | None,
) -> tuple[bool, bool]:
    """Both options with their defaults: the last message is continued if it is the assistant's.

    messages: checked.
    Raises: ValueError if both are true, or the last message has no text to continue.
    """
    last = messages[-1]
    has_text = last["content"] is not None and not last.get("tool_calls")
    if continue_final_message is None:
        absent = add_generation_prompt is None
        continue_final_message = absent and last["role"] == "assistant" and has_text
    if add_generation_prompt is None:
        add_generation_prompt = not continue_final_message
    if continue_final_message and add_generation_prompt:
        raise ValueError("continue_final_message: does not go with add_generation_prompt")
    if continue_final_message and not has_text:
        raise ValueError("continue_final_message: the last message has no text to continue")
    return add_generation_prompt, continue_final_message


def check_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The checked arguments of a template.

    Raises: ValueError naming one that is not listed in TEMPLATE_ARGUMENTS or has the wrong type.
    """
    checked: dict[str, Any] = {}
    for name, value in (arguments or {}).items():
        kinds = TEMPLATE_ARGUMENTS.get(name)
        if kinds is None:
            raise ValueError(
                f"template_kwargs: {shown(name)} is not one of {', '.join(TEMPLATE_ARGUMENTS)}"
            )
        if type(value) not in kinds:
            raise ValueError(
                f"template_kwargs.{name}: expected {kinds[0].__name__}, got {shown(value)}"
            )
        checked[name] = plain_value(value, f"template_kwargs.{name}")
    return checked


def check_tools(tools: object) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"tools: expected a list of JSON objects, got {shown(tools)}")
    plain: list[dict[str, Any]] = plain_value(tools, "tools")
    return plain


def plain_value(value: object, where: str, depth: int = 0) -> Any:
    """A copy in exact JSON types: a template must not reach methods of other classes."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{where}: nested deeper than {MAX_DEPTH}")
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return checked_text(str(value), where)
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: expected string keys, got {shown(key)}")
            name = checked_text(str(key), where)
            copy[name] = plain_value(item, f"{where}.{shortened(name, 64)}", depth + 1)
        return copy
    if isinstance(value, (list, tuple)):
        return [plain_value(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ValueError(f"{where}: a {type(value).__name__} is not a JSON value")


def checked_text(text: str, where: str) -> str:
    """The text, checked to be encodable as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: U+{ord(text[error.start]):04X} at index {error.start} is a lone surrogate, "
            "not a character"
        ) from None
    return text


def strings_in(value: object) -> Iterable[str]:
    """All strings of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)


def free_characters(strings: Sequence[str], count: int) -> list[str]:
    """Private-use characters that no string contains."""
    used: set[str] = set().union(*strings)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    found = list(islice(free, count))
    if len(found) < count:
        raise ValueError("messages: they use up all private-use characters of plane 15")
    return found


class SpecialTokenMask:
    """Hides the first characters of special tokens in user strings.

    special_tokens: their texts.
    literals: the template's string literals. After one that ends with the beginning of a special
        token, user text could complete the token, as in `'<|' + message.role + '|>'`. Well-known
        roles are allowed to.
    """

    def __init__(self, special_tokens: Iterable[str], literals: Iterable[str]) -> None:
        tokens = [token for token in special_tokens if token]
        self._tokens = frozenset(tokens)
        self._lengths = sorted({len(token) for token in tokens}, reverse=True)
        self.first_chars = frozenset(token[0] for token in tokens)
        pairs = {(re.escape(token[0]), re.escape(token[1:2])) for token in tokens}
        self._starts = re.compile("|".join(f"{a}(?={b})" for a, b in pairs) or "(?!)")
        self._beginnings = frozenset(token[:n] for token in tokens for n in range(1, len(token)))
        self._longest = max(self._lengths, default=1)
        ends: dict[str, list[str]] = {}
        for literal in literals:
            ends.setdefault(literal[-1], []).append(literal)
        self._endings = tuple(
            {
                token[n:]
                for token in tokens
                for n in range(1, len(token))
                for literal in ends.get(token[n - 1], ())
                if literal.endswith(token[:n]) or token[:n].endswith(literal)
            }
        )

    def needed(self, strings: Iterable[str]) -> bool:
        """Whether any of the strings could form a part of a special token."""
        if self._endings:
            return True
        return any(char in text for text in strings for char in self.first_chars)

    def choose(self, strings: Sequence[str]) -> dict[str, str]:
        """Maps every character to mask to a private-use character that no string contains."""
        masked = sorted(self.first_chars | {ending[0] for ending in self._endings})
        return dict(zip(masked, free_characters(strings, len(masked)), strict=True))

    def mask(self, text: str, marks: Mapping[str, str]) -> str:
        """Masks special tokens, and partial ones at the beginning and the end of the text."""
        places = [
            i
            for i in (match.start() for match in self._starts.finditer(text))
            if any(text[i : i + n] in self._tokens for n in self._lengths)
        ]
        trimmed = text.rstrip()
        for end in {len(text), len(trimmed)}:
            places += [
                end - n
                for n in range(1, min(self._longest, end + 1))
                if text[end - n : end] in self._beginnings
            ]
        start = len(text) - len(text.lstrip())
        for at in {0, start}:
            rest = text[at:].rstrip() if self._endings else ""
            if rest and any(
                rest.startswith(ending) or ending.startswith(rest) for ending in self._endings
            ):
                places.append(at)
        if not places:
            return text
        chars = list(text)
        for i in places:
            chars[i] = marks[text[i]]
        return "".join(chars)

    def mask_all(self, text: str, marks: Mapping[str, str]) -> str:
        """Masks every first character of a special token."""
        return text.translate({ord(char): marks[char] for char in self.first_chars})


def map_strings(value: Any, change: Callable[[str], str], *, key: str = "") -> Any:
    """The same JSON value with all strings changed, except known roles and names of fields."""
    if isinstance(value, str):
        return value if key == "role" and value in KNOWN_ROLES else change(value)
    if isinstance(value, dict):
        return {
            (
                name if name.isidentifier() and name.isascii() and name.islower() else change(name)
            ): map_strings(item, change, key=name)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [map_strings(item, change) for item in value]
    return value
