#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write results as tables into the documents that quote them.

A document has "<!-- results: NAME NAME -->" and, further down, "<!-- /results -->". The tables of
benchmarks/results/NAME.json, of existing files, go in between.

python benchmarks/readme_table.py            # --check: only check whether documents are up to date
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import results

RESULTS = results.ROOT / "benchmarks" / "results"
DOCUMENTS = ("README.md", "docs/performance.md")
BLOCK = re.compile(r"(<!-- results: (.*?) -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def table(document: dict[str, Any]) -> str:
    columns = document["columns"]
    # Documents of `lampo bench` have lampo.cli's provenance, those of scripts that of results.py.
    hardware = document.get("hardware") or document["platform"]
    count = document["threads"]
    count = count["chosen"] if isinstance(count, dict) else count
    threads = f"{count} thread{'s' if count != 1 else ''}"
    where = hardware["gpu"] if "gpu" in hardware else f"{hardware['cpu']}, {threads}"
    fixed = [f", {k} {v}" for k, v in document.get("constants", {}).items() if v is not None]
    lines = [
        f"`{document['command']}`: {where}, {document['date'][:10]}{''.join(fixed)}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for case in document["cases"]:
        lines.append("| " + " | ".join(results.text(case.get(name)) for name in columns) + " |")
    return "\n".join(lines) + "\n"


def tables(names: list[str]) -> str:
    paths = [RESULTS / f"{name}.json" for name in names]
    return "\n".join(table(json.loads(path.read_text())) for path in paths if path.exists())


def filled(text: str) -> str:
    """The document with all tables from the result files."""
    return BLOCK.sub(lambda block: block[1] + tables(block[2].split()), text)


def main() -> int:
    outdated = []
    for name in DOCUMENTS:
        path = results.ROOT / name
        before = path.read_text()
        after = filled(before)
        if before != after:
            outdated.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(after)
    if "--check" in sys.argv[1:] and outdated:
        print(f"readme_table: not the numbers of benchmarks/results/: {', '.join(outdated)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
