# SPDX-License-Identifier: Apache-2.0
"""The engines: one table of those that may be installed, and their processes.

transformers comes from this environment. `benchmarks/install_peers DIRECTORY` builds llama.cpp and,
optionally, installs OpenVINO; LAMPO_PEERS=DIRECTORY names the directory. make_models.py writes the
default model into DIRECTORY/models in the formats of FORMATS.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["LAMPO_PEERS"]).resolve() if "LAMPO_PEERS" in os.environ else None
WORKER = str(Path(__file__).resolve().with_name("engine_worker.py"))
OPENVINO_PYTHON = str(FOLDER / "openvino" / "bin" / "python") if FOLDER else ""
LLAMA_CPP_WORKER = str(FOLDER / "bin" / "llama_cpp_worker") if FOLDER else ""

# Bits per weight of GGUF files and of OpenVINO's folders.
FORMATS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8, "BF16": 16, "int4": 4, "int8": 8}
# Of the widened model.
WIDE = {"IQ4_XS": 4, "Q4_K_M": 4, "Q5_K_M": 5, "Q6_K": 6}
FORMATS |= WIDE
GGUF = ("Q4_0", "Q4_1", "Q8_0", "BF16", *WIDE)

SETTLE_S = 0.1


@dataclass(frozen=True)
class Engine:
    """A command to complete with MODEL and THREADS, the formats that it reads, and its cases:
    prompts of shortest to longest tokens, optionally only decoding.
    """

    command: tuple[str, ...]
    formats: tuple[str, ...] = GGUF
    shortest: int = 1
    longest: int = 1 << 20
    decode_only: bool = False

    def takes_part(self, prompt_tokens: int, prefill: bool) -> bool:
        fits = self.shortest <= prompt_tokens <= self.longest
        return fits and not (prefill and self.decode_only)


OURS = {"lampo": "bf16", "lampo int8 cache": "int8"}  # with the dtypes of their caches
ORACLE = "transformers f32"
ENGINES = {
    "lampo": Engine((sys.executable, WORKER, "lampo")),
    "lampo int8 cache": Engine(
        (sys.executable, WORKER, "lampo int8 cache"), shortest=1024, decode_only=True
    ),
    "llama.cpp": Engine((LLAMA_CPP_WORKER, "auto", "f16")),
    # "auto" uses flash attention, which is slower than none for decoding in long contexts.
    "llama.cpp -fa off": Engine((LLAMA_CPP_WORKER, "off", "f16"), shortest=1024, decode_only=True),
    "llama.cpp q8_0 cache": Engine(
        (LLAMA_CPP_WORKER, "on", "q8_0"), shortest=1024, decode_only=True
    ),
    "OpenVINO": Engine((OPENVINO_PYTHON, WORKER, "OpenVINO"), ("int4", "int8")),
    "transformers": Engine((sys.executable, WORKER, "transformers"), ("BF16",), longest=2048),
    ORACLE: Engine((sys.executable, WORKER, ORACLE)),
}


def hold_to(isa: str) -> None:
    """Restricts the engines to an instruction set, and removes those that do not support that.

    lampo uses its environment variable, llama.cpp the build of `LLAMA_ISA={isa} install_peers`.
    """
    os.environ["LAMPO_CPU_ISA"] = isa
    for name, engine in list(ENGINES.items()):
        program, *arguments = engine.command
        if name.startswith("llama.cpp"):
            ENGINES[name] = replace(engine, command=(f"{program}_{isa}", *arguments))
        elif name not in (*OURS, ORACLE):
            del ENGINES[name]


def installed(engine: str) -> bool:
    """Whether an engine is installed, without importing it: that may start a thread pool."""
    program = ENGINES[engine].command[0]
    if program == sys.executable:
        return importlib.util.find_spec(engine.split()[0]) is not None
    return Path(program).is_file()


def model_path(weight_format: str) -> Path | None:
    """Path of the default model in that format; None if it is absent."""
    if weight_format == "Q4_1":
        from lampo.weights import resolve_model

        return resolve_model(None)
    name = f"{weight_format}.gguf" if weight_format in (*GGUF, "wide") else weight_format
    path = FOLDER / "models" / name if FOLDER else None
    return path if path and path.exists() else None


class Worker:
    """One engine on one model in its own long-lived process: a JSON line in, a JSON line out.

    Processes keep the thread pools apart: while one engine works, the others are asleep on a pipe.
    """

    def __init__(self, engine: str, weight_format: str, threads: int) -> None:
        model = model_path(weight_format)
        assert model is not None
        self.engine, self.weight_format, self.model = engine, weight_format, model
        self.name = f"{engine} {weight_format}"
        environment = dict(os.environ)
        environment["OMP_NUM_THREADS"] = environment["LAMPO_NUM_THREADS"] = str(threads)
        environment["HF_HUB_OFFLINE"] = environment["TQDM_DISABLE"] = "1"
        command = [*ENGINES[engine].command, str(model), str(threads)]
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

    def generate(
        self, prompts: list[list[int]], max_tokens: int, reuse: bool = False
    ) -> dict[str, Any]:
        """Greedy tokens, end-of-text ignored: {"ttft_s", "total_s", "token_ids"}.

        ttft_s: seconds until all prompts have their first token. reuse: the engine may reuse the
        previous request's cache, if that had the same prompts.
        """
        answer = self.ask({"prompts": prompts, "max_tokens": max_tokens, "reuse": reuse})
        counts = {len(token_ids) for token_ids in answer["token_ids"]}
        if len(answer["token_ids"]) != len(prompts) or counts != {max_tokens}:
            raise RuntimeError(f"{self.name}: {counts} tokens instead of {max_tokens}")
        return answer

    def write_logits(self, prompt: list[int], path: Path) -> None:
        """Writes the logits after each token: raw float32 [len(prompt), vocab_size]."""
        self.ask({"prompts": [prompt], "logits_file": str(path)})

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
            raise RuntimeError(f"{self.name}: its process ended, see its message above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def start_workers(
    engines: list[str], formats: list[str], threads: int, report: Any
) -> list[Worker]:
    """A worker per engine and format that it reads; missing ones get a note."""
    workers: list[Worker] = []
    for engine in engines:
        if not installed(engine):
            report.note(f"{engine} is not installed")
            continue
        for weight_format in formats:
            if weight_format not in ENGINES[engine].formats:
                continue
            if model_path(weight_format) is None:
                report.note(f"no {weight_format} model for {engine}: see make_models.py")
                continue
            try:
                workers.append(Worker(engine, weight_format, threads))
            except RuntimeError:
                for worker in workers:
                    worker.close()
                raise
        if workers and workers[-1].engine == engine:
            report.version(engine, workers[-1].about["version"])
    return workers


def take_turns(
    workers: list[Worker], request: Callable[[Worker, int], Any], rounds: int
) -> dict[str, list[Any]]:
    """Asks each worker once per round, A B C then C B A, after a pause that lets threads sleep.

    request: gets the worker and the number of the round. Answers i of all engines are comparable.
    The first round is a warm-up and left out.
    """
    answers: dict[str, list[Any]] = {worker.name: [] for worker in workers}
    for turn in range(rounds + 1):
        for worker in workers if turn % 2 == 0 else reversed(workers):
            time.sleep(SETTLE_S)
            answer = request(worker, turn)
            if turn:
                answers[worker.name].append(answer)
    return answers
