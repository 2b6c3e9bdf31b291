# SPDX-License-Identifier: Apache-2.0
"""Two runs of a benchmark, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lampo.bench.results import LAMPO, aligned, text
from lampo.error_text import shortened

FASTER, SLOWER, SAME = "faster", "slower", "same"


@dataclass(frozen=True)
class Pair:
    """One contestant's times of one case in both runs.

    Attributes:
        ratio: of the medians, the second over the first.
        low, high: the ratio's range if each median is anywhere between its quartiles.
        verdict: "faster" or "slower" if the quartiles of the two do not overlap, else "same".
        busy: the machine was busy in one of them.
    """

    case: str
    contestant: str
    us_a: float
    us_b: float
    ratio: float
    low: float
    high: float
    verdict: str
    busy: bool


@dataclass(frozen=True)
class Comparison:
    """Rows of both files, and of one alone; warnings about machines and versions."""

    pairs: list[Pair]
    only_a: list[str]
    only_b: list[str]
    warnings: list[str]

    def slower_than(self, ratio: float) -> list[Pair]:
        """lampo's rows that are slower by more than the noise, and by more than `ratio`."""
        return [
            p
            for p in self.pairs
            if p.contestant == LAMPO and p.verdict == SLOWER and p.ratio > ratio
        ]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def read(path: Path) -> dict[str, Any]:
    """A file that `lampo bench` has written. Raises: ValueError, OSError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        for row in document["cases"]:
            for times in row["times_us"].values():
                if not all(float(times[name]) > 0 for name in ("q1", "median", "q3")):
                    raise ValueError
            str(row["case"])
        str(document["benchmark"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a file of `lampo bench ... --json`") from None
    found: dict[str, Any] = document
    return found


def compare(a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    """Joins two documents by benchmark, case and contestant."""
    rows_a, rows_b = dict(_rows(a)), dict(_rows(b))
    pairs = [_pair(*key, rows_a[key], rows_b[key]) for key in rows_a if key in rows_b]
    names = [
        [f"{case}: {name}" for case, name in rows if (case, name) not in other]
        for rows, other in ((rows_a, rows_b), (rows_b, rows_a))
    ]
    return Comparison(pairs, names[0], names[1], list(_differences(a, b)))


def _rows(document: dict[str, Any]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    for row in document["cases"]:
        values = ", ".join(f"{k} {v}" for k, v in row["case"].items() if v is not None)
        for name, times in row["times_us"].items():
            yield (f"{document['benchmark']}: {values}", name), times | {"busy": row.get("busy")}


def _pair(case: str, contestant: str, a: dict[str, Any], b: dict[str, Any]) -> Pair:
    verdict = SAME
    if b["q3"] < a["q1"]:
        verdict = FASTER
    elif b["q1"] > a["q3"]:
        verdict = SLOWER
    return Pair(
        case=case,
        contestant=contestant,
        us_a=a["median"],
        us_b=b["median"],
        ratio=b["median"] / a["median"],
        low=b["q1"] / a["q3"],
        high=b["q3"] / a["q1"],
        verdict=verdict,
        busy=bool(a["busy"] or b["busy"]),
    )


def _differences(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """One warning for each property of the runs that differs and may explain times."""

    def values(*path: str) -> tuple[Any, Any]:
        found = []
        for document in (a, b):
            value: Any = document
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            found.append(value)
        return found[0], found[1]

    machine = (
        ("processor", ("platform", "cpu")),
        ("instruction set", ("isa", "chosen")),
        ("threads", ("threads", "chosen")),
        ("device", ("device",)),
    )
    for name, path in machine:
        one, other = values(*path)
        if one != other:
            yield f"{name}: {_short(one)} and {_short(other)}"
    one, other = values("versions")
    for name in sorted({*(one or {}), *(other or {})}):
        left, right = ((versions or {}).get(name) for versions in (one, other))
        if left != right:
            yield f"version of {name}: {_short(left)} and {_short(right)}"


def _short(value: Any) -> str:
    return "unknown" if value is None else shortened(str(value), 60)


def markdown(found: Comparison) -> str:
    """The pairs as a table."""
    head = ["case", "of", "us", "then us", "ratio", "range", "verdict"]
    cells = [head] + [
        [
            pair.case,
            pair.contestant,
            text(pair.us_a),
            text(pair.us_b),
            f"{pair.ratio:.3f}",
            f"{pair.low:.2f}-{pair.high:.2f}",
            pair.verdict + (" *" if pair.busy else ""),
        ]
        for pair in found.pairs
    ]
    return aligned(cells, [True, True, False, False, False, False, True])
