# SPDX-License-Identifier: Apache-2.0
"""Instructions that access memory. Every access goes through a function of runtime/memory.cpp that
checks its space and alignment and returns a pointer of the host.

An address of shared memory is an offset from SHARED_BASE, as on hardware; other addresses are the
host's. A generic address of shared memory is the host's too.
"""

from __future__ import annotations

from cuda_on_cpu.ptx.instruction import Site, instruction
from cuda_on_cpu.ptx.operands import VALUE, WIDTH, Unsupported, elements

# Where a cache keeps the data: without effect on values.
HINTS = r"(?:\.(?:ca|cg|cs|L1::no_allocate|L1::evict_first|L1::evict_last|L2::(?:64|128|256)B))*"
TYPE = r"(?P<type>[bsu](?:8|16|32|64)|f32|f64)"


def pointer(at: Site, operand: str, space: str, bytes: int, access: str) -> str:
    """The host's pointer to the bytes at an address, as C++. `space` may be empty: generic.

    `access` is read, write or constant, which is a read through the read-only cache.
    """
    base, name, offset = at.operands.address(operand)
    if base == "param":
        start, variable = at.operands.memory.parameters[name]
        if space != "param" or offset < 0 or offset + bytes > variable.bytes or offset % bytes:
            raise Unsupported(f"the address {operand}")
        return f"parameters + {start + offset}"
    if base == "register":
        width = WIDTH[at.operands.registers[name]]
        address = at.operands.read(name, f"u{width}")
        if width == 32 and space != "shared":
            raise Unsupported(f"{operand} of 32 bits outside of shared memory")
    else:
        if base != space:
            raise Unsupported(f"{name}, a variable in .{base} memory")
        width = 64
        address = at.operands.read(name, "u64")
    if offset:
        address = f"u{width}({address} {'+' if offset > 0 else '-'} {abs(offset)})"
    return f"{space or 'generic'}_{access}({address}, {bytes}, {at.line})"


@instruction(
    rf"ld(?:\.(?P<space>global|shared|param|const))?(?P<constant>\.nc)?{HINTS}(?:\.v(?P<count>[24]))?"
    rf"\.{TYPE}",
    2,
)
def _load(at: Site) -> str:
    t, to = at["type"], elements(at.operand(0))
    if len(to) != int(at["count"] or 1) or (at["constant"] and at["space"] != "global"):
        raise Unsupported(f"the operand {at.operand(0)}")
    size = WIDTH[t] // 8
    access = "constant" if at["constant"] else "read"
    from_ = pointer(at, at.operand(1), at["space"], size * len(to), access)
    if len(to) == 1:
        return at.write(f"load<{VALUE[t]}>({from_})", t, widens=True)
    writes = [
        at.operands.write(register, f"load<{VALUE[t]}>(from + {i * size})", t, widens=True)
        for i, register in enumerate(to)
    ]
    return f"{{ const unsigned char* from = {from_}; {' '.join(writes)} }}"


@instruction(
    rf"st(?:\.(?P<space>global|shared|param))?{HINTS}(?:\.v(?P<count>[24]))?\.{TYPE}", 2, 0
)
def _store(at: Site) -> str:
    t, values = at["type"], elements(at.operand(1))
    if len(values) != int(at["count"] or 1):
        raise Unsupported(f"the operand {at.operand(1)}")
    size = WIDTH[t] // 8
    to = pointer(at, at.operand(0), at["space"], size * len(values), "write")
    writes = [
        f"store<{VALUE[t]}>(to + {i * size}, {at.operands.read(value, t, narrows=True)});"
        for i, value in enumerate(values)
    ]
    return f"{{ unsigned char* to = {to}; {' '.join(writes)} }}"


@instruction(r"atom\.(?P<space>global|shared)\.add\.(?P<type>u32|u64)", 3)
def _atomic(at: Site) -> str:
    t = at["type"]
    to = pointer(at, at.operand(1), at["space"], WIDTH[t] // 8, "write")
    return at.write(f"atomic_add<{t}>({to}, {at.read(2, t)})", t)


@instruction(r"red\.(?P<space>global|shared)\.add\.(?P<type>u32|u64)", 2, 0)
def _reduction(at: Site) -> str:
    t = at["type"]
    to = pointer(at, at.operand(0), at["space"], WIDTH[t] // 8, "write")
    return f"atomic_add<{t}>({to}, {at.read(1, t)});"


@instruction(r"cvta(?P<to>\.to)?\.(?P<space>global|shared)\.u64", 2)
def _convert_address(at: Site) -> str:
    address = at.read(1, "u64")
    if at["space"] == "shared":
        function = "shared_of_generic" if at["to"] else "generic_of_shared"
        address = f"{function}({address}, {at.line})"
    return at.write(address, "u64")


@instruction(r"cp\.async\.(?:ca|cg)\.shared\.global(?:\.L2::(?:64|128|256)B)?", None, 0)
def _copy(at: Site) -> str:
    """Bytes from the fourth operand on, if there is one, become zeros."""
    bytes = int(at.operand(2))
    if bytes not in (4, 8, 16) or (".cg." in at.instruction.opcode and bytes != 16):
        raise Unsupported(f"a copy of {bytes} bytes")
    valid = "s32(" + str(bytes) + ")"
    if len(at.instruction.operands) == 4:
        valid = at.read(3, "s32")
    else:
        at.expect(3)
    to = pointer(at, at.operand(0), "shared", bytes, "write")
    base, name, offset = at.operands.address(at.operand(1))
    if base != "register":
        raise Unsupported(f"a copy from {at.operand(1)}")
    address = f"{at.operands.read(name, 'u64')} + u64({offset % 2**64}ull)"
    return f"copy_async({to}, {address}, {bytes}, {valid}, {at.line});"


@instruction(r"cp\.async\.commit_group", 0, 0)
def _commit(at: Site) -> str:
    return "commit_copies();"


@instruction(r"cp\.async\.wait_group", 1, 0)
def _wait(at: Site) -> str:
    return f"wait_copies({int(at.operand(0))});"


@instruction(r"prefetch\.global\.L2", 1, 0)
def _prefetch(at: Site) -> str:
    """A hint: reads no value."""
    at.operands.address(at.operand(0))
    return ";"


@instruction(r"membar\.(?:gl|cta)", 0, 0)
def _fence(at: Site) -> str:
    """Accesses happen in their order here: a missing fence is not found."""
    return ";"
