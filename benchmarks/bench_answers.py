# SPDX-License-Identifier: Apache-2.0
"""Answers of the default model at temperature 0, compared with those of its exact arithmetic.

The exact model is lampo in float32 on the dequantized weights, its cache too. Every prompt of
chat_prompts.txt is a conversation. "equal answers" are the exact ones token by token; "equal
prefix" is the mean share of an answer before its first different token. Both depend on single near
ties, so they vary by a few answers between instruction sets; bench_quality.py measures the
divergence of next tokens, without that noise.

    LAMPO_PEERS=DIRECTORY python benchmarks/bench_answers.py --json benchmarks/results/answers.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peers
import results
from lampo import _C, LLM, SamplingParams

COLUMNS = ["engine", "instruction set", "activation bits", "cache", "equal answers", "equal prefix"]
PROMPTS = Path(__file__).with_name("chat_prompts.txt").read_text().splitlines()
MAX_TOKENS = 64
SETTINGS: list[dict[str, Any]] = [
    {},
    {"activation_bits": 8},
    {"activation_bits": 16},
    {"activation_bits": 16, "kv_cache_dtype": "float16"},
    {"kv_cache_dtype": "int8"},
]
Answers = list[list[int]]


def answers_of(llm: LLM) -> Answers:
    """The tokens of all answers, without the one that ends them."""
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    outputs = llm.chat(messages, SamplingParams(temperature=0, max_tokens=MAX_TOKENS))
    return [list(output.outputs[0].token_ids) for output in outputs]


def answers_of_peer(
    engine: str, prompts: list[list[int]], ends: tuple[int, ...], threads: int
) -> Answers:
    worker = peers.Worker(engine, "Q4_1", threads)
    try:
        found = [worker.generate([ids], MAX_TOKENS)["token_ids"][0] for ids in prompts]
    finally:
        worker.close()
    return [until(ids, ends) for ids in found]


def until(token_ids: list[int], ends: tuple[int, ...]) -> list[int]:
    """The tokens up to the first that ends an answer."""
    end = next((i for i, token in enumerate(token_ids) if token in ends), len(token_ids))
    return token_ids[:end]


def agreement(exact: Answers, found: Answers) -> tuple[int, float]:
    """Number of equal answers, and the mean share of the exact ones that is an equal prefix."""
    shares = []
    for expected, answer in zip(exact, found, strict=True):
        pairs = enumerate(zip(expected, answer, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(answer)))
        shares.append(1.0 if expected == answer else first / max(len(expected), 1))
    return shares.count(1.0), sum(shares) / len(shares)


def main() -> None:
    args = results.parser(__doc__).parse_args()
    _C.set_num_threads(args.threads)
    report = results.Report("answers", COLUMNS, args)
    report.note(f"{len(PROMPTS)} prompts, {MAX_TOKENS} tokens at most, SmolLM2-135M-Instruct Q4_1")
    with LLM(dtype="float32") as llm:
        exact, ends = answers_of(llm), llm.eos_token_ids
        exact = [until(ids, ends) for ids in exact]
        prompts = [llm.encode_chat([{"role": "user", "content": p}]) for p in PROMPTS]
    for isa in _C.runnable_isas():
        if isa == "baseline":  # minutes
            continue
        _C.set_cpu_isa(isa)
        for setting in SETTINGS:
            with LLM(**setting) as llm:
                found = [until(ids, ends) for ids in answers_of(llm)]
            equal, prefix = agreement(exact, found)
            report.add(
                {
                    "engine": "lampo",
                    "instruction set": isa,
                    "activation bits": setting.get("activation_bits", "auto"),
                    "cache": setting.get("kv_cache_dtype", "bfloat16"),
                    "equal answers": equal,
                    "equal prefix": prefix,
                }
            )
    for engine in ("llama.cpp", "llama.cpp q8_0 cache"):
        if not peers.installed(engine):
            report.note(f"{engine} is not installed")
            continue
        equal, prefix = agreement(exact, answers_of_peer(engine, prompts, ends, args.threads))
        cache = "q8_0" if "q8_0" in engine else "float16"
        report.add(
            {"engine": engine, "cache": cache, "equal answers": equal, "equal prefix": prefix}
        )
    report.finish()


if __name__ == "__main__":
    main()
