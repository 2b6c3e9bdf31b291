# SPDX-License-Identifier: Apache-2.0
"""Many clients, some of which disconnect: the others get the same results as alone."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from checkpoints import make_checkpoint
from http_server import Running, running, wait_until

from lampo.async_llm import AsyncLLM
from lampo.llm import LLM

KINDS = 12


def body_of(kind: int) -> dict[str, Any]:
    """Greedy and sampled, one and several completions, long and short, common prefixes."""
    rng = random.Random(kind)
    prompt = [*range(20, 120), *rng.choices(range(20, 200), k=rng.randrange(1, 60))]
    return {
        "prompt": prompt[: rng.choice([5, 40, 160])],
        "max_tokens": rng.randrange(1, 60),
        "temperature": rng.choice([0.0, 1.0]),
        "seed": kind,
        "n": rng.choice([1, 1, 3]),
        "ignore_eos": True,
    }


def texts_of(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [choice["text"] for choice in reply.json()["choices"]]


def streamed(client: httpx.Client, body: dict[str, Any], leave_after: int | None) -> Any:
    texts = [""] * body["n"]
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as reply:
        assert reply.status_code == 200
        lines = (line for line in reply.iter_lines() if line)
        for count, line in enumerate(lines):
            if leave_after is not None and count >= leave_after:
                return None
            if line == "data: [DONE]":
                break
            (choice,) = json.loads(line[6:])["choices"]
            texts[choice["index"]] += choice["text"]
    return texts


def visit(server: Running, alone: list[list[str]], number: int) -> str:
    rng = random.Random(1000 + number)
    kind, manner = rng.randrange(KINDS), rng.choice(["whole", "stream", "leave", "hang up"])
    body = body_of(kind)
    if manner == "whole":
        assert texts_of(server.post("/v1/completions", body)) == alone[kind]
    elif manner == "hang up":
        server.send_json("/v1/completions", {**body, "max_tokens": 60}).close()
    else:
        leave_after = rng.randrange(4) if manner == "leave" else None
        texts = streamed(server.client, body, leave_after)
        assert texts is None or texts == alone[kind]
    return manner


def crowd(folder: Path, visits: int, **options: Any) -> AsyncLLM:
    make_checkpoint(folder / "model")
    engine = AsyncLLM(LLM(folder / "model", max_num_seqs=6, **options), max_waiting=500)
    with running(engine) as server:
        alone = [texts_of(server.post("/v1/completions", body_of(kind))) for kind in range(KINDS)]
        with ThreadPoolExecutor(12) as threads:
            manners = list(threads.map(lambda i: visit(server, alone, i), range(visits)))
        assert len(set(manners)) == 4
        wait_until(lambda: engine.stats().num_running + engine.stats().num_waiting == 0)
        stats = engine.stats()
        assert stats.num_free_pages + stats.num_cached_pages == stats.num_pages
        assert "error" not in stats.finished
        assert stats.num_cached_prompt_tokens > 0
        assert server.client.get("/health").json() == {"status": "ok"}
    return engine


def test_a_crowd(tmp_path: Path) -> None:
    crowd(tmp_path, 60)


@pytest.mark.slow
def test_a_large_crowd(tmp_path: Path) -> None:
    crowd(tmp_path, 600)


@pytest.mark.slow
def test_a_crowd_in_a_small_room(tmp_path: Path) -> None:
    """One sequence fits, and little more: requests are set back, and come back as they were."""
    shape = {"page_size": 8, "kv_cache_memory": 36 * 8 * 2 * 2 * 2 * 32 * 2}
    engine = crowd(tmp_path, 300, **shape)
    assert engine.stats().num_preemptions > 0
