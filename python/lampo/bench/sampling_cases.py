# SPDX-License-Identifier: Apache-2.0
"""Cases of sample and token_logprobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lampo import ops
from lampo.bench import cost, reference
from lampo.bench.cases import DTYPES, Arguments, Case, Peer, Tensors, WrongResult
from lampo.bench.gpu_peers import flashinfer_top_p, torch_top_p_by_sort

_DRAWS = 16  # of every row, for the check
_CHECKED_ROWS = 8
_SLACK = 1e-3  # of the nucleus' mass: rounding moves its end
_MOST_SIGMAS = 6.0


def flat(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape)


def peaked(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape) * 4


def zipf(shape: tuple[int, int]) -> torch.Tensor:
    """Probabilities that fall with the power 1.1 of a token's rank, in random order."""
    ranks = torch.argsort(torch.rand(shape), dim=-1) + 1.0
    return -1.1 * torch.log(ranks) + 0.1 * torch.randn(shape)


LOGITS = {"flat": flat, "peaked": peaked, "zipf": zipf}


class _Logits(Case):
    """A case on logits; drawn once, as they are slow to make: sets are shifted copies."""

    batch: int
    vocab: int
    dtype: str
    _first: torch.Tensor | None = None

    def _logits(self, kind: str) -> torch.Tensor:
        if self._first is None:
            self._first = LOGITS[kind]((self.batch, self.vocab)).to(self.device, DTYPES[self.dtype])
        self._first = self._first.roll(17, -1)
        return self._first

    def _workspace(self) -> torch.Tensor:
        size = ops.sampling_workspace_size(self.vocab, self.device, self.batch)
        return torch.empty(size, dtype=torch.uint8, device=self.device)


class Sample(_Logits):
    op = staticmethod(ops.sample)

    def prepare(
        self, batch: int, vocab: int, logits: str, top_p: float, top_k: int, dtype: str
    ) -> None:
        self.batch, self.vocab, self.dtype = batch, vocab, dtype
        self.logits, self.top_p, self.top_k = logits, top_p, top_k

    @property
    def cost(self) -> cost.Cost:
        return cost.sample(self.batch, self.vocab, self.dtype)

    def make(self) -> Arguments:
        rows = {
            "temperature": torch.ones(self.batch),
            "top_p": torch.full((self.batch,), self.top_p),
            "seeds": torch.arange(self.batch),
            "positions": torch.zeros(self.batch, dtype=torch.int64),
            "token_ids": torch.empty(self.batch, dtype=torch.int64),
            "status": torch.empty(self.batch, dtype=torch.int32),
        }
        if self.top_k:
            rows["top_k"] = torch.full((self.batch,), self.top_k, dtype=torch.int32)
        arguments = {name: value.to(self.device) for name, value in rows.items()}
        logits = self._logits(self.logits)
        return {"logits": logits, **arguments, "workspace": self._workspace()}

    def check(self, function: Callable[..., Any]) -> float:
        """Draws tokens: all are in the nucleus, the best one as often as it should be."""
        arguments = self.make()

        def draw(position: int) -> torch.Tensor:
            arguments["positions"].fill_(position)
            returned = function(**arguments)
            return self.results(arguments, returned)["token_ids"]

        return self._check_draws(arguments, draw)

    def check_peer(self, peer: Peer) -> float:
        arguments = self.make()
        call = peer(arguments)
        return self._check_draws(arguments, lambda position: call())

    def _check_draws(self, arguments: Arguments, draw: Callable[[int], torch.Tensor]) -> float:
        drawn = torch.stack([draw(position).cpu().long().clone() for position in range(_DRAWS)], 1)
        if drawn.shape != (self.batch, _DRAWS):
            raise WrongResult(f"token_ids: expected [{self.batch}], got {list(drawn.shape[:-1])}")
        expected, variance, seen = 0.0, 0.0, 0
        for row in range(min(self.batch, _CHECKED_ROWS)):
            p = torch.softmax(arguments["logits"][row].cpu().double(), -1)
            ordered, ids = p.sort(descending=True, stable=True)
            rank = torch.empty_like(ids).scatter_(0, ids, torch.arange(self.vocab))
            if self.top_k:
                ordered = ordered.clone()
                ordered[self.top_k :] = 0
                ordered /= ordered.sum()
            before = ordered.cumsum(0) - ordered
            inside = (before < self.top_p + _SLACK) & (ordered > 0)
            for position, token in enumerate(drawn[row].tolist()):
                if not 0 <= token < self.vocab or not inside[rank[token]]:
                    raise WrongResult(
                        f"token_ids: differs from the reference in row {row}, draw {position}: "
                        f"token {token} is not among the {int(inside.sum())} candidates"
                    )
            best = float(ordered[0] / ordered[before < self.top_p].sum())
            expected, variance = expected + _DRAWS * best, variance + _DRAWS * best * (1 - best)
            seen += int((drawn[row] == ids[0]).sum())
        # A rare token's count is no normal variable: 10 draws more than expected are no proof.
        sigmas = abs(seen - expected) / max(variance, 1e-9) ** 0.5
        if sigmas > _MOST_SIGMAS and abs(seen - expected) > 10:
            raise WrongResult(
                f"token_ids: the most likely token was drawn {seen} times, "
                f"expected are {expected:.1f}"
            )
        return 0.0

    def expected(self, arguments: Arguments) -> Tensors:
        raise TypeError("draws have no single result: check() counts them")

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {"token_ids": arguments["token_ids"] if returned is None else returned}

    def peers(self) -> dict[str, Peer]:
        if self.top_k:
            return {}
        return {
            "torch sort": lambda a: lambda: torch_top_p_by_sort(a["logits"].float(), self.top_p)
        }

    def gpu_peers(self, package: str) -> dict[str, Peer]:
        if package != "flashinfer" or self.top_k or self.dtype != "f32":
            raise ValueError("timed with float32 logits and top-p alone, by flashinfer")

        def peer(arguments: Arguments) -> Callable[[], torch.Tensor]:
            sampler = flashinfer_top_p(self.top_p, self.device)
            return lambda: sampler(arguments["logits"])

        return {"FlashInfer": peer}

    def parts(self) -> dict[str, Peer]:
        return {"torch softmax": lambda a: lambda: torch.softmax(a["logits"], dim=-1)}


