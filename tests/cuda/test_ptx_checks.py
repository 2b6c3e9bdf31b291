# SPDX-License-Identifier: Apache-2.0
"""Instructions of memory and of threads in kernels of PTX text, and the faults that the translator
from PTX (cuda_on_cpu/ptx/) finds in them. Needs no GPU."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu.client import Refused
from cuda_on_cpu.ptx.parse import PtxError
from cuda_on_cpu.ptx.small import HEAD, compile_text, kernel, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]  # compilers, on a busy machine

SHARED = ".shared .align 16 .b8 shared[256];\n"
OWN = """
mul.wide.u32 %rd10, %r0, 4;
add.s64 %rd11, %rd1, %rd10;
add.s64 %rd12, %rd2, %rd10;
"""  # %rd11, %rd12: this thread's words of the two tensors


def words(n: int = 64, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + n, dtype=torch.int32)


def launch(program, body, *tensors, threads=32, variables="", directives="", **options):
    text = kernel(body, len(tensors), variables, directives)
    run(program, compile_text(text), *tensors, threads=threads, **options)


def refused(program, match, body, *tensors, **options):
    with pytest.raises(Refused, match=match):
        launch(program, body, *tensors, **options)


# Faults found when a kernel runs. Each kernel is right in another place of this file, or without
# the line that is wrong.


@pytest.mark.parametrize(
    ("instruction", "offset", "bytes"),
    [
        ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1+OFFSET]", 8, 16),
        ("ld.global.v2.f32 {%f1, %f2}, [%rd1+OFFSET]", 4, 8),
        ("ld.global.nc.u64 %rd5, [%rd1+OFFSET]", 4, 8),
        ("st.global.v4.u16 [%rd1+OFFSET], {%rs1, %rs1, %rs1, %rs1}", 2, 8),
        ("st.shared.u32 [shared+OFFSET], %r0", 2, 4),
        ("atom.shared.add.u32 %r1, [shared+OFFSET], 1", 1, 4),
        ("ld.f32 %f1, [%rd1+OFFSET]", 2, 4),
    ],
)
def test_alignment(ptx_program, instruction, offset, bytes):
    body = "mov.u16 %rs1, 5;\n" + instruction + ";\n"
    launch(ptx_program, body.replace("+OFFSET", ""), words(), variables=SHARED, threads=1)
    wrong = body.replace("OFFSET", str(offset))
    refused(ptx_program, rf"accesses {bytes} bytes at 0x\w+, which is not aligned (?s:.*)"
            r"kernel\.ptx:\d+", wrong, words(), variables=SHARED, threads=1)  # fmt: skip


@pytest.mark.parametrize("threads", [1, 64])
def test_constant_loads_of_written_memory(ptx_program, threads):
    """In one order or the other, also in two threads; what others write does not matter."""
    load, store = "ld.global.nc.u32 %r1, [%rd11];", "st.global.u32 [%rd12], %r0;"
    body = OWN + load + "bar.sync 0;" + store
    launch(ptx_program, body, words(), words(), threads=threads)
    same = body.replace("%rd12]", "%rd11]")
    refused(ptx_program, "writes memory that the grid has read by ld.global.nc", same, words(),
            words(), threads=threads)  # fmt: skip
    first = OWN + "st.global.u8 [%rd11+3], %r0;\nbar.sync 0;" + load
    refused(ptx_program, "reads by ld.global.nc what the grid has written", first, words(), words(),
            threads=threads)  # fmt: skip
    atomic = OWN + "red.global.add.u32 [%rd11], 1;\nbar.sync 0;" + load
    refused(ptx_program, "by ld.global.nc what the grid has written", atomic, words(), words(),
            threads=threads)  # fmt: skip


def test_constant_loads_of_what_another_block_wrote(ptx_program):
    body = """
    mov.u32 %r1, %ctaid.x;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra read;
    st.global.u32 [%rd1], %r0;
    ret;
    read:
    ld.global.nc.u32 %r2, [%rd1];
    """
    refused(ptx_program, "reads by ld.global.nc", body, words(), threads=1, blocks=2)
    launch(ptx_program, body, words(), threads=1, blocks=1)


UNWRITTEN = """
setp.gt.u32 %p1, %r0, LIMIT;
@%p1 bra after;
mov.u32 %r5, 7;
after:
st.global.u32 [%rd1], %r5;
"""


def test_unwritten_registers(ptx_program):
    """Found where it happens, not where it might."""
    launch(ptx_program, UNWRITTEN.replace("LIMIT", "31"), words())
    refused(ptx_program, r"thread \(6, 0, 0\) .* reads %r5, which it has not written(?s:.*)"
            r"kernel\.ptx:\d+", UNWRITTEN.replace("LIMIT", "5"), words())  # fmt: skip
    guarded = "setp.eq.u32 %p1, %r0, 40;\n@%p1 mov.u32 %r5, 7;\nst.global.u32 [%rd1], %r5;"
    refused(ptx_program, "reads %r5, which it has not written", guarded, words())
    predicate = "@%p3 bra after;\nst.global.u32 [%rd1], %r0;\nafter:"
    refused(ptx_program, "reads %p3, which it has not written", predicate, words())
    loop = """
    mov.u32 %r1, 0;
    again:
    add.s32 %r2, %r2, 1;
    add.s32 %r1, %r1, 1;
    setp.lt.u32 %p1, %r1, 3;
    @%p1 bra again;
    """
    refused(ptx_program, "reads %r2, which it has not written", loop, words())
    vector = "mov.b64 %rd5, {%r1, %r0};\nst.global.u64 [%rd1], %rd5;"
    refused(ptx_program, "reads %r1, which it has not written", vector, words())


ADDRESS = "mov.u32 %r1, shared;\ncvt.u64.u32 %rd5, %r1;\ncvta.shared.u64 %rd6, %rd5;\n"


@pytest.mark.parametrize(
    ("right", "wrong", "match"),
    [
        ("st.shared.u32 [%r1], %r0;", "st.global.u32 [%rd5], %r0;",
         "as global 0x400, an address of shared memory"),
        ("st.u32 [%rd6], %r0;", "st.u32 [%rd5], %r0;", "as generic 0x400, an address of shared"),
        ("st.u32 [%rd6], %r0;", "st.global.u32 [%rd6], %r0;",
         "as global the generic address of shared memory"),
        ("st.shared.u32 [%rd5], %r0;", "st.shared.u32 [%rd6], %r0;", "as shared 0x.*, outside"),
        ("st.shared.u32 [%r1+252], %r0;", "st.shared.u32 [%r1+256], %r0;", "outside of the block"),
        ("st.shared.u32 [%r1], %r0;", "st.shared.u32 [%r1+-4], %r0;", "outside of the block"),
        ("cvta.to.shared.u64 %rd7, %rd6;", "cvta.to.shared.u64 %rd7, %rd1;",
         "makes a shared address of 0x"),
        ("cvta.shared.u64 %rd7, %rd5;", "cvta.shared.u64 %rd7, %rd1;", "makes a generic address"),
        ("ld.global.u32 %r2, [%rd1];", "ld.shared.u32 %r2, [%rd1];", "as shared 0x.*, outside"),
        ("mov.u64 %rd7, p1;\nld.param.u64 %rd8, [%rd7];", "mov.u64 %rd7, p1;\n"
         "ld.global.u64 %rd8, [%rd7];", "as global the address of a parameter"),
        ("mov.u64 %rd7, p1;\nld.param.u64 %rd8, [%rd7];", "mov.u64 %rd7, p1;\n"
         "ld.param.u64 %rd8, [%rd7+8];", "as a parameter 0x"),
    ],
)  # fmt: skip
def test_spaces(ptx_program, right, wrong, match):
    launch(ptx_program, ADDRESS + right, words(), variables=SHARED, threads=1)
    refused(ptx_program, match, ADDRESS + wrong, words(), variables=SHARED, threads=1)


def divergent(instruction: str, other: str, declare: str = "") -> str:
    """Lanes below 16 execute one, the others the other."""
    return f"""{declare}
    mov.u32 %r1, shared;
    setp.lt.u32 %p1, %r0, 16;
    @%p1 bra low;
    {other}
    bra.uni end;
    low:
    {instruction}
    end:
    """


MMA = ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4},"
       "{%r2, %r2, %r2, %r2}, {%r2, %r2}, {%f5, %f5, %f5, %f5};")  # fmt: skip


@pytest.mark.parametrize(
    ("instruction", "declare"),
    [
        ("bar.sync 0;", ""),
        ("bar.red.or.pred %p2, 0, %p1;", ""),
        (MMA, "mov.u32 %r2, 0;\nmov.f32 %f5, 0f00000000;"),
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r2, %r3, %r4, %r5}, [%r1];", ""),
        ("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;", ""),
    ],
)
def test_aligned_instructions_under_divergence(ptx_program, instruction, declare):
    """The same instruction in two branches is two; one that all lanes reach is one."""
    together = f"{declare}\nmov.u32 %r1, shared;\nsetp.lt.u32 %p1, %r0, 16;\n{instruction}"
    launch(ptx_program, together, words(), variables=SHARED)
    refused(ptx_program, "an aligned instruction must be the same for a whole warp",
            divergent(instruction, instruction, declare), words(), variables=SHARED)  # fmt: skip
    refused(ptx_program, "wait for one another for ever|which has left",
            divergent(instruction, "", declare), words(), variables=SHARED)  # fmt: skip


def test_warps_may_be_at_different_barriers(ptx_program):
    """`.aligned` is about a warp: two warps meet from two places."""
    body = divergent("bar.sync 0;", "bar.sync 0;").replace("%r0, 16", "%r0, 32")
    launch(ptx_program, body, words(), variables=SHARED, threads=64)


def test_block_size(ptx_program):
    for directives, good, bad, match in (
        (".maxntid 64, 1, 1", 64, 65, r"blocks of 65 threads, compiled for 64 \(\.maxntid\)"),
        (".maxntid 4, 8, 1\n.minnctapersm 2", 32, 33, "blocks of 33 threads, compiled for 32"),
        (".reqntid 64, 1, 1", 64, 32, r"other blocks than it is compiled for \(\.reqntid\)"),
    ):
        launch(ptx_program, "", words(), directives=directives, threads=good)
        refused(ptx_program, match, "", words(), directives=directives, threads=bad)


def test_other_faults(ptx_program):
    refused(ptx_program, "divides by zero", "div.u32 %r1, %r0, 0;", words(), threads=1)
    refused(ptx_program, "traps", "trap;", words(), threads=1)
    refused(ptx_program, "2 arguments, has 1 parameters", "", words(), threads=1, count=5)


# Faults found when a kernel is translated.


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("add.rz.f32 %f1, %f2, %f3;", r"kernel\.ptx:LINE: not supported: add\.rz\.f32 %f1, %f2"),
        ("add.ftz.f32 %f1, %f2, %f3;", "not supported: add.ftz.f32"),
        ("add.sat.s32 %r1, %r2, %r3;", "not supported: add.sat.s32"),
        ("ld.volatile.global.u32 %r1, [%rd1];", "not supported: ld.volatile"),
        ("sin.approx.f32 %f1, %f2;", "not supported: sin.approx.f32"),
        ("bar.sync 1;", "barrier 1"),
        ("bar.sync 0, 64;", "2 operands in place of 1"),
        ("add.s32 %r1, %r2, %r99;", "%r99 is not declared"),
        ("add.s32 %r1, %rd2, %r3;", "%rd2, a register of 64 bits, as .u32"),
        ("add.s64 %r1, %rd2, %rd3;", "%r1, a register of 32 bits, for .u64"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 8;", "a copy of 8 bytes"),
        ("bra nowhere;", "no label: bra nowhere"),
        ("@%p1 bra.uni end;\nend:", "a uniform branch with a predicate"),
        ("ld.param.u64 %rd5, [p1+8];", r"the address \[p1\+8\]"),
        ("barrier.cluster.arrive.aligned;\nmov.u32 %r1, 0;\nbarrier.cluster.wait.aligned;",
         "work between a cluster's arrival and wait"),
        ("here:\nhere:", "has a label twice"),
        (".local .align 4 .b8 depot[8];", "not understood: '.local"),
        (".pragma \"unknown\";", "not a known pragma"),
        ("add.s32 %r1, %r2;", "2 operands in place of 3"),
        ("}", "not an instruction: 'ret'"),
    ],
)  # fmt: skip
def test_unknown_text(body, match):
    text = kernel(body, 1)
    line = text.split(body)[0].count("\n") + 1
    with pytest.raises(PtxError, match=match.replace("LINE", str(line))):
        compile_text(text)


def test_unknown_directives():
    for text, match in (
        (HEAD + ".tex .u32 t;\n", r"kernel\.ptx:4: not understood: '\.tex"),
        (kernel("", 1, directives=".pragma_of_entry 5"), "not a known directive of a function"),
    ):
        with pytest.raises(PtxError, match=match):
            compile_text(text)


# Memory and threads, without faults.


def test_loads_and_stores(ptx_program):
    """Widths, signs and vectors; a wider register is filled by its sign, or with zeros."""
    source = torch.tensor([0x80FF7F01, 0x12345678, 0xFFFFFFFE, 3], dtype=torch.int64).int()
    out = torch.zeros(8, dtype=torch.int64)
    launch(
        ptx_program,
        """
        ld.global.s8 %r1, [%rd1+3];
        cvt.s64.s32 %rd5, %r1;
        st.global.u64 [%rd2], %rd5;
        ld.global.u8 %rd5, [%rd1+3];
        st.global.u64 [%rd2+8], %rd5;
        ld.global.s32 %rd5, [%rd1+8];
        st.global.u64 [%rd2+16], %rd5;
        ld.global.v2.u16 {%rs1, %rs2}, [%rd1];
        st.global.v4.u16 [%rd2+24], {%rs2, %rs1, %rs1, %rs2};
        ld.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
        st.global.v4.u32 [%rd2+32], {%r4, %r3, %r2, %r1};
        ld.global.u32 %rd5, [%rd1+4];
        st.global.u8 [%rd2+48], %rd5;
        mov.b64 {%r5, _}, %rd5;
        st.global.f32 [%rd2+56], %r5;
        """,
        source, out, threads=1,
    )  # fmt: skip
    a, b, c, d = (int(x) % 2**32 for x in source)
    expected = [-128, 0x80, -2, 0x80FF | 0x7F01 << 16 | 0x7F01 << 32 | 0x80FF << 48,
                d | c << 32, b | a << 32, 0x78, b]  # fmt: skip
    assert [x % 2**64 for x in out.tolist()] == [x % 2**64 for x in expected]


def test_variables(ptx_program):
    """Of the module: initialised ones, constants, and shared ones beside what the launch adds."""
    variables = (
        SHARED
        + """
    .global .align 4 .u32 table[4] = {5, 6, 0x7};
    .const .align 8 .b8 bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    .extern .shared .align 16 .b8 dynamic[];
    """
    )
    out = torch.zeros(6, dtype=torch.int32)
    body = """
    ld.global.u32 %r1, [table+8];
    st.global.u32 [%rd1], %r1;
    mov.u64 %rd5, table;
    ld.global.u32 %r1, [%rd5+12];
    st.global.u32 [%rd1+4], %r1;
    ld.const.u32 %r1, [bytes+4];
    st.global.u32 [%rd1+8], %r1;
    mov.u32 %r2, dynamic;
    mov.u32 %r3, shared;
    sub.s32 %r4, %r2, %r3;
    st.global.u32 [%rd1+12], %r4;
    st.shared.u32 [dynamic+12], %r4;
    ld.shared.u32 %r5, [%r2+12];
    st.global.u32 [%rd1+16], %r5;
    """
    launch(ptx_program, body, out, variables=variables, threads=1, shared_bytes=16)
    assert out.tolist() == [7, 0, 0x08070605, 256, 256, 0]
    refused(ptx_program, "outside of the block's 256 bytes", body, out, variables=variables,
            threads=1)  # fmt: skip


def test_atomics(ptx_program):
    out, sums = words(4).zero_(), words(64).zero_()
    launch(
        ptx_program,
        OWN + "atom.global.add.u32 %r1, [%rd1], 2;\nst.global.u32 [%rd12], %r1;\n"
        "red.global.add.u32 [%rd1+4], %r0;\nmembar.gl;",
        out, sums, threads=64,
    )  # fmt: skip
    assert out.tolist() == [128, 64 * 63 // 2, 0, 0]
    assert sorted(sums.tolist()) == list(range(0, 128, 2))


def test_order_of_a_stream(ptx_program):
    """Without effect on a grid that begins after the ones before; a prefetch reads nothing."""
    out = words()
    body = OWN + "prefetch.global.L2 [%rd11+4096];\ngriddepcontrol.launch_dependents;\n"
    launch(ptx_program, body + "griddepcontrol.wait;\nst.global.u32 [%rd11], 5;", out, words())
    assert out.tolist() == [5] * 32 + list(range(32, 64))


def shuffle(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The source lane, as the manual's pseudocode has it."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    most, least = lane & segment | clamp & ~segment, lane & segment
    source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | b & ~segment}[mode]
    valid = source >= most if mode == "up" else source <= most
    return (source if valid else lane), valid


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(ptx_program, mode):
    """Over whole warps and segments of 8 and 16; the distance differs from lane to lane."""
    body = (
        OWN
        + f"""
    ld.global.u32 %r5, [%rd1+128];
    ld.global.u32 %r4, [%rd11];
    add.s32 %r1, %r0, 100;
    shfl.sync.{mode}.b32 %r2|%p1, %r1, %r4, %r5, -1;
    selp.b32 %r3, 1, 0, %p1;
    st.global.u32 [%rd12], %r2;
    st.global.u32 [%rd12+128], %r3;
    """
    )
    for segment in (0, 16, 24):
        clamp = (0 if mode == "up" else 31) | segment << 8
        for start in range(0, 32, 3):
            by = [(start + lane // 5) % 32 for lane in range(32)]
            out = torch.zeros(2, 32, dtype=torch.int32)
            launch(ptx_program, body, torch.tensor([*by, clamp], dtype=torch.int32), out)
            expected = [shuffle(mode, lane, by[lane], clamp) for lane in range(32)]
            assert out[0].tolist() == [source + 100 for source, _ in expected]
            assert out[1].tolist() == [int(valid) for _, valid in expected]


def test_votes_and_reductions(ptx_program):
    out = torch.zeros(9, 32, dtype=torch.int32)
    rows = [
        "vote.sync.ballot.b32 %r3, %p1, -1;",
        "vote.sync.any.pred %p2, %p1, -1;\nselp.b32 %r3, 1, 0, %p2;",
        "vote.sync.all.pred %p2, %p1, -1;\nselp.b32 %r3, 1, 0, %p2;",
        "vote.sync.uni.pred %p2, %p1, -1;\nselp.b32 %r3, 1, 0, %p2;",
        "redux.sync.add.s32 %r3, %r1, -1;",
        "redux.sync.min.s32 %r3, %r1, -1;",
        "redux.sync.max.u32 %r3, %r1, -1;",
        "bar.red.popc.u32 %r3, 0, %p1;",
        "bar.red.and.pred %p2, 0, %p1;\nselp.b32 %r3, 1, 0, %p2;",
    ]
    body = "mul.wide.u32 %rd10, %r0, 4;\nadd.s64 %rd11, %rd1, %rd10;\nadd.s32 %r1, %r0, -5;\n"
    body += "setp.lt.s32 %p1, %r1, 0;\n"
    for i, row in enumerate(rows):
        body += f"{row}\nst.global.u32 [%rd11+{128 * i}], %r3;\n"
    launch(ptx_program, body, out)
    lanes = range(-5, 27)
    expected = [31, 1, 0, 0, sum(lanes), -5, -1, 5, 0]
    assert out.tolist() == [[value] * 32 for value in expected]
    refused(ptx_program, "the lanes of a mask must call the same function",
            divergent(rows[0], rows[1]).replace("%p1,", "%p1,"), out, variables=SHARED)  # fmt: skip
