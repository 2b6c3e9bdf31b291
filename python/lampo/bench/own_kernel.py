# SPDX-License-Identifier: Apache-2.0
"""Somebody's own function in place of an op: "my.py:function", with the op's keyword arguments."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lampo.bench.cases import Case, WrongResult
from lampo.error_text import shortened


@dataclass(frozen=True)
class OwnKernel:
    """A function that takes the keyword arguments of an op, and returns or writes its results.

    Attributes:
        name: "my.py:function", without folders.
    """

    name: str
    function: Callable[..., Any]
    path: Path

    @classmethod
    def load(cls, text: str) -> OwnKernel:
        """Runs a file and takes a function of it. Raises: ValueError, OSError."""
        file, colon, name = text.rpartition(":")
        if not colon or not file or not name.isidentifier():
            raise ValueError(f"kernel: expected FILE.py:FUNCTION, got {text!r}")
        path = Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(2, "kernel: no such file", file)
        spec = importlib.util.spec_from_file_location(f"lampo_own_kernel_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ValueError(f"kernel: {file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses and torch.compile look it up
        sys.path.insert(0, str(path.resolve().parent))
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise ValueError(f"kernel: {_failure(path.name, path, error)}") from error
        finally:
            sys.path.pop(0)
        function = getattr(module, name, None)
        if not callable(function):
            raise ValueError(f"kernel: {file} has no function {name}")
        return cls(f"{path.name}:{name}", function, path)

    def check(self, case: Case) -> float:
        """As Case.check. Raises: ValueError: a wrong signature or result, or an exception."""
        try:
            inspect.signature(self.function).bind(**case.make())
        except TypeError as error:
            names = ", ".join(case.make())
            raise ValueError(
                f"kernel: {self.name} must take the keyword arguments {names}: {error}"
            ) from None
        except ValueError:  # a built-in function without a signature
            pass
        try:
            return case.check(self.function)
        except WrongResult as error:
            raise ValueError(f"kernel: {self.name}: {error}") from None
        except Exception as error:
            raise ValueError(f"kernel: {_failure(self.name, self.path, error)}") from error


def _failure(name: str, path: Path, error: Exception) -> str:
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path or Path(frame.filename) == path.resolve()
    ]
    where = f" in line {lines[-1]}" if lines else ""
    return f"{name} raised {type(error).__name__}{where}: {shortened(str(error)) or 'no message'}"
