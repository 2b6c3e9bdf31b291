# SPDX-License-Identifier: Apache-2.0
"""Each instruction of the translator from PTX (cuda_on_cpu/ptx/) against what the PTX manual says
of it, in Python: random operands and edges of their types. Needs no GPU and no nvcc."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from cuda_on_cpu.ptx import arithmetic
from cuda_on_cpu.ptx.instruction import find, table
from cuda_on_cpu.ptx.small import compile_text, kernel, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]  # compilers, on a busy machine

N = 256  # values of each operand
WIDTH = {"pred": 1, "bf16x2": 32, "f16x2": 32}


def width(type: str) -> int:
    return WIDTH.get(type) or int(type[1:])


def unsigned(x: int, bits: int) -> int:
    return x % 2**bits


def signed(x: int, type: str) -> int:
    """The bits as a number of this type."""
    bits = width(type)
    return x - 2**bits if type[0] == "s" and x >> (bits - 1) else x


def f32(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def f64(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


def bits_of(value: float, type: str) -> int:
    if type == "f64":
        return struct.unpack("<Q", struct.pack("<d", value))[0]
    return int(np.float32(value).view(np.uint32))


def rounded(value: Fraction, digits: int, smallest: int, down: bool = False) -> Fraction:
    """To `digits` binary digits and multiples of 2^smallest: to nearest, ties to even, or down."""
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    while abs(value) >= Fraction(2) ** exponent:
        exponent += 1
    while abs(value) < Fraction(2) ** (exponent - 1):
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits, smallest)
    return (math.floor(value / unit) if down else round(value / unit)) * unit


def float_of(value: Fraction, sign: float, largest: float) -> float:
    """A rounded number; infinity past the largest one, a zero of the given sign."""
    if value == 0:
        return math.copysign(0.0, sign)
    if abs(value) > largest:
        return math.inf if value > 0 else -math.inf
    return float(value)


LARGEST = {24: f32(0x7F7FFFFF), 53: f64(0x7FEFFFFFFFFFFFFF), 8: f32(0x7F7F0000), 11: 65504.0}


def fma(a: float, b: float, c: float, digits: int, smallest: int, down: bool = False) -> float:
    if not all(map(math.isfinite, (a, b, c))):
        with np.errstate(all="ignore"):
            return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact:
        sign = 1.0 if exact > 0 else -1.0
    else:  # a sum of two zeros, or of opposite numbers
        product = math.copysign(1, a) * math.copysign(1, b)
        same = product == math.copysign(1, c)
        sign = product if same else -1.0 if down else 1.0
    result = rounded(exact, digits, smallest, down)
    if down and result > LARGEST[digits]:
        return LARGEST[digits]
    return float_of(result, sign, LARGEST[digits])


@dataclass(frozen=True)
class Case:
    """An opcode, the types of its operands and of its result, and the result's bits."""

    opcode: str
    operands: str
    result: str
    expected: Callable[..., int | float]
    exact: bool = True  # else within two units of the last place


CASES: list[Case] = []


def case(opcode: str, operands: str, result: str, expected: Callable[..., int | float]) -> None:
    CASES.append(Case(opcode, operands, result, expected, ".approx" not in opcode))


