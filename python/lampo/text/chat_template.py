# SPDX-License-Identifier: Apache-2.0
"""Compiles and renders chat templates, within the limits of `chat_limits`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError, nodes

from lampo.error_text import shortened
from lampo.text.chat_limits import BASE_OUTPUT_CHARS, OUTPUT_FACTOR, Account, LimitError, account
from lampo.text.chat_sandbox import ChatEnvironment, instrument

# The time to compile grows with these; the largest templates of well-known models have a tenth.
MAX_TEMPLATE_CHARS = 128 << 10
MAX_NODES = 10_000
MAX_NESTING = 100


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
            tree = environment.parse(source)
            self.literals = tuple(dict.fromkeys(_literals(tree)))
            self._template = environment.from_string(instrument(tree))
        except Exception as error:  # errors of Jinja and of Python's compiler
            raise ValueError(_message(error, type(error).__name__)) from None

    def render(
        self,
        variables: Mapping[str, Any],
        input_chars: int,
        hidden: Callable[[str], str] | None = None,
    ) -> str:
        """The text for these variables.

        input_chars: characters of all strings in `variables`; the limits grow with it.
        hidden: how special tokens are spelled in `variables`; the template finds them by their
            own names.
        Raises: ValueError with the template's own message, or naming the exceeded limit.
        """
        limit = BASE_OUTPUT_CHARS + OUTPUT_FACTOR * input_chars
        token = account.set(Account(input_chars, hidden))
        parts: list[str] = []
        try:
            for part in self._template.generate(**variables):
                limit -= len(part)
                if limit < 0:
                    raise LimitError("writes too much text")
                parts.append(part)
        except Exception as error:  # a template can raise any exception
            kind = "" if isinstance(error, TemplateError) else type(error).__name__
            raise ValueError(_message(error, kind)) from None
        finally:
            account.reset(token)
        return "".join(parts)


def _message(error: Exception, kind: str) -> str:
    return shortened(f"chat template: {kind}: {error}" if kind else f"chat template: {error}")


def _literals(tree: nodes.Template) -> Iterator[str]:
    """The strings of a syntax tree; LimitError if it is too large."""
    left: list[tuple[nodes.Node, int]] = [(tree, 0)]
    count = 0
    while left:
        node, depth = left.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_NESTING:
            raise LimitError(f"has more than {MAX_NODES} parts, or {MAX_NESTING} inside each other")
        text = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
        if isinstance(text, str) and text:
            yield text
        left += [(inner, depth + 1) for inner in node.iter_child_nodes()]
