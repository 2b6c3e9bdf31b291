# SPDX-License-Identifier: Apache-2.0
"""The results of a request, with vLLM's class and field names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability: see `SamplingParams.logprobs_mode`.

    Attributes:
        logprob: natural logarithm of the probability.
        rank: 1 for the most probable token.
        decoded_token: its text.
    """

    logprob: float
    rank: int
    decoded_token: str


LogprobTable = dict[int, Logprob]


@dataclass
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: number of the completion among the prompt's n.
        text: the generated text, without a stop string.
        token_ids: all generated tokens, a final stop token included.
        logprobs: per token, token id -> Logprob, the chosen token always included; None if not
            requested.
        finish_reason: "stop" (end of sequence, stop token or string), "length" (max_tokens or the
            context was reached), "abort" (cancelled, or past its deadline), "error" (see `error`),
            or None while it is running.
        stop_reason: the stop string or stop token id that ended it; None for end of sequence.
        error: one line, where finish_reason is "abort" or "error".
        num_kept: per token, number of candidates after masks, top-k, top-p and min-p; 1 for a
            greedy choice; None without logprobs.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobTable] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    num_kept: list[int] | None = None


@dataclass
class RequestMetrics:
    """Times and sizes of one request.

    Attributes:
        time_to_first_token: seconds from the call to the first token; None without tokens.
        time_per_output_token: seconds per token after the first, the mean over the request; None
            with fewer than two tokens.
        num_prompt_tokens, num_output_tokens: counts, the latter over all completions.
        cache_bytes: bytes of the request's keys and values in the cache at its end.
        num_cached_tokens: number of prompt tokens found in the prefix cache.
    """

    time_to_first_token: float | None = None
    time_per_output_token: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    cache_bytes: int = 0
    num_cached_tokens: int = 0


@dataclass
class RequestOutput:
    """The result of one prompt.

    Attributes:
        prompt: the text; None if token ids were given.
        prompt_token_ids: the prompt as the model saw it.
        prompt_logprobs: per prompt token a table (None for the first, which has no prediction);
            None if not requested.
        outputs: the n completions.
        metrics: times and sizes.
        prompt_num_kept: with prompt_logprobs, number of candidates per prompt token after
            temperature, top-k, top-p and min-p; None for the first, and for all with penalties,
            biases or masks.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobTable | None] | None
    outputs: list[CompletionOutput]
    metrics: RequestMetrics
    prompt_num_kept: list[int | None] | None = None


@dataclass(slots=True)
class StreamOutput:
    """A piece of a streamed completion.

    Attributes:
        text: text that became final with this piece; may be empty while a character or a possible
            stop string is incomplete.
        token_ids: the tokens of this piece.
        logprobs: as in CompletionOutput, for these tokens.
        finish_reason: set in the last piece of the completion.
        request: the whole result, in the last piece of the request.
        request_id: of the request.
        index: number of the completion among the request's n.
        num_kept: as in CompletionOutput, for these tokens.
    """

    text: str
    token_ids: list[int]
    logprobs: list[LogprobTable] | None = None
    finish_reason: str | None = None
    request: RequestOutput | None = None
    request_id: str = ""
    index: int = 0
    num_kept: list[int] | None = None
