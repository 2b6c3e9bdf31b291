# SPDX-License-Identifier: Apache-2.0
"""The functions that csrc/common/ shares between backends: Philox, masses, the noise."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known answers for philox4x32-10: zeros, ones, digits of pi
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(hooks, counter, key, expected):
    assert hooks.philox4x32_10(counter, key) == expected


def test_exp2_error_over_the_full_range(hooks):
    y = -np.concatenate([np.linspace(0, 60, 4_000_001), np.geomspace(1e-30, 166, 400_001)]).astype(
        np.float32
    )
    expected = np.exp2(y.astype(np.float64) + 40)
    error = hooks.exp2_times_2_40(y).astype(np.float64) / expected - 1
    normal = expected > 2.0**-125
    assert np.abs(error[normal]).max() < 2.5e-7
    assert abs(error[normal].mean()) < 3e-8


def test_exp2_at_the_ends(hooks):
    y = np.array([0.0, -0.0, -1.0, -40.0, -167.0, -1e30, -np.inf, np.nan], dtype=np.float32)
    one = 2.0**40
    assert hooks.exp2_times_2_40(y).tolist() == [one, one, one / 2, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_exponential_variate_error(hooks):
    """-ln(1 - v) to 6e-7 relative: both ends, a sample of the middle, and limits of branches."""
    generator = np.random.default_rng(5)
    edge = np.uint32(round((1 - 0.5**0.5) * 2**32))
    x = np.concatenate(
        [
            np.arange(200_000, dtype=np.uint32),
            np.uint32(2**32 - 1) - np.arange(200_000, dtype=np.uint32),
            generator.integers(0, 2**32, 3_000_000, dtype=np.uint32),
            edge + np.arange(2000, dtype=np.uint32) - np.uint32(1000),
            np.geomspace(1, 2**32 - 1, 200_000).astype(np.uint32),
        ]
    )
    out = hooks.exponential_variate(x)
    v = (x.astype(np.float64) + 0.5) / 2**32
    expected = -np.log1p(-v)
    # 1 - v of float64 is exact; for tiny v log1p keeps what the subtraction would lose.
    error = np.abs(out.astype(np.float64) / expected - 1)
    assert error.max() < 6e-7, x[error.argmax()]
    assert (out > 0).all()


def test_exponential_variate_rises(hooks):
    out = hooks.exponential_variate(np.arange(0, 2**31, 2**10 + 1, dtype=np.uint32))
    assert (np.diff(out) >= -out[1:] * 1e-6).all()
