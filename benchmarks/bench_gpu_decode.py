# SPDX-License-Identifier: Apache-2.0
"""A whole model on a GPU through lampo's engine: time to the first token, and of decode steps.

    python benchmarks/make_random_model.py Llama-3.1-8B FOLDER [--format q4_0]
    python benchmarks/bench_gpu_decode.py FOLDER --json FILE

Checked first: log-probabilities against transformers' in bfloat16, or, with packed weights, against
lampo's own on the CPU.

Token ids in, greedy, end-of-text ignored. "step ms" is the mean time between tokens for a caller of
LLM.generate, "graph ms" the time of the captured step alone, replayed without the engine: the
difference is the host's. "limit %": the bytes of a step (weights, cache, logits) at the copy rate
of the same run, over the time of a step; "weights %" counts the weights alone. Prefill: "limit %"
is its operations at the rate of torch's bf16 product, over the time to the first token.
"""

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import gpu
import results
from bench_decode import Case
from lampo import LLM, SamplingParams
from lampo.bench import cost, timing

COLUMNS = ["case", "first token ms", "step ms", "graph ms", "tok/s", "GB/s", "limit %", "weights %"]
FEW = ("prefill 2048", "decode, batch 1", "decode, batch 32")
CASES = [
    Case("prefill 2048", 1, 2048, 1),
    Case("decode, batch 1", 1, 128, 128),
    Case("decode, batch 1, depth 4K", 1, 4096, 128),
    Case("decode, batch 8", 8, 128, 128),
    Case("decode, batch 32", 32, 128, 128),
    Case("decode, batch 32, depth 2K", 32, 2048, 128),
]
FEW_CASES = [case for case in CASES if case.name in FEW]
QUICK_CASES = [Case("prefill 64", 1, 64, 1), Case("decode, batch 3", 3, 16, 12)]
CHECKED_TOKENS = 96
# Difference between two computations in bfloat16; a wrong model differs by more than 1.
MAX_MEAN_ERROR = 0.05


def model_shape(llm: LLM) -> cost.ModelShape:
    if llm.path.suffix == ".gguf":
        return cost.model_shape_of_gguf(llm.path)
    c = llm.config
    attention, feed_forward = c.layers[0].attention, c.layers[0].feed_forward
    return cost.ModelShape(
        c.num_layers, c.hidden_size, feed_forward.size, attention.num_qo_heads,
        attention.num_kv_heads, attention.head_dim, c.vocab_size,
    )  # fmt: skip


def logprobs(llm: LLM, tokens: list[int]) -> list[float]:
    """Log-probability of each token but the first."""
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    tables = llm.generate([tokens], params)[0].prompt_logprobs
    assert tables is not None
    pairs = zip(tokens[1:], tables[1:], strict=True)
    return [table[token].logprob for token, table in pairs if table is not None]


def expected_logprobs(folder: Path, tokens: list[int], device: torch.device) -> list[float]:
    """The same by transformers in bfloat16, or by lampo on the CPU for packed weights."""
    if list(folder.glob("*.gguf")):
        with LLM(folder, max_model_len=len(tokens) + 1, max_num_seqs=1) as llm:
            return logprobs(llm, tokens)
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        logits = model.to(device)(torch.tensor([tokens], device=device)).logits[0, :-1].float()
    chosen = torch.tensor(tokens[1:], device=device)[:, None]
    return [float(x) for x in logits.log_softmax(-1).gather(-1, chosen)[:, 0]]


def check(found: list[float], expected: list[float], report: results.Report) -> None:
    errors = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    sentence = (
        f"log-probabilities of {len(errors)} random tokens: mean difference {fmean(errors):.4f}, "
        f"largest {max(errors):.4f}"
    )
    if not fmean(errors) <= MAX_MEAN_ERROR:
        raise SystemExit(f"wrong log-probabilities, nothing timed: {sentence}")
    report.check(sentence)


