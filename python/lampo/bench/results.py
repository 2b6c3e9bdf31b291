# SPDX-License-Identifier: Apache-2.0
"""Measured cases as rows: of a Markdown table, a CSV file and a JSON document.

Units are the same everywhere: us, GB/s (1e9 bytes), TFLOP/s (1e12 operations).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lampo.bench.cost import Cost
from lampo.bench.timing import Series, pair_ratio
from lampo.runtime.machine_load import MachineLoad

LAMPO = "lampo"
BUSY_SHARE = 0.5  # of the cores, taken by other processes: such rows are marked
BUSY_MARK = " *"


def is_busy(load: MachineLoad | None) -> bool:
    """Whether other processes took more than half of the cores."""
    return load is not None and load.others > BUSY_SHARE * load.cores


@dataclass(frozen=True)
class Measured:
    """A case with its times.

    Attributes:
        case: values by axis.
        times: seconds of each contestant, taken in turns; the first is what is benchmarked.
        cost: of the call; 0 bytes: unknown.
        least: the least time by the machine's limits, in seconds, and "memory" or "compute", which
            bounds it; called at the end of a run, as limits get better with samples.
        error: largest error over the tolerance; None: not a number.
        load: of the machine meanwhile; busy: see :func:`is_busy`.
        extra: further columns, such as tokens per second.
    """

    case: dict[str, Any]
    times: dict[str, Series]
    cost: Cost
    least: Callable[[], tuple[float, str]] | None = None
    error: float | None = None
    load: MachineLoad | None = None
    busy: bool = False
    extra: dict[str, float] | None = None

    @property
    def names(self) -> dict[str, Any]:
        """The case as numbers and text, in JSON's types."""
        plain = (int, float, str, type(None))
        return {k: v if isinstance(v, plain) else str(v) for k, v in self.case.items()}

    def rates(self, series: Series) -> dict[str, float]:
        if not self.cost.nbytes:
            return {}
        rates = {"GB/s": self.cost.gb_per_s(series.median)}
        if self.cost.flops:
            rates["TFLOP/s"] = self.cost.tflop_per_s(series.median)
        return rates

    def row(self) -> dict[str, Any]:
        """One row of the table, with details for the JSON document."""
        own = self.times[LAMPO]
        row: dict[str, Any] = {**self.names, **(self.extra or {})}
        row |= {"us": own.us, "q1": own.q1 * 1e6, "q3": own.q3 * 1e6, **self.rates(own)}
        least_s, bound = (None, "") if self.least is None else self.least()
        if least_s is not None:
            row |= {"bound by": bound, "limit %": 100 * least_s / own.median}
        ratios = {}
        for name, series in self.times.items():
            if name != LAMPO:
                ratio = pair_ratio(series, own)
                row |= {f"{name} us": series.us, f"x {name}": ratio.median}
                ratios[name] = ratio.summary()
        load = None
        if self.load is not None:
            load = {"others": self.load.others, "cores": self.load.cores}
        return row | {
            "case": self.names,
            "times_us": {name: series.summary(1e6) for name, series in self.times.items()},
            "ratios": ratios,
            "bytes": self.cost.nbytes,
            "operations": self.cost.flops,
            "least_us": None if least_s is None else least_s * 1e6,
            "error": self.error,
            "load": load,
            "busy": self.busy,
        }


def text(value: Any) -> str:
    """A table's cell: three significant digits, whole numbers from 100 on, "-" for None."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    for bound, digits in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)):
        if abs(value) >= bound:
            return f"{value:.{digits}f}"
    return f"{value:.4f}"


def columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of a table: axes that vary, then what was measured."""
    details = ("case", "times_us", "ratios", "bytes", "operations", "least_us", "error")
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(row)
    fixed = constants(rows)
    names = [name for name in found if name not in (*details, "load", "busy", *fixed)]
    # Peers' columns come last, also those that the first row lacks.
    peers = [name for name in names if name.endswith(" us") or name.startswith("x ")]
    return [name for name in names if name not in peers] + peers


def constants(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The axes with one value in all rows; none if there is one row."""
    if len(rows) < 2:
        return {}
    first = rows[0]["case"]
    return {
        name: value
        for name, value in first.items()
        if all(row["case"].get(name) == value for row in rows)
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with aligned columns; busy rows are marked."""
    if not rows:
        return ""
    names = columns(rows)
    cells = [names, *([_cell(row, name) for name in names] for row in rows)]
    return aligned(cells, [isinstance(rows[0].get(name), str) for name in names])


def aligned(cells: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    """A Markdown table; the first row is its head. left: whether a column is aligned left."""
    widths = [max(max(map(len, column)), 3) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = (
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(row, widths, left, strict=True)
        )
        lines.append(f"| {' | '.join(padded)} |")
    rule = (
        "-" * w if to_left else "-" * (w - 1) + ":" for w, to_left in zip(widths, left, strict=True)
    )
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str) -> str:
    value = text(row.get(name))
    return value + BUSY_MARK if name == "us" and row.get("busy") else value


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """One line per case and contestant."""
    if not rows:
        return ""
    axes = list(dict.fromkeys(name for row in rows for name in row["case"]))
    measured = ["contestant", "us", "q1", "q3", "samples", "GB/s", "TFLOP/s", "limit %", "busy"]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*axes, *measured], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for name, times in row["times_us"].items():
            us = times["median"]
            rates: dict[str, Any] = {}
            if row["bytes"]:
                rates = {"GB/s": row["bytes"] / us / 1e3, "TFLOP/s": row["operations"] / us / 1e6}
            if row["least_us"] is not None:
                rates["limit %"] = 100 * row["least_us"] / us
            spread = {"us": us, "q1": times["q1"], "q3": times["q3"], "samples": times["count"]}
            line = {**row["case"], "contestant": name, **spread, **rates, "busy": row["busy"]}
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    return out.getvalue()
