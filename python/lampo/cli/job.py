# SPDX-License-Identifier: Apache-2.0
"""A parsed command line: a job to run, and the exit code it returns."""

from __future__ import annotations

from collections.abc import Callable

Job = Callable[[], int]

# 0: done. Above 128: 128 + the signal's number, as shells count.
EXIT_INTERNAL = 1  # a bug
EXIT_USER = 2  # an error in arguments, files or environment
EXIT_INTERRUPTED = 130  # Ctrl-C
EXIT_CLOSED_PIPE = 141  # the reader of the output has gone
