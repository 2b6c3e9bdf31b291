# SPDX-License-Identifier: Apache-2.0
"""Renders chats by a model's templates, with special tokens in user text masked."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lampo.text.chat_form import MessageForm
from lampo.text.chat_messages import (
    SpecialTokenMask,
    check_arguments,
    check_ending,
    check_messages,
    check_tools,
    free_characters,
    map_strings,
    strings_in,
)

if TYPE_CHECKING:
    from lampo.text.chat_template import ChatTemplate


@dataclass(frozen=True)
class _Prepared:
    """A template that is compiled, and how it takes messages."""

    template: ChatTemplate
    mask: SpecialTokenMask
    form: MessageForm


def unmasked(text: str, unmask: Mapping[str, str]) -> str:
    """The text with its characters back in place of the marks.

    `str.translate` takes 40 ns for each character, during which no other thread runs.
    """
    for mark, char in unmask.items():
        text = text.replace(mark, char)
    return text


class ChatRenderer:
    """The chat templates of one model.

    sources: Jinja sources by name: "default", "tool_use".
    variables: texts of special tokens, such as bos_token.
    special_tokens: their texts; `special` finds them in a text.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        variables: Mapping[str, str],
        special_tokens: Collection[str],
        special: re.Pattern[str],
    ) -> None:
        self._sources = sources
        self._variables = variables
        self._special_tokens = special_tokens
        self._special = special
        self._prepared: dict[str, _Prepared | str] = {}  # by source; or why it does not compile

    def render(
        self,
        messages: object,
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        template_kwargs: Mapping[str, Any] | None,
        tools: object,
    ) -> tuple[str, dict[str, str]]:
        """The text with special tokens in user text masked, and the mapping that unmasks them.

        The arguments are those of `Tokenizer.encode_chat`.
        """
        checked = check_messages(messages)
        prompt, continued = check_ending(checked, add_generation_prompt, continue_final_message)
        checked_tools = check_tools(tools)
        arguments = check_arguments(template_kwargs)
        prepared = self._prepare("tool_use" if checked_tools else "default")
        inputs = {
            "messages": prepared.form.adapt(checked),
            "tools": checked_tools,
            "documents": None,
            **arguments,
        }
        fixed = {**self._variables, "add_generation_prompt": prompt}
        template, mask = prepared.template, prepared.mask
        strings = list(strings_in(inputs))
        input_chars = sum(map(len, strings))
        used = [*strings, *template.literals]
        end = free_characters(used, 1)[0] if continued else ""

        def rendered(hidden: Callable[[str], str] | None) -> str:
            values = inputs if hidden is None else map_strings(inputs, hidden)
            if not continued:
                return template.render({**values, **fixed}, input_chars, hidden)
            marked = {**values, "messages": _with_end(values["messages"], end)}
            return _until(end, template.render({**marked, **fixed}, input_chars, hidden))

        if not mask.needed(strings):
            return rendered(None), {}
        marks = mask.choose([*used, end])
        unmask = {mark: char for char, mark in marks.items()}
        try:
            text = rendered(lambda text: mask.mask(text, marks))
            strict = rendered(lambda text: mask.mask_all(mask.mask(text, marks), marks))
        except ValueError as error:
            raise ValueError(unmasked(str(error), unmask)) from None
        if self._special.findall(text) != self._special.findall(strict):
            text = strict
        return text, unmask

    def _prepare(self, name: str) -> _Prepared:
        source = self._sources.get(name) or self._sources.get("default")
        if source is None:
            raise ValueError("messages: this model has no chat template; give it a prompt instead")
        if source not in self._prepared:
            try:
                self._prepared[source] = self._compile(source)
            except ValueError as error:
                self._prepared[source] = str(error)
        prepared = self._prepared[source]
        if isinstance(prepared, str):
            raise ValueError(prepared)
        return prepared

    def _compile(self, source: str) -> _Prepared:
        from lampo.text.chat_template import ChatTemplate  # Jinja is not needed for plain text

        template = ChatTemplate(source)
        fixed = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
            **self._variables,
        }
        form = MessageForm(
            lambda messages: template.render({"messages": messages, **fixed}, 0),
            knows_developer="developer" in source,
        )
        literals = (*template.literals, *self._variables.values())
        return _Prepared(template, SpecialTokenMask(self._special_tokens, literals), form)


def _with_end(messages: list[dict[str, Any]], mark: str) -> list[dict[str, Any]]:
    """The messages with a mark after the text of the last one.

    The space after it shows whether the template removes spaces at the end of a text.
    """
    last = messages[-1]
    content: Any = last["content"]
    if isinstance(content, str):
        content += mark + " "
    else:
        text = content[-1]["text"] if content else ""
        content = [*content[:-1], {"type": "text", "text": text + mark + " "}]
    return [*messages[:-1], {**last, "content": content}]


def _until(mark: str, text: str) -> str:
    """The text before the mark of `_with_end`."""
    at = text.rfind(mark)
    if at < 0:
        raise ValueError("continue_final_message: the chat template does not write that message")
    before = text[:at] if text.startswith(" ", at + 1) else text[:at].rstrip()
    return before.replace(mark + " ", "").replace(mark, "")  # a template may write it twice
