# SPDX-License-Identifier: Apache-2.0
"""Checks of the type and range of numeric arguments.

A wrong type is a TypeError, a wrong value a ValueError; both name the argument.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from lampo.error_text import shown


def is_integer(value: Any) -> bool:
    """Whether the value is an integer of Python, NumPy or torch, and no bool."""
    try:
        operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # torch has errors of its own
        return False
    return not isinstance(value, bool)


def check_integer(name: str, value: Any, low: int, high: int) -> int:
    """The value as an int in [low, high]; anything with ``__index__`` but a bool."""
    if not is_integer(value):
        raise TypeError(f"{name}: expected an integer, got {shown(value)}")
    number = operator.index(value)
    if not low <= number <= high:
        raise ValueError(f"{name}: expected a value in [{low}, {high}], got {shown(number)}")
    return number


def check_number(name: str, value: Any, low: float, high: float, open_low: bool) -> float:
    """The value as a finite float in [low, high]; an int or float of Python, NumPy or torch."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a number, got {shown(value)}") from None
    except OverflowError:  # an int beyond all floats
        number = math.inf
    above = number > low if open_low else number >= low
    if not math.isfinite(number) or not above or number > high:
        bracket = "(" if open_low else "["
        raise ValueError(
            f"{name}: expected a value in {bracket}{low:g}, {high:g}], got {shown(value)}"
        )
    return number
