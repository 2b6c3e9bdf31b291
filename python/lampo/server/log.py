# SPDX-License-Identifier: Apache-2.0
"""The format of log lines."""

from __future__ import annotations

import logging

_MAX_LINE = 500  # characters


class ShortLines(logging.Formatter):
    """Cuts long lines, those of tracebacks too: what clients send may be part of them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(_shorten, super().format(record).splitlines()))


def _shorten(line: str) -> str:
    if len(line) <= _MAX_LINE:
        return line
    return f"{line[:_MAX_LINE]}... ({len(line)} characters)"
