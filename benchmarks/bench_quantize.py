# SPDX-License-Identifier: Apache-2.0
"""Quality of quantized files: those of lampo and of llama.cpp, of every type, from one model.

The model is wide.gguf of make_models.py: the default model's function, in float32, with widths that
are multiples of 256. Its own weights were Q4_1; no block of a new file has the weights of one of
the old blocks. Both quantizers, llama.cpp's without an importance matrix, write files of the same
formats, tensor by tensor. lampo computes on their dequantized weights in float32, so that the
divergence is the cost of the type alone.

    export LAMPO_PEERS=DIRECTORY
    python benchmarks/bench_quantize.py --json benchmarks/results/quantize.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf
import torch

import lampo
import peers
import results
from bench_quality import POSITIONS, TEXT, divergence, perplexity
from lampo import LLM
from lampo.weights.file_types import FILE_TYPES

COLUMNS = ["type", "quantizer", "bits per weight", "1000 x KL to the model", "same best %"]
COLUMNS += ["perplexity"]
TYPES = "q8_0,q6_k,q5_k_m,q5_k_s,q5_1,q5_0,q4_k_m,q4_k_s,q4_1,q4_0,iq4_nl,iq4_xs"
TYPES += ",q3_k_l,q3_k_m,q3_k_s,q2_k"
QUANTIZER = peers.FOLDER / "bin" / "llama_cpp_quantize" if peers.FOLDER else None


def formats(path: Path) -> dict[str, tuple[str, int, int]]:
    """The type, the bytes and the elements of each tensor of a file."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: (t.tensor_type.name, int(t.n_bytes), int(t.n_elements)) for t in tensors}


def logits(path: Path, token_ids: list[int]) -> torch.Tensor:
    with LLM(path, dtype="float32", kv_cache_dtype="float32", max_num_seqs=1) as llm:
        return llm.inspector().inspect(token_ids).logits


def lampo_quantizer(source: Path, target: Path, type: str, threads: int) -> None:
    command = [sys.executable, "-m", "lampo", "quantize", "-q", str(source), str(target)]
    environment = os.environ | {"LAMPO_NUM_THREADS": str(threads)}
    subprocess.run([*command, "--type", type], check=True, env=environment, stdout=sys.stderr)


def llama_cpp_quantizer(source: Path, target: Path, type: str, threads: int) -> None:
    words = [str(source), str(target), str(FILE_TYPES[type].number), str(threads)]
    subprocess.run([str(QUANTIZER), *words], check=True)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--types", default=TYPES, help="a list of file types")
    parser.add_argument("--tokens", type=int, default=POSITIONS, help="tokens of the text")
    args = parser.parse_args()
    source = peers.model_path("wide")
    if source is None:
        sys.exit("bench_quantize: no wide.gguf: see make_models.py")
    quantizers: dict[str, Callable[[Path, Path, str, int], None]] = {"lampo": lampo_quantizer}
    if QUANTIZER is not None and QUANTIZER.is_file():
        quantizers["llama.cpp"] = llama_cpp_quantizer
    report = results.Report("quantize", COLUMNS, args)
    if len(quantizers) == 1:
        report.note("llama.cpp is not installed")
    with LLM(source, max_num_seqs=1) as llm:
        token_ids = llm.encode(TEXT.read_text())[: args.tokens]
    report.note(f"the first {len(token_ids)} tokens of {TEXT.relative_to(results.ROOT)}")
    report.note(f"lampo {lampo.__version__}, {source.name}: the default model, widened")
    expected = logits(source, token_ids)
    count = sum(elements for _, _, elements in formats(source).values())
    for type in args.types.split(","):
        seen: list[dict[str, str]] = []
        for name, quantize in quantizers.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "m.gguf"
                quantize(source, path, type, args.threads)
                found = logits(path, token_ids)
                tensors = formats(path)
            seen.append({tensor: kind for tensor, (kind, _, _) in tensors.items()})
            if seen[0] != seen[-1]:
                sys.exit(f"bench_quantize: {type}: the quantizers chose different formats")
            same = (found.argmax(-1) == expected.argmax(-1)).double().mean()
            report.add(
                {
                    "type": type,
                    "quantizer": name,
                    "bits per weight": 8 * sum(n for _, n, _ in tensors.values()) / count,
                    "1000 x KL to the model": 1e3 * divergence(expected, found),
                    "same best %": 100 * float(same),
                    "perplexity": perplexity(found, token_ids),
                }
            )
    report.finish()


if __name__ == "__main__":
    main()
