# SPDX-License-Identifier: Apache-2.0
"""Quality of a model on a text: perplexity, and divergence from a reference model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lampo.checks import check_integer

if TYPE_CHECKING:
    from lampo.llm import LLM

DEFAULT_CONTEXT = 1024
_ROWS = 64  # of logits, compared at once in float64


@dataclass(frozen=True)
class Evaluation:
    """Measures over the scored tokens of a text; the model predicts each from those before it.

    Attributes:
        num_tokens: scored tokens.
        perplexity: exp of the mean of -ln p(token).
        perplexity_error: its standard error.
        kl_divergence: mean of KL(reference || model) over positions, in nats; None without a
            reference, like all below.
        kl_error: its standard error.
        kl_99: the 99th percentile of the positions' divergences.
        same_top: share of positions at which both have the same most likely token.
        reference_perplexity: of the reference on the same tokens.
    """

    num_tokens: int
    perplexity: float
    perplexity_error: float
    kl_divergence: float | None = None
    kl_error: float | None = None
    kl_99: float | None = None
    same_top: float | None = None
    reference_perplexity: float | None = None


def evaluate(
    llm: LLM,
    text: str | list[int],
    *,
    reference: LLM | None = None,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> Evaluation:
    """Scores every token of a text but the first, in windows that overlap.

    A window has `context` tokens; the next one begins `stride` tokens later and scores the tokens
    that are new in it, so that each has at least context - stride tokens before it, but for those
    of the first window.

    Args:
        llm: an open model.
        text: a text, or token ids.
        reference: another open model with the same vocabulary: the exact one, as a rule
            ``LLM(model, dtype="float32")``.
        context: tokens of a window; 1024 if absent, or the model's context if that is shorter.
        stride: half of the context, if absent.
        max_tokens: use only so many tokens of the text.
        on_progress: called after every window with the tokens scored, their final number and the
            perplexity so far.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name; the text has fewer than two
            tokens; the models have different vocabularies.
    """
    room = min(model.max_model_len for model in (llm, reference) if model is not None)
    default = min(DEFAULT_CONTEXT, room)
    context = check_integer("context", default if context is None else context, 2, room)
    stride = check_integer("stride", context // 2 if stride is None else stride, 1, context)
    token_ids = llm.encode(text, "text")
    if max_tokens is not None:
        token_ids = token_ids[: check_integer("max_tokens", max_tokens, 2, 1 << 40)]
    if len(token_ids) < 2:
        raise ValueError(f"text: expected at least 2 tokens, got {len(token_ids)}")
    if reference is not None and reference.config.vocab_size != llm.config.vocab_size:
        raise ValueError(
            f"reference: expected a vocabulary of {llm.config.vocab_size} tokens, got "
            f"{reference.config.vocab_size}"
        )
    scores, reference_scores, divergences = [], [], []
    num_same = done = 0
    for window, first in _windows(token_ids, context, stride):
        targets = torch.tensor(window[first + 1 :])
        logits = _logits(llm, window, first)
        others = None if reference is None else _logits(reference, window, first)
        for rows in torch.arange(len(targets)).split(_ROWS):
            logprobs = logits[rows].double().log_softmax(-1)
            wanted = targets[rows][:, None]
            scores.append(-logprobs.gather(1, wanted)[:, 0])
            if others is not None:
                expected = others[rows].double().log_softmax(-1)
                reference_scores.append(-expected.gather(1, wanted)[:, 0])
                terms = expected.exp() * (expected - logprobs)
                divergences.append(terms.nan_to_num(0.0).sum(1))  # 0 times infinity
                num_same += int((logprobs.argmax(1) == expected.argmax(1)).sum())
        done += len(targets)
        if on_progress is not None:
            on_progress(done, len(token_ids) - 1, math.exp(float(torch.cat(scores).mean())))
    score = torch.cat(scores)
    perplexity = math.exp(float(score.mean()))
    found = Evaluation(done, perplexity, perplexity * _standard_error(score))
    if reference is None:
        return found
    divergence = torch.cat(divergences)
    return Evaluation(
        done,
        perplexity,
        found.perplexity_error,
        kl_divergence=float(divergence.mean()),
        kl_error=_standard_error(divergence),
        kl_99=float(divergence.quantile(0.99)),
        same_top=num_same / done,
        reference_perplexity=math.exp(float(torch.cat(reference_scores).mean())),
    )


def _windows(token_ids: list[int], context: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Windows, and the place in each of the last token that is not scored."""
    end = min(context, len(token_ids))
    yield token_ids[:end], 0
    while end < len(token_ids):
        last, end = end, min(end + stride, len(token_ids))
        first = max(end - context, 0)
        yield token_ids[first:end], last - 1 - first


def _logits(llm: LLM, window: list[int], first: int) -> torch.Tensor:
    """Of the tokens from `first` on but the last: they predict those after them."""
    return llm.inspector().inspect(window, logits_from=first).logits[:-1]


def _standard_error(values: torch.Tensor) -> float:
    return float(values.std(correction=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
