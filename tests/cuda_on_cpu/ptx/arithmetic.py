# SPDX-License-Identifier: Apache-2.0
"""Instructions that compute: arithmetic, comparisons, bits, moves and conversions.

Where hardware is exact, so is the translation. An approximate instruction gives what its twin in
tests/cuda_on_cpu/twin gives, and runtime/arithmetic.h says by how much hardware may differ. A NaN
keeps the host's bits; hardware gives 0x7fffffff.
"""

from __future__ import annotations

from cuda_on_cpu.ptx.instruction import Site, instruction
from cuda_on_cpu.ptx.operands import VALUE, WIDTH, Unsupported, elements, is_vector

INT = r"(?P<type>[su](?:16|32|64))"
BITS = r"(?P<type>b(?:16|32|64))"
ANY = r"(?P<type>[bsu](?:16|32|64)|f32|f64)"
FLOAT = r"(?P<type>f32|f64)"
SIGN = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}


def unsigned(type: str) -> str:
    """The unsigned type of the same width: its arithmetic wraps."""
    return f"u{WIDTH[type]}"


def wide(type: str) -> str:
    return f"{type[0]}{2 * WIDTH[type]}"


@instruction(rf"(?P<op>add|sub|mul)(?:\.rn)?\.{FLOAT}", 3)
def _float(at: Site) -> str:
    t = at["type"]
    return at.write(f"{at.read(1, t)} {SIGN[at['op']]} {at.read(2, t)}", t)


@instruction(rf"(?P<op>add|sub|mul\.lo)\.{INT}", 3)
def _int(at: Site) -> str:
    t = unsigned(at["type"])
    return at.write(_narrow(t, f"{_operand(at, 1, t)} {SIGN[at['op'][:3]]} {at.read(2, t)}"), t)


def _operand(at: Site, i: int, type: str) -> str:
    """An unsigned operand; 16 bits as 32, for a product of them would overflow C++'s int."""
    return f"u32({at.read(i, type)})" if type == "u16" else at.read(i, type)


def _narrow(type: str, value: str) -> str:
    """A value of a type that C++ computes in a wider one."""
    return f"u16({value})" if type == "u16" else value


@instruction(r"mul\.wide\.(?P<type>[su](?:16|32))", 3)
def _mul_wide(at: Site) -> str:
    t, w = at["type"], wide(at["type"])
    return at.write(f"{w}({at.read(1, t)}) * {w}({at.read(2, t)})", w)


@instruction(r"mul\.hi\.(?P<type>[su]32)", 3)
def _mul_hi(at: Site) -> str:
    t, w = at["type"], wide(at["type"])
    return at.write(f"{t}({w}({at.read(1, t)}) * {w}({at.read(2, t)}) >> 32)", t)


@instruction(rf"mad\.lo\.{INT}", 4)
def _mad(at: Site) -> str:
    t = unsigned(at["type"])
    product = f"{_operand(at, 1, t)} * {at.read(2, t)}"
    return at.write(_narrow(t, f"{product} + {at.read(3, t)}"), t)


@instruction(r"mad\.wide\.(?P<type>[su](?:16|32))", 4)
def _mad_wide(at: Site) -> str:
    t, w = at["type"], wide(at["type"])
    product = f"{unsigned(w)}({w}({at.read(1, t)}) * {w}({at.read(2, t)}))"
    return at.write(f"{product} + {at.read(3, unsigned(w))}", unsigned(w))


@instruction(rf"fma\.rn\.{FLOAT}", 4)
def _fma(at: Site) -> str:
    t = at["type"]
    return at.write(f"multiply_add({at.read(1, t)}, {at.read(2, t)}, {at.read(3, t)})", t)


@instruction(r"fma\.rm\.f32", 4)
def _fma_down(at: Site) -> str:
    operands = ", ".join(at.read(i, "f32") for i in (1, 2, 3))
    return at.write(f"multiply_add_down({operands})", "f32")


@instruction(r"fma\.rn\.(?P<type>bf16x2|f16x2)", 4)
def _fma_pairs(at: Site) -> str:
    operands = ", ".join(at.read(i, "b32") for i in (1, 2, 3))
    return at.write(f"multiply_add_{at['type']}({operands})", "b32")


@instruction(rf"(?:div|rcp|sqrt)\.rn\.{FLOAT}", None)
def _exact(at: Site) -> str:
    t = at["type"]
    op = at.instruction.opcode.split(".")[0]
    at.expect(3 if op == "div" else 2)
    value = {
        "div": lambda: f"{at.read(1, t)} / {at.read(2, t)}",
        "rcp": lambda: f"{VALUE[t]}(1) / {at.read(1, t)}",
        "sqrt": lambda: f"square_root({at.read(1, t)})",
    }[op]()
    return at.write(value, t)


@instruction(r"(?P<op>rcp|ex2)\.approx\.ftz\.(?P<type>f32)|(?P<double>rcp\.approx\.ftz\.f64)", 2)
def _approximate(at: Site) -> str:
    if at["double"]:
        return at.write(f"reciprocal_approximate({at.read(1, 'f64')})", "f64")
    function = {"rcp": "reciprocal_approximate", "ex2": "exp2_approximate"}[at["op"]]
    return at.write(f"{function}({at.read(1, 'f32')})", "f32")


