# SPDX-License-Identifier: Apache-2.0
"""``lampo pull``: put a model on this machine, with a progress bar; the other commands use it."""

from __future__ import annotations

import functools
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from lampo.cli.job import Job
from lampo.cli.terminal import console, note, status

if TYPE_CHECKING:
    from rich.progress import Progress
    from typing_extensions import Self


def pull(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A Hugging Face id (org/name, or org/name:Q4_0 for a GGUF file). "
            "Default: SmolLM2-135M-Instruct.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only print the path.")] = False,
) -> Job:
    """Fetch a model into the cache and print its path.

    What is cached already is not fetched again.
    """
    return functools.partial(_run, model, quiet)


def _run(model: str | None, quiet: bool) -> int:
    bar = FetchBar(quiet)
    path = fetch(model, bar)
    if not quiet and not bar.fetched:
        note("already on this machine")
    print(path)
    return 0


def fetch(model: str | None, bar: FetchBar) -> Path:
    """`weights.pull` with a bar. Raises: ModelNotFoundError, one line."""
    from lampo import weights

    with bar:
        return weights.pull(model, bar.update)


class ByteBar:
    """A progress bar on stderr that counts bytes, from the first update on.

    Args:
        what: the work, as "fetching".
        quiet: whether to show nothing.
    """

    def __init__(self, what: str, quiet: bool) -> None:
        self._what = what
        self._quiet = quiet
        self._progress: Progress | None = None

    def update(self, done: int, total: int | None) -> None:
        if self._quiet:
            return
        if self._progress is None:
            status.clear()
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn(f"lampo: {self._what}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=console(),
            )
            self._progress.add_task("", total=total)
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class FetchBar(ByteBar):
    """One that appears once there is something to fetch.

    fetched: whether anything was fetched.
    """

    def __init__(self, quiet: bool) -> None:
        super().__init__("fetching", quiet)
        self.fetched = False
        self._first: int | None = None

    def update(self, done: int, total: int | None) -> None:
        """The callback of `weights.pull`."""
        if self._first is None:
            self._first = done
        self.fetched = self.fetched or done > self._first or (total is not None and done < total)
        if self.fetched:
            super().update(done, total)
