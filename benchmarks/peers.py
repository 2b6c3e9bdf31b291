# SPDX-License-Identifier: Apache-2.0
"""The peers: one table of what may be installed, and engines that run in processes of their own.

torch and transformers come from this environment. `benchmarks/install_peers DIRECTORY` builds
llama.cpp; LAMPO_PEERS=DIRECTORY tells where. A peer that is missing leaves "-" in a table.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ["LAMPO_PEERS"]).resolve() if "LAMPO_PEERS" in os.environ else None
LLAMA_CPP_WORKER = FOLDER / "bin" / "llama_cpp_worker" if FOLDER else None

# What each peer is found by, asked without importing it: an import may start a thread pool.
PEERS: dict[str, bool] = {
    "lampo": importlib.util.find_spec("lampo") is not None,
    "torch": importlib.util.find_spec("torch") is not None,
    "transformers": importlib.util.find_spec("transformers") is not None,
    "llama.cpp": LLAMA_CPP_WORKER is not None and LLAMA_CPP_WORKER.exists(),
}


def worker_command(engine: str, model: Path, threads: int, context_tokens: int) -> list[str]:
    """How to start an engine: "lampo", "llama.cpp", "transformers bf16" or "transformers f32"."""
    if engine == "llama.cpp":
        return [str(LLAMA_CPP_WORKER), str(model), str(threads), str(context_tokens)]
    script = str(HERE / "engine_worker.py")
    return [sys.executable, script, engine, str(model), str(threads), str(context_tokens)]


class Worker:
    """One engine in its own long-lived process: a JSON line in, a JSON line out.

    Processes keep the thread pools apart: while one engine works, the others are asleep on a pipe.
    """

    def __init__(self, engine: str, model: Path, threads: int, context_tokens: int) -> None:
        self.engine = engine
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = environment["LAMPO_NUM_THREADS"] = str(threads)
        environment["HF_HUB_OFFLINE"] = environment["TQDM_DISABLE"] = "1"
        command = worker_command(engine, model, threads, context_tokens)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.about = self._read()
        except RuntimeError:
            self.close()
            raise

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def generate(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        """Greedy tokens, end-of-text ignored: {"ttft_s", "total_s", "token_ids"}."""
        answer = self.ask({"prompt": prompt, "max_tokens": max_tokens})
        if len(answer["token_ids"]) != max_tokens:
            raise RuntimeError(f"{self.engine}: {len(answer['token_ids'])} of {max_tokens} tokens")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.engine}: its process ended, see its message above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def take_turns(
    workers: list[Worker], request: Callable[[Worker], Any], rounds: int, settle_s: float = 0.1
) -> dict[str, list[Any]]:
    """Asks each worker once per round, A B C then C B A, after a rest in which threads go to sleep.

    Answer i of each engine belongs together. The first round of each is a warm-up and left out.
    """
    answers: dict[str, list[Any]] = {worker.engine: [] for worker in workers}
    for turn in range(rounds + 1):
        for worker in workers if turn % 2 == 0 else reversed(workers):
            time.sleep(settle_s)
            answer = request(worker)
            if turn:
                answers[worker.engine].append(answer)
    return answers


def torch_top_p_by_sort(logits: Any, top_p: float, generator: Any = None) -> Any:
    """The usual top-p draw in torch, by a full sort: [batch_size, vocab_size] -> [batch_size].

    Keeps the smallest prefix of the sorted probabilities whose mass reaches top_p, the crossing
    token included, and draws by inverting the cumulative sum: one uniform number per row, where
    torch.multinomial would draw one per vocabulary entry and take half as long as the sort again.
    """
    import torch

    probs, ids = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    mass = probs.cumsum(dim=-1)
    rows = (logits.shape[0], 1)
    crossing = torch.searchsorted(mass, torch.full(rows, top_p)).clamp_(max=mass.shape[-1] - 1)
    draw = torch.rand(rows, generator=generator) * mass.gather(-1, crossing)
    return ids.gather(-1, torch.searchsorted(mass, draw).clamp_(max=crossing)).squeeze(-1)
