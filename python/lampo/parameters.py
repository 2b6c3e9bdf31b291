# SPDX-License-Identifier: Apache-2.0
"""The range, the meaning and the group of a parameter, as metadata of its field.

:func:`check_parameters` checks the fields that carry a :class:`Parameter`. The command line's
options and the server's schema are derived from the same fields.
"""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from lampo.checks import check_integer, check_number
from lampo.error_text import shown

MAX_INTEGER = 2**31 - 1


class Kind(Protocol):
    """The type and range of a parameter."""

    def check(self, name: str, value: Any) -> Any:
        """The value in its normal form. Raises: ValueError, TypeError: texts begin with `name`."""


@dataclass(frozen=True)
class Integer:
    low: int
    high: int = MAX_INTEGER

    def check(self, name: str, value: Any) -> int:
        return check_integer(name, value, self.low, self.high)


@dataclass(frozen=True)
class Number:
    low: float
    high: float
    open_low: bool = False  # whether `low` itself is excluded

    def check(self, name: str, value: Any) -> float:
        return check_number(name, value, self.low, self.high, self.open_low)


@dataclass(frozen=True)
class Flag:
    def check(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {shown(value)}")
        return value


@dataclass(frozen=True)
class Text:
    def check(self, name: str, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Choice:
    names: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        if value not in self.names:
            raise ValueError(f"{name}: expected one of {', '.join(self.names)}, got {shown(value)}")
        return str(value)


@dataclass(frozen=True)
class Strings:
    """A string, or a list of up to `max_items`; of 1 to `max_length` characters each."""

    max_items: int
    max_length: int

    def check(self, name: str, value: Any) -> tuple[str, ...]:
        strings = (value,) if isinstance(value, str) else value
        if not isinstance(strings, Sequence):
            raise TypeError(f"{name}: expected a string or a list of strings, got {shown(value)}")
        if len(strings) > self.max_items:
            raise ValueError(
                f"{name}: expected at most {self.max_items} strings, got {len(strings)}"
            )
        for i, string in enumerate(strings):
            if not isinstance(string, str):
                raise TypeError(f"{name}[{i}]: expected a string, got {shown(string)}")
            if not 1 <= len(string) <= self.max_length:
                raise ValueError(
                    f"{name}[{i}]: expected 1 to {self.max_length} characters, got {len(string)}"
                )
        return tuple(strings)


@dataclass(frozen=True)
class TokenIds:
    max_items: int

    def check(self, name: str, value: Any) -> tuple[int, ...]:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
            raise TypeError(f"{name}: expected a list of token ids, got {shown(value)}")
        if len(value) > self.max_items:
            raise ValueError(f"{name}: expected at most {self.max_items} ids, got {len(value)}")
        return tuple(check_integer(f"{name}[{i}]", v, 0, MAX_INTEGER) for i, v in enumerate(value))


@dataclass(frozen=True)
class TokenValues:
    """A mapping of up to `max_items` token ids to numbers."""

    max_items: int
    low: float
    high: float

    def check(self, name: str, value: Any) -> dict[int, float]:
        if not isinstance(value, Mapping):
            raise TypeError(f"{name}: expected a mapping of token id to value, got {shown(value)}")
        if len(value) > self.max_items:
            raise ValueError(f"{name}: expected at most {self.max_items} entries, got {len(value)}")
        return {
            check_integer(name, token_id, 0, MAX_INTEGER): check_number(
                f"{name}[{token_id}]", v, self.low, self.high, False
            )
            for token_id, v in value.items()
        }


@dataclass(frozen=True)
class Instance:
    """An object of one class, which checks itself."""

    of: type
    name: str

    def check(self, name: str, value: Any) -> Any:
        if not isinstance(value, self.of):
            raise TypeError(f"{name}: expected {self.name}, got {shown(value)}")
        return value


@dataclass(frozen=True)
class Parameter:
    """The metadata of a field, under the key "parameter".

    Attributes:
        kind: its type and range. None stands for the default.
        group: heading in the command line's help.
        help: its meaning, in sentences.
    """

    kind: Kind
    group: str
    help: str


def parameter(kind: Kind, group: str, help: str) -> dict[str, Parameter]:
    """The `metadata` of a `dataclasses.field`."""
    return {"parameter": Parameter(kind, group, help)}


@functools.cache
def parameters(dataclass: Hashable) -> dict[str, tuple[Parameter, Any]]:
    """The parameters among the fields of a dataclass, with their defaults."""
    return {
        f.name: (
            f.metadata["parameter"],
            f.default if f.default_factory is dataclasses.MISSING else f.default_factory(),
        )
        for f in dataclasses.fields(cast(Any, dataclass))
        if "parameter" in f.metadata
    }


def check_parameters(instance: Any) -> None:
    """Checks the fields of a dataclass and sets them to their normal forms; None: the default.

    Raises: ValueError, TypeError: a value that does not fit, by its field's name.
    """
    for name, (found, default) in parameters(cast(Hashable, type(instance))).items():
        value = getattr(instance, name)
        if value is None:
            value = default
        if value is not None:
            setattr(instance, name, found.kind.check(name, value))


def attributes_text(dataclass: Any) -> str:
    """The attributes of a dataclass as a section of its docstring."""
    lines = ["    Attributes:"]
    for name, (found, _) in parameters(dataclass).items():
        lines += textwrap.wrap(
            f"{name}: {found.help}", 100, initial_indent=" " * 8, subsequent_indent=" " * 12
        )
    return "\n".join(lines)
