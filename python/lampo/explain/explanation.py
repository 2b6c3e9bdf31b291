# SPDX-License-Identifier: Apache-2.0
"""The result of :meth:`lampo.LLM.explain`: data, and its forms."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lampo.explain.page import page


@dataclass(frozen=True)
class Explanation:
    """A recorded run of decoding. In a notebook it shows itself.

    Attributes:
        data: all that was recorded, of JSON's types; docs/decoding.md lists the fields.
    """

    data: dict[str, Any]

    @property
    def text(self) -> str:
        """The generated text."""
        return str(self.data["output"]["text"])

    def html(self) -> str:
        """The page: one file without other sources."""
        return page(self.data)

    def json(self) -> str:
        """The data as one JSON object."""
        return json.dumps(self.data, ensure_ascii=False)

    def save(self, path: str | Path) -> Path:
        """Writes the page, or with the suffix .json the data. Raises: OSError."""
        path = Path(path)
        as_json = path.suffix.lower() == ".json"
        path.write_text(self.json() if as_json else self.html(), encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"Explanation({self.text!r})"

    def _repr_html_(self) -> str:
        """The page in a frame: its styles and scripts stay apart from the notebook's."""
        source = html.escape(self.html(), quote=True)
        return (
            f'<iframe srcdoc="{source}" title="How this answer was decoded" '
            'style="width: 100%; height: 40rem; border: 0" sandbox="allow-scripts"></iframe>'
        )
