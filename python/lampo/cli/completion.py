# SPDX-License-Identifier: Apache-2.0
"""``lampo completion``: typer's completion of commands and options in a shell.

typer's own options for it would take 0.1 s of every start, as they have its types inferred.
"""

from __future__ import annotations

import functools
import os
from typing import Annotated

import typer

from lampo.cli.job import Job

_VARIABLE = "_LAMPO_COMPLETE"  # set by the script when a shell asks
_SHELLS = ("bash", "zsh", "fish")


def completion(
    shell: Annotated[str, typer.Argument(help=f"{', '.join(_SHELLS)}.", show_default=False)],
) -> Job:
    """Print the script that completes lampo's commands and options in a shell.

    The shell's start-up file evaluates it, or its folder of completions holds it.
    """
    if shell not in _SHELLS:
        raise ValueError(f"shell: expected one of {', '.join(_SHELLS)}, got {shell!r}")
    return functools.partial(_run, shell)


def _run(shell: str) -> int:
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print(get_completion_script(prog_name="lampo", complete_var=_VARIABLE, shell=shell))
    return 0


def prepare_completion() -> None:
    """Lets typer answer the shell, if it asks."""
    if _VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
