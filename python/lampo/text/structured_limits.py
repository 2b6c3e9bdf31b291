# SPDX-License-Identifier: Apache-2.0
"""Checks of structured outputs: types, sizes and the cost of compilation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from lampo.error_text import shortened, shown

MAX_BYTES = 64 << 10  # of a schema, expression, grammar, or of all choices
MAX_CHOICES = 1024
MAX_REGEX_BYTES = 4096
# Limits in addition to llguidance's; beyond these, compiling or a step took more than 8 s.
# The product of nested counted repetitions; the number of patterns that apply to one string; the
# common multiple of divisors.
MAX_REPEATS = 1000
MAX_PATTERNS_PER_STRING = 8
MAX_MULTIPLE_OF = 10_000
MAX_TERMINAL_SIZE = 4096  # atoms of a grammar's terminal, references expanded

_COMBINING = {"allOf", "anyOf", "oneOf", "$ref"}
_HARMLESS = _COMBINING | {"type", "title", "description", "default", "$schema", "$defs"}
_SCHEMAS_BY_NAME = {"properties", "$defs", "definitions"}
_SCHEMAS = {"items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf"}
_OPEN = {
    *("additionalProperties", "patternProperties", "unevaluatedProperties"),
    *("propertyNames", "minProperties"),
}
_BOUNDS = re.compile(r"\s*([0-9]+)\s*(?:,\s*([0-9]+)?\s*)?\}")


# Patterns of a grammar's strings, comments and regular expressions; a definition's name; its parts.
_LARK_LITERALS = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/((?:[^/\\\n]|\\.)+)/')
_LARK_NAMES = re.compile(r"^[ \t]*[?!]*([A-Za-z_]\w*)\b[^:\n]*:", re.MULTILINE)
_LARK_PARTS = re.compile(r"[A-Za-z_]\w*|\{\s*(?:\d*\s*,\s*)?(\d+)\s*,?\s*\}|[\"()|]")


def check_text(name: str, text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a string, got {shown(text)}")
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
        raise ValueError(f"json: not a JSON schema ({shortened(str(error))})") from None
    if not isinstance(value, dict):
        raise ValueError(f"json: expected a JSON object, got {type(value).__name__}")
    _check_cost(value)
    return text


def closed_schema(text: str) -> str:
    """The schema with objects that have no properties but those they list.

    Objects that say themselves what else they have are left as they are; and whole schemas that
    combine others, as each of these may list a part of an object.
    """
    schema = json.loads(text)
    if _check_cost(schema):
        return text
    left, changed = [schema], False
    while left:
        item = left.pop()
        if not isinstance(item, dict):
            continue
        listed, required = item.get("properties"), item.get("required")
        required = required if isinstance(required, list) else []
        lists_all = isinstance(listed, dict) and all(name in listed for name in required)
        if lists_all and not _OPEN & item.keys():
            item["additionalProperties"], changed = False, True
        for name, value in item.items():  # literal values, as in "const", are not schemas
            if name in _SCHEMAS_BY_NAME and isinstance(value, dict):
                left += value.values()
            elif name in _SCHEMAS:
                left += value if isinstance(value, list) else [value]
    return json.dumps(schema) if changed else text


def _check_cost(schema: dict[str, Any]) -> bool:
    """Refuses schemas that take long to compile. Literal values count too: that is cheap.

    Returns: whether several schemas apply to one value.
    """
    divisors: list[Decimal] = []
    patterns, overlapping = 0, False
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
        combining = _COMBINING & item.keys()
        several = len(combining) > 1 or (isinstance(branches, list) and len(branches) > 1)
        overlapping |= several or bool(combining and item.keys() - _HARMLESS)
    if _common_multiple(divisors) > MAX_MULTIPLE_OF:
        raise ValueError(f"json: multipleOf: a common multiple above {MAX_MULTIPLE_OF}")
    if overlapping and patterns > MAX_PATTERNS_PER_STRING:
        raise ValueError(
            f"json: {patterns} patterns and formats in a schema that combines others, "
            f"expected at most {MAX_PATTERNS_PER_STRING}"
        )
    return overlapping


def check_lark(grammar: object) -> None:
    """Refuses the known ways to make a grammar take minutes to compile."""
    text = check_text("grammar", grammar)
    if text.lstrip()[:1] in ("{", "["):
        raise ValueError("grammar: expected Lark, got JSON")

    def without_literals(match: re.Match[str]) -> str:
        if match[1] is not None:
            check_regex("grammar: regular expression", match[1])
        return " " if match[0].startswith("//") else '"'

    bare = _LARK_LITERALS.sub(without_literals, text)
    for directive in re.findall(r"%\s*(\w+(?:\s*\{\s*\})?)", bare):
        if directive.split("{")[0].strip() not in ("ignore", "llguidance") or (
            directive.startswith("llguidance") and not directive.endswith("}")
        ):
            raise ValueError(f"grammar: %{directive[:32]} is not supported")
    if bare.count("&") > MAX_PATTERNS_PER_STRING:
        raise ValueError(
            f"grammar: expected at most {MAX_PATTERNS_PER_STRING} intersections (&), "
            f"got {bare.count('&')}"
        )
    names = list(_LARK_NAMES.finditer(bare))
    starts = [*(match.start() for match in names), len(bare)]
    bodies = {m[1]: bare[m.end() : end] for m, end in zip(names, starts[1:], strict=True)}
    _check_terminals({name: body for name, body in bodies.items() if name == name.upper()})


def _check_terminals(bodies: Mapping[str, str]) -> None:
    """Refuses terminals (names in capitals) that are large when expanded."""
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    stack = list(bodies)
    while stack:  # a terminal stays until its references are measured
        name = stack[-1]
        if name in sizes:
            stack.pop()
        elif name in seen:
            sizes[name] = _terminal_size(bodies[name], sizes)
            if sizes[name] > MAX_TERMINAL_SIZE:
                raise ValueError(
                    f"grammar: terminal {name[:64]} is too large when written out: "
                    f"expected at most {MAX_TERMINAL_SIZE} parts"
                )
        else:
            seen.add(name)
            named = set(re.findall(r"\w+", bodies[name]))
            stack += [other for other in named if other in bodies and other not in seen]


def _terminal_size(body: str, sizes: Mapping[str, int]) -> int:
    """Atoms of a terminal's definition, counted repetitions multiplied."""
    groups, atom = [0], 0
    for part in _LARK_PARTS.finditer(body):
        if part[0] == "(":
            groups.append(0)
        elif part[0] == ")":
            atom = groups.pop() if len(groups) > 1 else 0
            groups[-1] += atom
        elif part[0].startswith("{"):
            groups[-1] += atom * (min(int(part[1][:10]), 10**9) - 1) if atom > 1 else 0
        elif part[0] != "|":
            atom = sizes.get(part[0], 1)
            groups[-1] += atom
    return sum(groups)


def _common_multiple(numbers: list[Decimal]) -> int:
    """In units of the last decimal place; a large number if computing it would take long."""
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
        raise TypeError(f"choice: expected a list of strings, got {shown(choice)}")
    if not 1 <= len(choice) <= MAX_CHOICES:
        raise ValueError(f"choice: expected 1 to {MAX_CHOICES} strings, got {len(choice)}")
    for i, text in enumerate(choice):
        check_text(f"choice[{i}]", text)
    check_text("choice", "".join(choice))
    return tuple(choice)


def _check_repeats(name: str, pattern: str) -> None:
    """Limits the states of nested counted repetitions, a product: 153 for (a{9}b{8}){9}."""
    # Sums of the counted atoms' costs, one per open group; then the cost of the last atom.
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
    """End of the character class with its bracket at `at` - 1; classes may be nested."""
    first, depth = at + pattern.startswith("^", at), 1
    while at < len(pattern) and depth:
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            depth += 1
        elif char == "]" and at > first:  # a leading "]" is a literal
            depth -= 1
        at += 1
    return at
