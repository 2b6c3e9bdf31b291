# SPDX-License-Identifier: Apache-2.0
"""`linear` on a GPU with few rows: bfloat16 and packed weights, and torch's product (cuBLAS).

The shapes are Llama-3.1-8B's. x and the result are bfloat16; weights come from memory, as the
buffers rotate. Calls are rated by the bytes of the weight, x and the result, as a share of the copy
rate of the same run. torch reads a bfloat16 weight: the same product with more bytes than a packed
one. From 16 rows on packed weights are also dequantized and multiplied by torch: if that is faster,
lampo.ops should do so (KERNEL_ROWS_PACKED in python/lampo/ops/_gemm.py).

    python benchmarks/bench_gpu_linear.py --json FILE
    python benchmarks/bench_gpu_linear.py --device cpu --quick        # only tries the script out
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import gpu
import results
from lampo import ops
from lampo.bench import cost
from make_random_model import BLOCK_BYTES, random_blocks

SHAPES = {
    "q, k, v": (6144, 4096),
    "o": (4096, 4096),
    "gate, up": (28672, 4096),
    "down": (4096, 14336),
    "LM head": (128256, 4096),
}
FEW_SHAPES, FEW_ROWS = ("gate, up", "LM head"), (1, 16)
QUICK_SHAPES = {"small": (96, 256)}
ROWS, QUICK_ROWS = (1, 4, 8, 16), (1, 17)
MORE_ROWS = (32, 128)  # of packed weights
DEQUANTIZED_FROM = 16
FORMATS = ("bf16", *BLOCK_BYTES)
COLUMNS = ["weight", "shape", "format", "rows", "us", "GB/s", "% of copy"]
COLUMNS += ["torch us", "x torch", "dequantized us", "x dequantized"]
# The error of bfloat16 results is 2e-3; activations of 8 bits add 5e-3 to 8e-3.
MAX_ERROR = 2e-2


def random_weight(name: str, shape: tuple[int, int], device: torch.device) -> ops.Weight:
    rows, columns = shape
    if name == "bf16":
        return torch.randn(rows, columns, device=device).bfloat16()
    return ops.pack_weight(random_blocks(name, rows, columns), name).to(device)


def copy_of(weight: ops.Weight) -> ops.Weight:
    if isinstance(weight, torch.Tensor):
        return weight.clone()
    return ops.PackedWeight(weight.data.clone(), weight.format, weight.shape)


def dequantized(weight: ops.Weight) -> torch.Tensor:
    """[out_features, in_features] bfloat16."""
    if isinstance(weight, torch.Tensor):
        return weight
    rows = torch.arange(weight.shape[0], device=weight.device)
    return ops.embedding(rows, weight, dtype=torch.bfloat16)


def check(x: torch.Tensor, weight: ops.Weight, name: str) -> float:
    """The error of the weight's first rows compared with float64."""
    count = min(weight.shape[0], 512)
    found = ops.linear(x, weight)[:, :count]
    rows = torch.arange(count, device=x.device)
    exact = weight[:count] if isinstance(weight, torch.Tensor) else ops.embedding(rows, weight)
    error = gpu.relative_error(found, x.double() @ exact.double().T)
    if error > MAX_ERROR:
        raise AssertionError(f"{name}: lampo's error is {error:.1e}")
    return error


class Weights:
    """A weight and copies of it: packed, and the same in bfloat16 for torch."""

    def __init__(self, name: str, shape: tuple[int, int], device: gpu.Device) -> None:
        self.format, self.shape = name, shape
        first = random_weight(name, shape, device.torch)
        self.ours = device.rotating(lambda: copy_of(first), first.nbytes)
        dense = dequantized(first)
        self.dense = device.rotating(dense.clone, dense.nbytes)


def run_case(label: str, weights: Weights, num_rows: int, device: gpu.Device, copy: float) -> float:
    """Returns lampo's error."""
    out_features, in_features = weights.shape
    x = torch.randn(num_rows, in_features, device=device.torch).bfloat16()
    out = torch.empty(num_rows, out_features, dtype=x.dtype, device=device.torch)
    workspace = torch.empty(
        ops.linear_workspace_size(num_rows, in_features), dtype=torch.uint8, device=device.torch
    )
    error = check(x, weights.ours[0], f"{weights.format} {label}, {num_rows} rows")
    calls: dict[str, list[Any]] = {
        "lampo": [partial(ops.linear, x, w, out=out, workspace=workspace) for w in weights.ours],
        "torch": [partial(torch.mm, x, w.T, out=out) for w in weights.dense],
    }
    if weights.format in BLOCK_BYTES and num_rows >= DEQUANTIZED_FROM:
        calls["dequantized"] = [
            lambda w=w: torch.mm(x, dequantized(w).T, out=out) for w in weights.ours
        ]
    times = device.seconds(calls)
    price = cost.linear(num_rows, in_features, out_features, weights.format)
    row: dict[str, Any] = {
        "weight": label,
        "shape": f"{out_features} x {in_features}",
        "format": weights.format,
        "rows": num_rows,
        **gpu.compared(times, price, copy),
    }
    device.report.add(
        row,
        time_us={name: series.summary(1e6) for name, series in times.items()},
        relative_error=error,
    )
    return error


def main() -> None:
    parser = gpu.parser(__doc__)
    parser.add_argument("--formats", default=",".join(FORMATS), help="some of " + ",".join(FORMATS))
    args = parser.parse_args()
    torch.manual_seed(0)
    report = results.Report("GPU linear", COLUMNS, args)
    device = gpu.Device(args, report)
    copy = device.copy_rate()
    report.note("activations in bfloat16; beside packed weights rounded to 16 bits in groups of 32")
    errors = [0.0]
    shapes = QUICK_SHAPES if args.quick else SHAPES
    rows = QUICK_ROWS if args.quick else ROWS
    if args.few and not args.quick:
        shapes, rows = {label: SHAPES[label] for label in FEW_SHAPES}, FEW_ROWS
    for label, shape in shapes.items():
        for name in args.formats.split(","):
            more = MORE_ROWS if name in BLOCK_BYTES and not (args.quick or args.few) else ()
            with device.case(f"{name} {label}"):
                weights = Weights(name, shape, device)
                for num_rows in rows + more:
                    errors.append(run_case(label, weights, num_rows, device, copy))
    if report.cases:
        report.check(
            f"before each row was timed, lampo was within {MAX_ERROR} of float64 on the "
            f"dequantized weight (|difference| / |expected|); largest {max(errors):.1e}"
        )
    report.finish(mean_of=("x torch", "x dequantized"))
    device.exit()


if __name__ == "__main__":
    main()
