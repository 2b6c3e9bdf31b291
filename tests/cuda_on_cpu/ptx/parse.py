# SPDX-License-Identifier: Apache-2.0
"""PTX text as modules, kernels and instructions, each with its line.

Reads the subset of PTX that nvcc writes without debug information. Text outside of it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


class PtxError(RuntimeError):
    """PTX that the translator does not know; names the file and the line."""

    def __init__(self, file: str, line: int, what: str) -> None:
        super().__init__(f"{file}:{line}: {what}")


@dataclass(frozen=True)
class Instruction:
    line: int
    opcode: str
    operands: tuple[str, ...] = ()
    predicate: str = ""  # the register that decides whether it is executed; empty: always
    negated: bool = False  # executed if the predicate is false

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.predicate} " if self.predicate else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Label:
    line: int
    name: str


@dataclass(frozen=True)
class Variable:
    """A variable in memory, or a parameter."""

    name: str
    space: str  # global, const, shared or param
    alignment: int
    bytes: int  # 0: `extern`, of the size that the launch gives
    values: bytes = b""  # the first bytes; zeros follow


@dataclass
class Kernel:
    """An entry, or a device function."""

    name: str
    line: int
    is_entry: bool
    result: Variable | None
    parameters: list[Variable]
    max_threads: int = 0  # of a block (.maxntid); 0: no limit
    required_block: tuple[int, int, int] | None = None  # .reqntid
    registers: dict[str, str] = field(default_factory=dict)  # name: type
    variables: list[Variable] = field(default_factory=list)
    body: list[Instruction | Label] = field(default_factory=list)


@dataclass
class Module:
    file: str
    variables: list[Variable] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)


BYTES = {f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)}
BYTES |= {"f16": 2, "f32": 4, "f64": 8}

_NAME = r"[A-Za-z_$%][\w$]*"
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_TOKEN = re.compile(
    rf"""\s+
    | \.(?:version|target|address_size|file)\b[^\n]*
    | (?P<open>\{{) | (?P<close>\}})
    | (?P<label>{_NAME})\s*:(?!:)
    | (?P<function>(?:\.(?:visible|weak)\s+)*\.(?:entry|func)\b[^{{;]*)
    | (?P<statement>[^;{{}}]+(?:\{{[^{{}}]*\}}[^;{{}}]*)*);""",
    re.X,
)
_FUNCTION = re.compile(
    rf"(?:\.\w+\s+)*\.(?P<kind>entry|func)\s*(?:\((?P<result>[^)]*)\))?\s*(?P<name>{_NAME})\s*"
    r"(?:\((?P<parameters>[^)]*)\))?(?P<directives>.*)",
    re.S,
)
_DIRECTIVE = re.compile(r"\.(maxntid|reqntid|minnctapersm|maxnreg)\s+(\d+(?:\s*,\s*\d+)*)\s*")
_VARIABLE = re.compile(
    rf"(?P<extern>\.extern\s+)?(?:\.visible\s+)?\.(?P<space>global|const|shared|param)\s+"
    rf"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>{_NAME})\s*"
    r"(?P<array>\[(?P<count>\d*)\])?\s*(?:=\s*(?P<values>.*))?",
    re.S,
)
_REGISTERS = re.compile(rf"({_NAME})(?:<(\d+)>)?")
_INSTRUCTION = re.compile(
    r"(?:@(?P<not>!?)(?P<predicate>%[\w$]+)\s+)?(?P<opcode>[a-z][\w.:]*)(?:\s+(?P<operands>.*))?",
    re.S,
)
# Advice to ptxas: not to unroll a loop, and which bytes of a loaded vector are used.
_PRAGMA = re.compile(r'\.pragma\s+"(nounroll|used_bytes_mask \w+)"')
_REGISTER = re.compile(r"%[\w$]+")


def split_operands(text: str) -> tuple[str, ...]:
    """What stands between commas outside of braces and brackets."""
    operands, depth, start = [], 0, 0
    for at, character in enumerate(text):
        if character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        elif character == "," and depth == 0:
            operands.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return (*operands, last) if last or operands else ()


def parse(path: Path) -> Module:
    return parse_text(path.read_text(), path.name)


def parse_text(text: str, file: str) -> Module:
    """Raises PtxError for text that is not understood."""
    return _Parser(file, text).module


class _Parser:
    def __init__(self, file: str, text: str) -> None:
        self.module = Module(file)
        self._line = 1
        self._kernel: Kernel | None = None
        # Registers of the open braces, the innermost last: names in the text, and unique ones.
        self._scopes: list[dict[str, str]] = []
        self._num_scopes = 0
        # Comments become blanks, so that lines keep their numbers.
        text = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), text)
        for kind, part in self._tokens(text):
            getattr(self, f"_{kind}")(part)
        if self._scopes:
            raise self._error("the text ends within a function")

    def _error(self, what: str) -> PtxError:
        return PtxError(self.module.file, self._line, what)

    def _tokens(self, text: str) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(text):
            token = _TOKEN.match(text, at)
            if token is None:
                raise self._error(f"not understood: {text[at : at + 60]!r}")
            if token.lastgroup is not None:
                yield token.lastgroup, token[token.lastgroup].strip()
            self._line += text.count("\n", at, token.end())
            at = token.end()

    def _function(self, text: str) -> None:
        match = _FUNCTION.fullmatch(text)
        if match is None or self._kernel is not None:
            raise self._error(f"not the head of a function: {text[:60]!r}")
        result = [self._variable(part) for part in split_operands(match["result"] or "")]
        parameters = [self._variable(part) for part in split_operands(match["parameters"] or "")]
        self._kernel = Kernel(
            name=match["name"],
            line=self._line,
            is_entry=match["kind"] == "entry",
            result=result[0] if result else None,
            parameters=parameters,
        )
        rest = match["directives"].strip()
        while rest:
            directive = _DIRECTIVE.match(rest)
            if directive is None:
                raise self._error(f"not a known directive of a function: {rest[:60]!r}")
            sizes = [int(number) for number in directive[2].split(",")]
            x, y, z = (*sizes, 1, 1)[:3]
            if directive[1] == "maxntid":
                self._kernel.max_threads = x * y * z
            elif directive[1] == "reqntid":
                self._kernel.required_block = (x, y, z)
            # The others limit ptxas, not the launch.
            rest = rest[directive.end() :]

    def _open(self, _: str) -> None:
        if self._kernel is None:
            raise self._error("a brace outside of a function")
        self._scopes.append({})
        self._num_scopes += 1

    def _close(self, _: str) -> None:
        if not self._scopes or self._kernel is None:
            raise self._error("a closing brace without its opening one")
        self._scopes.pop()
        if not self._scopes:
            self.module.kernels.append(self._kernel)
            self._kernel = None

    def _label(self, name: str) -> None:
        if self._kernel is None:
            raise self._error("a label outside of a function")
        self._kernel.body.append(Label(self._line, name))

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith(".pragma"):
            if not _PRAGMA.fullmatch(text):
                raise self._error(f"not a known pragma: {text}")
        elif text.startswith("."):
            variables = self.module.variables if self._kernel is None else self._kernel.variables
            variables.append(self._variable(text))
        else:
            self._instruction(text)

    def _declare(self, text: str) -> None:
        _, kind, names = text.split(maxsplit=2)
        if self._kernel is None:
            raise self._error("a register outside of a function")
        for declared in split_operands(names):
            match = _REGISTERS.fullmatch(declared)
            if match is None:
                raise self._error(f"not a name of registers: {declared}")
            name, count = match[1], match[2]
            for each in [name] if count is None else [f"{name}{i}" for i in range(int(count))]:
                unique = each if len(self._scopes) == 1 else f"{each}_{self._num_scopes}"
                self._scopes[-1][each] = unique
                self._kernel.registers[unique] = kind.removeprefix(".")

    def _variable(self, text: str) -> Variable:
        match = _VARIABLE.fullmatch(text)
        if match is None or match["type"] not in BYTES:
            raise self._error(f"not understood: {text[:100]!r}")
        size = BYTES[match["type"]]
        count = 1 if match["array"] is None else int(match["count"] or 0)
        if (count == 0) != bool(match["extern"]):
            raise self._error(f"a variable without a size: {text[:100]!r}")
        values = b""
        for value in split_operands((match["values"] or "").strip().strip("{}")):
            if not re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", value):
                raise self._error(f"not a number: {value}")
            values += (int(value, 0) % 2 ** (8 * size)).to_bytes(size, "little")
        return Variable(
            match["name"], match["space"], int(match["align"] or size), count * size, values
        )

    def _instruction(self, text: str) -> None:
        match = _INSTRUCTION.fullmatch(text)
        if match is None or self._kernel is None:
            raise self._error(f"not an instruction: {text[:100]!r}")
        operands = _REGISTER.sub(lambda name: self._unique(name[0]), match["operands"] or "")
        instruction = Instruction(
            self._line,
            match["opcode"],
            split_operands(operands),
            self._unique(match["predicate"] or ""),
            match["not"] == "!",
        )
        self._kernel.body.append(instruction)

    def _unique(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        return name
