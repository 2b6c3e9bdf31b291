#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the results that README.md quotes as tables, between its two `results` comments.

python benchmarks/readme_table.py
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import results

RESULTS = results.ROOT / "benchmarks" / "results"
QUOTED = ("decode", "sample")  # the others are in the folder for who wants more
README = results.ROOT / "README.md"
BLOCK = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)


def table(document: dict[str, Any]) -> str:
    columns = document["columns"]
    hardware = document["hardware"]
    where = hardware.get("gpu", hardware["cpu"])
    lines = [
        f"`{document['command']}`: {where}, {document['threads']} threads, {document['date'][:10]}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for case in document["cases"]:
        lines.append("| " + " | ".join(results.text(case.get(name)) for name in columns) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    paths = [RESULTS / f"{name}.json" for name in QUOTED]
    documents = [json.loads(path.read_text()) for path in paths if path.exists()]
    if not documents:
        print("readme_table: no results: run a benchmark with --json benchmarks/results/NAME.json")
        return 0
    tables = "\n".join(table(document) for document in documents)
    before = README.read_text()
    after = BLOCK.sub(lambda _: tables, before, count=1)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("readme_table: README.md's numbers are not those of benchmarks/results/")
        return int(before != after)
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
