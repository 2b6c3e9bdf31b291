# SPDX-License-Identifier: Apache-2.0
"""Checks of structured outputs: types, sizes, and what would take too long to compile."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

MAX_BYTES = 64 << 10  # of a schema, expression, grammar, or of all choices
MAX_CHOICES = 1024
MAX_REGEX_BYTES = 4096
# What llguidance's own limits do not bound; beyond these, compiling or a step took more than 8 s.
# Counted repetitions inside one another, multiplied; expressions that one string may have to match;
# the common multiple of divisors.
MAX_REPEATS = 1000
MAX_MEETING_PATTERNS = 8
MAX_MULTIPLE_OF = 10_000

_COMBINING = {"allOf", "anyOf", "oneOf", "$ref"}
_HARMLESS = _COMBINING | {"type", "title", "description", "default", "$schema", "$defs"}
_BOUNDS = re.compile(r"\s*([0-9]+)\s*(?:,\s*([0-9]+)?\s*)?\}")


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def check_text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a string, got {text!r}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name}: has a lone surrogate") from None
    if not 1 <= size <= MAX_BYTES:
        raise ValueError(f"{name}: expected 1 to {MAX_BYTES} bytes, got {size}")
    return text


def check_schema(schema: object) -> str:
    """The schema as text."""
    try:
        if isinstance(schema, Mapping):
            text = check_text("json", json.dumps(dict(schema), allow_nan=False))
        else:
            text = check_text("json", schema)
        value = json.loads(text)
    except (RecursionError, TypeError, ValueError) as error:
        if str(error).startswith("json: "):
            raise
        raise ValueError(f"json: not a JSON schema ({first_line(str(error))})") from None
    if not isinstance(value, dict):
        raise ValueError(f"json: expected a JSON object, got {type(value).__name__}")
    _check_cost(value)
    return text


def _check_cost(schema: dict[str, Any]) -> None:
    """Refuses what takes long to compile. Literal values count as schemas: that is cheap."""
    divisors: list[Decimal] = []
    patterns, meeting = 0, False
    left: list[Any] = [schema]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        if not isinstance(item, dict):
            continue
        left += item.values()
        named = item.get("patternProperties")
        found = [item.get("pattern"), *(named if isinstance(named, dict) else ())]
        for pattern in found:
            if isinstance(pattern, str):
                patterns += 1
                check_regex("json: pattern", pattern)
        patterns += isinstance(item.get("format"), str)
        divisor = item.get("multipleOf")
        if isinstance(divisor, int | float) and math.isfinite(divisor) and divisor:
            divisors.append(Decimal(str(divisor)))
        branches = item.get("allOf")
        several = isinstance(branches, list) and len(branches) > 1
        meeting |= several or bool(_COMBINING & item.keys() and item.keys() - _HARMLESS)
    if _common_multiple(divisors) > MAX_MULTIPLE_OF:
        raise ValueError(f"json: multipleOf: a common multiple above {MAX_MULTIPLE_OF}")
    if meeting and patterns > MAX_MEETING_PATTERNS:
        raise ValueError(
            f"json: {patterns} patterns and formats in a schema that combines others, "
            f"expected at most {MAX_MEETING_PATTERNS}"
        )


def _common_multiple(numbers: list[Decimal]) -> int:
    """In units of their last decimal place; a large number where it would take long to compute."""
    exponents = [int(number.normalize().as_tuple().exponent) for number in numbers]
    if any(number.adjusted() > 15 for number in numbers) or min(exponents, default=0) < -15:
        return MAX_MULTIPLE_OF + 1
    places = max((-exponent for exponent in exponents), default=0)
    multiple = 1
    for number in numbers:
        multiple = math.lcm(multiple, int(number.scaleb(max(places, 0))))
        if multiple > MAX_MULTIPLE_OF:
            break
    return multiple


def check_regex(name: str, regex: object) -> None:
    size = len(check_text(name, regex).encode())
    if size > MAX_REGEX_BYTES:
        raise ValueError(f"{name}: expected 1 to {MAX_REGEX_BYTES} bytes, got {size}")
    _check_repeats(name, str(regex))


def check_choice(choice: object) -> tuple[str, ...]:
    if not isinstance(choice, Sequence) or isinstance(choice, str):
        raise TypeError(f"choice: expected a list of strings, got {choice!r}")
    if not 1 <= len(choice) <= MAX_CHOICES:
        raise ValueError(f"choice: expected 1 to {MAX_CHOICES} strings, got {len(choice)}")
    for i, text in enumerate(choice):
        check_text(f"choice[{i}]", text)
    check_text("choice", "".join(choice))
    return tuple(choice)


def _check_repeats(name: str, pattern: str) -> None:
    """Counted repetitions inside one another cost states by their product: (a{9}b{8}){9}, 153."""
    # Costs of the counted atoms in each open group, added; then that of the atom just read.
    inside, atom, at = [0], 0, 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "(":
            inside.append(0)
            atom = 0
        elif char == ")" and len(inside) > 1:
            atom = inside.pop()
            inside[-1] += atom
        elif char == "{" and (bounds := _BOUNDS.match(pattern, at)):
            at = bounds.end()
            count = max(int(bound.lstrip("0")[:10] or 0) for bound in bounds.groups(default="1"))
            nested = max(atom, 1) * max(count, 1)
            if atom and nested > MAX_REPEATS:
                raise ValueError(
                    f"{name}: nested repetitions of {nested} in all, expected at most {MAX_REPEATS}"
                )
            inside[-1] += nested - atom
            atom = nested
        elif char == "[":
            at = _class_end(pattern, at)
            atom = 0
        elif char not in "*+?|":
            at += char == "\\"
            atom = 0


def _class_end(pattern: str, at: int) -> int:
    """Where a character class ends whose bracket was at `at` - 1; classes may be nested."""
    first, depth = at + pattern.startswith("^", at), 1
    while at < len(pattern) and depth:
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            depth += 1
        elif char == "]" and at > first:  # the first is a character
            depth -= 1
        at += 1
    return at
