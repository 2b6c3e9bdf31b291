# SPDX-License-Identifier: Apache-2.0
"""End to end: prefill and decode of one model at batch 1, lampo beside llama.cpp and transformers.

Every engine does the same work (the same token ids in, greedy, end-of-text ignored, the same number
of tokens out) on the same GGUF file, in a process of its own; they take turns, so that a ratio
compares neighbours in time. transformers runs in bf16 on the weights of that file dequantized.

Prefill is prompt tokens over the time to first token (TTFT); decode is one over the time per output
token (TPOT) after it. GB/s and "limit %" are the bytes that a step must read, by cost.py, over
lampo's time, against the read bandwidth that this run measured.

    LAMPO_PEERS=DIRECTORY python benchmarks/bench_decode.py --json benchmarks/results/decode.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import cost
import peers
import results
import timing

OURS, LLAMA_CPP, TRANSFORMERS = "lampo", "llama.cpp", "transformers bf16"
ORACLE = "transformers f32"
COLUMNS = ["case", "ms", "tok/s", "GB/s", "limit %", "llama.cpp tok/s", "x llama.cpp"]
COLUMNS += ["transformers tok/s", "x transformers"]
PEER_COLUMN = {LLAMA_CPP: "llama.cpp", TRANSFORMERS: "transformers"}

# The default model's chat template around "Why is the sky blue?".
# fmt: off
CHAT_PROMPT = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407,
    19712, 8182, 2, 198, 1, 4093, 198, 4898, 314, 260, 6376, 4461, 47, 2, 198, 1, 520, 9531, 198,
]
# fmt: on
CHECKED_TOKENS = 64
# A token may be off the exact model's best one where two are nearly tied: 4-bit weights times 8-bit
# activations move log-probabilities by a few hundredths, and by more once in a while.
MAX_GAP, MAX_MEAN_GAP = 1.0, 0.05


def options() -> argparse.Namespace:
    parser = results.parser(__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file (default: lampo's default model)")
    parser.add_argument("--engines", default="lampo,llama.cpp,transformers", help="which to run")
    parser.set_defaults(repeats=5)
    args = parser.parse_args()
    if args.model is None:
        from lampo.weights.hub import resolve_model

        args.model = resolve_model(None)
    return args


def cases(quick: bool) -> list[tuple[str, int, int, int]]:
    """(name, prompt tokens, tokens to generate, cap on rounds): the long ones get fewer rounds."""
    prefill = [(f"prefill {n}", n, 1, 99) for n in ([128] if quick else [128, 512, 2048])]
    decode = [("decode, depth 0", 1, 128, 99)]
    if not quick:
        decode += [("decode, depth 1K", 1024, 64, 5), ("decode, depth 4K", 4096, 64, 3)]
    return prefill + decode


def random_prompt(num_tokens: int, vocab_size: int) -> list[int]:
    """Which tokens does not change the work; the first hundred ids may be special."""
    random = Random(num_tokens)
    return [random.randrange(100, vocab_size) for _ in range(num_tokens)]


def check(workers: list[peers.Worker], model: Path, threads: int, report: results.Report) -> None:
    """Each engine's greedy tokens against the f32 model; wrong ones from lampo end the run."""
    if not peers.PEERS["transformers"]:
        report.note("transformers is not installed: tokens not checked")
        return
    oracle = peers.Worker(ORACLE, model, threads, 0)
    try:
        expected = oracle.generate(CHAT_PROMPT, CHECKED_TOKENS)["token_ids"]
        for worker in workers:
            got = worker.generate(CHAT_PROMPT, CHECKED_TOKENS)["token_ids"]
            pairs = enumerate(zip(got, expected, strict=True))
            same = next((i for i, (a, b) in pairs if a != b), CHECKED_TOKENS)
            gaps = oracle.ask({"prompt": CHAT_PROMPT, "continuation": got})["gaps"]
            sentence = (
                f"{worker.engine}: first {same} of {CHECKED_TOKENS} greedy tokens equal those of "
                f"{ORACLE}; log-probability below its best token: mean {fmean(gaps):.4f}, "
                f"largest {max(gaps):.3f}"
            )
            plausible = max(gaps) <= MAX_GAP and fmean(gaps) <= MAX_MEAN_GAP
            if worker.engine == OURS and not plausible:
                sys.exit(f"wrong tokens, nothing timed: {sentence}")
            (report.check if plausible else report.note)(sentence)
    finally:
        oracle.close()


