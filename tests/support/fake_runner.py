# SPDX-License-Identifier: Apache-2.0
"""An engine without a model: the cache holds tokens, so that all reads of it are checked.

The next token of a sequence is a function of all previous tokens, read from the pages.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lampo import SamplingParams, ops
from lampo.engine.llm_engine import LLMEngine
from lampo.engine.page_allocator import FREED
from lampo.engine.request import Request, Sequence

VOCAB_SIZE = 64


def next_token(token_ids: list[int], window: int | None = None) -> int:
    """A function of all tokens, or the last `window`, and their positions."""
    first = 0 if window is None else max(len(token_ids) - window, 0)
    total = sum((i + 1) * (token_ids[i] + 3) for i in range(first, len(token_ids)))
    return (total + total // 7) % VOCAB_SIZE


class FakePool:
    """`idle_after`: pages in use so far, while the engine is idle. `states`: computed tokens of the
    slots' sequences.
    """

    def __init__(
        self, num_pages: int, page_size: int, window: int | None = None, num_slots: int = 0
    ) -> None:
        self.num_pages, self.page_size, self.bytes_per_page = num_pages, page_size, 100
        self.window, self.num_slots, self.device = window, num_slots, torch.device("cpu")
        self.slots = np.full((num_pages, page_size), -1, dtype=np.int64)
        self.states: list[list[int]] = [[] for _ in range(num_slots)]
        self.idle_after: int | None = None

    def idle(self, num_used: int) -> None:
        self.idle_after = num_used

    def busy(self) -> None:
        self.idle_after = None

    def copy_page(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]

    def copy_state(self, source: int, target: int) -> None:
        assert source != target
        self.states[target] = list(self.states[source])


class FakeRunner:
    """Writes the new tokens into the pages and states, and reads all of them back.

    Attributes:
        fail_with: raised by the next step, once, after it has written its tokens.
        num_computed: total number of computed tokens.
        num_ahead: number of steps launched before the previous step's tokens were read.
    """

    def __init__(self, pool: FakePool) -> None:
        self.pool = pool
        self.fail_with: BaseException | None = None
        self.num_computed = self.num_ahead = 0

    def _compute(self, sequence: Sequence, count: int) -> list[list[int]]:
        size, start = self.pool.page_size, sequence.num_computed
        assert 1 <= count <= sequence.num_pending
        assert len(sequence.pages) == -(-(start + count) // size)
        for at in range(start, start + count):
            self._write(sequence, at, sequence.token_ids[at])
        found = self._read(sequence, start, start + count, sequence.token_ids)
        self.num_computed += count
        return [found[: end + 1] for end in range(start, start + count)]

    def _write(self, sequence: Sequence, at: int, token_id: int) -> None:
        page = sequence.pages[at // self.pool.page_size]
        assert page >= 0
        self.pool.slots[page, at % self.pool.page_size] = token_id
        if self.pool.num_slots:
            assert sequence.state_slot is not None
            state = self.pool.states[sequence.state_slot]
            if at == 0:
                state.clear()
            assert state == sequence.token_ids[:at], "a state holds for one length alone"
            state.append(token_id)

    def _read(self, sequence: Sequence, start: int, end: int, expected: list[int]) -> list[int]:
        """All tokens up to `end`; those behind the window of the token at `start` are not read."""
        size, window = self.pool.page_size, self.pool.window
        first = 0 if window is None else max(start - window + 1, 0)
        assert all(page == FREED for page in sequence.pages[: first // size])
        pages = sequence.pages[first // size :]
        assert all(page >= 0 for page in pages)
        found = self.pool.slots[pages].ravel()[first % size :][: end - first].tolist()
        assert found == expected[first:end]
        return [-1000] * first + found

    def run(
        self, work: list[tuple[Sequence, int]], last_of: list[int] | None = None
    ) -> torch.Tensor:
        computed = [self._compute(s, count) for s, count in work]
        self._maybe_fail()
        if last_of is None:
            prefixes = [prefix for all_of_one in computed for prefix in all_of_one]
        else:
            prefixes = [computed[i][-1] for i in last_of]
        window = self.pool.window
        return torch.tensor([next_token(p, window) for p in prefixes], dtype=torch.int64)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(hidden, VOCAB_SIZE).float() * 5

    def decode(self, sequences: list[Sequence], after: Any = None) -> Any:
        if after is None:
            logits = self.logits(self.run([(s, 1) for s in sequences]))
        else:
            logits = self.logits(self._run_after(sequences, after))
        status = torch.empty(len(sequences), dtype=torch.int32)
        token_ids = ops.sample(
            logits,
            temperature=torch.tensor([s.params.temperature for s in sequences]),
            seeds=torch.tensor([s.seed for s in sequences]),
            positions=torch.tensor([len(s.token_ids) + (after is not None) for s in sequences]),
            status=status,
        )
        return SimpleNamespace(
            logits=logits, token_ids=token_ids.tolist(), status=status.tolist(), num_kept=None
        )

    def _run_after(self, sequences: list[Sequence], after: Any) -> torch.Tensor:
        """Like a device: only it has the tokens of the previous step."""
        size = self.pool.page_size
        self.num_ahead += 1
        found = []
        for sequence, token_id in zip(sequences, after.token_ids, strict=True):
            at = sequence.num_computed + 1
            assert at == len(sequence.token_ids) and len(sequence.pages) == at // size + 1
            self._write(sequence, at, token_id)
            # The pages are freed when the previous step is committed: later than this.
            prefix = [*sequence.token_ids, token_id]
            first = (sequence.num_computed - (self.pool.window or at + 1) + 1) if at else 0
            pages = sequence.pages[max(first, 0) // size :]
            read = self.pool.slots[pages].ravel().tolist()
            begin = max(first, 0) // size * size
            assert read[max(first, 0) - begin : at + 1 - begin] == prefix[max(first, 0) :]
            found.append(next_token(prefix, self.pool.window))
        self.num_computed += len(sequences)
        self._maybe_fail()
        return torch.tensor(found)

    def _maybe_fail(self) -> None:
        error, self.fail_with = self.fail_with, None
        if error is not None:
            raise error


class FakeTokenizer:
    """Each token is a letter."""

    strip_leading_space = False
    special_token_ids: frozenset[int] = frozenset()

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([48 + token_id])

    def token_to_text(self, token_id: int) -> str:
        return chr(48 + token_id)


def make_engine(
    num_pages: int,
    page_size: int,
    *,
    window: int | None = None,
    num_slots: int = 0,
    **options: Any,
) -> LLMEngine:
    pool = FakePool(num_pages, page_size, window, num_slots)
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 16} | options
    return LLMEngine(FakeRunner(pool), pool, FakeTokenizer().token_to_text, **options)


def make_request(
    request_id: str,
    prompt: list[int],
    *,
    max_len: int = 1 << 20,
    page_size: int = 4,
    priority: int = 0,
    timeout: float | None = None,
    cache_salt: str | None = None,
    **fields: Any,
) -> Request:
    """A request for the engine of :func:`make_engine`; fields are those of SamplingParams."""
    fields = {"temperature": 0, "max_tokens": 8, "ignore_eos": True, "seed": 0} | fields
    return Request(
        prompt,
        SamplingParams(**fields).resolved({}),
        tokenizer=FakeTokenizer(),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=frozenset(),
        max_len=max_len,
        page_size=page_size,
        request_id=request_id,
        priority=priority,
        timeout=timeout,
        cache_salt=cache_salt,
    )
