# SPDX-License-Identifier: Apache-2.0
"""Compiles and renders chat templates, within the limits of `chat_limits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError, nodes

from lampo.text.chat_limits import BASE_OUTPUT_CHARS, OUTPUT_FACTOR, Account, LimitError, account
from lampo.text.chat_sandbox import ChatEnvironment

MAX_TEMPLATE_CHARS = 128 << 10


class ChatTemplate:
    """A compiled chat template.

    source: Jinja source, at most 128 K characters.
    literals: all its strings, outside and inside of tags.
    Raises: ValueError if it is too long or not a template.

        ChatTemplate("{{ messages[0].content }}").render({"messages": [{"content": "hi"}]}, 2)
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ValueError(
                f"chat template: {len(source)} characters, expected at most {MAX_TEMPLATE_CHARS}"
            )
        environment = ChatEnvironment()
        try:
            tree = environment.parse_plain(source)
            self._template = environment.from_string(source)
        except Exception as error:  # errors of Jinja and of Python's compiler
            raise ValueError(f"chat template: {type(error).__name__}: {error}") from None
        texts = [node.data for node in tree.find_all(nodes.TemplateData)]
        texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        self.literals = tuple(text for text in texts if text)

    def render(self, variables: Mapping[str, Any], input_chars: int) -> str:
        """The text for these variables.

        input_chars: characters of all strings in `variables`; the limits grow with it.
        Raises: ValueError with the template's own message, or naming the exceeded limit.
        """
        limit = BASE_OUTPUT_CHARS + OUTPUT_FACTOR * input_chars
        token = account.set(Account(input_chars))
        parts: list[str] = []
        try:
            for part in self._template.generate(**variables):
                limit -= len(part)
                if limit < 0:
                    raise LimitError("writes too much text")
                parts.append(part)
        except Exception as error:  # a template can raise any exception
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise ValueError(f"chat template: {kind}{error}") from None
        finally:
            account.reset(token)
        return "".join(parts)
