# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that Python reads before the native functions check all of them.

Errors name the argument: a wrong type is a TypeError, a wrong value a ValueError.
"""

from __future__ import annotations

from typing import Any

import torch

from lampo.checks import check_integer
from lampo.error_text import shown

LARGEST = 2**31 - 1


def tensor(name: str, value: Any, ndim: int) -> torch.Tensor:
    """The value, if it is a tensor with ndim dimensions."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.ndim != ndim:
        expected = ", ".join("*" * ndim)
        raise ValueError(f"{name}: expected shape [{expected}], got {list(value.shape)}")
    return value


def check_size(name: str, value: Any, low: int = 0, high: int = LARGEST) -> int:
    """The value as an int in [low, high]."""
    return check_integer(name, value, low, high)


def check_scalar(name: str, value: Any, kind: type) -> None:
    """Refuses a value that a native function cannot take for a bool, int, float or str."""
    if kind is int:
        check_integer(name, value, -(2**31), LARGEST)
    elif kind is float:
        if isinstance(value, int | float) and abs(value) < 2.0**1023:
            return
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    elif not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}, got {shown(value)}")


def cuda_index(name: str, device: Any) -> int:
    """The index of a CUDA device, -1 for the CPU."""
    if not isinstance(device, str | torch.device):
        raise TypeError(f"{name}: expected a device, got {shown(device)}")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{name}: expected a device, got {shown(device)}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected a CPU or CUDA device, got {device}")
    return -1 if device.type == "cpu" else device.index or 0
