# SPDX-License-Identifier: Apache-2.0
"""Typed reading of untrusted fields, with range checks: JSON files and GGUF metadata."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeVar

from lampo.error_text import shortened, shown

logger = logging.getLogger("lampo")

_T = TypeVar("_T")
_MAX_TOKEN_IDS = 64


class _Required(Enum):
    TOKEN = 0


REQUIRED: Final = _Required.TOKEN


class Fields:
    """One source of fields, such as a config.json.

    Every getter checks type and range and raises `ValueError` naming source, field, value and
    expectation. A field that is absent or null gives `default`; REQUIRED makes that an error.

    Args:
        source: the file's name in errors.
        values: the fields.
        names: key of the getters -> name in the file, where they differ.

    Attributes:
        read: names in the file of all fields that getters have read.
    """

    def __init__(
        self, source: str, values: Mapping[str, Any], names: Mapping[str, str] | None = None
    ) -> None:
        self.source = source
        self.values = values
        self.names = names or {}
        self.read: set[str] = set()

    def name(self, key: str) -> str:
        """The name that a field has in the file."""
        return self.names.get(key, key)

    def get(self, key: str) -> Any:
        """The field as it is, unchecked; None if absent."""
        name = self.name(key)
        self.read.add(name)
        return self.values.get(name)

    def error(self, key: str, expected: str) -> ValueError:
        value = self.get(key)
        got = "it is missing" if value is None else f"got {shown(value)}"
        return ValueError(f"{self.source}: {self.name(key)}: expected {expected}, {got}")

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def integer(
        self, key: str, low: int, high: int, default: _T | _Required = REQUIRED
    ) -> int | _T:
        value = self.get(key)
        if value is None and default is not REQUIRED:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def token_ids(self, key: str, vocab_size: int, *, warn: bool = True) -> tuple[int, ...]:
        """One token id or a list of them; absent gives ().

        Ids outside of the vocabulary mean "none", as in other engines. With `warn` one that is not
        -1 is logged.
        """
        value = self.get(key)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if len(items) > _MAX_TOKEN_IDS or not all(_is_integer(i) for i in items):
            raise self.error(key, f"a token id, or a list of up to {_MAX_TOKEN_IDS}")
        outside = [i for i in items if not -1 <= i < vocab_size]
        if outside and warn:
            logger.warning(
                "%s: %s: %s is ignored: it is not one of %d token ids",
                self.source,
                self.name(key),
                shown(outside[0]),
                vocab_size,
            )
        return tuple(dict.fromkeys(i for i in items if 0 <= i < vocab_size))

    def token_id(self, key: str, vocab_size: int, *, warn: bool = True) -> int | None:
        """The first of :meth:`token_ids`, or None."""
        return next(iter(self.token_ids(key, vocab_size, warn=warn)), None)

    def number(
        self,
        key: str,
        low: float,
        high: float,
        default: _T | _Required = REQUIRED,
        *,
        open_low: bool = False,
    ) -> float | _T:
        """A finite number in [low, high], or in (low, high] with `open_low`."""
        value = self.get(key)
        if value is None and default is not REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = math.nan
        if not low <= value <= high or (open_low and value == low):  # false for NaN
            above = f"above {low:g}" if open_low else f"from {low:g}"
            raise self.error(key, f"a finite number {above} to {high:g}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | _Required = REQUIRED) -> str:
        value = self.get(key)
        if value is None and default is not REQUIRED:
            return default
        if not isinstance(value, str) or value not in choices:
            raise self.error(key, "one of " + ", ".join(choices))
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(key, "an object")
        return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_json_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object in a JSON file, strictly: bounded size and depth, finite numbers, no duplicates.

    Raises:
        ValueError: one line naming the file and the fault.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"{path}: larger than the {max_bytes} bytes that are accepted")

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not a JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ValueError(f"the key {shown(key)} stands twice")
            result[key] = value
        return result

    try:
        value = json.loads(data, parse_constant=constant, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{path}: not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        reason = shortened(str(error).splitlines()[0])
        raise ValueError(f"{path}: not JSON that can be read: {reason}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {shown(value)}")
    return value
