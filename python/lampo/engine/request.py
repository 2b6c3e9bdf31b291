# SPDX-License-Identifier: Apache-2.0
"""One prompt on its way through the engine, with its n completions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lampo.engine.sequence import Sequence
from lampo.outputs import RequestOutput

# What a level of priority is worth in waiting. A request is thus overtaken for a bounded time only.
PRIORITY_SECONDS = 10.0


@dataclass(eq=False)
class Request:
    """A prompt, its completions, and when and how urgently it was asked for.

    Attributes:
        request_id: unique among the unfinished ones.
        prompt: the text; None if token ids were given.
        sequences: the completions. The first computes the prompt; the others then share its pages.
        arrival: time.monotonic() at which it came.
        number: counts requests.
        priority: smaller is sooner; a level stands for PRIORITY_SECONDS of arrival.
        deadline: time.monotonic() at which it is aborted; infinity without one.
        num_cached_tokens: prompt tokens found in the prefix cache.
        num_unfinished: completions whose end has not been handed out.
        prompt_computed: whether the first token has been drawn and the other completions started.
    """

    request_id: str
    prompt: str | None
    sequences: list[Sequence]
    arrival: float
    number: int
    priority: int = 0
    deadline: float = math.inf
    num_cached_tokens: int = 0
    prompt_computed: bool = field(default=False, init=False)

    num_unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_unfinished = len(self.sequences)
        for i, sequence in enumerate(self.sequences):
            sequence.request = self
            # What waits longest comes first; among completions of one request, the first.
            sequence.order = (self.arrival + PRIORITY_SECONDS * self.priority, self.number, i)

    def result(self, page_size: int, bytes_per_page: int) -> RequestOutput:
        """The whole result; metrics count prompt pages that completions share once."""
        first = self.sequences[0]
        pages = sum(-(-s.num_computed // page_size) for s in self.sequences)
        shared = sum(s.num_computed > 0 for s in self.sequences[1:])
        pages -= shared * (first.num_prompt_tokens // page_size)
        metrics = first.metrics()
        metrics.num_output_tokens = sum(s.num_output_tokens for s in self.sequences)
        metrics.num_cached_tokens = self.num_cached_tokens
        metrics.cache_bytes = pages * bytes_per_page
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=first.token_ids[: first.num_prompt_tokens],
            prompt_logprobs=first.prompt_logprobs,
            outputs=[s.output for s in self.sequences],
            metrics=metrics,
        )
