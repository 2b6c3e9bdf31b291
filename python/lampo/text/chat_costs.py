# SPDX-License-Identifier: Apache-2.0
"""The costs of a template's operations, charged before they are computed.

By default an operation costs its inputs, in all their depth. The functions here have the
exceptions: operations that read less, or repeatedly, or have results larger than their inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from markupsafe import Markup

from lampo.text.chat_limits import ITEM_CHARS, Account, LimitError, check_bits

MAX_WIDTH = 999  # of a formatted value
MAX_NUMBER_CHARS = 1000  # of a text that becomes an integer: the time is quadratic
ESCAPED = 6  # "'" becomes "&#39;"

_CONSTANT = frozenset({"abs", "count", "d", "default", "first", "last", "length"})
_BY_ITEM = frozenset(
    {"batch", "items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"}
    | {"slice"}
)
_SORTING = frozenset({"dictsort", "groupby", "sort"})
_BY_ATTRIBUTE = _BY_ITEM | _SORTING | {"join", "max", "min", "sum", "unique"}
_PRINTING = frozenset(
    {"capitalize", "center", "e", "escape", "forceescape", "indent", "lower", "replace", "safe"}
    | {"format", "string", "title", "trim", "upper", "wordcount"}
)
_FROM_THE_END = frozenset({"rfind", "rindex", "rpartition", "rsplit"})
_STRIPPING = frozenset({"lstrip", "rstrip", "strip", "trim"})
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
# A simple key, and all up to the conversion: a parenthesis there begins another kind of key.
_DIRECTIVE = re.compile(r"%(?:\([^()%]*\))?([^%a-zA-Z]*)")
_DIGITS = re.compile(r"[0-9]+")


def charge_operator(funds: Account, operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        sizes = left.bit_length(), right.bit_length()
        bits = {"*": sum(sizes), "**": sizes[0] * abs(right)}.get(operator, max(sizes))
        check_bits(bits)
        funds.charge(1)
    elif operator == "*":
        for value, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, Sized):
                size = 1 if isinstance(value, str) else ITEM_CHARS
                funds.charge(size * len(value) * max(times, 0) + 1)
    elif operator == "%" and isinstance(left, str):
        charge_format(funds, left, right if isinstance(right, tuple) else (right,))
    elif operator == "+" and isinstance(left, (list, tuple)) and isinstance(right, Sized):
        funds.charge_items(len(left) + len(right))
    else:
        escaped = isinstance(left, Markup) or isinstance(right, Markup)
        for value in (left, right):
            funds.charge_value(value, ESCAPED if escaped else 1)


def charge_format(funds: Account, form: str, values: tuple[Any, ...]) -> None:
    """`form % values`: each value may be printed by each directive."""
    funds.charge(len(form))
    funds.charge_items(form.count("%"))
    directives = _DIRECTIVE.findall(form)
    for directive in directives:
        if "(" in directive or "*" in directive:
            raise LimitError("formats with an unusual key, or a width among the values")
        charge_widths(funds, directive)
    by_name = len(values) == 1 and isinstance(values[0], Mapping)
    times = len(directives) if by_name else 1
    for value in values:
        funds.charge_text_of(value, times * (ESCAPED if isinstance(form, Markup) else 1))


def charge_widths(funds: Account, directive: str) -> None:
    """The widths and precisions of one formatted value."""
    funds.charge_items(len(directive) // 2)
    for digits in _DIGITS.findall(directive):
        if len(digits) > len(str(MAX_WIDTH)):
            raise LimitError(f"formats with a width of more than {MAX_WIDTH}")
        funds.charge(int(digits))


def charge_comparison(funds: Account, operator: str, left: Any, right: Any) -> None:
    if operator in ("in", "notin"):
        if not isinstance(right, Mapping):
            funds.charge_value(right)
        funds.charge_value(left)
    elif isinstance(left, str) or isinstance(right, str):
        sizes = [len(value) for value in (left, right) if isinstance(value, str)]
        funds.charge(1 + (min(sizes) if len(sizes) == 2 else 0))
    else:
        funds.charge_value(left)
        funds.charge_value(right)


def charge_slice(funds: Account, value: Any, piece: slice) -> None:
    if isinstance(value, (str, list, tuple)):
        count = len(range(*piece.indices(len(value))))
        funds.charge((1 if isinstance(value, str) else ITEM_CHARS) * (1 + count))


def charge_filter(
    funds: Account, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    def argument(index: int, keyword: str, default: Any) -> Any:
        return args[index] if index < len(args) else kwargs.get(keyword, default)

    count = len(value) if isinstance(value, Sized) else 1
    texts = [text for text in (*args, *kwargs.values()) if isinstance(text, str)]
    if name in _PRINTING:
        funds.charge_text_of(value)
    elif name in _BY_ITEM:
        funds.charge_items(count)
    elif name in _SORTING:
        funds.charge_value(value, 1 + count.bit_length())
    elif name not in _CONSTANT:
        funds.charge_value(value)
    if name in _BY_ATTRIBUTE:
        funds.charge(count * sum(map(len, texts)))  # paths, which are followed for every item

    match name:
        case "replace":
            texts = [argument(0, "old", ""), argument(1, "new", "")]
            for text in texts:
                funds.charge_text_of(text)
            charge_method(funds, name, str(value), [str(text) for text in texts])
        case "trim":
            charge_method(funds, name, str(value), (argument(0, "chars", None),))
        case "join":
            _charge_join(funds, argument(0, "d", ""), value)
        case "format":
            charge_format(funds, str(value), args or (dict(kwargs),))
        case "e" | "escape" | "forceescape":
            funds.charge_text_of(value, ESCAPED)
        case "title" | "wordcount":  # they make a list of words
            funds.charge_items(len(str(value)) // 2)
        case "indent":
            width = argument(0, "width", 4)
            size = len(width) if isinstance(width, str) else int(width)
            lines = sum(map(str(value).count, _LINE_BREAKS)) + 1
            funds.charge(lines * (ITEM_CHARS + max(size, 0)))
        case "center":
            funds.charge(max(int(argument(0, "width", 80)), 0))
        case "batch" | "slice":
            per_line = max(int(argument(0, "linecount" if name == "batch" else "slices", 0)), 0)
            funds.charge_items(per_line)
            funds.charge_value(argument(1, "fill_with", None), per_line)
        case "round":
            precision = argument(0, "precision", 0)
            if not isinstance(precision, int) or abs(precision) > 20:
                raise LimitError("rounds to more than 20 digits")
        case "int" | "float":
            if isinstance(value, str) and len(value) > MAX_NUMBER_CHARS:
                raise LimitError(f"makes a number of {len(value)} characters")
        case "sum":
            if not isinstance(argument(1, "start", 0), (int, float)):
                raise LimitError("sums anything but numbers")


def charge_method(funds: Account, name: str, owner: Any, args: Sequence[Any]) -> None:
    """A method of a string or a container."""
    if isinstance(owner, (list, tuple)):
        if name == "copy":
            funds.charge_items(len(owner))
        else:  # count, index: they compare
            funds.charge_value(owner)
            funds.charge_value(args)
        return
    if isinstance(owner, Mapping):  # get is constant; the others make a view
        funds.charge_items(len(owner) if name == "copy" else 0)
        return
    if not isinstance(owner, str):
        funds.charge_value(args)
        return
    funds.charge_value(args)
    funds.charge(1 if name in ("endswith", "startswith") else 1 + len(owner))
    first = args[0] if args and isinstance(args[0], str) else None
    if name in _FROM_THE_END or (name in _STRIPPING and first is not None):
        funds.charge(len(owner) * len(first or "") // 16)  # no skipping: a product
    match name:
        case "replace":
            new = args[1] if len(args) > 1 and isinstance(args[1], str) else ""
            times = owner.count(first) if first else len(owner) + 1
            funds.charge(times * len(new) * (ESCAPED if isinstance(owner, Markup) else 1))
        case "join":
            _charge_join(funds, owner, args[0] if args else ())
        case "rsplit" | "split":
            pieces = len(owner) // 2 if first is None else owner.count(first) if first else 0
            funds.charge_items(pieces + 1)
        case "splitlines":
            funds.charge_items(sum(map(owner.count, _LINE_BREAKS)) + 1)


def _charge_join(funds: Account, glue: Any, parts: Any) -> None:
    escaped = ESCAPED if isinstance(glue, Markup) else 1
    if isinstance(parts, (list, tuple)):
        for part in parts:
            funds.charge_text_of(part, escaped)
    else:
        funds.charge_value(parts, escaped)
    if isinstance(parts, Sized):
        funds.charge_text_of(glue, escaped * len(parts))
