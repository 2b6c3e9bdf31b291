# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of a build's results, to compare two builds bit for bit.

    python benchmarks/golden.py OUT.json MODEL[:DTYPE]...

For each model, AVX2 and AVX-512 where the CPU has them, and one and two threads: a hash of all
logits, of prompts and of decode steps, and the tokens, greedy and drawn with a seed. Run it with
both builds on the same machine, and compare the files with `cmp`.

MODEL is `LLM`'s argument ("" for the default model), DTYPE its dtype ("auto").
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from lampo import _C, LLM, SamplingParams

PROMPTS = [
    "Why is the sky blue?",
    "x",
    "def quicksort(items):\n    if len(items) <= 1:\n        return items\n    pivot =",
    "In the beginning was the word, and " * 40,
]


def fingerprint(llm: LLM) -> dict[str, Any]:
    """Hashes of logits in the order of their computation, and all tokens."""
    seen = hashlib.sha256()
    runner: Any = llm.shared_engine().engine.runner
    logits, decode = runner.logits, runner.decode

    def hashed(tensor: torch.Tensor) -> torch.Tensor:
        seen.update(tensor.contiguous().numpy().tobytes())
        return tensor

    def hashed_decode(*args: Any, **kwargs: Any) -> Any:
        result = decode(*args, **kwargs)
        hashed(result.logits)
        return result

    runner.logits = lambda *args, **kwargs: hashed(logits(*args, **kwargs))
    runner.decode = hashed_decode
    found = {}
    for name, params in {
        "greedy": SamplingParams(temperature=0, max_tokens=32, ignore_eos=True),
        "drawn": SamplingParams(
            temperature=1, top_p=0.9, seed=5, max_tokens=32, ignore_eos=True, logprobs=3
        ),
        "scored": SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=3),
    }.items():
        outputs = llm.generate(PROMPTS, params, progress=False)
        found[name] = [output.outputs[0].token_ids for output in outputs]
    return {"logits": seen.hexdigest(), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL[:DTYPE]")
    args = parser.parse_args()
    found = {}
    for named in args.models:
        model, _, dtype = named.partition(":")
        for isa in _C.runnable_isas():
            if isa == "baseline":  # minutes a model
                continue
            _C.set_cpu_isa(isa)
            for threads in (1, 2):
                _C.set_num_threads(threads)
                with LLM(model or None, dtype=dtype or "auto", enable_prefix_caching=False) as llm:
                    key = f"{Path(model).name or 'default'} {dtype or 'auto'} {isa} {threads}"
                    found[key] = fingerprint(llm)
                    print(key, found[key]["logits"][:16], flush=True)
    args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
