# SPDX-License-Identifier: Apache-2.0
"""Ops with a state on a GPU, against the CPU kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compare import assert_close
from test_recurrent import DTYPES, RAGGED, conv_arguments, delta_arguments

from lampo import ops

pytestmark = pytest.mark.gpu


def moved(arguments: dict[str, Any], gpu: torch.device) -> dict[str, Any]:
    return {n: v.to(gpu) if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_causal_conv(gpu, generator, dtype, gated):
    here = conv_arguments(RAGGED, 4, 1031, dtype, generator, gated=gated, biased=not gated)
    there = moved(here, gpu)
    expected, out = ops.causal_conv(**here), ops.causal_conv(**there)
    assert torch.equal(there["state"].cpu(), here["state"])
    assert_close(out.cpu(), expected.double(), floor=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dims"), [((2, 4), (128, 128)), ((1, 3), (40, 70))])
@pytest.mark.parametrize("gated", [False, True])
def test_gated_delta(gpu, generator, dtype, heads, dims, gated):
    here = delta_arguments(RAGGED, heads, dims, dtype, generator, gated=gated)
    there = moved(here, gpu)
    expected, out = ops.gated_delta(**here), ops.gated_delta(**there)
    assert_close(there["state"].cpu(), here["state"].double(), floor=1e-4)
    assert_close(out.cpu(), expected.double(), floor=1e-3)


def test_split_calls_give_the_same_bits(gpu, generator):
    """Forty tokens in one call, and in two."""
    given = moved(delta_arguments([(40, 0)], (1, 2), (64, 64), DTYPES[0], generator), gpu)
    whole = ops.gated_delta(**given)
    state, parts = torch.zeros_like(given["state"]), []
    for first, count in ((0, 23), (23, 17)):
        part = {n: given[n][first : first + count] for n in ("q", "k", "v", "a", "b", "gate")}
        part |= {
            "state": state,
            "seq_lens": torch.tensor([first + count], dtype=torch.int32, device=gpu),
            "cu_seqlens_q": torch.tensor([0, count], dtype=torch.int32, device=gpu),
        }
        parts.append(ops.gated_delta(**given | part))
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state[1], given["state"][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_mul(gpu, generator, dtype):
    x, gate = torch.randn(2, 5, 3, 70, generator=generator).to(dtype)
    out = ops.sigmoid_mul(x.to(gpu), gate.to(gpu))
    assert_close(out.cpu(), x.double() * torch.sigmoid(gate.double()), floor=1e-5)
