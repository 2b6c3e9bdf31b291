# SPDX-License-Identifier: Apache-2.0
"""The overhead of one native call, from Python and the binding.

`call_cost` reads six tensors by DLPack, checks them, releases the GIL and returns: the target is
under 2 us. The rms_norm rows, on a single [1, 576] row, compare the ways to call an op: the bare
binding, the Python wrapper, and torch's dispatcher.
"""

from __future__ import annotations

import timeit
from typing import Any

import torch

import lampo.ops
import results
import timing
from lampo import _C

HIDDEN_SIZE = 576  # of the default model
CALLS = 5000  # per sample; a sample lasts a few milliseconds
TARGET_NS = 2000.0
SIX = "_C.call_cost(a, b, c, d, e, f)"
COLUMNS = ["call", "arguments", "ns", "q1", "q3", "target ns"]


def check(report: results.Report) -> None:
    """All ways of calling agree with torch's norm."""
    x, weight = torch.randn(1, HIDDEN_SIZE), torch.randn(HIDDEN_SIZE)
    expected = torch.nn.functional.rms_norm(x, (HIDDEN_SIZE,), weight, 1e-6)
    outs = [torch.empty_like(x) for _ in range(3)]
    lampo.ops.rms_norm(x, weight, out=outs[0])
    torch.ops.lampo.rms_norm(x, weight, None, outs[1], 1e-6)
    _C.rms_norm(x.numpy(), weight.numpy(), None, outs[2].numpy(), 1e-6)
    for out in outs:
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    report.check("rms_norm by wrapper, dispatcher and NumPy arrays equals torch's")


def nanoseconds(statement: str, names: dict[str, Any], repeats: int) -> timing.Series:
    """Time per execution of `statement`, compiled into the timing loop: no call of a lambda."""
    timer = timeit.Timer(statement, globals={**names, "_C": _C, "ops": lampo.ops, "torch": torch})
    timer.timeit(CALLS)
    return timing.Series(tuple(timer.timeit(CALLS) / CALLS * 1e9 for _ in range(repeats)))


def main() -> None:
    args = results.parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    report = results.Report("call", COLUMNS, args)
    check(report)

    def add(statement: str, arguments: str, names: dict[str, Any], target: float | None) -> None:
        series = nanoseconds(statement, names, args.repeats)
        row = {"call": f"`{statement}`", "arguments": arguments, "target ns": target}
        report.add({**row, "ns": series.median, "q1": series.q1, "q3": series.q3})

    def tensors(names: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        return {name: torch.ones(1, HIDDEN_SIZE, dtype=dtype) for name in names}

    six = tensors("abcdef")
    add(SIX, "six torch tensors", six, TARGET_NS)
    add(SIX, "six torch tensors, bf16", tensors("abcdef", torch.bfloat16), TARGET_NS)
    parameters = {name: torch.nn.Parameter(tensor, False) for name, tensor in six.items()}
    add(SIX, "six torch.nn.Parameter", parameters, TARGET_NS)
    add(SIX, "six NumPy arrays", {name: t.numpy() for name, t in six.items()}, TARGET_NS)

    norm = {
        "x": torch.ones(1, HIDDEN_SIZE),
        "w": torch.ones(HIDDEN_SIZE),
        "out": torch.empty(1, HIDDEN_SIZE),
    }
    arrays = {name: tensor.numpy() for name, tensor in norm.items()}
    add("_C.rms_norm(x, w, None, out, 1e-6)", "torch [1, 576]", norm, None)
    add("_C.rms_norm(x, w, None, out, 1e-6)", "NumPy [1, 576]", arrays, None)
    add("ops.rms_norm(x, w, out=out)", "torch [1, 576]", norm, None)
    add("ops.rms_norm(x, w)", "torch [1, 576], allocates", norm, None)
    add("torch.ops.lampo.rms_norm(x, w, None, out, 1e-6)", "torch [1, 576]", norm, None)
    add("torch.rms_norm(x, (576,), w, 1e-6)", "peer: torch's own, allocates", norm, None)
    add("torch.add(x, x, out=out)", "peer: torch, three tensors", norm, None)
    add("pass", "the empty loop, part of every row", norm, None)
    report.finish()


if __name__ == "__main__":
    main()