def run_case(
    case: tuple[str, int, int, int],
    workers: list[peers.Worker],
    model: cost.ModelShape,
    rounds: int,
    bandwidth: float,
    report: results.Report,
) -> None:
    name, prompt_tokens, max_tokens, cap = case
    prompt = random_prompt(prompt_tokens, model.vocab_size)
    answers = peers.take_turns(workers, lambda w: w.generate(prompt, max_tokens), min(rounds, cap))
    prefill = max_tokens == 1
    seconds: dict[str, timing.Series] = {}  # of the whole prefill, or of one decode step
    for engine, replies in answers.items():
        if prefill:
            values = [reply["ttft_s"] for reply in replies]
        else:
            values = [(r["total_s"] - r["ttft_s"]) / (max_tokens - 1) for r in replies]
        seconds[engine] = timing.Series(tuple(values))
    tokens = prompt_tokens if prefill else 1
    row: dict[str, Any] = {"case": name}
    if OURS in seconds:
        ours = seconds[OURS].median
        row |= {"ms": ours * 1e3, "tok/s": tokens / ours}
        if not prefill:  # the average step of the run: prompt and half of what was generated
            step = cost.decode_step(model, 1, prompt_tokens + max_tokens // 2)
            row |= {"GB/s": step.gb_per_s(ours), "limit %": 100 * step.nbytes / ours / bandwidth}
    for engine, label in PEER_COLUMN.items():
        if engine in seconds:
            row[f"{label} tok/s"] = tokens / seconds[engine].median
        if engine in seconds and OURS in seconds:
            row[f"x {label}"] = timing.pair_ratio(seconds[engine], seconds[OURS]).median
    report.add(
        row,
        seconds={engine: series.summary() for engine, series in seconds.items()},
        ttft_s={
            engine: [reply["ttft_s"] for reply in replies] for engine, replies in answers.items()
        },
        tokens_out=max_tokens,
    )


def main() -> None:
    args = options()
    asked = args.engines.split(",")
    engines = [OURS, LLAMA_CPP, TRANSFORMERS]
    engines = [e for e in engines if e.split()[0] in asked and peers.PEERS[e.split()[0]]]
    model = cost.model_shape_of_gguf(args.model)
    todo = cases(args.quick)
    context_tokens = max(prompt + out for _, prompt, out, _ in todo) + 8

    report = results.Report("decode", COLUMNS, args)
    report.note(f"model {args.model.name}; rounds: {args.repeats}, at most 5 at 1K, 3 at 4K")
    for name in set(asked) - {e.split()[0] for e in engines}:
        report.note(f"{name} is not installed")
    bandwidth = timing.read_bandwidth(96 << 20, args.threads)
    report.limit("read bandwidth of a 96 MiB buffer, bytes/s", bandwidth)
    workers: list[peers.Worker] = []
    try:
        for engine in engines:
            workers.append(peers.Worker(engine, args.model, args.threads, context_tokens))
            about = workers[-1].about
            report.version(engine, f"{about['version']} (loads in {about['load_s']:.2f} s)")
        check(workers, args.model, args.threads, report)
        for case in todo:
            run_case(case, workers, model, args.repeats, bandwidth.median, report)
    finally:
        for worker in workers:
            worker.close()
    report.finish(mean_of=tuple(f"x {label}" for label in PEER_COLUMN.values()))


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:  # an engine's process ended and has said why
        sys.exit(f"bench_decode: {error}")
