# SPDX-License-Identifier: Apache-2.0
"""The Python side of bench_decode.py: one engine in one process, answering JSON lines.

engine_worker.py {lampo | transformers bf16 | transformers f32} MODEL.gguf THREADS CONTEXT_TOKENS
-> {"ready": true, "engine": "lampo", ...}
<- {"prompt": [1, 2], "max_tokens": 64}   -> {"ttft_s": .., "total_s": .., "token_ids": [..]}
<- {"prompt": [1, 2], "continuation": [3, 4]}   -> {"gaps": [..]}   (transformers only)
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    def generate(self, prompt: list[int], max_tokens: int) -> dict[str, Any]: ...


class Lampo:
    """The public API as a user calls it."""

    def __init__(self, model: Path, threads: int) -> None:
        os.environ["LAMPO_NUM_THREADS"] = str(threads)
        import lampo
        from lampo import LLM, SamplingParams

        self.llm = LLM(str(model))
        self.params = SamplingParams
        self.version = lampo.__version__

    def generate(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        params = self.params(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        output = self.llm.generate([prompt], params)[0]
        token_ids = list(output.outputs[0].token_ids)
        ttft = output.metrics.time_to_first_token
        total = ttft + (output.metrics.time_per_output_token or 0.0) * (len(token_ids) - 1)
        return {"ttft_s": ttft, "total_s": total, "token_ids": token_ids}


class Transformers:
    """A bare greedy loop over the eager model, on weights dequantized from the same GGUF file.

    Faster than `model.generate`, which spends some time on each token outside of the model.
    """

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        peers = os.environ.get("LAMPO_PEERS")
        if peers:  # accelerate, which transformers wants for reading GGUF, may be there only
            sys.path += [str(path) for path in Path(peers).glob("lib/python*/site-packages")]
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.torch, self.transformers = torch, transformers
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model.parent, gguf_file=model.name, dtype=getattr(torch, dtype)
        ).eval()
        packed = [p for p in self.model.parameters() if p.dtype != getattr(torch, dtype)]
        assert not packed, "transformers kept packed weights: not the dense model we compare with"
        self.version = transformers.__version__

    def generate(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        torch = self.torch
        token_ids: list[int] = []
        ttft = 0.0
        with torch.inference_mode():
            start = time.perf_counter()
            cache = self.transformers.DynamicCache(config=self.model.config)
            step = torch.tensor([prompt])
            while len(token_ids) < max_tokens:
                out = self.model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                step = out.logits[:, -1].argmax(-1, keepdim=True)
                token_ids.append(int(step))
                ttft = ttft or time.perf_counter() - start
            total = time.perf_counter() - start
        return {"ttft_s": ttft, "total_s": total, "token_ids": token_ids}

    def gaps(self, prompt: list[int], continuation: list[int]) -> dict[str, Any]:
        """For each token of a continuation: log-probability of the best token less its own."""
        torch = self.torch
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt + continuation])).logits[0].float()
            logits = logits[len(prompt) - 1 : -1].log_softmax(-1)
            chosen = logits.gather(-1, torch.tensor(continuation)[:, None])[:, 0]
            return {"gaps": (logits.amax(-1) - chosen).tolist()}


def start(engine: str, model: Path, threads: int) -> Any:
    if engine == "lampo":
        return Lampo(model, threads)
    dtypes = {"transformers bf16": "bfloat16", "transformers f32": "float32"}
    return Transformers(model, threads, dtypes[engine])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not mix with the answers
    os.dup2(2, 1)
    name, model, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    begin = time.perf_counter()
    engine = start(name, model, threads)
    about = {"engine": name, "version": engine.version, "load_s": time.perf_counter() - begin}
    print(json.dumps({"ready": True, **about}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "continuation" in request:
            answer = engine.gaps(request["prompt"], request["continuation"])
        else:
            answer = engine.generate(request["prompt"], request["max_tokens"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
