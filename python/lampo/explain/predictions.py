# SPDX-License-Identifier: Apache-2.0
"""The distribution of a next token, small enough for a page.

The best tokens are kept with the bits of their logits. The tail is kept as a histogram of logits,
with mean and variance per bin: the sum of exp(l / T) over it follows for every temperature T,
with a relative error below 1e-4 for T of 0.3 and more.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bins of the tail, in nats below the last token that is kept: fine where its mass is.
_EDGES = np.concatenate(
    [np.arange(0, 6, 0.125), np.arange(6, 12, 0.25), np.arange(12, 40, 2.0), [np.inf]]
)


@dataclass(frozen=True)
class Prediction:
    """The logits of one next token.

    Attributes:
        ids: [num_kept] int64, the best tokens, by descending logit, ties by ascending id: the order
            of `sample`.
        logits: [num_kept] float32, theirs.
        tail: [num_bins, 3]: number, mean logit and variance of the other tokens per bin, empty ones
            left out, by descending logit.
        log_sum: natural logarithm of the sum of exp(logit) over the whole vocabulary.
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    tail: NDArray[np.float64]
    log_sum: float

    @classmethod
    def of(cls, logits: NDArray[np.float32], num_kept: int) -> Prediction:
        """Of a whole row of logits; NaN is read as -inf, which no token is drawn with."""
        logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
        ids = np.argsort(-logits, kind="stable")
        kept, rest = ids[:num_kept], logits[ids[num_kept:]].astype(np.float64)
        rest = rest[np.isfinite(rest)]
        best = float(logits[ids[0]])
        log_sum = best + float(np.log(np.exp(logits.astype(np.float64) - best).sum()))
        return cls(kept, logits[kept], _histogram(rest), log_sum)

    def logprob(self, rank: int) -> float:
        """Natural logarithm of the probability of the token at this place of `ids`."""
        return float(self.logits[rank]) - self.log_sum

    def json(self) -> dict[str, Any]:
        """For the page: ids as uint32 and logits as float32, little-endian, in base64."""
        return {
            "ids": _base64(self.ids.astype("<u4")),
            "logits": _base64(self.logits.astype("<f4")),
            "tail": [[int(n), _short(mean), _short(var)] for n, mean, var in self.tail.tolist()],
            "log_sum": self.log_sum,
        }


def _histogram(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Number, mean and variance per bin of descending logits."""
    if len(logits) == 0:
        return np.zeros((0, 3))
    # The index of the last edge that is not above a logit's distance from the first one.
    bins = np.searchsorted(_EDGES, logits[0] - logits, side="right") - 1
    counts = np.bincount(bins, minlength=len(_EDGES)).astype(np.float64)
    used = counts > 0
    means = np.bincount(bins, logits, len(_EDGES))[used] / counts[used]
    shift = np.zeros(len(_EDGES))
    shift[used] = means
    spread = np.bincount(bins, (logits - shift[bins]) ** 2, len(_EDGES))[used] / counts[used]
    return np.stack([counts[used], means, spread], axis=1)


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
