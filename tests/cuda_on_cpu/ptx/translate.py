# SPDX-License-Identifier: Apache-2.0
"""A kernel of PTX as a C++ function for the executor: one statement per instruction.

The text of a kernel depends on nothing but its instructions and the variables that it can name:
lines are counted from the kernel's head, and names are left to the caller. So the text's hash says
whether two kernels are the same, in two files or for two architectures.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import cuda_on_cpu.ptx.arithmetic
import cuda_on_cpu.ptx.memory
import cuda_on_cpu.ptx.threads  # noqa: F401 - these three fill the table of instructions
from cuda_on_cpu.ptx.flow import unsafe_reads, writes
from cuda_on_cpu.ptx.instruction import emit, find
from cuda_on_cpu.ptx.operands import Memory, Operands, Unsupported, lay_out
from cuda_on_cpu.ptx.parse import Instruction, Kernel, Label, Module, PtxError, Variable, parse
from cuda_on_cpu.ptx.threads import label

HEADER = """// SPDX-License-Identifier: Apache-2.0
// Translated from PTX by tests/cuda_on_cpu/ptx/translate.py.
#include "ptx/runtime/kernel.h"

using namespace ptx;

"""


def translate_kernel(module: Module, kernel: Kernel) -> str:
    """A C++ file; its `ptx_kernel` describes the kernel. Raises PtxError."""
    memory = lay_out(kernel, module.variables)
    body = _function("run", module, kernel, memory)
    parameters = "".join(
        f"{{{offset}, {variable.bytes}}}, " for offset, variable in memory.parameters.values()
    )
    x, y, z = kernel.required_block or (0, 0, 0)
    uses_constants = any(
        isinstance(item, Instruction) and ".nc." in item.opcode for item in kernel.body
    )
    description = f"""
const Parameter kParameters[] = {{{parameters}{{0, 0}}}};
}}  // namespace

extern "C" const Kernel ptx_kernel = {{
    .run = run,
    .parameters = kParameters,
    .num_parameters = {len(memory.parameters)},
    .parameter_bytes = {memory.parameter_bytes},
    .shared_bytes = {memory.shared_bytes},
    .max_threads = {kernel.max_threads},
    .required_block = {{{x}, {y}, {z}}},
    .reads_constants = {str(uses_constants).lower()},
}};
"""
    return HEADER + "namespace {\n" + _variables(module, kernel) + "\n" + body + description


def translate_functions(module: Module) -> str:
    """A C++ file with `void NAME(unsigned char* parameters)` for each device function."""
    functions = [
        _function(f"ptx_{kernel.name}", module, kernel, lay_out(kernel, module.variables))
        for kernel in module.kernels
    ]
    declarations = [
        f"namespace {{\n{_variables(module, kernel)}}}  // namespace\n"
        for kernel in module.kernels[:1]
    ]
    exported = [f'extern "C" {function}' for function in functions]
    return HEADER + "\n".join([*declarations, *exported])


def _variables(module: Module, kernel: Kernel) -> str:
    for variable in kernel.variables:
        if variable.space != "shared":
            raise PtxError(module.file, kernel.line, f"{variable.name} in .{variable.space}")
    return "".join(
        _variable(number, variable)
        for number, variable in enumerate(module.variables)
        if variable.space != "shared" and _names(kernel, variable)
    )


def _names(kernel: Kernel, variable: Variable) -> bool:
    pattern = re.compile(rf"(?<![\w$]){re.escape(variable.name)}(?![\w$])")
    return any(
        isinstance(item, Instruction) and any(pattern.search(text) for text in item.operands)
        for item in kernel.body
    )


def _variable(number: int, variable: Variable) -> str:
    values = ", ".join(map(str, variable.values))
    size = f"alignas({variable.alignment}) unsigned char variable{number}[{variable.bytes}]"
    return f"{size} = {{{values}}};\n"


def _function(name: str, module: Module, kernel: Kernel, memory: Memory) -> str:
    operands = Operands(kernel, memory)
    try:
        _check(module, kernel)
        unsafe = unsafe_reads(kernel)
    except Unsupported as error:
        raise PtxError(module.file, kernel.line, f"{kernel.name}: {error}") from None
    flagged = {register for registers in unsafe.values() for register in registers}
    lines = []
    for i, item in enumerate(kernel.body):
        if isinstance(item, Label):
            lines.append(f"{label(item.name)}:;")
            continue
        written = [register for register in writes(kernel, item) if register in flagged]
        relative = replace(item, line=item.line - kernel.line)
        try:
            lines.append("  " + _statement(relative, operands, unsafe.get(i, []), written))
        except Unsupported as error:
            raise PtxError(module.file, item.line, f"not supported: {item} ({error})") from None
    body = "\n".join(lines)
    declarations = _declarations(operands, kernel, flagged, body)
    return (
        f"void {name}([[maybe_unused]] unsigned char* parameters) {{\n{declarations}{body}\n"
        "  return;\n}\n"
    )


def _statement(
    instruction: Instruction, operands: Operands, unsafe: list[str], written: list[str]
) -> str:
    """The C++ of an instruction: tests of registers that may not be written yet, under its
    predicate the statement, and flags of registers that now are."""
    tests = {
        register: f"if (!written_{operands.name(register)}) "
        f'unwritten("{register}", {instruction.line}); '
        for register in unsafe
    }
    # The predicate is read in any case, the operands only if it holds.
    before = tests.pop(instruction.predicate, "")
    statement = "".join(tests.values()) + emit(instruction, operands)
    statement += "".join(f" written_{operands.name(register)} = true;" for register in written)
    if instruction.predicate:
        negation = "!" * instruction.negated
        statement = f"if ({negation}{operands.name(instruction.predicate)}) {{ {statement} }}"
    return before + statement


def _declarations(operands: Operands, kernel: Kernel, flagged: set[str], body: str) -> str:
    """The registers that are used, and flags for those that need them."""
    used = set(re.findall(r"\w+", body))
    names = [(operands.storage(register), operands.name(register)) for register in kernel.registers]
    names = sorted(pair for pair in names if pair[1] in used)
    lines = [
        f"  [[maybe_unused]] {storage} {', '.join(name for _, name in group)};\n"
        for storage, group in groupby(names, key=lambda pair: pair[0])
    ]
    flags = [f"written_{operands.name(register)} = false" for register in sorted(flagged)]
    return "".join(lines) + (f"  bool {', '.join(flags)};\n" if flags else "")


def _check(module: Module, kernel: Kernel) -> None:
    """All opcodes are known and labels unique; a cluster's barrier is not split."""
    labels = [item.name for item in kernel.body if isinstance(item, Label)]
    if len(set(labels)) < len(labels):
        raise PtxError(module.file, kernel.line, f"{kernel.name} has a label twice")
    for item, following in zip(kernel.body, [*kernel.body[1:], None], strict=True):
        if not isinstance(item, Instruction):
            continue
        try:
            find(item.opcode)
        except Unsupported as error:
            raise PtxError(module.file, item.line, f"not supported: {item} ({error})") from None
        if item.opcode.startswith("bra") and item.operands[0] not in labels:
            raise PtxError(module.file, item.line, f"no label: {item}")
        waits = isinstance(following, Instruction) and following.opcode.startswith(
            "barrier.cluster.wait"
        )
        if item.opcode.startswith("barrier.cluster.arrive") and not waits:
            raise PtxError(module.file, item.line, "work between a cluster's arrival and wait")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(translate_functions(parse(Path(sys.argv[1]))))
