# SPDX-License-Identifier: Apache-2.0
"""Other engines on the same model file: transformers in this process, llama.cpp's llama-bench."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

Prompts = list[list[int]]


class ModelPeer(Protocol):
    """An engine that has loaded the model. Methods raise where it cannot do what is asked."""

    def tokens(self, prompts: Prompts, count: int) -> list[list[int]]:
        """Greedy continuations, for a check; none if it does not say."""
        ...

    def seconds(self, prompts: Prompts, max_tokens: int, prefill: bool) -> float:
        """The time to the first token, or that of a step after it."""
        ...


class Transformers:
    """A bare greedy loop over the eager model, in bfloat16.

    Faster than `model.generate`, which spends some time per token outside of the model.
    """

    def __init__(self, path: Path, threads: int) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ImportError("transformers is not installed")
        import transformers

        options: dict[str, Any] = {"dtype": torch.bfloat16}
        folder = path
        if path.is_file():
            folder, options["gguf_file"] = path.parent, path.name
        torch.set_num_threads(threads)
        library: Any = transformers
        library.utils.logging.disable_progress_bar()
        self._cache = library.DynamicCache
        self._model = library.AutoModelForCausalLM.from_pretrained(folder, **options).eval()

    def tokens(self, prompts: Prompts, count: int) -> list[list[int]]:
        return self._generate(prompts, count)[0]

    def seconds(self, prompts: Prompts, max_tokens: int, prefill: bool) -> float:
        _, first, total = self._generate(prompts, max_tokens)
        return first if prefill else (total - first) / (max_tokens - 1)

    @torch.inference_mode()
    def _generate(self, prompts: Prompts, max_tokens: int) -> tuple[list[list[int]], float, float]:
        steps: list[list[int]] = []
        first = 0.0
        start = time.perf_counter()
        cache = self._cache(config=self._model.config)
        step = torch.tensor(prompts)
        while len(steps) < max_tokens:
            out = self._model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            step = out.logits[:, -1].argmax(-1, keepdim=True)
            steps.append(step[:, 0].tolist())
            first = first or time.perf_counter() - start
        total = time.perf_counter() - start
        return [list(row) for row in zip(*steps, strict=True)], first, total


class LlamaCpp:
    """The program llama-bench of llama.cpp, on PATH; one process per measurement, not checked."""

    def __init__(self, path: Path, threads: int) -> None:
        program = shutil.which("llama-bench")
        if program is None:
            raise FileNotFoundError("llama.cpp is not installed: no llama-bench on PATH")
        if path.suffix != ".gguf":
            raise ValueError("llama.cpp reads GGUF files alone")
        self._command = [program, "-m", str(path), "-t", str(threads), "-r", "1", "-o", "json"]

    def tokens(self, prompts: Prompts, count: int) -> list[list[int]]:
        return []

    def seconds(self, prompts: Prompts, max_tokens: int, prefill: bool) -> float:
        if len(prompts) > 1:
            raise ValueError("llama-bench decodes one sequence")
        length = len(prompts[0])
        work = ["-p", str(length), "-n", "0"]
        if not prefill:
            work = ["-p", "0", "-n", str(max_tokens - 1), "-d", str(length)]
        done = subprocess.run([*self._command, *work], capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise RuntimeError(f"llama-bench: {lines[-1]}")
        (result,) = json.loads(done.stdout)
        seconds = float(result["avg_ns"]) * 1e-9
        return seconds if prefill else seconds / (max_tokens - 1)


PEERS: dict[str, Callable[[Path, int], ModelPeer]] = {
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
}
