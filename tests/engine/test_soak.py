# SPDX-License-Identifier: Apache-2.0
"""Hundreds of clients, many of them rude, over a small cache: every answer is checked, and at the
end nothing is missing and nothing has grown.

LAMPO_SOAK_SECONDS=3600 pytest -m slow tests/engine/test_soak.py
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkpoints import make_checkpoint

from lampo import LLM, AsyncLLM, SamplingParams
from lampo.async_llm import QueueFullError
from lampo.engine.snapshot import violations

NUM_CLIENTS = 200
NUM_PAGES = 24
HOSTILE: list[dict[str, Any]] = [
    {"prompt": []},
    {"prompt": [1] * 5000},
    {"prompt": [1 << 40]},
    {"prompt": "a", "timeout": -1.0},
    {"prompt": "a", "priority": 1 << 40},
    {"prompt": "a", "cache_salt": ""},
    {"prompt": "a", "sampling_params": SamplingParams(stop_token_ids=[999_999])},
]


def requests(count: int) -> list[tuple[list[int], SamplingParams]]:
    """Prompts that count upward, from a few beginnings."""
    rng = random.Random(1)
    found = []
    for i in range(count):
        start, length = 16 * rng.randrange(4), rng.randrange(1, 150)
        params = SamplingParams(
            n=rng.choice((1, 1, 1, 2, 4)),
            max_tokens=rng.choice((0, 1, 5, 20, 90)),
            temperature=rng.choice((0.0, 1.0)),
            top_p=rng.choice((1.0, 0.9)),
            seed=i,
            ignore_eos=True,
            logprobs=rng.choice((None, None, 1)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
            stop=rng.choice(([], ["e"])),
        )
        found.append(([(start + at) % 320 for at in range(length)], params))
    return found


class Clients:
    """Clients with random requests; every result is compared with that of the request alone."""

    def __init__(self, model: AsyncLLM, table: list[Any], seconds: float) -> None:
        self.model, self.table, self.seconds = model, table, seconds
        self.counts: dict[str, int] = {}
        self.memory: list[int] = []

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    async def client(self, number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < self.end:
            if rng.random() < 0.1:
                with pytest.raises((ValueError, TypeError)):
                    await self.model.add_request(**rng.choice(HOSTILE))
                self.count("hostile")
            try:
                await self.ask(rng)
            except QueueFullError:
                self.count("queue full")
                await asyncio.sleep(rng.random() * 0.2)

    async def ask(self, rng: random.Random) -> None:
        prompt, params, expected = rng.choice(self.table)
        manner = rng.choice(("stay", "stay", "stay", "leave", "cancel", "abort", "hurry"))
        stream = await self.model.add_request(
            prompt,
            params,
            priority=rng.randrange(-2, 3),
            timeout=rng.random() * 0.5 if manner == "hurry" else None,
            cache_salt=rng.choice((None, "a", "b")),
        )
        if manner == "cancel":
            task = asyncio.ensure_future(self.read(stream, 1 << 30))
            await asyncio.sleep(rng.random() * 0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            most = rng.randrange(20) if manner in ("leave", "abort") else 1 << 30
            result = await self.read(stream, most)
            if manner == "abort":
                self.model.abort(stream.request_id)
            elif manner == "leave":
                await stream.aclose()
            elif result is not None:
                for completion, wanted in zip(result.outputs, expected, strict=True):
                    if completion.finish_reason == "abort":
                        assert manner == "hurry"
                        size = len(completion.token_ids)
                        assert completion.token_ids == wanted.token_ids[:size]
                    else:
                        assert completion == wanted
                self.count("checked")
        self.count(manner)

    async def read(self, stream: Any, most: int) -> Any:
        count = 0
        async for piece in stream:
            count += 1
            if piece.request is not None:
                return piece.request
            if count >= most:
                break
        return None

    async def watch(self) -> None:
        process = psutil.Process()
        while time.monotonic() < self.end:
            await asyncio.sleep(self.seconds / 20)
            self.memory.append(process.memory_info().rss)
            self.threads = threading.active_count()
            assert self.model.health().alive

    async def run(self) -> None:
        self.end = time.monotonic() + self.seconds
        await asyncio.gather(self.watch(), *(self.client(i) for i in range(NUM_CLIENTS)))
        assert await self.model.drain(60)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(4.0, marks=pytest.mark.long),
        pytest.param(
            float(os.environ.get("LAMPO_SOAK_SECONDS", "600")),
            marks=[pytest.mark.slow, pytest.mark.timeout(0)],
        ),
    ],
)
def test_soak(tmp_path: Path, seconds: float) -> None:
    make_checkpoint(tmp_path)
    table = []
    with LLM(tmp_path, page_size=16, enable_prefix_caching=False) as llm:
        for prompt, params in requests(60):
            table.append((prompt, params, llm.generate([prompt], params)[0].outputs))
        page = llm.shared_engine().engine.pool.bytes_per_page
    llm = LLM(
        tmp_path,
        page_size=16,
        kv_cache_memory=NUM_PAGES * page,
        max_num_seqs=16,
        max_num_batched_tokens=48,
    )
    engine = llm.shared_engine().engine
    step = engine.step

    def checked_step() -> Any:
        pieces = step()
        assert violations(engine.snapshot()) == []
        return pieces

    engine.step = checked_step  # type: ignore[method-assign]
    model = AsyncLLM(llm, max_waiting=100)
    clients = Clients(model, table, seconds)
    asyncio.run(clients.run())
    stats = engine.stats()
    assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages == NUM_PAGES
    assert stats.num_preemptions > 0 and stats.num_cached_prompt_tokens > 0
    assert not engine.has_unfinished and "error" not in stats.finished
    for what in ("checked", "hostile", "queue full", "leave", "cancel", "abort", "hurry"):
        assert clients.counts.get(what, 0) > 0, clients.counts
    model.close()
    assert "lampo-steps" not in {thread.name for thread in threading.enumerate()}
    if seconds > 60:  # what the first tenth has not touched yet is small
        early, late = clients.memory[2], clients.memory[-1]
        assert late - early < 20e6, [m // 10**6 for m in clients.memory]
    print(clients.counts, stats)
