# SPDX-License-Identifier: Apache-2.0
"""The table of instructions: a pattern of the whole opcode, and a function that gives its C++.

An opcode that matches no pattern, with all its modifiers, is an error: nothing is ever ignored that
is not listed as a hint here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from cuda_on_cpu.ptx.operands import Operands, Unsupported
from cuda_on_cpu.ptx.parse import Instruction


@dataclass(frozen=True)
class Site:
    """An instruction that is translated."""

    instruction: Instruction
    match: re.Match[str]
    operands: Operands

    @property
    def line(self) -> int:
        return self.instruction.line

    def __getitem__(self, group: str) -> str:
        """A named part of the opcode; empty if it is absent."""
        return self.match[group] or ""

    def operand(self, i: int) -> str:
        if i >= len(self.instruction.operands):
            raise Unsupported(f"{i} operands, not more")
        return self.instruction.operands[i]

    def read(self, i: int, type: str, narrows: bool = False) -> str:
        return self.operands.read(self.operand(i), type, narrows)

    def write(self, value: str, type: str, widens: bool = False) -> str:
        """The statement that gives the first operand a value."""
        return self.operands.write(self.operand(0), value, type, widens)

    def expect(self, count: int) -> None:
        if len(self.instruction.operands) != count:
            raise Unsupported(f"{len(self.instruction.operands)} operands in place of {count}")


Emitter = Callable[[Site], str]


@dataclass(frozen=True)
class Entry:
    pattern: re.Pattern[str]
    emit: Emitter
    num_operands: int | None  # None: the function checks them
    num_results: int  # the first operands, which are written and not read


table: list[Entry] = []


def instruction(
    pattern: str, num_operands: int | None, num_results: int = 1
) -> Callable[[Emitter], Emitter]:
    """Registers a function for all opcodes that fully match a pattern."""

    def register(emit: Emitter) -> Emitter:
        table.append(Entry(re.compile(pattern), emit, num_operands, num_results))
        return emit

    return register


@cache
def find(opcode: str) -> tuple[Entry, re.Match[str]]:
    """The one entry for an opcode."""
    found = [(entry, match) for entry in table if (match := entry.pattern.fullmatch(opcode))]
    if len(found) != 1:
        raise Unsupported("unknown" if not found else "two entries of the table match")
    return found[0]


def emit(instruction: Instruction, operands: Operands) -> str:
    """The C++ statement, without the predicate."""
    entry, match = find(instruction.opcode)
    site = Site(instruction, match, operands)
    if entry.num_operands is not None:
        site.expect(entry.num_operands)
    return entry.emit(site)
