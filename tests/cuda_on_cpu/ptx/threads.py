# SPDX-License-Identifier: Apache-2.0
"""Instructions that threads execute together, and those that lead from one to another."""

from __future__ import annotations

from cuda_on_cpu.ptx.instruction import Site, instruction
from cuda_on_cpu.ptx.memory import pointer
from cuda_on_cpu.ptx.operands import VALUE, Unsupported, elements


def label(name: str) -> str:
    """The C++ label."""
    return name.replace("$", "_")


@instruction(r"bra(?P<uniform>\.uni)?", 1, 0)
def _branch(at: Site) -> str:
    if at["uniform"] and at.instruction.predicate:
        raise Unsupported("a uniform branch with a predicate")
    return f"goto {label(at.operand(0))};"


@instruction(r"ret|exit", 0, 0)
def _return(at: Site) -> str:
    return "return;"


@instruction(r"trap", 0, 0)
def _trap(at: Site) -> str:
    return f"trap({at.line});"


def _barrier_of_all(at: Site, i: int) -> None:
    if at.operand(i) != "0":
        raise Unsupported(f"barrier {at.operand(i)}")


@instruction(r"(?:bar|barrier)(?:\.cta)?\.sync(?P<aligned>\.aligned)?", 1, 0)
def _barrier(at: Site) -> str:
    """`bar.sync` is short for `barrier.sync.aligned`; both wait for all threads of the block."""
    _barrier_of_all(at, 0)
    if at.instruction.opcode.startswith("barrier") and not at["aligned"]:
        raise Unsupported("a barrier that is not aligned")
    return f"block_barrier({at.line});"


@instruction(r"bar\.red\.(?P<op>and|or)\.pred", 3)
def _barrier_vote(at: Site) -> str:
    _barrier_of_all(at, 1)
    return at.write(f"block_barrier_{at['op']}({at.read(2, 'pred')}, {at.line})", "pred")


@instruction(r"bar\.red\.popc\.u32", 3)
def _barrier_count(at: Site) -> str:
    _barrier_of_all(at, 1)
    return at.write(f"block_barrier_count({at.read(2, 'pred')}, {at.line})", "u32")


@instruction(r"bar\.warp\.sync", 1, 0)
def _warp_barrier(at: Site) -> str:
    return f"warp_barrier({at.read(0, 'b32')});"


@instruction(r"barrier\.cluster\.arrive(?:\.release)?\.aligned", 0, 0)
def _cluster_arrive(at: Site) -> str:
    """The wait does both: translate.py checks that it follows."""
    return ";"


@instruction(r"barrier\.cluster\.wait(?:\.acquire)?\.aligned", 0, 0)
def _cluster_wait(at: Site) -> str:
    return f"cluster_barrier({at.line});"


@instruction(r"griddepcontrol\.launch_dependents", 0, 0)
def _launch_dependents(at: Site) -> str:
    """The next grid begins when it is launched."""
    return ";"


@instruction(r"griddepcontrol\.wait", 0, 0)
def _wait_for_stream(at: Site) -> str:
    return "wait_for_stream();"


@instruction(r"mapa\.u64", 3)
def _map(at: Site) -> str:
    return at.write(f"map_shared({at.read(1, 'u64')}, {at.read(2, 'u32')})", "u64")


@instruction(r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32", 5)
def _shuffle(at: Site) -> str:
    """The result may come with a predicate: whether the source lane is in range."""
    result, _, valid = at.operand(0).partition("|")
    operands = f"{at.read(1, 'b32')}, {at.read(2, 'b32')}, {at.read(3, 'b32')}, {at.read(4, 'b32')}"
    value = f"shuffle_{at['mode']}({operands})"
    write = at.operands.write(result, "shuffled.value", "b32")
    if valid:
        write += " " + at.operands.write(valid, "shuffled.valid", "pred")
    return f"{{ const Shuffled shuffled = {value}; {write} }}"


@instruction(r"vote\.sync\.(?P<mode>any|all|uni)\.pred", 3)
def _vote(at: Site) -> str:
    return at.write(f"vote_{at['mode']}({at.read(1, 'pred')}, {at.read(2, 'b32')})", "pred")


@instruction(r"vote\.sync\.ballot\.b32", 3)
def _ballot(at: Site) -> str:
    return at.write(f"vote_ballot({at.read(1, 'pred')}, {at.read(2, 'b32')})", "b32")


@instruction(r"redux\.sync\.(?P<op>add|min|max)\.(?P<type>u32|s32)", 3)
def _reduce(at: Site) -> str:
    t = at["type"]
    return at.write(f"reduce_{at['op']}<{t}>({at.read(1, t)}, {at.read(2, 'b32')})", t)


@instruction(r"ldmatrix\.sync\.aligned\.m8n8\.x4(?P<transposed>\.trans)?\.shared\.b16", 2)
def _load_matrices(at: Site) -> str:
    registers = elements(at.operand(0))
    if len(registers) != 4:
        raise Unsupported(f"the operand {at.operand(0)}")
    transposed = "true" if at["transposed"] else "false"
    row = pointer(at, at.operand(1), "shared", 16, "read")
    writes = [at.operands.write(r, f"loaded[{i}]", "b32") for i, r in enumerate(registers)]
    call = f"load_matrices<{transposed}>(loaded, {row}, {at.line});"
    return f"{{ u32 loaded[4]; {call} {' '.join(writes)} }}"


@instruction(
    r"mma\.sync\.aligned\.(?:m16n8k16\.row\.col\.f32\.(?P<half>bf16|f16)\.(?P=half)\.f32"
    r"|m16n8k(?P<k>16|32)\.row\.col\.s32\.s8\.s8\.s32)",
    4,
)
def _multiply(at: Site) -> str:
    """d = a b + c with a [16, K], b [K, 8], c and d [16, 8]: registers as the manual lays them out,
    which the twin of matrix.cuh follows."""
    type, sum_type = at["half"] or "s8", "f32" if at["half"] else "s32"
    d, a, b, c = (elements(at.operand(i)) for i in range(4))
    few = at["k"] == "16"  # bytes: as 32 with zeros above
    if [len(d), len(a), len(b), len(c)] != [4, 2 if few else 4, 1 if few else 2, 4]:
        raise Unsupported("numbers of registers")

    def array(name: str, registers: list[str], t: str) -> str:
        values = ", ".join(at.operands.read(register, t) for register in registers)
        if few and name != "c":
            values += ", 0" * len(registers)
        return f"const {VALUE[t]} {name}[] = {{{values}}};"

    arrays = f"{array('a', a, 'b32')} {array('b', b, 'b32')} {array('c', c, sum_type)}"
    writes = [at.operands.write(r, f"d[{i}]", sum_type) for i, r in enumerate(d)]
    call = f"{VALUE[sum_type]} d[4]; multiply_{type}(d, a, b, c, {at.line});"
    return f"{{ {arrays} {call} {' '.join(writes)} }}"