def trunc_div(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


for t in ("s32", "u32", "s64", "u64", "u16", "s16"):
    case(f"add.{t}", f"{t} {t}", t, lambda a, b: a + b)
    case(f"sub.{t}", f"{t} {t}", t, lambda a, b: a - b)
    case(f"mul.lo.{t}", f"{t} {t}", t, lambda a, b: a * b)
    case(f"mad.lo.{t}", f"{t} {t} {t}", t, lambda a, b, c: a * b + c)
    case(f"min.{t}", f"{t} {t}", t, min)
    case(f"max.{t}", f"{t} {t}", t, max)
    case(f"shr.{t}", f"{t} u32", t, lambda a, n: a >> n)
    for op, compare in {
        "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    }.items():  # fmt: skip
        case(f"setp.{op}.{t}", f"{t} {t}", "pred", compare)
for t in ("s32", "u32", "s64", "u64"):
    case(f"div.{t}", f"{t} {t}", t, lambda a, b: trunc_div(a, b or 1))
    case(f"rem.{t}", f"{t} {t}", t, lambda a, b: a - trunc_div(a, b or 1) * (b or 1))
for t in ("s32", "u32", "s16", "u16"):
    double = f"{t[0]}{2 * width(t)}"
    case(f"mul.wide.{t}", f"{t} {t}", double, lambda a, b: a * b)
    case(f"mad.wide.{t}", f"{t} {t} {double}", double, lambda a, b, c: a * b + c)
for t in ("s32", "u32"):
    case(f"mul.hi.{t}", f"{t} {t}", t, lambda a, b: a * b >> 32)
for t in ("b16", "b32", "b64"):
    case(f"and.{t}", f"{t} {t}", t, lambda a, b: a & b)
    case(f"or.{t}", f"{t} {t}", t, lambda a, b: a | b)
    case(f"xor.{t}", f"{t} {t}", t, lambda a, b: a ^ b)
    case(f"not.{t}", t, t, lambda a: ~a)
    case(f"shl.{t}", f"{t} u32", t, lambda a, n: a << n if n < 64 else 0)
    case(f"selp.{t}", f"{t} {t} pred", t, lambda a, b, p: a if p else b)
    case(f"mov.{t}", t, t, lambda a: a)
for t in ("s16", "s32", "s64"):
    case(f"neg.{t}", t, t, lambda a: -a)
    case(f"abs.{t}", t, t, abs)
for op, function in {"and": lambda a, b: a & b, "or": lambda a, b: a | b,
                     "xor": lambda a, b: a ^ b}.items():  # fmt: skip
    case(f"{op}.pred", "pred pred", "pred", function)
case("not.pred", "pred", "pred", lambda a: 1 - a)
for t in ("b32", "b64"):
    case(f"popc.{t}", t, "u32", lambda a: a.bit_count())
    case(f"clz.{t}", t, "u32", lambda a, t=t: width(t) - a.bit_length())


def insert(bits: int) -> Callable[..., int]:
    def insert_bits(a: int, b: int, first: int, count: int) -> int:
        for i in range(min(count & 255, bits - min(first & 255, bits))):
            at = (first & 255) + i
            b = b & ~(1 << at) | (a >> i & 1) << at
        return b

    return insert_bits


def extract(type: str) -> Callable[..., int]:
    def extract_bits(a: int, first: int, count: int) -> int:
        """The manual's loop: bits past the end, or past the field, are the sign."""
        bits, first, count = width(type), first & 255, count & 255
        raw = unsigned(a, bits)
        sign = raw >> min(first + count - 1, bits - 1) & 1 if type[0] == "s" and count else 0
        inside = [first + i < bits and i < count for i in range(bits)]
        return sum((raw >> first + i & 1 if inside[i] else sign) << i for i in range(bits))

    return extract_bits


def permute(a: int, b: int, selector: int) -> int:
    result = 0
    for i in range(4):
        digit = selector >> 4 * i & 15
        byte = (b << 32 | a) >> 8 * (digit & 7) & 255
        result |= (byte if digit < 8 else 255 * (byte >> 7)) << 8 * i
    return result


def look_up(a: int, b: int, c: int, table: int) -> int:
    bits = [table >> (a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1) & 1 for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


for t in ("b32", "b64"):
    case(f"bfi.{t}", f"{t} {t} u8 u8", t, insert(width(t)))
for t in ("u32", "s32", "u64", "s64"):
    case(f"bfe.{t}", f"{t} u8 u8", t, extract(t))
case("prmt.b32", "b32 b32 b32", "b32", permute)
case("shf.l.wrap.b32", "b32 b32 u8", "b32",
     lambda a, b, n: (b << 32 | a) << (n & 31) >> 32 & 0xFFFFFFFF)  # fmt: skip
case("shf.r.wrap.b32", "b32 b32 u8", "b32",
     lambda a, b, n: (b << 32 | a) >> (n & 31) & 0xFFFFFFFF)  # fmt: skip
case("lop3.b32", "b32 b32 b32 u8", "b32", look_up)

with np.errstate(all="ignore"):
    for t, number in (("f32", np.float32), ("f64", np.float64)):
        digits, smallest = (24, -149) if t == "f32" else (53, -1074)
        case(f"add.rn.{t}", f"{t} {t}", t, lambda a, b, n=number: n(a) + n(b))
        case(f"sub.rn.{t}", f"{t} {t}", t, lambda a, b, n=number: n(a) - n(b))
        case(f"mul.rn.{t}", f"{t} {t}", t, lambda a, b, n=number: n(a) * n(b))
        case(f"div.rn.{t}", f"{t} {t}", t, lambda a, b, n=number: n(a) / n(b))
        case(f"rcp.rn.{t}", t, t, lambda a, n=number: n(1) / n(a))
        case(f"sqrt.rn.{t}", t, t, lambda a, n=number: np.sqrt(n(a)))
        case(f"fma.rn.{t}", f"{t} {t} {t}", t,
             lambda a, b, c, d=digits, s=smallest: fma(a, b, c, d, s))  # fmt: skip
        case(f"neg.{t}", t, t, lambda a: -a)
        case(f"abs.{t}", t, t, abs)
        case(f"copysign.{t}", f"{t} {t}", t, lambda a, b: math.copysign(b, a))
        case(f"selp.{t}", f"{t} {t} pred", t, lambda a, b, p: a if p else b)
        case(f"mov.{t}", t, t, lambda a: a)
        for op, compare in {
            "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
            "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
        }.items():  # fmt: skip
            case(f"setp.{op}.{t}", f"{t} {t}", "pred",
                 lambda a, b, c=compare: a == a and b == b and c(a, b))  # fmt: skip
            case(f"setp.{op}u.{t}", f"{t} {t}", "pred",
                 lambda a, b, c=compare: a != a or b != b or c(a, b))  # fmt: skip
        case(f"setp.num.{t}", f"{t} {t}", "pred", lambda a, b: a == a and b == b)
        case(f"setp.nan.{t}", f"{t} {t}", "pred", lambda a, b: a != a or b != b)


def least(a: float, b: float) -> float:
    """NaN gives the other; -0 is less than +0."""
    if a != a or b != b:
        return b if a != a else a
    return min(a, b, key=lambda v: (v, math.copysign(1, v)))


for t in ("f32", "f64"):
    case(f"min.{t}", f"{t} {t}", t, least)
    case(f"max.{t}", f"{t} {t}", t, lambda a, b: -least(-a, -b))
case("fma.rm.f32", "f32 f32 f32", "f32", lambda a, b, c: fma(a, b, c, 24, -149, down=True))


def half(bits: int) -> float:
    return float(np.uint16(bits).view(np.float16))


def pairs(a: int, b: int, c: int, type: str) -> int:
    result = 0
    for shift in (0, 16):
        parts = [x >> shift & 0xFFFF for x in (a, b, c)]
        values = [f32(p << 16) if type == "bf16x2" else half(p) for p in parts]
        digits, smallest = (8, -133) if type == "bf16x2" else (11, -24)
        value = fma(*values, digits, smallest)
        bits = (
            bits_of(value, "f32") >> 16
            if type == "bf16x2"
            else int(np.float16(value).view(np.uint16))
        )
        result |= bits << shift
    return result


def pack(high: float, low: float, type: str) -> int:
    digits, smallest, largest = (
        (8, -133, f32(0x7F7F0000)) if type == "bf16x2" else (11, -24, 65504.0)
    )
    result = 0
    for value in (high, low):
        if math.isfinite(value):
            value = float_of(rounded(Fraction(value), digits, smallest), value, largest)
        bits = (
            bits_of(value, "f32") >> 16
            if type == "bf16x2"
            else int(np.float16(value).view(np.uint16))
        )
        result = result << 16 | bits
    return result


for t in ("bf16x2", "f16x2"):
    case(f"fma.rn.{t}", f"{t} {t} {t}", t, lambda a, b, c, t=t: pairs(a, b, c, t))
    case(f"cvt.rn.{t}.f32", "f32 f32", t, lambda a, b, t=t: pack(a, b, t))
case("cvt.f32.f16", "b16", "f32", half)


def to_int(value: float, type: str, nearest: bool) -> int:
    low, high = (-(2 ** (width(type) - 1)), 2 ** (width(type) - 1) - 1) if type[0] == "s" else (
        0, 2 ** width(type) - 1)  # fmt: skip
    if value != value:
        return 0
    if math.isinf(value):
        return high if value > 0 else low
    return min(max(round(value) if nearest else math.trunc(value), low), high)


for source in ("f32", "f64"):
    for t in ("s32", "u32", "s64", "u64"):
        case(f"cvt.rni.{t}.{source}", source, t, lambda a, t=t: to_int(a, t, True))
        case(f"cvt.rzi.{t}.{source}", source, t, lambda a, t=t: to_int(a, t, False))
for source in ("s32", "u32", "s64", "u64", "s16", "u16"):
    case(f"cvt.rn.f32.{source}", source, "f32", lambda a: float(rounded(Fraction(a), 24, -149)))
    case(f"cvt.rn.f64.{source}", source, "f64", float)
    for t in ("s32", "u32", "s64", "u64", "s16", "u16"):
        case(f"cvt.{t}.{source}", source, t, lambda a: a)
case("cvt.rni.f32.f32", "f32", "f32",
     lambda a: math.copysign(float(round(a)), a) if math.isfinite(a) else a)  # fmt: skip
case("cvt.sat.f32.f32", "f32", "f32", lambda a: 0.0 if a != a or a <= 0 else min(a, 1.0))
case("cvt.f64.f32", "f32", "f64", float)
case("cvt.rn.f32.f64", "f64", "f32",
     lambda a: float_of(rounded(Fraction(a), 24, -149), a, 3.4028234663852886e38)
     if math.isfinite(a) else a)  # fmt: skip


def flush(value: float, smallest: float) -> float:
    return math.copysign(0.0, value) if abs(value) < smallest else value


def exp2(a: float) -> float:
    a = flush(a, 2.0**-126)
    return a if a != a else flush(math.inf if a >= 128 else 2.0 ** max(a, -1000.0), 2.0**-126)


def reciprocal(a: float, smallest: float) -> float:
    a = flush(a, smallest)
    return math.copysign(math.inf, a) if a == 0 else flush(1 / a, smallest)


case("ex2.approx.ftz.f32", "f32", "f32", exp2)
case("rcp.approx.ftz.f32", "f32", "f32", lambda a: reciprocal(a, 2.0**-126))
case("rcp.approx.ftz.f64", "f64", "f64", lambda a: reciprocal(a, 2.0**-1022))

EDGES = {
    "int": [0, 1, 2, 7, 15, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1,
            2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1],
    "f32": [0x0, 0x80000000, 0x1, 0x80000001, 0x7FFFFF, 0x800000, 0x3F800000, 0xBF800000,
            0x3F000000, 0x3FC00000, 0x40200000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000,
            0x7FC00000, 0x4F000000, 0xCF000000, 0x5F800000, 0x477FF000, 0x38800000, 0x33000000],
    "f64": [0x0, 1 << 63, 0x1, 0xFFFFFFFFFFFFF, 1 << 52, 0x3FF0000000000000, 0xBFF0000000000000,
            0x3FE0000000000000, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000,
            0x7FF8000000000000, 0x41E0000000000000, 0x43F0000000000000, 0x36A0000000000000],
}  # fmt: skip


def values_of(type: str, seed: int) -> list[int]:
    """Bits of operands: the edges in an order of its own, and random ones of all magnitudes."""
    random = np.random.default_rng([seed, *map(ord, type)])
    bits = width(type)
    if type in ("f32", "f64"):
        edges = EDGES[type]
        plain = random.standard_normal(N) * 2.0 ** random.integers(-20, 40, N)
        others = [bits_of(value, type) for value in plain]
    else:
        edges = EDGES["int"]
        words = random.integers(0, 2**64, N, dtype=np.uint64) >> np.uint64(64 - bits)
        others = [int(x) >> int(random.integers(0, bits)) for x in words]
        if type in ("bf16x2", "f16x2"):  # magnitudes that neither vanish nor overflow
            plain = random.standard_normal((N, 2))
            halves = plain.astype(np.float16).view(np.uint16)
            if type == "bf16x2":
                halves = plain.astype(np.float32).view(np.uint32) >> 16
            others = [int(low) | int(high) << 16 for low, high in halves]
            edges = [0x80000000, 0x3C003F80, 0x00010001, 0x04000080]
    chosen = [edges[i] for i in random.permutation(len(edges) * 3) % len(edges)]
    return [unsigned(x, bits) for x in (chosen + others)[:N]]


REGISTER = {"pred": "p", 8: "r", 16: "rs", 32: "r", 64: "rd", "f32": "f", "f64": "fd"}


def register(type: str, number: int) -> str:
    return f"%{REGISTER.get(type) or REGISTER[width(type)]}{number}"


def load(type: str, number: int, address: str) -> str:
    """A register of an operand's type from its place of 8 bytes; a bound for counts of bits."""
    name = register(type, number)
    if type == "pred":
        return f"ld.global.u32 %r30, [{address}];\nsetp.ne.u32 {name}, %r30, 0;"
    if type == "u8":
        return f"ld.global.u8 {name}, [{address}];"
    kind = type if type in ("f32", "f64") else f"b{width(type)}"
    return f"ld.global.{kind} {name}, [{address}];"


def text_of(cases: list[Case]) -> str:
    """A kernel of N threads: a case reads its operands from [case, operand, thread]."""
    body = [
        "mul.wide.u32 %rd20, %r0, 8;",
        "add.s64 %rd21, %rd1, %rd20;",
        "add.s64 %rd22, %rd2, %rd20;",
    ]
    for at, each in enumerate(cases):
        types = each.operands.split()
        operands = []
        for i, type in enumerate(types):
            operands.append(register(type, 10 + i))
            body.append(load(type, 10 + i, f"%rd21+{(4 * at + i) * 8 * N}"))
        if each.opcode.startswith(("div.", "rem.")) and types[0][0] != "f":  # 1 in place of 0
            body.append(f"setp.eq.{types[1]} %p30, {operands[1]}, 0;")
            body.append(f"selp.b{width(types[1])} {operands[1]}, 1, {operands[1]}, %p30;")
        result = register(each.result, 25)
        body.append(f"{each.opcode} {result}, {', '.join(operands)};")
        if each.result == "pred":
            body.append(f"selp.b32 %r25, 1, 0, {result};")
            result = "%r25"
        bits = 32 if each.result == "pred" else width(each.result)
        kind = each.result if each.result in ("f32", "f64") else f"b{bits}"
        body.append(f"st.global.{kind} [%rd22+{at * 8 * N}], {result};")
    return kernel("\n".join(body), parameters=2)


def value_of(bits: int, type: str) -> int | float:
    if type in ("f32", "f64"):
        return f32(bits) if type == "f32" else f64(bits)
    return bits & 1 if type == "pred" else signed(bits, type)


def ordinal(bits: int, type: str) -> int:
    """Position among the floats: neighbours differ by 1."""
    sign = 1 << (width(type) - 1)
    return sign - bits if bits & sign else bits


GROUPS = [CASES[i : i + 40] for i in range(0, len(CASES), 40)]


@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_instructions(ptx_program, group):
    cases = GROUPS[group]
    object = compile_text(text_of(cases))
    operands = np.zeros((len(cases), 4, N), dtype=np.uint64)
    given: list[list[list[int]]] = []
    for at, each in enumerate(cases):
        given.append([values_of(type, i) for i, type in enumerate(each.operands.split())])
        for i, type in enumerate(each.operands.split()):
            if type == "pred":
                given[at][i] = [bits & 1 for bits in given[at][i]]
            operands[at, i] = given[at][i]
    out = torch.zeros(len(cases), N, dtype=torch.int64)
    run(ptx_program, object, torch.from_numpy(operands.view(np.int64)), out, threads=N)
    results = out.numpy().view(np.uint64)
    for at, each in enumerate(cases):
        for i in range(N):
            arguments = [
                value_of(values[i], type)
                for values, type in zip(given[at], each.operands.split(), strict=True)
            ]
            with np.errstate(all="ignore"):
                expected = each.expected(*arguments)
            check(each, arguments, expected, int(results[at, i]))


def test_every_instruction_has_a_case():
    tested = [find(each.opcode)[0] for each in CASES]
    missing = [
        entry.pattern.pattern
        for entry in table
        if entry.emit.__module__ == arithmetic.__name__ and entry not in tested
    ]
    assert missing == []


def check(each: Case, arguments: list[int | float], expected: int | float, found: int) -> None:
    shown = f"{each.opcode} of {arguments}: expected {expected}, found {found:#x}"
    if each.result in ("f32", "f64"):
        value = value_of(found, each.result)
        if expected != expected:
            assert value != value, shown
        elif each.exact:
            assert found == bits_of(float(expected), each.result), shown
        else:
            distance = ordinal(found, each.result) - ordinal(
                bits_of(expected, each.result), each.result
            )
            # Double precision: 20 bits of the significand.
            assert abs(distance) <= (2 if each.result == "f32" else 2**33), shown
    elif each.result in ("bf16x2", "f16x2"):
        largest = 0x7F80 if each.result == "bf16x2" else 0x7C00
        for shift in (0, 16):
            a, b = (int(x) >> shift & 0xFFFF for x in (expected, found))
            nans = [x & 0x7FFF > largest for x in (a, b)]
            assert a == b or all(nans), shown
    else:
        bits = 1 if each.result == "pred" else width(each.result)
        assert found == unsigned(int(expected), bits), shown
