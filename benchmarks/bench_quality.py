# SPDX-License-Identifier: Apache-2.0
"""Divergence of the engines from the exact model: the cost of their speed.

Every engine computes the logits after each token of one ordinary text, quality_text.md. "KL to its
weights" is the mean Kullback-Leibler divergence to transformers in float32 on the dequantized
weights of the same GGUF file: the cost of the engine's own arithmetic. "KL to the model" is the
divergence to the model that all files were made from, the default Q4_1 file: it includes the cost
of the format. "same best" is the share of positions with the model's best token.

    LAMPO_PEERS=DIRECTORY python benchmarks/bench_quality.py --json benchmarks/results/quality.json
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import peers
import results
from lampo.models.checkpoint import load_checkpoint
from lampo.text.tokenizer import Tokenizer
from lampo.weights import resolve_model
from peers import FORMATS, GGUF, ORACLE, OURS

COLUMNS = ["engine", "format", "1000 x KL to its weights", "1000 x KL to the model"]
COLUMNS += ["same best %", "perplexity"]
ENGINES = (*OURS, "llama.cpp", "llama.cpp q8_0 cache", "OpenVINO")
REFERENCE = "Q4_1"
TEXT = Path(__file__).with_name("quality_text.md")
POSITIONS = 1024


def divergence(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Mean over positions of KL(expected || actual), from logits, in float64."""
    total = 0.0
    for p, q in zip(expected.split(128), actual.split(128), strict=True):
        p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
    return total / len(expected)


def perplexity(logits: torch.Tensor, token_ids: list[int]) -> float:
    targets = torch.tensor(token_ids[1:])
    return float(torch.nn.functional.cross_entropy(logits[:-1], targets).exp())


class Logits:
    """Logits per engine and format, computed at first use, one process at a time."""

    def __init__(self, token_ids: list[int], threads: int) -> None:
        self.token_ids, self.threads = token_ids, threads
        self.versions: dict[str, str] = {}
        self._known: dict[tuple[str, str], torch.Tensor] = {}

    def __call__(self, engine: str, weight_format: str) -> torch.Tensor:
        key = engine, weight_format
        if key not in self._known:
            worker = peers.Worker(engine, weight_format, self.threads)
            try:
                self.versions[engine] = worker.about["version"]
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "logits"
                    worker.write_logits(self.token_ids, path)
                    values = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32)
            finally:
                worker.close()
            self._known[key] = values.view(len(self.token_ids), -1)
        return self._known[key]


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--formats", default=",".join(FORMATS), help="which formats to compare")
    args = parser.parse_args()
    with load_checkpoint(resolve_model(None)) as checkpoint:
        assert checkpoint.gguf_metadata is not None
        tokenizer = Tokenizer.from_gguf(checkpoint.gguf_metadata)
    token_ids = tokenizer.encode(TEXT.read_text())[:POSITIONS]
    report = results.Report("quality", COLUMNS, args)
    report.note(f"the first {len(token_ids)} tokens of {TEXT.relative_to(results.ROOT)}")

    logits = Logits(token_ids, args.threads)
    model = logits(ORACLE, REFERENCE)
    rows: list[dict[str, Any]] = [
        {"engine": ORACLE, "format": REFERENCE, "perplexity": perplexity(model, token_ids)}
    ]
    for weight_format in args.formats.split(","):
        for engine in ENGINES:
            if weight_format not in peers.ENGINES[engine].formats:
                continue
            if not peers.installed(engine) or peers.model_path(weight_format) is None:
                report.note(f"{engine} {weight_format} is not installed")
                continue
            mine = logits(engine, weight_format)
            same = (mine.argmax(-1) == model.argmax(-1)).double().mean()
            row = {
                "engine": engine,
                "format": weight_format,
                "1000 x KL to the model": 1e3 * divergence(model, mine),
                "same best %": 100 * float(same),
                "perplexity": perplexity(mine, token_ids),
            }
            if weight_format in GGUF:
                own = divergence(logits(ORACLE, weight_format), mine)
                row["1000 x KL to its weights"] = 1e3 * own
            rows.append(row)
    for engine, version in logits.versions.items():
        report.version(engine, version)
    for row in rows:
        report.add(row)
    report.finish()


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:  # an engine's process ended with a message
        sys.exit(f"bench_quality: {error}")
