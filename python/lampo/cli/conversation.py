# SPDX-License-Identifier: Apache-2.0
"""A conversation of `lampo chat`: messages, settings, and the commands that begin with a slash."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lampo.cli import options as o
from lampo.cli.report import plural, statistics_line
from lampo.cli.session import Answer, stream_answer
from lampo.cli.terminal import TextWriter, note, one_line
from lampo.sampling_params import SamplingParams, chat_config

if TYPE_CHECKING:
    from lampo.llm import LLM

COMMANDS = {
    "/help": "this list",
    "/set": "/set NAME VALUE: a sampling parameter; without VALUE, show it; without NAME, show all",
    "/system": "/system TEXT: the system message; without TEXT, show it",
    "/regenerate": "answer the last message again",
    "/clear": "forget the conversation; the system message and the settings stay",
    "/save": "/save FILE: write the conversation as JSON",
    "/load": "/load FILE: continue a saved conversation",
    "/stats": "sizes and times of the last answer, and how full the context is",
    "/exit": "leave, as Ctrl-D",
}
_KEYS = """\
A message that begins with a slash is written with two. Alt-Enter, or \\ before Enter: a new line.
Ctrl-C stops an answer, or clears the line; twice at an empty line it leaves."""

# A conversation is streamed, one answer to a message.
WITHOUT = ("n", "logprobs", "prompt_logprobs", "logprobs_mode")
SETTINGS = tuple(name for name in o.option_names(SamplingParams) if name not in WITHOUT)
_DEFAULT = "default"  # the value that removes a setting
_ROLES = ("system", "user", "assistant")
_MAX_FILE_BYTES = 64 << 20


class Conversation:
    """The messages so far, and the commands of the user.

    Args:
        llm: the model, which has a chat template.
        params: sampling parameters; those at None are the model's.
        system: the system message, if there is one.
        quiet: whether there is no status line.
    """

    def __init__(
        self, llm: LLM, params: SamplingParams, system: str | None, quiet: bool = True
    ) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._quiet = quiet
        self._messages: list[dict[str, str]] = []
        self._last: Answer | None = None
        self._writer = TextWriter()

    def resolved(self) -> SamplingParams:
        """The settings in use."""
        return self._params.resolved(chat_config(self._llm.generation_config))

    def take(self, line: str) -> bool:
        """Answers a message or runs a command; false if it was /exit.

        Raises: ValueError, TypeError, OSError: it cannot be done; nothing has changed.
        """
        message = line.strip()
        if message.startswith("/") and not message.startswith("//"):
            return self._run_command(message)
        if message:
            content = message.removeprefix("/")  # the first of two
            self._answer([*self._messages, {"role": "user", "content": content}])
        return True

    def _run_command(self, line: str) -> bool:
        command, *rest = line.split(maxsplit=1)
        text = rest[0] if rest else ""
        match command:
            case "/exit" | "/quit":
                return False
            case "/help":
                for name, help in COMMANDS.items():
                    print(f"{name:<13}{help}", file=sys.stderr)
                print(_KEYS, file=sys.stderr)
            case "/set":
                self._set(*text.split(maxsplit=1))
            case "/system":
                self._system = text or self._system
                note(f"system message: {one_line(self._system or 'none')}")
            case "/regenerate":
                if not self._messages:
                    raise ValueError("there is no answer yet")
                self._answer(self._messages[:-1])
            case "/clear":
                self._messages, self._last = [], None
                note("a new conversation")
            case "/save":
                self._save(text)
            case "/load":
                self._load(text)
            case "/stats":
                self._print_statistics()
            case _:
                note(f"unknown command {one_line(command)}; /help lists the commands")
        return True

    def _answer(self, asked: list[dict[str, str]]) -> None:
        """Answers messages of which the last one is the user's."""
        llm = self._llm
        token_ids = llm.encode_chat([*self._system_message(), *asked])
        if len(token_ids) >= llm.max_model_len:
            raise ValueError(
                f"the conversation has {len(token_ids)} tokens, too many for the context of "
                f"{llm.max_model_len}; /clear starts a new one"
            )
        answer = stream_answer(llm, token_ids, self.resolved(), self._writer, self._quiet)
        self._last = answer
        if answer.error is not None:
            raise ValueError(answer.error)
        if answer.text:  # text before Ctrl-C stays in the conversation
            self._messages = [*asked, {"role": "assistant", "content": answer.text}]
        if answer.finish_reason == "length":
            if len(token_ids) + len(answer.token_ids) >= llm.max_model_len:
                note("the context is full; /clear starts a new conversation")
            else:
                count = plural(len(answer.token_ids), "token")
                note(f"stopped after {count} (max_tokens); /set max_tokens allows more")

    def _system_message(self) -> list[dict[str, str]]:
        return [] if self._system is None else [{"role": "system", "content": self._system}]

    def _set(self, name: str | None = None, text: str | None = None) -> None:
        if name is None:
            for each in SETTINGS:
                note(self._setting(each))
            return
        name = name.replace("-", "_")
        if name not in SETTINGS:
            raise ValueError(f"/set: there is no {name!r}; known are {', '.join(SETTINGS)}")
        if text is not None:
            value: Any = getattr(SamplingParams(), name)
            if text.lower() != _DEFAULT:
                value = o.parse_parameter(SamplingParams, name, text)
            self._params = dataclasses.replace(self._params, **{name: value})
        note(self._setting(name))

    def _setting(self, name: str) -> str:
        own = getattr(self._params, name)
        value = getattr(self.resolved(), name)
        suffix = "" if own != getattr(SamplingParams(), name) else f" ({_DEFAULT})"
        shown = value if isinstance(value, str) else json.dumps(value)
        return one_line(f"{name} {shown}{suffix}")

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("/save: expected the name of a file")
        messages = [*self._system_message(), *self._messages]
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2)
        Path(file).expanduser().write_text(f"{text}\n", encoding="utf-8")
        note(f"saved {plural(len(messages), 'message')}")

    def _load(self, file: str) -> None:
        from lampo.weights.fields import read_json_object

        if not file:
            raise ValueError("/load: expected the name of a file")
        messages = read_json_object(Path(file).expanduser(), _MAX_FILE_BYTES).get("messages")
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise ValueError(f"{file}: messages: expected a list of roles and texts, as /save's")
        messages = [{key: m[key] for key in ("role", "content")} for m in messages]
        self._system = None
        if messages and messages[0]["role"] == "system":
            self._system = messages.pop(0)["content"]
        self._messages, self._last = messages, None
        note(f"loaded {plural(len(messages), 'message')}")

    def _print_statistics(self) -> None:
        if self._last is None:
            note("no answer yet")
            return
        metrics = self._last.metrics
        note(statistics_line(metrics, self._last.finish_reason))
        used = metrics.num_prompt_tokens + metrics.num_output_tokens
        share = 100 * used / self._llm.max_model_len
        note(
            f"{plural(len(self._messages), 'message')}, {used} of {self._llm.max_model_len} tokens "
            f"of context ({share:.0f} %)"
        )


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in _ROLES
        and isinstance(value.get("content"), str)
    )
