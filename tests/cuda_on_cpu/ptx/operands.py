# SPDX-License-Identifier: Apache-2.0
"""Operands of instructions as C++ expressions.

A register is a C++ variable of its width: bool, u16, u32, u64, float or double. An instruction of
type .s32 reads a 32-bit register as s32, and so on: types belong to instructions, not to registers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cuda_on_cpu.ptx.parse import BYTES, Kernel, Variable

# C++ types of values, by the type of an instruction. Halves are handled as their bits.
VALUE = {"f32": "float", "f64": "double", "pred": "bool"}
VALUE |= {f"{kind}{bits}": f"{kind}{bits}" for kind in "us" for bits in (8, 16, 32, 64)}
VALUE |= {f"b{bits}": f"u{bits}" for bits in (8, 16, 32, 64)}
VALUE |= {"f16": "u16", "bf16": "u16", "f16x2": "u32", "bf16x2": "u32"}
WIDTH = {type: 8 * BYTES[type] for type in BYTES} | {"pred": 1, "bf16": 16}
WIDTH |= {"f16x2": 32, "bf16x2": 32}
# C++ types of registers, by their declaration.
STORAGE = {type: f"u{WIDTH[type]}" for type in WIDTH if WIDTH[type] > 8}
STORAGE |= {"f32": "float", "f64": "double", "pred": "bool"}

SPECIAL = {
    f"%{name}.{axis}": f"{function}().{axis}"
    for name, function in {
        "tid": "thread_index",
        "ctaid": "block_index",
        "ntid": "block_size",
        "nctaid": "grid_size",
    }.items()
    for axis in "xyz"
} | {"%laneid": "lane_index()", "%cluster_ctarank": "cluster_rank()"}

# Offset of the first byte of shared memory: none, so that address 0 is not in it. sm_90 starts at
# the same offset, for reasons of its own.
SHARED_BASE = 1024


class Unsupported(Exception):
    """An operand or an opcode that has no translation."""


@dataclass
class Memory:
    """Addresses of parameters and variables, as C++ expressions of u64 or numbers."""

    parameters: dict[str, tuple[int, Variable]] = field(default_factory=dict)  # offset
    parameter_bytes: int = 0
    shared: dict[str, int] = field(default_factory=dict)  # address
    shared_bytes: int = 0  # of variables with a size
    arrays: dict[str, tuple[str, str]] = field(default_factory=dict)  # C++ name, space


def lay_out(kernel: Kernel, variables: list[Variable]) -> Memory:
    """Places what the kernel can name: its parameters, and variables of the module and its own."""
    memory = Memory()
    for parameter in [*kernel.parameters, *([kernel.result] if kernel.result else [])]:
        offset = _align(memory.parameter_bytes, parameter.alignment)
        memory.parameters[parameter.name] = (offset, parameter)
        memory.parameter_bytes = offset + parameter.bytes
    shared = [
        variable for variable in [*variables, *kernel.variables] if variable.space == "shared"
    ]
    for variable in sorted(shared, key=lambda variable: variable.bytes == 0):  # extern ones last
        memory.shared_bytes = _align(memory.shared_bytes, variable.alignment)
        memory.shared[variable.name] = SHARED_BASE + memory.shared_bytes
        memory.shared_bytes += variable.bytes
    for number, variable in enumerate(variables):
        if variable.space in ("global", "const"):
            memory.arrays[variable.name] = (f"variable{number}", variable.space)
    return memory


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _number(number: int, type: str) -> str:
    """A number as a C++ literal of this type, modulo its width."""
    number %= 2 ** int(type[1:])
    suffix = "ull" if type.endswith("64") else "u"
    literal = f"{number}{suffix}" if number < 1000 else f"{number:#x}{suffix}"
    return literal if type in ("u32", "u64") else f"{type}({literal})"


def is_vector(operand: str) -> bool:
    return operand.startswith("{")


def elements(operand: str) -> list[str]:
    """The registers of a vector, or of one that is not."""
    return [part.strip() for part in operand.strip("{}").split(",")]


class Operands:
    """The operands of one kernel's instructions."""

    def __init__(self, kernel: Kernel, memory: Memory) -> None:
        self.memory = memory
        self.registers = kernel.registers

    def name(self, register: str) -> str:
        """The C++ variable of a register."""
        if register not in self.registers:
            raise Unsupported(f"{register} is not declared")
        return register.removeprefix("%").replace("$", "_")

    def storage(self, register: str) -> str:
        self.name(register)
        return STORAGE[self.registers[register]]

    def read(self, operand: str, type: str, narrows: bool = False) -> str:
        """The value of a register, number or address as an instruction of this type reads it.

        `narrows`: the register may be wider than the type; its low bits count.
        """
        if operand in SPECIAL:
            if VALUE[type] not in ("u32", "s32"):
                raise Unsupported(f"{operand} as .{type}")
            return SPECIAL[operand]
        if not operand.startswith("%"):
            return self._constant(operand, type)
        name, storage, value = self.name(operand), self.storage(operand), VALUE[type]
        width = WIDTH[self.registers[operand]]
        if width != WIDTH[type] and not (narrows and width > WIDTH[type]):
            raise Unsupported(f"{operand}, a register of {width} bits, as .{type}")
        if storage == value:
            return name
        if "float" in (storage, value) or "double" in (storage, value):
            if width != WIDTH[type]:
                raise Unsupported(f"{operand}, a register of {width} bits, as .{type}")
            return f"as<{value}>({name})"
        return f"{value}({name})"

    def write(self, register: str, value: str, type: str, widens: bool = False) -> str:
        """A statement that gives a register a value of the instruction's type.

        `widens`: the register may be wider than the type; the value is then extended, by its sign
        if the type has one.
        """
        if register == "_":
            return f"(void)({value});"
        name, storage = self.name(register), self.storage(register)
        width = WIDTH[self.registers[register]]
        if width != WIDTH[type] and not (widens and width > WIDTH[type]):
            raise Unsupported(f"{register}, a register of {width} bits, for .{type}")
        if storage == VALUE[type]:
            return f"{name} = {value};"
        if "float" in (storage, VALUE[type]) or "double" in (storage, VALUE[type]):
            if width != WIDTH[type]:
                raise Unsupported(f"{register}, a register of {width} bits, for .{type}")
            return f"{name} = as<{storage}>({VALUE[type]}({value}));"
        # By way of the type: a narrower signed one is extended by its sign.
        return f"{name} = {storage}({VALUE[type]}({value}));"

    def address(self, operand: str) -> tuple[str, str, int]:
        """[base + offset]: the base's kind ("register", "number" or a space), it, the offset."""
        match = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if match is None:
            raise Unsupported(f"the address {operand}")
        base, offset = match[1], int(match[2] or 0)
        if base in self.memory.parameters:
            return "param", base, offset
        if base in self.memory.shared:
            return "shared", base, offset
        if base in self.memory.arrays:
            return self.memory.arrays[base][1], base, offset
        if base.startswith("%"):
            return "register", base, offset
        raise Unsupported(f"the address {operand}")

    def _constant(self, operand: str, type: str) -> str:
        value = VALUE[type]
        if match := re.fullmatch(r"0[fF]([0-9A-Fa-f]{8})", operand):
            if WIDTH[type] != 32:
                raise Unsupported(f"{operand} as .{type}")
            return f"as<{value}>(0x{match[1]}u)"
        if match := re.fullmatch(r"0[dD]([0-9A-Fa-f]{16})", operand):
            if WIDTH[type] != 64:
                raise Unsupported(f"{operand} as .{type}")
            return f"as<{value}>(0x{match[1]}ull)"
        if re.fullmatch(r"-?(0[xX][0-9A-Fa-f]+|\d+)", operand):
            if type in ("f32", "f64"):
                raise Unsupported(f"the whole number {operand} as .{type}")
            return _number(int(operand, 0), value)
        if type in ("u64", "b64", "s64", "u32", "b32", "s32"):
            return self._symbol(operand, type)
        raise Unsupported(f"{operand} as .{type}")

    def _symbol(self, name: str, type: str) -> str:
        """The address of a variable."""
        memory = self.memory
        if name in memory.shared:
            return f"{VALUE[type]}({memory.shared[name]})"
        if WIDTH[type] == 64:
            if name in memory.parameters:
                return f"{VALUE[type]}(address_of(parameters) + {memory.parameters[name][0]})"
            if name in memory.arrays:
                return f"{VALUE[type]}(address_of({memory.arrays[name][0]}))"
        raise Unsupported(f"{name} as .{type}")
