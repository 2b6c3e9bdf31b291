# SPDX-License-Identifier: Apache-2.0
"""``python -m lampo`` is the same as ``lampo``."""

from __future__ import annotations

import sys

from lampo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
