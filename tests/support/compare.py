# SPDX-License-Identifier: Apache-2.0
"""How far a result may be from the float64 reference."""

from __future__ import annotations

import torch

SENTINEL = 1.25e30  # what outputs hold before an op; nothing of it may remain


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
        actual: what the op under test gave, any float dtype.
        expected: the float64 reference.
        plain: PyTorch's own result in ``actual``'s dtype; without it only rounding is allowed for.
        factor: how many times plain's worst error is tolerated.
        floor: absolute error that is always tolerated; a caller who sets it says why.

    On top comes one rounding of the expected value to the dtype.
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
