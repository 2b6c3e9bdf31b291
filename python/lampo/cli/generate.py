# SPDX-License-Identifier: Apache-2.0
"""``lampo generate``: one prompt; text on stdout as it becomes final, the rest on stderr."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lampo.cli import options as o
from lampo.cli.candidates import Candidates
from lampo.cli.job import EXIT_INTERNAL, EXIT_INTERRUPTED, Job
from lampo.cli.report import metrics_json, statistics_line
from lampo.cli.session import Answer, load_llm, open_files, stream_answer
from lampo.cli.terminal import TextWriter, console, note, print_table, read_text, show_logging
from lampo.outputs import LogprobTable, RequestOutput
from lampo.sampling_params import SamplingParams, chat_config, settings_text

if TYPE_CHECKING:
    from lampo.llm import LLM
    from lampo.text.tokenizer import Tokenizer


@o.with_options(*o.options_of(o.ModelOptions, max_num_seqs=8), *o.options_of(SamplingParams))
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The prompt. Absent or -: read from stdin.", show_default=False),
    ] = None,
    *,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="Read the prompt from a file; -: from stdin."),
    ] = None,
    raw: o.Raw = False,
    system: o.System = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    **options: Any,
) -> Job:
    """Answer one prompt: text to stdout as it comes, statistics to stderr.

    The prompt becomes a user's message in the model's chat template, if it has one; --raw continues
    the prompt as it is. Ctrl-C stops the answer, with exit code 130.
    """
    if raw and system is not None:
        raise ValueError("system: a raw prompt has no messages; leave out --raw or --system")
    params = o.sampling_params(options)
    if prompt is not None and file is not None:
        raise ValueError("prompt: give it as an argument or as --file, not both")
    if prompt is None and file is None and sys.stdin.isatty():
        raise ValueError("prompt: missing; give it as an argument, with --file, or pipe it in")
    if prompt in (None, "-"):
        prompt, file = None, file or "-"
    run = _Run(o.ModelOptions.of(options), params, raw, system, as_json, quiet)
    return functools.partial(run, prompt, file)


@dataclasses.dataclass(frozen=True)
class _Run:
    model: o.ModelOptions
    params: SamplingParams
    raw: bool
    system: str | None
    as_json: bool
    quiet: bool

    def __call__(self, prompt: str | None, file: str | None) -> int:
        if file is not None:
            prompt = read_text(file)
        if not prompt:
            raise ValueError("prompt: is empty")
        show_logging(self.quiet)
        files = open_files(self.model, self.quiet)
        templated = not self.raw and files.tokenizer.chat_template is not None
        if self.system is not None and not templated:
            raise ValueError("system: this model has no chat template")
        token_ids = self._encode(files.tokenizer, prompt, templated)
        config = chat_config(files.generation_config) if templated else files.generation_config
        params = self.params.resolved(config)
        files.check_request(token_ids, params)  # before torch and the weights are loaded
        with load_llm(files, self.model) as llm:
            answers = self._answers(llm, token_ids, params)
            if self.as_json:
                self._print_json(llm, prompt, token_ids, answers, params, templated)
            elif not self.quiet:
                self._print_statistics(llm, answers, params, templated)
            if not self.as_json:
                self._print_candidates(llm, answers, params)
        for answer in answers:
            if answer.error is not None:
                note(f"error: {answer.error}")
                return EXIT_INTERNAL
        return EXIT_INTERRUPTED if answers[0].interrupted else 0

    def _encode(self, tokenizer: Tokenizer, prompt: str, templated: bool) -> list[int]:
        if not templated:
            return tokenizer.encode(prompt)
        messages = [{"role": "user", "content": prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return tokenizer.encode_chat(messages)

    def _answers(self, llm: LLM, token_ids: list[int], params: SamplingParams) -> list[Answer]:
        writer = TextWriter()
        if params.n == 1:
            text_to = None if self.as_json else writer
            return [stream_answer(llm, token_ids, params, text_to, self.quiet)]
        (request,) = llm.generate([token_ids], params, progress=None if not self.quiet else False)
        answers = [_answer(request, i) for i in range(params.n)]
        for i, answer in enumerate(answers):
            if not self.as_json:
                writer.write(f"--- {i + 1} of {len(answers)}\n{answer.text}")
                writer.end_line()
        return answers

    def _print_statistics(
        self, llm: LLM, answers: list[Answer], params: SamplingParams, templated: bool
    ) -> None:
        form = "chat template" if templated else "raw prompt"
        loaded = f"{llm.path.name}, loaded in {llm.load_time:.2f} s"
        note(f"{loaded}, {form}, {settings_text(params)}")
        reason = answers[0].finish_reason if len(answers) == 1 else None
        note(statistics_line(answers[0].metrics, reason))

    def _print_candidates(self, llm: LLM, answers: list[Answer], params: SamplingParams) -> None:
        tables = []
        request = answers[0].request
        if request is not None and request.prompt_logprobs is not None:
            tables.append((params.prompt_logprobs, _prompt_rows(request), "prompt"))
        for i, answer in enumerate(answers):
            if answer.logprobs:
                title = "output" if len(answers) == 1 else f"output {i + 1}"
                tables.append((params.logprobs, _rows(answer), title))
        for num_shown, rows, title in tables:
            view = self._candidates(llm, params, num_shown)
            print_table(view.table(rows, title, console().width), sys.stderr)

    def _print_json(
        self,
        llm: LLM,
        prompt: str,
        token_ids: list[int],
        answers: list[Answer],
        params: SamplingParams,
        templated: bool,
    ) -> None:
        view = self._candidates(llm, params, params.logprobs)
        outputs = [_answer_json(answer, view) for answer in answers]
        result: dict[str, Any] = {
            "model": str(llm.path),
            "prompt": prompt,
            "chat_template": templated,
            "prompt_token_ids": token_ids,
            **(outputs[0] if params.n == 1 else {"outputs": outputs}),
        }
        request = answers[0].request
        if request is not None and request.prompt_logprobs is not None:
            prompt_view = self._candidates(llm, params, params.prompt_logprobs)
            result["prompt_logprobs"] = [
                table and prompt_view.json(table, token_id, num_kept)
                for token_id, table, num_kept in _prompt_rows(request)
            ]
        result["metrics"] = metrics_json(answers[0].metrics, llm.load_time)
        print(json.dumps(result, ensure_ascii=True, allow_nan=False))

    def _candidates(self, llm: LLM, params: SamplingParams, num_shown: int | None) -> Candidates:
        size, token_bytes = llm.config.vocab_size, llm.tokenizer.token_bytes
        shown = num_shown or 0
        return Candidates(size if shown < 0 else shown, params, size, token_bytes)


def _answer(request: RequestOutput, index: int) -> Answer:
    output = request.outputs[index]
    return Answer(
        text=output.text,
        token_ids=output.token_ids,
        logprobs=output.logprobs,
        num_kept=output.num_kept,
        finish_reason=output.finish_reason,
        stop_reason=output.stop_reason,
        error=output.error,
        request=request,
        metrics=request.metrics,
    )


Row = tuple[int, LogprobTable | None, int | None]


def _rows(answer: Answer) -> list[Row]:
    return list(zip(answer.token_ids, answer.logprobs or [], answer.num_kept or [], strict=True))


def _prompt_rows(request: RequestOutput) -> list[Row]:
    tables, num_kept = request.prompt_logprobs or [], request.prompt_num_kept or []
    return list(zip(request.prompt_token_ids, tables, num_kept, strict=True))


def _answer_json(answer: Answer, view: Candidates) -> dict[str, Any]:
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
        "logprobs": None
        if answer.logprobs is None
        else [table and view.json(table, token, kept) for token, table, kept in _rows(answer)],
    }
