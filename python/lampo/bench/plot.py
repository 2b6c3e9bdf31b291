# SPDX-License-Identifier: Apache-2.0
"""A run as a picture: latency over length, and the roofline. One SVG, light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from lampo.bench.results import LAMPO
from lampo.bench.results import text as number
from lampo.bench.svg import LogAxis, element, path, spread, text

_WIDTH, _NARROW, _HEIGHT = 1040, 600, 520
_TOP, _BOTTOM = 112, 450  # of the panels
_LEFT = (74, 410)  # x of the first panel; labels of lines stand right of it
_RIGHT = (660, 1010)
_MOST_CONTESTANTS = 6
_LABEL_CHARS = 24
# Axes that are lengths, the most telling first.
_LENGTHS = (
    "seq_len", "depth", "prompt", "rows", "vocab", "hidden", "size", "batch", "splits", "query_len",
    "page", "num_top", "window",
)  # fmt: skip
_STYLE = """
svg{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;background:#fff;color:#1f2430}
text{fill:#1f2430}.halo{paint-order:stroke;stroke:#fff;stroke-width:5px}.soft{fill:#5b6272}.grid{stroke:#e3e6ec}.frame{stroke:#aab0bd;fill:none}
.title{font-size:17px;font-weight:600}.head{font-size:13px;font-weight:600}
.roof{stroke:#5b6272;stroke-width:1.5;fill:none}.background{fill:#fff}
.c0{--c:#0b62d6}.c1{--c:#c2410c}.c2{--c:#0f8a5f}.c3{--c:#8b3fd1}.c4{--c:#a16207}.c5{--c:#be185d}
.line{stroke:var(--c);fill:none;stroke-width:1.6}.c0.line{stroke-width:2.4}
.dot{fill:var(--c);stroke:none}.other{fill:none;stroke:var(--c);stroke-width:1.6}
.range{stroke:var(--c);stroke-width:1.2}.name{fill:var(--c)}
@media(prefers-color-scheme:dark){
svg{background:#14171f;color:#e6e9f0}text{fill:#e6e9f0}.soft{fill:#a2a9b8}.grid{stroke:#2a2f3b}
.halo{stroke:#14171f}.frame{stroke:#565d6d}.roof{stroke:#a2a9b8}.background{fill:#14171f}
.c0{--c:#6cb0ff}.c1{--c:#ff9d5c}.c2{--c:#4fd6a3}.c3{--c:#c99bff}.c4{--c:#e5c04b}.c5{--c:#ff8fc0}
.name{fill:var(--c)}}
""".strip()


@dataclass(frozen=True)
class _Point:
    """One contestant's time of one case."""

    row: dict[str, Any]
    contestant: str
    us: float
    q1: float
    q3: float

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return float(self.row["operations"]) / float(self.row["bytes"])

    @property
    def rate(self) -> float:
        """TFLOP/s."""
        return float(self.row["operations"]) / self.us / 1e6

    def describe(self) -> str:
        case = ", ".join(f"{k} {v}" for k, v in self.row["case"].items() if v is not None)
        times = f"{number(self.us)} us ({number(self.q1)} to {number(self.q3)})"
        return f"{self.contestant}: {times}; {case}"


def plot(document: dict[str, Any]) -> str:
    """The picture of a document of `lampo bench ... --json`. Raises: ValueError: it has no row."""
    points = [
        _Point(row, name, times["median"], times["q1"], times["q3"])
        for row in document["cases"]
        for name, times in row["times_us"].items()
    ]
    if not points:
        raise ValueError("plot: no case was measured")
    names = list(dict.fromkeys(p.contestant for p in points))[:_MOST_CONTESTANTS]
    points = [p for p in points if p.contestant in names]
    fixed = [f"{k} {v}" for k, v in document["constants"].items() if v is not None]
    length = _length_axis(document["cases"])
    title = f"lampo bench {document['benchmark']}"
    roofline = _roofline(points, names, document["limits"])
    width = _WIDTH if roofline else _NARROW
    parts = [
        element("title", escape(title)),
        element("style", _STYLE),
        element("rect", width=width, height=_HEIGHT, class_="background"),
        text(title, 24, 32, class_="title"),
        text(_subtitle(document, fixed), 24, 52, class_="soft"),
        _legend(names),
        _latency(points, names, length) if length else _dots(points, names),
        roofline,
    ]
    return element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {_HEIGHT}",
        width="100%",
        style=f"max-width:{width}px",
        role="img",
    )


def _subtitle(document: dict[str, Any], fixed: Sequence[str]) -> str:
    where = [str(document.get("platform", {}).get("cpu") or ""), str(document.get("device") or "")]
    threads = document.get("threads", {}).get("chosen")
    if threads:
        where.append(f"{threads} threads")
    return "; ".join(filter(None, [", ".join(fixed), ", ".join(filter(None, where))]))


def _length_axis(rows: Sequence[dict[str, Any]]) -> str | None:
    """The axis to draw times over: numbers that differ."""
    for name in _LENGTHS:
        values = {row["case"].get(name) for row in rows}
        if len(values) > 1 and all(isinstance(v, int) and v > 0 for v in values):
            return name
    return None


def _legend(names: Sequence[str]) -> str:
    parts, x = [], 24.0
    for i, name in enumerate(names):
        parts.append(_mark(x + 5, 72, i))
        parts.append(text(name, x + 15, 76, class_=f"c{i} name"))
        x += 34 + 6.6 * len(name)
    return "".join(parts)


def _mark(x: float, y: float, contestant: int, tip: str | None = None) -> str:
    """A filled dot of lampo, a ring of another."""
    children = [element("title", escape(tip))] if tip else []
    style = "dot" if contestant == 0 else "other"
    radius = 4.5 if contestant == 0 else 3.8
    return element(
        "circle", *children, cx=float(x), cy=float(y), r=radius, class_=f"c{contestant} {style}"
    )


def _panel(title: str, x: LogAxis, y: LogAxis, x_name: str, y_name: str, base: int = 10) -> str:
    """Frame, grid, ticks and names of a panel."""
    parts = [text(title, x.begin, y.end - 12, class_="head")]
    for tick in x.ticks(base):
        at = x.place(tick)
        parts.append(element("line", x1=at, x2=at, y1=y.begin, y2=y.end, class_="grid"))
        label = _count(tick) if base == 2 else _plain(tick)
        parts.append(text(label, at, y.begin + 18, class_="soft", text_anchor="middle"))
    for tick in y.ticks():
        at = y.place(tick)
        parts.append(element("line", x1=x.begin, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(text(_plain(tick), x.begin - 8, at + 4, class_="soft", text_anchor="end"))
    width, height = x.end - x.begin, y.begin - y.end
    parts.append(element("rect", x=x.begin, y=y.end, width=width, height=height, class_="frame"))
    middle = (x.begin + x.end) / 2
    parts.append(text(x_name, middle, y.begin + 40, class_="soft", text_anchor="middle"))
    left, centre = x.begin - 54, (y.begin + y.end) / 2
    turn = f"rotate(-90 {left:.0f} {centre:.0f})"
    parts.append(text(y_name, left, centre, class_="soft", text_anchor="middle", transform=turn))
    return "".join(parts)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _count(value: float) -> str:
    for suffix, unit in (("M", 1 << 20), ("K", 1 << 10)):
        if value >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:g}"


def _latency(points: Sequence[_Point], names: Sequence[str], length: str) -> str:
    x = LogAxis.around([p.row["case"][length] for p in points], *_LEFT)
    y = LogAxis.around([q for p in points for q in (p.q1, p.q3)], _BOTTOM, _TOP)
    parts = [_panel(f"Latency over {length}", x, y, length, "us per call", base=2)]
    lines: dict[tuple[str, str], list[_Point]] = {}
    varying = _varying([p.row for p in points], length)
    for point in points:
        rest = _values(point.row, varying)
        lines.setdefault((point.contestant, rest), []).append(point)
    labels: list[tuple[str, float, int]] = []
    # Peers first, so that lampo is on top.
    for (contestant, rest), line in sorted(lines.items(), key=lambda item: item[0][0] == LAMPO):
        color = names.index(contestant)
        line.sort(key=lambda p: p.row["case"][length])
        places = [(x.place(p.row["case"][length]), y.place(p.us)) for p in line]
        parts.append(path(places, class_=f"c{color} line"))
        for point, (px, py) in zip(line, places, strict=True):
            ends = {"y1": y.place(point.q1), "y2": y.place(point.q3)}
            parts.append(element("line", x1=px, x2=px, **ends, class_=f"c{color} range"))
            parts.append(_mark(px, py, color, point.describe()))
        labels.append((rest or contestant, places[-1][1], color))
    if len(labels) <= (_BOTTOM - _TOP) // 14:
        heights = spread([place for _, place, _ in labels], 14, y.end + 6, y.begin)
        for (label, _, color), height in zip(labels, heights, strict=True):
            parts.append(text(_cut(label), x.end + 8, height + 4, class_=f"c{color} name"))
    return "".join(parts)


def _varying(rows: Sequence[dict[str, Any]], length: str | None) -> list[str]:
    axes = dict.fromkeys(name for row in rows for name in row["case"])
    return [
        name
        for name in axes
        if name != length and len({str(row["case"].get(name)) for row in rows}) > 1
    ]


def _values(row: dict[str, Any], axes: Sequence[str]) -> str:
    """The row's values, numbers with the names of their axes."""
    values = ((name, row["case"].get(name)) for name in axes)
    return ", ".join(
        v if isinstance(v, str) else f"{name} {v}" for name, v in values if v is not None
    )


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL_CHARS else label[: _LABEL_CHARS - 1] + "…"


def _dots(points: Sequence[_Point], names: Sequence[str]) -> str:
    """Cases without a length: a line of dots each, by time."""
    rows = list({id(p.row): p.row for p in points}.values())[:20]
    varying = _varying(rows, None)
    left = _LEFT[0] + 130
    x = LogAxis.around([q for p in points for q in (p.q1, p.q3)], left, _LEFT[1] + 120)
    parts = [text("Latency", _LEFT[0], _TOP - 12, class_="head")]
    for tick in x.ticks():
        at = x.place(tick)
        parts.append(element("line", x1=at, x2=at, y1=_TOP, y2=_BOTTOM, class_="grid"))
        parts.append(text(_plain(tick), at, _BOTTOM + 18, class_="soft", text_anchor="middle"))
    parts.append(
        text("us per call", (left + x.end) / 2, _BOTTOM + 40, class_="soft", text_anchor="middle")
    )
    for i, row in enumerate(rows):
        height = _TOP + (i + 0.5) * (_BOTTOM - _TOP) / len(rows)
        label = _values(row, varying) or "time"
        parts.append(text(_cut(label), left - 8, height + 4, class_="soft", text_anchor="end"))
        parts.append(element("line", x1=float(left), x2=x.end, y1=height, y2=height, class_="grid"))
        for point in reversed([p for p in points if p.row is row]):
            color = names.index(point.contestant)
            ends = {"x1": x.place(point.q1), "x2": x.place(point.q3)}
            parts.append(element("line", y1=height, y2=height, **ends, class_=f"c{color} range"))
            parts.append(_mark(x.place(point.us), height, color, point.describe()))
    return "".join(parts)


def _roofline(points: Sequence[_Point], names: Sequence[str], limits: dict[str, float]) -> str:
    """Rate over intensity, under the measured bandwidth and the peaks of instructions."""
    drawn = [p for p in points if p.row["bytes"] and p.row["operations"]]
    bandwidth = max((v for k, v in limits.items() if k.endswith("GB/s")), default=0.0)
    peaks = {k.split(",")[0]: v for k, v in limits.items() if k.endswith("TFLOP/s")}
    if not drawn or not bandwidth:
        return ""
    ridge = max(peaks.values(), default=0.0) / bandwidth * 1e3
    x = LogAxis.around([*(p.intensity for p in drawn), *([ridge] if ridge else [])], *_RIGHT)
    slope = [bandwidth * i / 1e3 for i in (x.low, x.high)]
    top = max(peaks.values(), default=slope[1])
    rates = [*(p.rate for p in drawn), min(slope[0], top), top]
    y = LogAxis.around(rates, _BOTTOM, _TOP)
    parts = [_panel("Roofline", x, y, "operations per byte", "TFLOP/s")]
    first = max(x.low, y.low / bandwidth * 1e3)
    last = min(x.high, top / bandwidth * 1e3)
    if first < last:
        ends = [(i, bandwidth * i / 1e3) for i in (first, last)]
        places = [(x.place(i), y.place(rate)) for i, rate in ends]
        parts.append(path(places, class_="roof"))
        (x0, y0), (x1, y1) = places
        turn = math.degrees(math.atan2(y1 - y0, x1 - x0))
        at = (x0 + (x1 - x0) * 0.3, y0 + (y1 - y0) * 0.3 - 7)
        label = f"{number(bandwidth)} GB/s"
        parts.append(
            text(
                label,
                *at,
                class_="soft halo",
                transform=f"rotate({turn:.1f} {at[0]:.1f} {at[1]:.1f})",
            )
        )
    heights = spread([y.place(v) - 5 for v in peaks.values()], 14, y.end, y.begin)
    for (name, peak), height in zip(peaks.items(), heights, strict=True):
        start = max(peak / bandwidth * 1e3, x.low)
        if start < x.high:
            places = [(x.place(start), y.place(peak)), (x.end, y.place(peak))]
            parts.append(path(places, class_="roof"))
        label = f"{name.split()[0]}: {number(peak)} TFLOP/s"
        parts.append(text(label, x.end - 4, height, class_="soft halo", text_anchor="end"))
    for point in sorted(drawn, key=lambda p: p.contestant == LAMPO):
        place = x.place(point.intensity), y.place(point.rate)
        parts.append(_mark(*place, names.index(point.contestant), point.describe()))
    return "".join(parts)
