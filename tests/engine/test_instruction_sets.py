# SPDX-License-Identifier: Apache-2.0
"""The default model's greedy answers on every instruction set that this CPU has.

Their texts differ, because activations are rounded otherwise: for 4-bit weights AVX2 and the
baseline quantize x to 8 bits where AVX-512 takes 9, and two tokens of nearly equal probability
change places. So a text is compared within an instruction set, and log-probabilities between them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lampo import _C, LLM, CompletionOutput, SamplingParams
from lampo.weights.default_model import cached_default_model

QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Count from one to ten.",
]
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=0)
SCORE = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
# Differences of log-probabilities; measured: 0.05 and 0.29. A kernel that is wrong makes several.
MEAN, LARGEST = 0.15, 0.9

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def restored_isa() -> Iterator[None]:
    if cached_default_model() is None:
        pytest.skip("the default model is not cached; `lampo pull` fetches it")
    before = _C.cpu_isa()
    yield
    _C.set_cpu_isa(before)


def test_greedy_answers() -> None:
    """Equal within an instruction set, alone, again and in a batch; close between them."""
    scored: list[list[int]] = []
    expected: torch.Tensor | None = None
    for isa in _C.runnable_isas():
        _C.set_cpu_isa(isa)
        with LLM() as llm:
            prompts = [llm.encode_chat([{"role": "user", "content": q}]) for q in QUESTIONS]

            def answers(*batch: list[int], llm: LLM = llm) -> list[CompletionOutput]:
                return [request.outputs[0] for request in llm.generate(list(batch), GREEDY)]

            alone = [answers(prompt)[0] for prompt in prompts]
            assert answers(prompts[0]) == alone[:1], f"{isa}: again"
            assert answers(*prompts) == alone, f"{isa}: in a batch"
            # The text of the first instruction set, as all of them see it.
            scored = scored or [p + a.token_ids for p, a in zip(prompts, alone, strict=True)]
            logprobs = []
            for ids, request in zip(scored, llm.generate(scored, SCORE), strict=True):
                assert request.prompt_logprobs is not None
                tables = request.prompt_logprobs[1:]
                logprobs += [t[i].logprob for i, t in zip(ids[1:], tables, strict=True)]
        found = torch.tensor(logprobs)
        assert found.isfinite().all()
        expected = found if expected is None else expected
        difference = (found - expected).abs()
        assert difference.mean() < MEAN, isa
        assert difference.max() < LARGEST, isa