def generate(llm: LLM, case: Case, turn: int) -> dict[str, float]:
    """Seconds until all sequences have their first token, and until all are done."""
    params = SamplingParams(temperature=0, max_tokens=case.max_tokens, ignore_eos=True)
    outputs = llm.generate(case.prompts(llm.config.vocab_size, turn), params)
    starts = [output.metrics.time_to_first_token or 0.0 for output in outputs]
    # All run together: the interval between later tokens is a sequence's mean.
    ends = [
        start + (output.metrics.time_per_output_token or 0.0) * (case.max_tokens - 1)
        for start, output in zip(starts, outputs, strict=True)
    ]
    assert all(len(o.outputs[0].token_ids) == case.max_tokens for o in outputs)
    return {"ttft_s": max(starts), "total_s": max(ends)}


def replay_of(llm: LLM, batch_size: int) -> gpu.Call:
    """A replay of the last generation's recorded step."""
    runner: Any = llm.shared_engine().engine.runner
    step = runner.decode_step(batch_size)
    recorded: Any = getattr(step, "_graph", None) or step.program
    return lambda: recorded.replay()


def run_case(
    llm: LLM, case: Case, rounds: int, device: gpu.Device, copy: float, matmul: float
) -> None:
    shape = model_shape(llm)
    for turn in range(2):  # captures the step
        generate(llm, case, -1 - turn)
    replies = [generate(llm, case, turn) for turn in range(rounds)]
    first = timing.Series(tuple(reply["ttft_s"] for reply in replies))
    seconds = timing.Series(tuple(case.seconds(reply) for reply in replies))
    price = cost.step(shape, *case.step)
    row: dict[str, Any] = {
        "case": case.name,
        "first token ms": first.median * 1e3,
        "tok/s": sum(case.step[0]) / seconds.median,
    }
    details: dict[str, Any] = {"first_token_s": first.summary(), "seconds": seconds.summary()}
    if case.prefill:
        row["limit %"] = 100 * price.flops / matmul / seconds.median
    else:
        weights = cost.decode_step(shape).nbytes
        row |= {
            "step ms": seconds.median * 1e3,
            "GB/s": price.gb_per_s(seconds.median),
            "limit %": 100 * price.nbytes / copy / seconds.median,
            "weights %": 100 * weights / copy / seconds.median,
        }
        replay = replay_of(llm, case.batch)
        alone = timing.measure(replay, repeats=rounds, device=device.torch.type)
        row["graph ms"] = alone.median * 1e3
        details["graph_s"] = alone.summary()
        details["kernels"] = device.kernels([replay] * 5)
    device.report.add(row, cost={"bytes": price.nbytes, "operations": price.flops}, **details)


def main() -> None:
    parser = gpu.parser(__doc__)
    parser.add_argument("model", type=Path, help="a folder, as of make_random_model.py")
    parser.set_defaults(repeats=5)
    args = parser.parse_args()
    os.environ["LAMPO_NUM_THREADS"] = str(args.threads)
    report = results.Report("GPU decode", COLUMNS, args)
    device = gpu.Device(args, report)
    copy, matmul = device.copy_rate(), device.matmul_rate()
    cases = QUICK_CASES if args.quick else FEW_CASES if args.few else CASES
    case = Case("check", 1, min(CHECKED_TOKENS, cases[0].prompt_tokens), 1)
    options: dict[str, Any] = {
        "max_num_seqs": max(case.batch for case in cases),
        "max_num_batched_tokens": 2048,
        "max_model_len": max(case.prompt_tokens + case.max_tokens for case in cases) + 1,
        "enable_prefix_caching": False,
    }
    report.note(f"{', '.join(f'{name} {value}' for name, value in options.items())}")
    (tokens,) = case.prompts(300, 0)
    expected = device.attempt(
        "the check of log-probabilities",
        lambda: expected_logprobs(args.model, tokens, device.torch),
    )
    if device.on_gpu:
        torch.cuda.empty_cache()
    with LLM(args.model, device=args.device, **options) as llm:
        report.note(f"{llm.weight_bytes / 1e9:.2f} GB of weights, loaded in {llm.load_time:.1f} s")
        if expected is not None:
            check(logprobs(llm, tokens), expected, report)
        for case in cases:
            with device.case(case.name):
                run_case(llm, case, args.repeats, device, copy, matmul)
    report.finish()
    device.exit()


if __name__ == "__main__":
    main()
