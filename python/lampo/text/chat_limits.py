# SPDX-License-Identifier: Apache-2.0
"""Limits on the time and the characters that rendering a chat template may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from time import monotonic
from typing import Any

from jinja2 import TemplateError
from jinja2.runtime import Undefined

MAX_SECONDS = 2.0  # and one more for every 4 M characters of input
BASE_OUTPUT_CHARS, OUTPUT_FACTOR = 1 << 20, 4  # output: at most base + factor * input
BASE_WORK_CHARS, WORK_FACTOR = 32 << 20, 64  # characters of all intermediate strings and containers
ITEM_CHARS = 8  # cost of a container's item
MAX_RANGE = 10_000
MAX_INT_BITS = 1024
MAX_DEPTH = 64

_WIDTH = re.compile(r"%[^%a-zA-Z]*[0-9*]")
_TEXT_FILTERS = frozenset(
    {"capitalize", "e", "escape", "forceescape", "lower", "string", "title", "trim", "upper"}
)


class LimitError(TemplateError):
    """The template exceeds a limit."""


class Account:
    """Remaining time and characters of a rendering."""

    __slots__ = ("_chars", "_deadline")

    def __init__(self, input_chars: int) -> None:
        self._chars = BASE_WORK_CHARS + WORK_FACTOR * input_chars
        self._deadline = monotonic() + MAX_SECONDS + input_chars / (4 << 20)

    def charge(self, chars: int) -> None:
        self._chars -= chars
        if self._chars < 0:
            raise LimitError("makes too much text")
        if monotonic() > self._deadline:
            raise LimitError("takes too long")

    def charge_value(self, value: object) -> None:
        """Charges the length of a value's text; a shared part counts at every occurrence."""
        todo: list[tuple[object, int]] = [(value, 0)]
        while todo:
            item, depth = todo.pop()
            if depth > MAX_DEPTH:
                raise LimitError("nests values too deeply")
            if isinstance(item, str):
                self.charge(len(item))
            elif isinstance(item, Mapping):
                self.charge(ITEM_CHARS * (1 + len(item)))
                todo += [(part, depth + 1) for pair in item.items() for part in pair]
            elif isinstance(item, (list, tuple)):
                self.charge(ITEM_CHARS * (1 + len(item)))
                todo += [(part, depth + 1) for part in item]
            else:
                self.charge(1)

    def charge_repeated(self, value: object, times: int) -> None:
        before = self._chars
        if times > 0:
            self.charge_value(value)
            self.charge((before - self._chars) * (times - 1))

    def charge_operator(self, operator: str, left: Any, right: Any) -> None:
        """Charges the size of the result of `left operator right` before it is computed."""
        if isinstance(left, int) and isinstance(right, int):
            sizes = left.bit_length(), right.bit_length()
            bits = {"*": sum(sizes), "**": sizes[0] * abs(right)}.get(operator, max(sizes))
            if bits > MAX_INT_BITS:
                raise LimitError(f"makes an integer of more than {MAX_INT_BITS} bits")
            self.charge(1)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    self.charge_repeated(value, times)
        elif operator == "%" and isinstance(left, str):
            if _WIDTH.search(left):
                raise LimitError("formats with a width")
            self.charge_value(left)
            self.charge_repeated(right, left.count("%"))
        else:
            self.charge_value(left)
            self.charge_value(right)

    def charge_filter(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Charges a filter or a string method, if its result may be larger than its input."""

        def argument(index: int, keyword: str, default: Any) -> Any:
            return args[index] if index < len(args) else kwargs.get(keyword, default)

        if name in _TEXT_FILTERS:
            check_printable(value)
            self.charge_value(value)
        elif name == "replace":
            text, old, new = str(value), argument(0, "old", ""), argument(1, "new", "")
            self.charge((text.count(str(old)) if old else len(text) + 1) * len(str(new)))
        elif name == "join":
            is_method = isinstance(value, str) and bool(args)
            glue, parts = (value, args[0]) if is_method else (argument(0, "d", ""), value)
            if isinstance(parts, (list, tuple, str, Mapping)):
                self.charge_value(parts)
                self.charge_repeated(glue, len(parts))
        elif name == "indent":
            width = argument(0, "width", 4)
            size = len(width) if isinstance(width, str) else int(width)
            self.charge((str(value).count("\n") + 1) * max(size, 0))
        elif name == "round":
            precision = argument(0, "precision", 0)
            if not isinstance(precision, int) or abs(precision) > 20:
                raise LimitError(f"rounds to {precision} digits")


def check_printable(value: object) -> None:
    """Accepts JSON types only. Other objects could contain themselves, or print addresses."""
    kinds = (str, int, float, list, tuple, Mapping, Undefined)
    if value is not None and not isinstance(value, kinds):
        raise TemplateError(f"prints a {type(value).__name__}")


account: ContextVar[Account] = ContextVar("account")  # this thread's rendering
