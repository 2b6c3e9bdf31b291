# SPDX-License-Identifier: Apache-2.0
"""An LLM of canned answers, for tests of the command line: a token is a character."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lampo.outputs import (
    CompletionOutput,
    Logprob,
    LogprobTable,
    RequestMetrics,
    RequestOutput,
    StreamOutput,
)
from lampo.prompts import check_length
from lampo.sampling_params import SamplingParams

PROBABILITIES = [0.5, 0.3, 0.1, 0.05, 0.05]
"""Of the candidates at every position: the answer's character, then "b", "c", "d" and "e"."""
NUM_KEPT = 2


def use_llm(monkeypatch: pytest.MonkeyPatch, command: str, llm: FakeLLM) -> None:
    """Makes a command's module open and load this model."""
    monkeypatch.setattr(f"lampo.cli.{command}.open_files", lambda options, quiet: llm)
    monkeypatch.setattr(f"lampo.cli.{command}.load_llm", lambda files, options: llm)


class FakeLLM:
    """Answers "answer", or another text, one character per step. It is its own `ModelFiles`.

    Args:
        answer: the text, or a function from the rendered prompt to it.
        on_step: called before each character, with the number of previous ones.
    """

    def __init__(
        self,
        answer: str | Callable[[str], str] = "answer",
        *,
        chat_template: str | None = "chatml",
        max_model_len: int = 200,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self._answer = answer
        self._on_step = on_step or (lambda step: None)
        self.max_model_len = max_model_len
        self.config = SimpleNamespace(vocab_size=len(PROBABILITIES))
        self.generation_config: dict[str, Any] = {}
        self.load_time = 0.25
        self.path = Path("fake.gguf")
        self.prompts: list[str] = []
        self.params: list[SamplingParams] = []
        self.closed = False
        self.tokenizer = SimpleNamespace(
            chat_template=chat_template,
            encode=lambda text: [ord(c) for c in text],
            encode_chat=self.encode_chat,
            token_bytes=lambda token_id: bytes([token_id]),
        )

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return [ord(c) for c in "".join(f"<{m['role']}>{m['content']}" for m in messages)]

    def check_request(self, token_ids: list[int], params: SamplingParams) -> None:
        check_length("prompt", len(token_ids), params, self.max_model_len)

    def stream(
        self,
        token_ids: list[int],
        params: SamplingParams,
        *,
        on_prompt: Callable[[int, int], None] | None = None,
    ) -> Iterator[StreamOutput]:
        if on_prompt is not None:
            on_prompt(0, len(token_ids))
        self.prompts.append("".join(map(chr, token_ids)))
        self.params.append(params)
        self.check_request(token_ids, params)
        return self._stream(token_ids, params)

    def generate(
        self, prompts: list[list[int]], params: SamplingParams, *, progress: bool | None
    ) -> list[RequestOutput]:
        pieces = list(self.stream(prompts[0], params))
        request = pieces[-1].request
        assert request is not None
        first = request.outputs[0]
        request.outputs = [
            CompletionOutput(
                i,
                f"{first.text}{i}",
                first.token_ids,
                first.logprobs,
                "stop",
                num_kept=first.num_kept,
            )
            for i in range(params.n)
        ]
        return [request]

    def _stream(self, token_ids: list[int], params: SamplingParams) -> Iterator[StreamOutput]:
        text = self._answer(self.prompts[-1]) if callable(self._answer) else self._answer
        room = min(self.max_model_len - len(token_ids), params.resolved({}).max_tokens or 0)
        reason = "stop" if len(text) <= room else "length"
        output = CompletionOutput(0, text[:room], [ord(c) for c in text[:room]])
        if params.logprobs is not None:
            output.logprobs = [_table(c) for c in output.text]
            output.num_kept = [NUM_KEPT] * len(output.text)
        scored = params.prompt_logprobs is not None
        request = RequestOutput(
            None,
            token_ids,
            [None, *(_table(chr(t)) for t in token_ids[1:])] if scored else None,
            [output],
            RequestMetrics(0.05, 0.01, len(token_ids), len(output.text), 5_000_000),
            [None, *[NUM_KEPT] * (len(token_ids) - 1)] if scored else None,
        )
        for i, char in enumerate(output.text[:-1]):
            self._on_step(i)
            yield StreamOutput(
                char,
                [ord(char)],
                output.logprobs and output.logprobs[i : i + 1],
                num_kept=output.num_kept and output.num_kept[i : i + 1],
            )
        output.finish_reason = reason
        yield StreamOutput(
            output.text[-1:],
            output.token_ids[-1:],
            output.logprobs and output.logprobs[-1:],
            reason,
            request,
            num_kept=output.num_kept and output.num_kept[-1:],
        )

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *unused: object) -> None:
        self.closed = True


def _table(char: str) -> LogprobTable:
    chars = [char, *"bcde"]
    return {
        ord(c): Logprob(math.log(p), rank, c if ord(c) < 128 else "\ufffd")
        for rank, (c, p) in enumerate(zip(chars, PROBABILITIES, strict=True), 1)
    }
