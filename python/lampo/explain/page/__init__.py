# SPDX-License-Identifier: Apache-2.0
"""The page of an explanation: one file of HTML without any other source."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

# In this order in the page, as one script.
_SCRIPTS = ("core.js", "draw.js", "tokens.js", "choice.js", "time.js", "main.js")


def page(data: dict[str, Any]) -> str:
    """The page of recorded data, in UTF-8."""
    folder = resources.files(__name__)

    def read(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    # No "<": nothing in a JSON block can end it, or begin a comment.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"css": read("page.css"), "js": "\n".join(map(read, _SCRIPTS)), "data": text}
    html = read("page.html")
    for name, part in parts.items():
        before, after = html.split("{{" + name + "}}")
        html = before + part + after
    return html
