# SPDX-License-Identifier: Apache-2.0
"""Tolerance of a result's distance from the float64 reference."""

from __future__ import annotations

import torch

SENTINEL = 1.25e30  # content of outputs before an op; none may remain


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    plain: torch.Tensor | None = None,
    *,
    factor: float = 2.0,
    floor: float | torch.Tensor = 0.0,
) -> None:
    """``actual``'s error is at most ``factor`` times that of plain PyTorch in the same dtype.

    Args:
        actual: result of the op under test, any float dtype.
        expected: the float64 reference.
        plain: PyTorch's own result in ``actual``'s dtype; without it only rounding is tolerated.
        factor: tolerated multiple of plain's worst error.
        floor: absolute error that is always tolerated; the caller must give a reason.

    One rounding of the expected value to the dtype is added.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert torch.isfinite(actual).all(), "not finite"
    error = (actual.double() - expected).abs()
    allowed = expected.abs() * torch.finfo(actual.dtype).eps + floor
    if plain is not None:
        allowed = allowed + factor * (plain.double() - expected).abs().max()
    worst = (error - allowed).argmax()
    assert bool((error <= allowed).all()), (
        f"error {error.flatten()[worst]:.3e} > {allowed.flatten()[worst]:.3e} "
        f"at {int(worst)}: got {actual.flatten()[worst]}, expected {expected.flatten()[worst]}"
    )
