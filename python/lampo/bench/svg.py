# SPDX-License-Identifier: Apache-2.0
"""SVG by hand: elements, and logarithmic axes with their ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Attribute = str | float | None


def element(tag: str, *children: str, **attributes: Attribute) -> str:
    """`<tag ...>children</tag>`; attributes: `_` stands for `-`, None leaves one out.

    children are markup already: see :func:`text` for others.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        words.append(f'{name.strip("_").replace("_", "-")}="{escape(shown)}"')
    head = " ".join(words)
    return f"<{head}>{''.join(children)}</{tag}>" if children else f"<{head}/>"


def text(content: str, x: float, y: float, **attributes: Attribute) -> str:
    return element("text", escape(content), x=float(x), y=float(y), **attributes)


def path(points: Sequence[tuple[float, float]], **attributes: Attribute) -> str:
    """A line through points."""
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return element("path", d=d, **attributes)


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis from value `low` to `high`, drawn from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    @classmethod
    def around(cls, values: Sequence[float], begin: float, end: float) -> LogAxis:
        """An axis with room around some values: a tenth at both ends, a factor of four at least."""
        low, high = min(values), max(values)
        margin = max((high / low) ** 0.08, (4 / (high / low)) ** 0.5, 1.05)
        return cls(low / margin, high * margin, begin, end)

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, base: int = 10) -> list[float]:
        """Powers of the base; with too few of them also 2 and 5 times these."""
        first = math.floor(math.log(self.low, base))
        powers = [float(base) ** e for e in range(first, first + 40)]
        inside = [p for p in powers if self.low <= p <= self.high]
        if base == 10 and len(inside) < 3:
            finer = [p * factor for p in powers for factor in (1, 2, 5)]
            inside = [p for p in finer if self.low <= p <= self.high]
        step = -(-len(inside) // 8)
        return inside[::step]


def spread(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, at least `distance` apart, within [low, high] if they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    at = -math.inf
    for i in order:
        at = places[i] = max(wanted[i], at + distance, low)
    at = math.inf
    for i in reversed(order):
        at = places[i] = min(places[i], at - distance, high)
    return places