class TokenLogprobs(_Logits):
    op = staticmethod(ops.token_logprobs)

    def prepare(self, batch: int, vocab: int, num_top: int, dtype: str) -> None:
        self.batch, self.vocab, self.num_top, self.dtype = batch, vocab, num_top, dtype
        if num_top > vocab:
            raise ValueError(f"num_top: expected at most vocab, {vocab}, got {num_top}")

    @property
    def cost(self) -> cost.Cost:
        return cost.token_logprobs(self.batch, self.vocab, self.num_top, self.dtype)

    def make(self) -> Arguments:
        logits = self._logits("zipf")
        table = (self.batch, self.num_top)
        arguments = {
            "token_ids": torch.randint(self.vocab, (self.batch,)),
            "logprob": torch.full((self.batch,), torch.nan),
            "rank": torch.full((self.batch,), -1, dtype=torch.int32),
            "top_ids": torch.full(table, -1, dtype=torch.int32),
            "top_logprobs": torch.full(table, torch.nan),
        }
        arguments = {name: value.to(self.device) for name, value in arguments.items()}
        return {
            "logits": logits,
            **arguments,
            "num_top": self.num_top,
            "workspace": self._workspace(),
        }

    def expected(self, arguments: Arguments) -> Tensors:
        ids = arguments["token_ids"].cpu()
        log_p, rank, order = reference.token_logprobs(arguments["logits"].cpu(), ids)
        top = log_p.gather(1, order[:, : self.num_top])
        return {"logprob": log_p.gather(1, ids[:, None])[:, 0], "rank": rank, "top_logprobs": top}

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        names = ("logprob", "rank", "top_ids", "top_logprobs")
        found = [arguments[name] for name in names] if returned is None else returned
        results = dict(zip(names, found, strict=True))
        results.pop("top_ids")  # equal logits have any order in a peer
        return results

    def tolerance(self, name: str, found: torch.Tensor) -> float:
        return 1e-4

    def peers(self) -> dict[str, Peer]:
        def peer(arguments: Arguments) -> Callable[[], tuple[torch.Tensor, ...]]:
            logits, ids = arguments["logits"], arguments["token_ids"][:, None]

            def run() -> tuple[torch.Tensor, ...]:
                log_p = torch.log_softmax(logits.float(), -1)
                chosen = log_p.gather(1, ids)
                rank = (log_p > chosen).sum(1) + 1
                top = log_p.topk(self.num_top)
                return chosen[:, 0], rank, top.indices, top.values

            return run

        return {"torch": peer}
