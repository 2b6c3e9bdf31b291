# SPDX-License-Identifier: Apache-2.0
"""Which reads of registers may come before a write.

Compilers write a register on all paths to its reads, so that nearly all reads are found safe here;
only the others cost a flag and a test at run time.
"""

from __future__ import annotations

import re

from cuda_on_cpu.ptx.instruction import find
from cuda_on_cpu.ptx.parse import Instruction, Kernel, Label

_REGISTER = re.compile(r"%[\w$]+")
_RETURNS = ("ret", "exit", "trap")


def _registers(kernel: Kernel, operands: tuple[str, ...]) -> list[str]:
    found = _REGISTER.findall(" ".join(operands))
    return [name for name in dict.fromkeys(found) if name in kernel.registers]


def writes(kernel: Kernel, instruction: Instruction) -> list[str]:
    entry, _ = find(instruction.opcode)
    return _registers(kernel, instruction.operands[: entry.num_results])


def reads(kernel: Kernel, instruction: Instruction) -> list[str]:
    entry, _ = find(instruction.opcode)
    guard = (instruction.predicate,) if instruction.predicate else ()
    return _registers(kernel, guard + instruction.operands[entry.num_results :])


def unsafe_reads(kernel: Kernel) -> dict[int, list[str]]:
    """By index in the body: registers that an instruction may read before they are written."""
    bit = {name: 1 << i for i, name in enumerate(kernel.registers)}
    everything = (1 << len(bit)) - 1
    label_at = {item.name: i for i, item in enumerate(kernel.body) if isinstance(item, Label)}
    before: dict[int, int] = {0: 0}  # registers surely written before a label, or the first item
    read_masks: dict[int, int] = {}
    write_masks: dict[int, int] = {}
    for i, item in enumerate(kernel.body):
        if isinstance(item, Instruction):
            read_masks[i] = sum(bit[name] for name in reads(kernel, item))
            # A write under a predicate may not happen.
            sure = [] if item.predicate else writes(kernel, item)
            write_masks[i] = sum(bit[name] for name in sure)

    unsafe: dict[int, int] = {}
    pending = [0]
    while pending:
        start = i = pending.pop()
        written = before[start]

        def arrive(at: int, written: int) -> None:
            known = before.get(at, everything)
            if at not in before or known & written != known:
                before[at] = known & written
                pending.append(at)

        while i < len(kernel.body):
            item = kernel.body[i]
            if isinstance(item, Label):
                if i != start:
                    arrive(i, written)
                    break
            else:
                unsafe[i] = read_masks[i] & ~written
                written |= write_masks[i]
                opcode = item.opcode.split(".")[0]
                if opcode == "bra":
                    arrive(label_at[item.operands[0]], written)
                if opcode in ("bra", *_RETURNS) and not item.predicate:
                    break
            i += 1
    return {
        i: [name for name in reads(kernel, item) if mask & bit[name]]
        for i, mask in unsafe.items()
        if mask and isinstance(item := kernel.body[i], Instruction)
    }
