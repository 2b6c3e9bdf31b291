# SPDX-License-Identifier: Apache-2.0
"""Checks of the type and range of numeric arguments.

A wrong type is a TypeError, a wrong value a ValueError; both name the argument.
"""

from __future__ import annotations

import math


def check_integer(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name}: expected a value in [{low}, {high}], got {value}")
    return value


def check_number(name: str, value: object, low: float, high: float, open_low: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    above = value > low if open_low else value >= low
    if not math.isfinite(value) or not above or value > high:
        bracket = "(" if open_low else "["
        raise ValueError(f"{name}: expected a value in {bracket}{low:g}, {high:g}], got {value}")
    return float(value)