@instruction(rf"(?P<op>div|rem)\.{INT}", 3)
def _int_division(at: Site) -> str:
    t = at["type"]
    function = {"div": "quotient", "rem": "remainder"}[at["op"]]
    return at.write(f"{function}<{t}>({at.read(1, t)}, {at.read(2, t)}, {at.line})", t)


@instruction(r"(?P<op>min|max)\.(?P<type>[su](?:16|32|64)|f32|f64)", 3)
def _extremum(at: Site) -> str:
    t = at["type"]
    return at.write(f"{at['op']}imum<{VALUE[t]}>({at.read(1, t)}, {at.read(2, t)})", t)


@instruction(r"(?P<op>neg|abs)\.(?P<type>s16|s32|s64|f32|f64)", 2)
def _sign(at: Site) -> str:
    function = {"neg": "negative", "abs": "absolute"}[at["op"]]
    return at.write(f"{function}<{VALUE[at['type']]}>({at.read(1, at['type'])})", at["type"])


@instruction(rf"copysign\.{FLOAT}", 3)
def _copysign(at: Site) -> str:
    """The sign of the first operand, the magnitude of the second."""
    t = at["type"]
    return at.write(f"copy_sign({at.read(2, t)}, {at.read(1, t)})", t)


@instruction(rf"(?P<op>and|or|xor)\.{BITS}", 3)
def _bits(at: Site) -> str:
    t = at["type"]
    return at.write(_narrow(unsigned(t), f"{at.read(1, t)} {SIGN[at['op']]} {at.read(2, t)}"), t)


@instruction(r"(?P<op>and|or|xor)\.pred", 3)
def _predicates(at: Site) -> str:
    sign = {"and": "&&", "or": "||", "xor": "!="}[at["op"]]
    return at.write(f"{at.read(1, 'pred')} {sign} {at.read(2, 'pred')}", "pred")


@instruction(r"not\.(?P<type>b(?:16|32|64)|pred)", 2)
def _not(at: Site) -> str:
    t = at["type"]
    if t == "pred":
        return at.write(f"!{at.read(1, t)}", t)
    return at.write(_narrow(unsigned(t), f"~{at.read(1, t)}"), t)


@instruction(r"(?P<op>shl|shr)\.(?P<type>[bsu](?:16|32|64))", 3)
def _shift(at: Site) -> str:
    """The amount is of 32 bits; one of the width or more shifts everything out."""
    t = at["type"]
    function = {"shl": "shift_left", "shr": "shift_right"}[at["op"]]
    return at.write(f"{function}<{VALUE[t]}>({at.read(1, t)}, {at.read(2, 'u32')})", t)


@instruction(r"(?P<op>popc|clz)\.(?P<type>b(?:32|64))", 2)
def _count(at: Site) -> str:
    function = {"popc": "count_ones", "clz": "count_leading_zeros"}[at["op"]]
    return at.write(f"{function}({at.read(1, at['type'])})", "u32")


@instruction(r"bfi\.(?P<type>b(?:32|64))", 5)
def _insert(at: Site) -> str:
    t = at["type"]
    operands = f"{at.read(1, t)}, {at.read(2, t)}, {at.read(3, 'u32')}, {at.read(4, 'u32')}"
    return at.write(f"insert_bits<{VALUE[t]}>({operands})", t)


@instruction(r"bfe\.(?P<type>[su](?:32|64))", 4)
def _extract(at: Site) -> str:
    t = at["type"]
    operands = f"{at.read(1, t)}, {at.read(2, 'u32')}, {at.read(3, 'u32')}"
    return at.write(f"extract_bits<{t}>({operands})", t)


@instruction(r"prmt\.b32", 4)
def _permute(at: Site) -> str:
    operands = ", ".join(at.read(i, "b32") for i in (1, 2, 3))
    return at.write(f"permute_bytes({operands})", "b32")


@instruction(r"shf\.(?P<side>l|r)\.wrap\.b32", 4)
def _funnel_shift(at: Site) -> str:
    operands = ", ".join(at.read(i, "b32") for i in (1, 2, 3))
    side = {"l": "left", "r": "right"}[at["side"]]
    return at.write(f"funnel_shift_{side}({operands})", "b32")


@instruction(r"lop3\.b32", 5)
def _table(at: Site) -> str:
    operands = ", ".join(at.read(i, "b32") for i in (1, 2, 3, 4))
    return at.write(f"look_up_bits({operands})", "b32")


ORDER = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNSIGNED_ORDER = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}


@instruction(r"setp\.(?P<op>eq|ne|lt|le|gt|ge|lo|ls|hi|hs)\.(?P<type>[bsu](?:16|32|64))", 3)
def _compare(at: Site) -> str:
    op, t = at["op"], at["type"]
    if (op in UNSIGNED_ORDER and t[0] != "u") or (t[0] == "b" and op not in ("eq", "ne")):
        raise Unsupported(f"the comparison .{op}")
    sign = (ORDER | UNSIGNED_ORDER)[op]
    return at.write(f"{at.read(1, t)} {sign} {at.read(2, t)}", "pred")


