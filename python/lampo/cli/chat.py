# SPDX-License-Identifier: Apache-2.0
"""``lampo chat``: a conversation; answers on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from typing import TYPE_CHECKING, Any

from lampo.cli import options as o
from lampo.cli.job import EXIT_INTERRUPTED, EXIT_USER, Job
from lampo.cli.report import plural, statistics_line
from lampo.cli.session import Answer, open_llm, stream_answer
from lampo.cli.terminal import TextWriter, note, one_line, show_logging
from lampo.sampling_params import SamplingParams, chat_config, settings_text

if TYPE_CHECKING:
    from lampo.llm import LLM

_PROMPT = "> "
_HELP = """\
/reset         forget the conversation (the system message stays)
/system TEXT   set the system message; without TEXT, show it
/stats         sizes and times of the last answer, and how full the context is
/exit, Ctrl-D  leave
//TEXT         send a message that begins with a slash
Ctrl-C stops an answer and keeps the conversation."""


# A conversation is streamed, one answer to a message.
_WITHOUT = ("n", "logprobs", "prompt_logprobs", "logprobs_mode")


@o.with_options(
    *o.options_of(o.ModelOptions, max_num_seqs=8), *o.options_of(SamplingParams, without=_WITHOUT)
)
def chat(*, system: o.System = None, quiet: o.Quiet = False, **options: Any) -> Job:
    """Talk with a model. /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.

    When stdin is no terminal, each line is a message; an answer that failed makes the exit code 2.
    """
    params = o.sampling_params(options)
    return functools.partial(_run, o.ModelOptions.of(options), params, system, quiet)


def _run(model: o.ModelOptions, params: SamplingParams, system: str | None, quiet: bool) -> int:
    show_logging(quiet)
    with open_llm(model, quiet) as llm:
        if llm.tokenizer.chat_template is None:
            raise ValueError("model: has no chat template; use `lampo generate --raw`")
        params = params.resolved(chat_config(llm.generation_config))
        if not quiet:
            loaded = f"{llm.path.name}, loaded in {llm.load_time:.2f} s"
            note(f"{loaded}, {settings_text(params)}; /help lists the commands")
        conversation = Conversation(llm, params, system)
        if isinstance(sys.stdin, io.TextIOWrapper):  # invalid UTF-8 does not end the conversation
            sys.stdin.reconfigure(errors="replace")
        interactive = sys.stdin.isatty()
        failed = False
        while True:
            try:
                line = _read_line()
            except KeyboardInterrupt:
                print(file=sys.stderr)
                return EXIT_INTERRUPTED
            if line is None or line.strip() in ("/exit", "/quit"):
                break
            try:
                conversation.take(line)
            except (ValueError, TypeError, MemoryError) as error:
                failed = True
                note(f"error: {one_line(str(error)) or 'out of memory'}")
        return EXIT_USER if failed and not interactive else 0


class Conversation:
    """The messages so far, and the commands of the user."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._messages: list[dict[str, str]] = []
        self._last: Answer | None = None
        self._writer = TextWriter()

    def take(self, line: str) -> None:
        """Runs a command, or answers a message. Raises: ValueError if that is not possible."""
        message = line.strip()
        if not message:
            return
        if message.startswith("//"):
            self._reply(message[1:])
        elif message.startswith("/"):
            self._run_command(message)
        else:
            self._reply(message)

    def _run_command(self, line: str) -> None:
        command, _, text = line.partition(" ")
        if command == "/reset":
            self._messages.clear()
            self._last = None
            note("a new conversation")
        elif command == "/system":
            if text.strip():
                self._system = text.strip()
            note(f"system message: {one_line(self._system or 'none')}")
        elif command == "/stats":
            self._print_statistics()
        elif command == "/help":
            print(_HELP, file=sys.stderr)
        else:
            note(f"unknown command {command}; /help lists the commands")

    def _reply(self, message: str) -> None:
        llm = self._llm
        asked = [*self._messages, {"role": "user", "content": message}]
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        token_ids = llm.encode_chat([*system, *asked])
        if len(token_ids) >= llm.max_model_len:
            raise ValueError(
                f"the conversation has {len(token_ids)} tokens, too many for the context of "
                f"{llm.max_model_len}; /reset starts a new one"
            )
        answer = stream_answer(llm, token_ids, self._params, self._writer)
        self._last = answer
        if answer.error is not None:
            raise ValueError(answer.error)
        if answer.text:  # text before Ctrl-C stays in the conversation
            self._messages = [*asked, {"role": "assistant", "content": answer.text}]
        if answer.finish_reason == "length":
            if len(token_ids) + len(answer.token_ids) >= llm.max_model_len:
                note("the context is full; /reset starts a new conversation")
            else:
                note(f"stopped after {plural(len(answer.token_ids), 'token')} (--max-tokens)")

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


def _read_line() -> str | None:
    """The next line of stdin, with a prompt and line editing at a terminal; None at its end."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line or None
    with contextlib.suppress(ImportError):  # gives `input` line editing and a history
        import readline  # noqa: F401
    prompt = _PROMPT
    if not sys.stdout.isatty():  # input() would write its prompt into the pipe
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        print(file=sys.stderr)
        return None
