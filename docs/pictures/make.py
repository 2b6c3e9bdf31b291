#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the pictures of the docs: parts of a page of `lampo explain`, in a headless Chromium.

    PYTHONPATH=tests/support docs/pictures/make.py

Take them on a quiet machine: the times in them are this machine's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from browser import Browser, Page, find_browser

from lampo import LLM, SamplingParams

HERE = Path(__file__).parent
PARAMS = SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=3)
WIDTH = 792


class Picture(NamedTuple):
    """A section up to one of its parts, with a token chosen."""

    file: str
    section: int
    last_part: int
    token: int


PICTURES = [
    Picture("attention.png", section=3, last_part=2, token=50),
    Picture("strategy.png", section=5, last_part=2, token=40),
    Picture("tracks.png", section=6, last_part=0, token=60),
    Picture("cache.png", section=7, last_part=1, token=60),
]


def main() -> None:
    path = find_browser() or sys.exit("no Chromium is installed")
    with LLM() as llm:  # before the browser takes its share of the machine
        found = llm.explain("Why is the sky blue?", PARAMS, command="lampo explain")
    with tempfile.TemporaryDirectory() as folder, Browser(path) as browser:
        page = Page(browser, found.save(Path(folder) / "page.html"), width=WIDTH, height=900)
        page.evaluate("document.querySelector('nav').style.position = 'static'")
        for picture in PICTURES:
            page.evaluate(f"choose({picture.token}, false)")
            x, y, width, height = page.evaluate(
                "(() => { const sections = document.querySelectorAll('section');"
                f"const section = sections[{picture.section}];"
                "const box = section.getBoundingClientRect();"
                f"const end = section.children[2 + {picture.last_part}].getBoundingClientRect();"
                "return [box.x + scrollX, box.y + scrollY, box.width, end.bottom - box.top]; })()"
            )
            file = HERE / picture.file
            page.screenshot(file, x=x - 8, y=y + 4, width=width + 16, height=height + 4)
            print(f"{picture.file}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
