# SPDX-License-Identifier: Apache-2.0
"""Limits on the time and the memory that rendering a chat template may use.

Both are counted in characters: the account of a rendering pays for the characters and items that an
operation reads, and for those of its result. A character takes at most 4 bytes, an item of a
container about 100.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MappingView
from contextvars import ContextVar
from time import thread_time

from jinja2 import TemplateError
from jinja2.runtime import Undefined

MAX_SECONDS = 2.0  # and one more for every 4 M characters of input
BASE_OUTPUT_CHARS, OUTPUT_FACTOR = 1 << 20, 4  # output: at most base + factor * input
BASE_WORK_CHARS, WORK_FACTOR = 16 << 20, 32  # work: at most base + factor * input
ITEM_CHARS = 16  # cost of a container's item
_CLOCK_CHARS = 1 << 16  # between two looks at the clock, or 32 operations
MAX_RANGE = 10_000
MAX_INT_BITS = 1024
MAX_DEPTH = 64


_PRINTABLE = (str, int, float, list, tuple, Mapping, Undefined)


class LimitError(TemplateError):
    """The template exceeds a limit."""


class Account:
    """Remaining characters of a rendering, and processor time of its thread.

    hidden: a text as it is spelled in the input, where special tokens are masked.
    """

    __slots__ = ("_chars", "_deadline", "_uncounted", "hidden")

    def __init__(self, input_chars: int, hidden: Callable[[str], str] | None = None) -> None:
        self.hidden = hidden
        self._chars = BASE_WORK_CHARS + WORK_FACTOR * input_chars
        self._deadline = thread_time() + MAX_SECONDS + input_chars / (4 << 20)
        self._uncounted = 0  # characters since the clock was read

    def charge(self, chars: int) -> None:
        self._chars -= chars
        if self._chars < 0:
            raise LimitError("makes too much text")
        self._uncounted += chars + _CLOCK_CHARS // 32
        if self._uncounted > _CLOCK_CHARS:
            self._uncounted = 0
            if thread_time() > self._deadline:
                raise LimitError("takes too long")

    def charge_items(self, count: int) -> None:
        self.charge(ITEM_CHARS * (1 + count))

    def charge_value(self, value: object, times: int = 1, printed: bool = False) -> None:
        """Charges all of a value, `times` times; a shared part counts at every occurrence.

        printed: accept JSON types only. Others could contain themselves, or print addresses.
        """
        todo: list[tuple[object, int]] = [(value, 0)] if times > 0 else []
        while todo:
            item, depth = todo.pop()
            if depth > MAX_DEPTH:
                raise LimitError("nests values too deeply")
            if printed and item is not None and not isinstance(item, _PRINTABLE):
                raise TemplateError(f"prints a {type(item).__name__}")
            if isinstance(item, str):
                self.charge(times * (1 + len(item)))
            elif isinstance(item, Mapping):
                self.charge_items(times * len(item))
                todo += [(part, depth + 1) for pair in item.items() for part in pair]
            elif isinstance(item, (list, tuple, MappingView)):
                self.charge_items(times * len(item))
                todo += [(part, depth + 1) for part in item]  # type: ignore[union-attr]
            elif isinstance(item, range):
                self.charge_items(times * len(item))
            else:
                self.charge(times)

    def charge_text_of(self, value: object, times: int = 1) -> None:
        """Charges str(value). In a container a character may become 10: "\\U0010ffff"."""
        self.charge_value(value, times if isinstance(value, str) else 10 * times, printed=True)

    def charge_result(self, value: object) -> None:
        """Charges a new string or container, without the parts that existed before."""
        if isinstance(value, str):
            self.charge(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.charge_items(len(value))
        elif isinstance(value, int):
            check_bits(value.bit_length())


def check_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise LimitError(f"makes an integer of more than {MAX_INT_BITS} bits")


account: ContextVar[Account] = ContextVar("account")  # this thread's rendering
