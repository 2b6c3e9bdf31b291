# SPDX-License-Identifier: Apache-2.0
"""``lampo chat``: a conversation; answers on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import sys
from typing import Any

from lampo.cli import options as o
from lampo.cli.conversation import COMMANDS, SETTINGS, WITHOUT, Conversation
from lampo.cli.job import EXIT_USER, Job
from lampo.cli.line_input import piped_lines, typed_lines
from lampo.cli.session import load_llm, open_files
from lampo.cli.terminal import note, report_error, show_logging
from lampo.sampling_params import SamplingParams, settings_text


@o.with_options(
    *o.options_of(o.ModelOptions, max_num_seqs=8), *o.options_of(SamplingParams, without=WITHOUT)
)
def chat(*, system: o.System = None, quiet: o.Quiet = False, **options: Any) -> Job:
    """Talk with a model. /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.

    When stdin is no terminal, each line is a message; an answer that failed makes the exit code 2.
    """
    params = o.sampling_params(options)
    return functools.partial(_run, o.ModelOptions.of(options), params, system, quiet)


def _run(model: o.ModelOptions, params: SamplingParams, system: str | None, quiet: bool) -> int:
    show_logging(quiet)
    files = open_files(model, quiet)
    if files.tokenizer.chat_template is None:
        raise ValueError("model: has no chat template; use `lampo generate --raw`")
    with load_llm(files, model) as llm:
        conversation = Conversation(llm, params, system, quiet)
        if not quiet:
            loaded = f"{llm.path.name}, loaded in {llm.load_time:.2f} s"
            settings = settings_text(conversation.resolved())
            note(f"{loaded}, {settings}; /help lists the commands")
        interactive = sys.stdin.isatty()
        failed = False
        for line in typed_lines(COMMANDS, SETTINGS) if interactive else piped_lines():
            try:
                if not conversation.take(line):
                    break
            except (ValueError, TypeError, MemoryError, OSError) as error:
                failed = True
                report_error(error)
            except KeyboardInterrupt:  # before an answer has begun
                if not interactive:
                    raise
                print(file=sys.stderr)
        return EXIT_USER if failed and not interactive else 0
