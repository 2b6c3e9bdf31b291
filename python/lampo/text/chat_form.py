# SPDX-License-Identifier: Apache-2.0
"""The form in which a chat template expects messages.

Templates differ: some write a list of text parts, others only a string, or a list as Python shows
it; some write tool calls only beside an absent content; some need the arguments of a call as an
object, others as JSON text. Small chats with known words are rendered, and the form is chosen that
writes all of the words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from lampo.text.chat_messages import KNOWN_ROLES, plain_value

Message = dict[str, Any]
_WORDS = ("first\nword", "second\nword")  # repr() and JSON would not write the line breaks
_PARTS = [{"type": "text", "text": word} for word in _WORDS]
_NAME, _KEY = "lampo_call", "lampo_key"


class MessageForm:
    """The form of one template.

    render: the text for a list of messages; ValueError if the template refuses them.
    knows_developer: whether the template has a role "developer"; else it is "system", OpenAI's
        older name of the same role.
    """

    def __init__(self, render: Callable[[list[Message]], str], knows_developer: bool) -> None:
        self._render = render
        self._knows_developer = knows_developer
        # Each chat is rendered when the first message needs it.
        self._writes_text = cache(self._probe_text)
        self._writes_parts = cache(self._probe_parts)
        self._calls = cache(self._probe_calls)

    def adapt(self, messages: list[Message]) -> list[Message]:
        """The messages of `chat_messages.check_messages`, with content and calls in this form."""
        return [self._adapted(message) for message in messages]

    def _adapted(self, message: Message) -> Message:
        message = dict(message)
        if message["role"] == "developer" and not self._knows_developer:
            message["role"] = "system"
        role = message["role"] if message["role"] in KNOWN_ROLES else "user"
        content, calls = message["content"], message.get("tool_calls")
        if not content:
            message["content"] = self._calls()[0] if calls else ""
        elif isinstance(content, list):
            if not self._writes_parts(role):
                message["content"] = "\n".join(part["text"] for part in content)
        elif not self._writes_text(role) and self._writes_parts(role):
            message["content"] = [{"type": "text", "text": content}]
        if isinstance(calls, list):
            message["tool_calls"] = [_with_arguments(call, self._calls()[1]) for call in calls]
        return message

    def _probe_text(self, role: str) -> bool:
        return _WORDS[0] in self._written(self._chat_for(role, _WORDS[0]))

    def _probe_parts(self, role: str) -> bool:
        text = self._written(self._chat_for(role, _PARTS))
        return all(word in text for word in _WORDS)

    def _chat_for(self, role: str, content: Any) -> list[Message]:
        """A chat that templates accept, with this content in a message of this role."""
        message = _message(role, content)
        if role in ("system", "developer"):
            return [message, _message("user", "word")]
        if role == "assistant":
            return [_message("user", "word"), message, _message("user", "word")]
        if role in ("tool", "ipython"):
            beside, kind = self._calls()
            call = _call(beside, "{}" if kind is str else {})
            answer = {**message, "tool_call_id": "call12345", "name": _NAME}
            return [_message("user", "word"), call, answer]
        return [message]

    def _probe_calls(self) -> tuple[str | None, type | None]:
        """Content beside calls, and the type of their arguments; None leaves arguments alone."""
        arguments = {_KEY: "value"}
        for content in ("", None):
            for given in (arguments, json.dumps(arguments)):
                text = self._written([_message("user", "word"), _call(content, given)])
                quoted = f"'{_KEY}'" in text or f'\\"{_KEY}' in text
                if _NAME in text and _KEY in text and not quoted:
                    return content, type(given)
        return "", None

    def _written(self, messages: list[Message]) -> str:
        try:
            return self._render(messages)
        except ValueError:
            return ""


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def _call(content: str | None, arguments: Any) -> Message:
    call = {"name": _NAME, "arguments": arguments}
    calls = [{"id": "call12345", "type": "function", "function": call}]
    return {**_message("assistant", content), "tool_calls": calls}


def _with_arguments(call: Any, kind: type | None) -> Any:
    """The call with arguments of this type; those that are not a JSON object are left alone."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_arguments(call["function"], kind)}
    arguments = call.get("arguments")
    if kind is dict and isinstance(arguments, str):
        try:
            parsed = plain_value(json.loads(arguments), "arguments")
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict):
            return {**call, "arguments": parsed}
    elif kind is str and isinstance(arguments, dict):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return call
