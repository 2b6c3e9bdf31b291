# SPDX-License-Identifier: Apache-2.0
"""Rules of csrc/ that no compiler enforces."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "csrc"


def test_bindings_include_nothing_of_cuda():
    """They see the public headers: a binding for tests belongs to tests/hooks/."""
    files = sorted((SOURCES / "bindings").glob("*.*"))
    assert len(files) > 5
    assert [file.name for file in files if '#include "cuda/' in file.read_text()] == []


def test_formats_are_named_in_their_folder_alone():
    """A new format is a file of common/formats/ and an entry of the list there."""
    names = {file.stem for file in (SOURCES / "common/formats").glob("q*.h")}
    assert {"q4_0", "q4_1", "q8_0"} <= names
    for file in SOURCES.rglob("*.*"):
        if file.parent.name != "formats":
            code = re.sub(r"//.*", "", file.read_text())
            found = [name for name in names if name.casefold() in code.casefold()]
            assert found == [], file


def test_lines_fit_100_columns():
    """Comments too, which clang-format leaves as they are."""
    files = [file for file in SOURCES.rglob("*.*") if file.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert len(files) > 100
    long = [
        f"{file.relative_to(SOURCES)}:{number}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if len(line) > 100
    ]
    assert long == []
