# SPDX-License-Identifier: Apache-2.0
"""The program `lampo`, which is also ``python -m lampo``."""

from __future__ import annotations

import signal
from typing import NoReturn


def program() -> NoReturn:
    """Runs the command line. Ctrl-C before that ends the process, without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lampo.cli.main import program

    program()


if __name__ == "__main__":
    program()
