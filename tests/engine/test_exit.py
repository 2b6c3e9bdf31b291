# SPDX-License-Identifier: Apache-2.0
"""A process exits well while daemon threads compute."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from torch import zeros

from lampo import ops
from lampo.ops import sampling

OPS = """
import threading, time, torch
from lampo import ops
x, w = torch.randn(128, 1024), torch.randn(2048, 1024)
def work():  # without a call of torch, which may abort
    out = torch.empty(128, 2048)
    while True:
        ops.linear(x, w, out=out)
        calls.append(1)
"""
GENERATE = """
import sys, threading, time
from lampo import LLM, SamplingParams
llm = LLM(sys.argv[1])
params = SamplingParams(max_tokens=200, ignore_eos=True)
def work():
    for _ in llm.stream("Hello", params):
        calls.append(1)
    work()
"""
ASYNC = """
import asyncio, sys, threading, time
from lampo import LLM, SamplingParams
from lampo.async_llm import AsyncLLM
llm = AsyncLLM(LLM(sys.argv[1]))
params = SamplingParams(max_tokens=200, ignore_eos=True)
async def stream():
    async for _ in await llm.add_request("Hello", params):
        calls.append(1)
def work():
    while True:
        asyncio.run(stream())
"""
EXIT = """
calls = []
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
while len(calls) < 20:
    time.sleep(0.001)
"""


@pytest.mark.parametrize("script", [OPS, GENERATE, ASYNC], ids=["ops", "generate", "async"])
def test_the_process_exits_while_a_daemon_thread_computes(tmp_path: Path, script: str) -> None:
    make_checkpoint(tmp_path / "model")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script + EXIT, str(tmp_path / "model")],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_a_workspace_outlives_the_thread_that_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_idle", [])
    logits, temperature = zeros(1, 1000), zeros(1)
    thread = threading.Thread(target=lambda: ops.sample(logits, temperature=temperature))
    thread.start()
    thread.join()
    (left,) = sampling._idle
    ops.sample(logits, temperature=temperature)
    assert sampling._idle == [left]
