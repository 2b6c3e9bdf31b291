# SPDX-License-Identifier: Apache-2.0
"""Pictures of `lampo bench --plot`: well-formed, complete, inside their frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lampo.bench import svg
from lampo.bench.plot import plot
from lampo.cli.main import main

SVG = "{http://www.w3.org/2000/svg}"


def row(us: float, factor: float = 3.0, **case: Any) -> dict[str, Any]:
    def times(value: float) -> dict[str, float]:
        return {"median": value, "q1": value * 0.9, "q3": value * 1.1, "count": 5}

    return {
        "case": case,
        "times_us": {"lampo": times(us), "my.py:<f>&": times(us * factor)},
        "bytes": 1 << 20,
        "operations": 1 << 22,
    }


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "op paged_attention",
        "cases": list(rows),
        "constants": {"heads": "4/2x32"},
        "limits": {"read bandwidth, 4 MiB, GB/s": 40.0, "f32 instructions of avx2, TFLOP/s": 0.2},
        "platform": {"cpu": "a CPU"},
        "device": "cpu",
        "threads": {"chosen": 2},
    }


def drawn(text: str) -> ElementTree.Element:
    """The root, after a check that all marks are within the picture."""
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < width
        assert 0 < float(circle.attrib["cy"]) < height
    for element in root.iter(f"{SVG}text"):
        assert 0 < float(element.attrib["x"]) < width
        assert 0 < float(element.attrib["y"]) < height
    return root


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_latency_over_length_and_roofline() -> None:
    rows = [row(10.0 * n * b, seq_len=64 * n, batch=b) for n in (1, 4, 16) for b in (1, 8)]
    root = drawn(plot(document(*rows)))
    found = words(root)
    assert "Latency over seq_len" in found
    assert "Roofline" in found
    assert {"batch 1", "batch 8", "64", "1K", "my.py:<f>&"} <= set(found)
    assert "f32: 0.200 TFLOP/s" in found
    assert "40.0 GB/s" in found
    # Two lines of two contestants; a mark each in both panels, and one in the legend.
    lines = [e for e in root.iter(f"{SVG}path") if "line" in e.attrib["class"]]
    assert len(lines) == 4
    assert len(list(root.iter(f"{SVG}circle"))) == 2 * 12 + 2
    tips = [e.findtext(f"{SVG}title") or "" for e in root.iter(f"{SVG}circle")]
    assert "lampo: 10.0 us (9.00 to 11.0); seq_len 64, batch 1" in tips


def test_cases_without_a_length() -> None:
    root = drawn(plot(document(row(3, arrays="torch"), row(50, arrays="numpy"))))
    assert {"Latency", "torch", "numpy"} <= set(words(root))
    assert drawn(plot(document(row(3, arrays="torch"))))


def test_runs_without_limits_have_no_roofline() -> None:
    found = document(row(3, rows=1), row(9, rows=64)) | {"limits": {}}
    assert "Roofline" not in words(drawn(plot(found)))


def test_both_colour_schemes() -> None:
    text = plot(document(row(3, rows=1), row(9, rows=64)))
    assert "prefers-color-scheme:dark" in text
    assert "<script" not in text


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="plot: no case was measured"):
        plot(document())


def test_the_command_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "out.svg"
    line = f"bench op rms_norm --rows 1,4 --hidden 64 --repeats 1 --warm --plot {file}"
    assert main([*line.split(), "--json", str(tmp_path / "out.json")]) == 0
    assert plot(json.loads((tmp_path / "out.json").read_text())) == file.read_text()
    assert "Latency over rows" in words(drawn(file.read_text()))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (0.01, 0.02), (3, 4000), (1e-4, 1e9)])
def test_axes(low: float, high: float) -> None:
    axis = svg.LogAxis.around([low, high], 100, 0)
    assert 100 > axis.place(low) >= axis.place(high) > 0
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in ticks)


def test_labels_do_not_overlap() -> None:
    places = svg.spread([50, 51, 52, 10, 99], 14, 0, 100)
    assert all(b - a >= 14 for a, b in zip(sorted(places), sorted(places)[1:], strict=False))
    assert max(places) <= 100
