# SPDX-License-Identifier: Apache-2.0
"""A progress bar on stderr, shown if stderr is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from lampo.engine.request import Request

T = TypeVar("T")


def track_tokens(steps: Iterable[T], requests: list[Request], progress: bool | None) -> Iterator[T]:
    """Yields the steps, and shows the number of finished completions and the tokens per second.

    Args:
        steps: the engine's steps.
        requests: the requests of the steps.
        progress: whether to show it; None: if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if progress is None else progress):
        yield from steps
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        sequences = [sequence for request in requests for sequence in request.sequences]
        task = bar.add_task("generating", total=len(sequences), rate="")
        shown = 0.0
        for step in steps:
            yield step
            if time.monotonic() < shown + 0.1:  # counting thousands of sequences takes time
                continue
            shown = time.monotonic()
            tokens = sum(s.num_output_tokens for s in sequences)
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{tokens / elapsed:.0f} tok/s" if elapsed > 0.1 else ""
            bar.update(task, completed=sum(s.finished for s in sequences), rate=rate)
