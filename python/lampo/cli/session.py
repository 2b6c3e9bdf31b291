# SPDX-License-Identifier: Apache-2.0
"""A loaded model for a command, and one answer streamed to stdout."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lampo.cli.options import ModelOptions
from lampo.cli.pull import FetchBar, fetch
from lampo.cli.terminal import TextWriter, status
from lampo.outputs import LogprobTable, RequestMetrics, RequestOutput
from lampo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lampo.llm import LLM
    from lampo.model_files import ModelFiles


def open_files(options: ModelOptions, quiet: bool) -> ModelFiles:
    """Fetches the model if it is not here, and opens its files. torch is not imported.

    Raises: as `ModelFiles`, and for arguments as `LLM`.
    """
    if not quiet:
        status.show(f"loading {options.model or 'the default model'}")
    if options.device != "cpu":  # before anything is fetched
        from lampo.runtime.device import resolve_device

        resolve_device(options.device)
    path = fetch(options.model, FetchBar(quiet))
    if not quiet:
        status.show(f"loading {path.name}")
    from lampo.model_files import ModelFiles
    from lampo.weights.read_ahead import read_ahead

    files = ModelFiles(path, options.max_model_len)
    read_ahead(path)
    return files


def load_llm(files: ModelFiles, options: ModelOptions) -> LLM:
    """Loads the model of these files. Raises: as `LLM`."""
    from lampo.llm import LLM

    try:
        llm = LLM(files, **options.arguments(), on_progress=status.show)
    finally:
        status.clear()
    gc.freeze()  # model and torch live to the end: collections skip them
    gc.enable()
    return llm


def open_llm(options: ModelOptions, quiet: bool) -> LLM:
    """Fetches the model if it is not here, and loads it. Raises: as `LLM`."""
    return load_llm(open_files(options, quiet), options)


@dataclass
class Answer:
    """The answer to one prompt, whole or, after Ctrl-C, in part.

    Attributes:
        request: the whole result; None if it was interrupted.
        metrics: of the whole result, or measured here until the interrupt.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobTable] | None = None
    num_kept: list[int] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    request: RequestOutput | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    @property
    def interrupted(self) -> bool:
        return self.request is None


def stream_answer(
    llm: LLM,
    prompt: str | list[int],
    params: SamplingParams,
    writer: TextWriter | None,
    quiet: bool = False,
) -> Answer:
    """Generates one answer and writes its text as it becomes final; Ctrl-C ends it early.

    Until then the status line shows how much of the prompt is computed, unless `quiet`.

    Raises: ValueError, TypeError: as `LLM.stream`, before anything has been written.
    """
    answer = Answer()
    if params.logprobs is not None:
        answer.logprobs, answer.num_kept = [], []
    start = time.perf_counter()
    first = last = None
    stream = llm.stream(prompt, params, on_prompt=None if quiet else _show_prompt)
    try:
        for piece in stream:
            last = time.perf_counter()
            first = first or last
            status.clear()
            answer.token_ids += piece.token_ids
            answer.text += piece.text
            if answer.logprobs is not None and answer.num_kept is not None:
                answer.logprobs += piece.logprobs or []
                answer.num_kept += piece.num_kept or []
            if writer is not None:
                writer.write(piece.text)
            if piece.request is not None:
                output = piece.request.outputs[0]
                answer.finish_reason = output.finish_reason
                answer.stop_reason = output.stop_reason
                answer.error = output.error
                answer.request = piece.request
                answer.metrics = piece.request.metrics
    except KeyboardInterrupt:
        answer.finish_reason = "interrupted"
        count = len(answer.token_ids)
        answer.metrics.num_output_tokens = count
        if first is not None and last is not None:
            answer.metrics.time_to_first_token = first - start
            if count > 1:
                answer.metrics.time_per_output_token = (last - first) / (count - 1)
    finally:
        status.clear()
        close = getattr(stream, "close", None)
        if close is not None:
            close()
        if writer is not None:
            writer.end_line()
    if answer.metrics.num_prompt_tokens == 0 and not isinstance(prompt, str):
        answer.metrics.num_prompt_tokens = len(prompt)
    return answer


def _show_prompt(done: int, total: int) -> None:
    status.show(f"prompt {done:,} / {total:,}")
