# SPDX-License-Identifier: Apache-2.0
"""The Python side of the benchmarks: one engine in one process, answering JSON lines.

engine_worker.py ENGINE MODEL THREADS
-> {"ready": true, "engine": "lampo", ...}
<- {"prompts": [[1, 2]], "max_tokens": 64}
-> {"ttft_s": .., "total_s": .., "token_ids": [[..]]}
<- {"prompts": [[1, 2]], "logits_file": "FILE"}
-> {"rows": 2}                FILE has the logits after each token, float32 [2, vocab_size]
<- {"prompts": [[1, 2]], "continuation": [3, 4]}
-> {"gaps": [..]}             (transformers only)
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
TESTS = Path(__file__).resolve().parents[1] / "tests/support"  # model_harness lives there


class Lampo:
    """The public API as a user calls it."""

    def __init__(self, model: Path, threads: int, kv_cache_dtype: str = "bfloat16") -> None:
        os.environ["LAMPO_NUM_THREADS"] = str(threads)
        import torch

        import lampo
        from lampo import LLM, SamplingParams

        self.model = model
        self.llm = LLM(str(model), kv_cache_dtype=kv_cache_dtype)
        self.kv_dtype = getattr(torch, kv_cache_dtype)
        self.params = SamplingParams
        self.version = lampo.__version__

    def generate(self, prompts: Prompts, max_tokens: int) -> dict[str, Any]:
        params = self.params(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        start = time.perf_counter()
        outputs = self.llm.generate(prompts, params)
        total = time.perf_counter() - start
        return {
            "ttft_s": max(output.metrics.time_to_first_token or 0.0 for output in outputs),
            "total_s": total,
            "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
        }

    def logits(self, prompt: list[int]) -> Any:
        """The model as LLM loads it, without LLM around it, as the tests run it."""
        from model_harness import Runner

        from lampo.models.checkpoint import load_checkpoint
        from lampo.models.loader import load_model

        with load_checkpoint(self.model) as checkpoint:
            model = load_model(checkpoint, "auto")
            runner = Runner(model, page_size=64, kv_dtype=self.kv_dtype)
            return runner.chunks(prompt, 512).float().numpy()


class Transformers:
    """A bare greedy loop over the eager model, on weights dequantized from the same GGUF file.

    Faster than `model.generate`, which spends some time per token outside of the model. The weights
    come from lampo's reader, which the tests compare with the gguf package's: transformers' own
    takes 17 s.
    """

    def __init__(self, model: Path, threads: int, dtype: str) -> None:
        import torch
        import transformers
        from model_harness import transformers_twin

        from lampo.models.checkpoint import load_checkpoint

        torch.set_num_threads(threads)
        self.torch, self.transformers = torch, transformers
        with load_checkpoint(model) as checkpoint:
            self.model = transformers_twin(checkpoint).to(getattr(torch, dtype))
        self.version = transformers.__version__

    def generate(self, prompts: Prompts, max_tokens: int) -> dict[str, Any]:
        torch = self.torch
        steps: list[list[int]] = []
        ttft = 0.0
        with torch.inference_mode():
            start = time.perf_counter()
            cache = self.transformers.DynamicCache(config=self.model.config)
            step = torch.tensor(prompts)
            while len(steps) < max_tokens:
                out = self.model(step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                step = out.logits[:, -1].argmax(-1, keepdim=True)
                steps.append(step[:, 0].tolist())
                ttft = ttft or time.perf_counter() - start
            total = time.perf_counter() - start
        return {"ttft_s": ttft, "total_s": total, "token_ids": list(zip(*steps, strict=True))}

    def logits(self, prompt: list[int]) -> Any:
        with self.torch.inference_mode():
            return self.model(self.torch.tensor([prompt])).logits[0].float().numpy()

    def gaps(self, prompt: list[int], continuation: list[int]) -> dict[str, Any]:
        """For each token of a continuation: log-probability of the best token less its own."""
        torch = self.torch
        logits = torch.from_numpy(self.logits(prompt + continuation))
        logits = logits[len(prompt) - 1 : -1].log_softmax(-1)
        chosen = logits.gather(-1, torch.tensor(continuation)[:, None])[:, 0]
        return {"gaps": (logits.amax(-1) - chosen).tolist()}


class OpenVINO:
    """OpenVINO GenAI's LLMPipeline with its defaults: paged attention, an 8-bit cache.

    Its SDPA backend, and a loop of ContinuousBatchingPipeline.step(), were slower in every case.
    """

    def __init__(self, model: Path, threads: int) -> None:
        import openvino
        import openvino_genai

        self.ov, self.genai = openvino, openvino_genai
        self.model = model
        self.options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.pipeline = openvino_genai.LLMPipeline(str(model), "CPU", **self.options)
        self.version = openvino_genai.__version__

    def generate(self, prompts: Prompts, max_tokens: int) -> dict[str, Any]:
        import numpy as np

        config = self.genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = max_tokens, True, False
        ids = np.array(prompts, dtype=np.int64)
        inputs = self.genai.TokenizedInputs(self.ov.Tensor(ids), self.ov.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self.pipeline.generate(inputs, config)
        total = time.perf_counter() - start
        ttft = result.perf_metrics.get_ttft().mean * 1e-3
        return {"ttft_s": ttft, "total_s": total, "token_ids": [list(t) for t in result.tokens]}

    def logits(self, prompt: list[int]) -> Any:
        """Logits by the plain runtime, as the pipeline computes those of last tokens only."""
        import numpy as np

        model = self.ov.Core().compile_model(self.model / "openvino_model.xml", "CPU", self.options)
        ids = np.array([prompt], dtype=np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(len(prompt), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        outputs = model.create_infer_request().infer(inputs)
        return outputs["logits"][0].astype(np.float32)


def start(engine: str, model: Path, threads: int) -> Any:
    """An object with `version`, `generate` and `logits`, a float32 [len(prompt), vocab_size]."""
    if engine == "transformers":
        return Transformers(model, threads, "bfloat16")
    if engine == "transformers f32":
        return Transformers(model, threads, "float32")
    if engine == "OpenVINO":
        return OpenVINO(model, threads)
    return Lampo(model, threads, "int8" if engine == "lampo int8 cache" else "bfloat16")


def answer(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    prompts = request["prompts"]
    if "logits_file" in request:
        logits = engine.logits(prompts[0])
        logits.tofile(request["logits_file"])
        return {"rows": len(logits)}
    if "continuation" in request:
        return dict(engine.gaps(prompts[0], request["continuation"]))
    return dict(engine.generate(prompts, request["max_tokens"]))


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # keeps the output of libraries out of the answers
    os.dup2(2, 1)
    sys.path.append(str(TESTS))
    name, model, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    begin = time.perf_counter()
    engine = start(name, model, threads)
    about = {"engine": name, "version": engine.version, "load_s": time.perf_counter() - begin}
    print(json.dumps({"ready": True, **about}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
