# SPDX-License-Identifier: Apache-2.0
"""`linear` on packed and dense weights, compared with torch's product in bfloat16.

The shapes are those of the default model: the LM head and the gate and up projections. Buffers
rotate, so that weights come from memory. "limit %" is the minimum time for the weights' bytes or
the multiplications, by this run's own measurements, over the time taken. torch reads bf16 weights:
the same product with more bytes than the packed formats.

    python benchmarks/bench_linear.py --json benchmarks/results/linear.json
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import cost
import results
import timing
from lampo import _C, ops

HIDDEN, INTERMEDIATE, VOCAB = 576, 1536, 49152  # of SmolLM2-135M
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q8_0": 34}
DENSE = {"bf16": torch.bfloat16, "f32": torch.float32}
COLUMNS = ["weight", "tokens", "bits", "us", "GB/s", "GOP/s", "limit %", "torch us", "x torch"]


def random_weight(name: str, rows: int, columns: int) -> ops.Weight:
    if name in DENSE:
        return torch.randn(rows, columns).to(DENSE[name])
    blocks = torch.randint(256, (rows, columns // 32, BLOCK_BYTES[name]), dtype=torch.uint8)
    blocks[:, :, 1] &= 0x3F  # keep the scales finite
    if name == "q4_1":
        blocks[:, :, 3] &= 0x3F
    return ops.pack_weight(blocks.view(rows, -1), name)


def check(report: results.Report) -> None:
    for name in BLOCK_BYTES:
        weight = random_weight(name, 64, HIDDEN)
        dense = ops.embedding(torch.arange(64), weight)
        x = torch.randn(3, HIDDEN)
        exact = x.double() @ dense.double().T
        error = (ops.linear(x, weight, activation_bits=16) - exact).norm() / exact.norm()
        assert error < 1e-4, (name, error)
    report.check("packed products are within 1e-4 of float64 on the dequantized weights")


def case(
    name: str, num_tokens: int, bits: int, rows: int
) -> tuple[Callable[[], object], Callable[[], object], cost.Cost]:
    """lampo's and torch's call on cold weights, and the product's cost."""
    x = torch.randn(num_tokens, HIDDEN)
    out = torch.empty(num_tokens, rows)
    size = ops.linear_workspace_size(num_tokens, HIDDEN)
    workspace = torch.empty(size, dtype=torch.uint8)
    price = cost.linear(num_tokens, HIDDEN, rows, name, "f32")
    weights = timing.Rotating(lambda: random_weight(name, rows, HIDDEN), price.nbytes)
    peer_bytes = rows * HIDDEN * 2
    peers = timing.Rotating(lambda: torch.randn(rows, HIDDEN).bfloat16(), peer_bytes)
    peer_x = x.bfloat16()

    def ours() -> object:
        return ops.linear(x, weights(), activation_bits=bits, out=out, workspace=workspace)

    return ours, lambda: torch.nn.functional.linear(peer_x, peers()), price


def main() -> None:
    args = results.parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    _C.set_num_threads(args.threads)
    report = results.Report("linear", COLUMNS, args)
    bandwidth = timing.read_bandwidth(96 << 20, args.threads).median
    rates = {8: timing.matmul_rate("int8", args.threads).median}
    rates[16] = rates[8] / 2  # two planes of int8
    report.limit("read bandwidth, 96 MiB, bytes/s", bandwidth)
    report.limit("torch int8 product, operations/s", rates[8])
    check(report)
    names = ["q4_1"] if args.quick else [*BLOCK_BYTES, *DENSE]
    for rows, label in ((VOCAB, "LM head"), (2 * INTERMEDIATE, "gate, up")):
        for name in names:
            for num_tokens in (1, 4, 64):
                for bits in (8, 16) if name in BLOCK_BYTES else (32,):
                    ours, peer, price = case(name, num_tokens, bits, rows)
                    series = timing.interleave({"ours": ours, "torch": peer}, repeats=args.repeats)
                    seconds = series["ours"].median
                    least = price.least_seconds(bandwidth, rates.get(bits, float("inf")))
                    report.add(
                        {
                            "weight": f"{name} {label}",
                            "tokens": num_tokens,
                            "bits": bits,
                            "us": seconds * 1e6,
                            "GB/s": price.gb_per_s(seconds),
                            "GOP/s": price.tflop_per_s(seconds) * 1e3,
                            "limit %": 100 * least / seconds,
                            "torch us": series["torch"].us,
                            "x torch": timing.pair_ratio(series["torch"], series["ours"]).median,
                        }
                    )
    report.finish("x torch")


if __name__ == "__main__":
    main()