@instruction(rf"setp\.(?P<op>eq|ne|lt|le|gt|ge|num|nan)(?P<unordered>u?)\.{FLOAT}", 3)
def _compare_floats(at: Site) -> str:
    """With `u` true if an operand is NaN, without it false."""
    op, a, b = at["op"], at.read(1, at["type"]), at.read(2, at["type"])
    ordered = f"ordered({a}, {b})"
    if op in ("num", "nan"):
        if at["unordered"]:
            raise Unsupported(f"the comparison .{op}u")
        return at.write(ordered if op == "num" else f"!{ordered}", "pred")
    compared = f"{a} {ORDER[op]} {b}"
    if at["unordered"]:
        compared = f"!{ordered} || {compared}"
    elif op == "ne":  # C++ says that NaN is not equal to anything
        compared = f"{ordered} && {compared}"
    return at.write(compared, "pred")


@instruction(rf"selp\.{ANY}", 4)
def _select(at: Site) -> str:
    t = at["type"]
    return at.write(f"{at.read(3, 'pred')} ? {at.read(1, t)} : {at.read(2, t)}", t)


@instruction(r"mov\.(?P<type>[bsu](?:16|32|64)|f32|f64|pred)", 2)
def _mov(at: Site) -> str:
    t, to, source = at["type"], at.operand(0), at.operand(1)
    if is_vector(to):
        parts, width = _parts(to, t)
        value = at.operands.read(source, t)
        statements = [
            at.operands.write(part, f"u{width}(whole >> {i * width})", f"b{width}")
            for i, part in enumerate(parts)
            if part != "_"
        ]
        return f"{{ const {VALUE[t]} whole = {value}; {' '.join(statements)} }}"
    if is_vector(source):
        parts, width = _parts(source, t)
        pieces = [
            f"{VALUE[t]}({at.operands.read(part, f'b{width}')}) << {i * width}"
            for i, part in enumerate(parts)
        ]
        return at.write(f"{VALUE[t]}({' | '.join(pieces)})", t)
    if t == "pred":
        if source.startswith("%"):
            return at.write(at.read(1, t), t)
        return at.write("true" if int(source) else "false", t)
    return at.write(at.read(1, t), t)


def _parts(vector: str, type: str) -> tuple[list[str], int]:
    """The registers of a vector that is one register of this type, and their width."""
    parts = elements(vector)
    if type not in ("b32", "b64") or len(parts) not in (2, 4):
        raise Unsupported(f"mov of {vector} as .{type}")
    return parts, WIDTH[type] // len(parts)


@instruction(r"cvt\.rn\.(?P<type>bf16x2|f16x2)\.f32", 3)
def _pack(at: Site) -> str:
    """The first operand becomes the upper half."""
    return at.write(f"pack_{at['type']}({at.read(1, 'f32')}, {at.read(2, 'f32')})", "b32")


@instruction(r"cvt\.f32\.f16", 2)
def _widen(at: Site) -> str:
    return at.write(f"widen_f16({at.read(1, 'b16')})", "f32")


@instruction(r"cvt\.(?P<to>[su](?:8|16|32|64))\.(?P<type>[su](?:8|16|32|64))", 2)
def _convert_ints(at: Site) -> str:
    """A register wider than the source gives its low bits; one wider than the result is filled."""
    value = at.read(1, at["type"], narrows=True)
    return at.write(f"{at['to']}({value})", at["to"], widens=True)


@instruction(r"cvt\.rn\.(?P<to>f32|f64)\.(?P<type>[su](?:8|16|32|64))", 2)
def _convert_to_float(at: Site) -> str:
    value = at.read(1, at["type"], narrows=True)
    return at.write(f"{VALUE[at['to']]}({value})", at["to"])


@instruction(r"cvt\.(?P<round>rni|rzi)\.(?P<to>[su](?:16|32|64))\.(?P<type>f32|f64)", 2)
def _convert_to_int(at: Site) -> str:
    """Saturates; NaN gives 0."""
    function = {"rni": "nearest", "rzi": "toward_zero"}[at["round"]]
    return at.write(f"saturate<{at['to']}>({function}({at.read(1, at['type'])}))", at["to"])


@instruction(r"cvt\.rni\.f32\.f32", 2)
def _round(at: Site) -> str:
    return at.write(f"nearest({at.read(1, 'f32')})", "f32")


@instruction(r"cvt\.sat\.f32\.f32", 2)
def _saturate(at: Site) -> str:
    return at.write(f"saturate_unit({at.read(1, 'f32')})", "f32")


@instruction(r"cvt\.(?:f64\.f32|rn\.f32\.f64)", 2)
def _convert_floats(at: Site) -> str:
    to, source = at.instruction.opcode.split(".")[-2:]
    return at.write(f"{VALUE[to]}({at.read(1, source)})", to)
