# SPDX-License-Identifier: Apache-2.0
"""``python -m lampo`` is the same as ``lampo``."""

from __future__ import annotations

from lampo.cli.main import program

if __name__ == "__main__":
    program()
