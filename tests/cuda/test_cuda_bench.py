# SPDX-License-Identifier: Apache-2.0
"""The cases of `lampo bench op` on a GPU: buffers, references, torch as a peer."""

from __future__ import annotations

import pytest
import torch

from lampo.bench.axes import OPS, combinations
from lampo.bench.op_bench import CASES, OpBench

pytestmark = pytest.mark.gpu

SMALL = {
    "batch": "2", "seq_len": "70", "query_len": "1,7", "heads": "4/2x64", "page": "16", "rows": "3",
    "splits": "4", "shape": "96x64", "hidden": "96", "size": "96", "vocab": "1000", "num_top": "3",
}  # fmt: skip

ON_THE_CPU = {"call", "route_tokens", "expert_linear", "combine_experts"}


@pytest.mark.parametrize("op", sorted(OPS.keys() - ON_THE_CPU))
def test_cases_agree_with_the_reference(op: str, gpu: torch.device) -> None:
    given = {name: text for name, text in SMALL.items() if name in OPS[op]}
    for values in combinations(op, given):
        case = CASES[op](values, gpu)
        assert case.make()
        case.check(type(case).op)
        for peer in case.peers().values():
            case.check_peer(peer)


@pytest.mark.real_gpu
def test_cases_are_timed(gpu: torch.device) -> None:
    """Captured, in turns with torch, beside the limits."""
    bench = OpBench("rms_norm", gpu, 1, repeats=2)
    (case,) = bench.cases(combinations("rms_norm", {"rows": "3", "hidden": "96", "dtype": "f32"}))
    (row,) = [measured.row() for measured in bench.run([case])]
    assert list(row["times_us"]) == ["lampo", "torch"]
    assert row["limit %"] > 0
    assert bench.notes == []
    assert len(bench.limits.report()) == 2
