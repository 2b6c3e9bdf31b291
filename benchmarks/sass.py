# SPDX-License-Identifier: Apache-2.0
"""Machine code of CUDA kernels (SASS) as nvdisasm prints it: instructions, loops, paths.

    for name, body in kernels(text).items():
        path = hot_path(body, {"mma": (r"[HI]MMA", 24), "copy": (r"LDGSTS.*\\.128", 16)})

A kernel's instructions become basic blocks, their edges a control flow graph, and its back edges
natural loops, nested (Aho, Lam, Sethi, Ullman: Compilers, 9.6). An iteration of a loop is a path
from its header back to it. The hot path is the iteration with the fewest instructions that does
the given work: masks, unaligned rows and other branches that a usual iteration skips are not
counted, and a loop that cannot do the work is not the one meant. Loops within the loop count as
often as the work requires.

Branches of BRA.DIV (lanes of a warp at different places) and calls are never followed. An
instruction counts whether its predicate holds or not: it takes its slot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Work of an iteration: for each kind, the opcodes that count, and their number.
Work = Mapping[str, tuple[str, int]]

_SECTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_TARGET = re.compile(r"`\((\S+)\)")
_BARRIER = re.compile(r"\bB\d+\b")
_MAX_TRIPS = 64


@dataclass(frozen=True)
class Instruction:
    guard: str  # predicate, as "@!P0"; "": always executed
    opcode: str  # with its modifiers
    operands: str

    @property
    def jumps(self) -> bool:
        return self.opcode.startswith("BRA") and not self.opcode.startswith("BRA.DIV")

    @property
    def always(self) -> bool:
        """Whether a jump is taken by all threads: neither guarded nor conditional by an operand."""
        return not self.guard and self.operands.startswith("`")


@dataclass
class Block:
    """Instructions without a jump or a label between them, and the blocks that may follow."""

    instructions: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    header: int
    blocks: frozenset[int]


@dataclass(frozen=True)
class Path:
    """One iteration of a loop: its opcodes, and the number of instructions of the whole loop."""

    opcodes: Counter[str]
    loop_size: int

    @property
    def instructions(self) -> int:
        return self.opcodes.total()

    def count(self, pattern: str) -> int:
        """Instructions with an opcode that begins as the pattern says."""
        return sum(n for opcode, n in self.opcodes.items() if re.match(pattern, opcode))


def kernels(text: str) -> dict[str, list[Instruction | str]]:
    """The kernels in nvdisasm's output by mangled name: instructions, and labels as strings."""
    found: dict[str, list[Instruction | str]] = {}
    body: list[Instruction | str] | None = None
    for line in text.splitlines():
        if match := _SECTION.match(line):
            body = found.setdefault(match[1], [])
        elif body is not None and (match := _LABEL.match(line)):
            body.append(match[1])
        elif body is not None and (match := _INSTRUCTION.match(line)):
            body.append(Instruction((match[1] or "").strip(), match[2], match[3].strip()))
    return found


def blocks_of(body: list[Instruction | str]) -> list[Block]:
    """The basic blocks of a kernel, the entry first, with their edges."""
    blocks = [Block()]
    at: dict[str, int] = {}  # labels
    for item in body:
        if isinstance(item, str):
            if blocks[-1].instructions:
                blocks.append(Block())
            at[item] = len(blocks) - 1
            continue
        blocks[-1].instructions.append(item)
        if item.jumps or item.opcode.split(".")[0] in ("EXIT", "RET", "BRX", "JMX", "BSYNC"):
            blocks.append(Block())

    # BSYNC goes to the label that the last BSSY gave its barrier, on the way there.
    seen: set[int] = set()
    todo: list[tuple[int, dict[str, str]]] = [(0, {})]
    while todo:
        index, barriers = todo.pop()
        if index in seen or index >= len(blocks):
            continue
        seen.add(index)
        block = blocks[index]
        barriers = dict(barriers)
        follows = True
        for item in block.instructions:
            name = item.opcode.split(".")[0]
            target = _TARGET.search(item.operands)
            if name in ("BRX", "JMX"):
                raise ValueError(f"a jump to a computed address: {item}")
            if name == "BSSY" and target:
                barriers[_BARRIER.findall(item.operands)[0]] = target[1]
            elif name == "BSYNC":
                block.next.append(at[barriers[_BARRIER.findall(item.operands)[0]]])
                follows = bool(item.guard)
            elif item.jumps and target:
                block.next.append(at[target[1]])
                follows = not item.always
            elif name in ("EXIT", "RET"):
                follows = bool(item.guard)
        if follows and index + 1 < len(blocks):
            block.next.append(index + 1)
        todo += [(following, barriers) for following in block.next]
    return blocks


def _preorder(blocks: list[Block]) -> list[int]:
    """Reachable blocks, a block before those that only it leads to (reverse postorder)."""
    order: list[int] = []
    seen = {0}
    stack: list[tuple[int, Iterator[int]]] = [(0, iter(blocks[0].next))]
    while stack:
        index, rest = stack[-1]
        following = next((n for n in rest if n not in seen), None)
        if following is None:
            order.append(index)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].next)))
    return order[::-1]


def loops_of(blocks: list[Block]) -> list[Loop]:
    """The natural loops, one per header, outer ones first."""
    order = _preorder(blocks)
    before: dict[int, list[int]] = {index: [] for index in order}
    for index in order:
        for following in blocks[index].next:
            before[following].append(index)
    dominators = {index: set(order) for index in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            found = set.intersection(*(dominators[b] for b in before[index])) | {index}
            changed = changed or found != dominators[index]
            dominators[index] = found
    bodies: dict[int, set[int]] = {}
    for index in order:
        for header in blocks[index].next:
            if header not in dominators[index]:
                continue
            body = bodies.setdefault(header, {header})
            todo = [index]
            while todo:
                inside = todo.pop()
                if inside not in body:
                    body.add(inside)
                    todo += before[inside]
    loops = [Loop(header, frozenset(body)) for header, body in bodies.items()]
    return sorted(loops, key=lambda loop: -len(loop.blocks))


class _Paths:
    """Cheapest ways through a loop by the work that they do."""

    # Work done -> instructions, and the blocks on the way, with how often each is executed.
    Ways = dict[tuple[int, ...], tuple[int, Counter[int]]]

    def __init__(self, blocks: list[Block], loops: list[Loop], work: Work) -> None:
        self.blocks = blocks
        self.loops = loops
        self.limit = tuple(number for _, number in work.values())
        patterns = [re.compile(pattern) for pattern, _ in work.values()]
        self.work = [
            tuple(sum(bool(p.match(i.opcode)) for i in block.instructions) for p in patterns)
            for block in blocks
        ]
        self.known: dict[int, _Paths.Ways] = {}

    def iteration(self, loop: Loop) -> _Paths.Ways:
        """Ways from the header back to it, with at most the wanted work."""
        if loop.header in self.known:
            return self.known[loop.header]
        inner: dict[int, Loop] = {}  # the largest loops inside, by block
        for other in self.loops:
            if other.blocks < loop.blocks:
                for index in other.blocks:
                    inner.setdefault(index, other)
        ways_to: dict[int, _Paths.Ways] = {}
        found: _Paths.Ways = {}
        for index in self._order(loop, inner):
            ways: _Paths.Ways = {self._none(): (0, Counter())} if index == loop.header else {}
            ways = ways_to.pop(index, ways)
            child = inner.get(index)
            after = self._through(ways, child, index)
            for following in self._exits(loop, child, index):
                if following == loop.header:
                    self._keep_best(found, after)
                else:
                    target = inner[following].header if following in inner else following
                    self._keep_best(ways_to.setdefault(target, {}), after)
        self.known[loop.header] = found
        return found

    def _none(self) -> tuple[int, ...]:
        return (0,) * len(self.limit)

    def _exits(self, loop: Loop, child: Loop | None, index: int) -> list[int]:
        inside = child.blocks if child else {index}
        leaving = [n for i in sorted(inside) for n in self.blocks[i].next if n in loop.blocks]
        return [n for n in leaving if n not in inside or n == loop.header]

    def _order(self, loop: Loop, inner: dict[int, Loop]) -> list[int]:
        """Blocks of the loop, loops inside by their headers, each after all that lead to it."""
        order: list[int] = []
        seen: set[int] = set()

        def visit(index: int) -> None:
            seen.add(index)
            for following in self._exits(loop, inner.get(index), index):
                target = inner[following].header if following in inner else following
                if target != loop.header and target not in seen:
                    visit(target)
            order.append(index)

        visit(loop.header)
        return order[::-1]

    def _through(self, ways: _Paths.Ways, child: Loop | None, index: int) -> _Paths.Ways:
        """The ways, extended by a block, or by some iterations of a loop."""
        steps: _Paths.Ways = {}
        if child is None:
            size = len(self.blocks[index].instructions)
            steps[self.work[index]] = (size, Counter({index: 1}))
        else:
            for work, (cost, path) in self.iteration(child).items():
                trips = 1
                while trips <= (_MAX_TRIPS if any(work) else 1):
                    repeated = Counter({i: trips * n for i, n in path.items()})
                    self._keep_best(
                        steps, {tuple(trips * w for w in work): (trips * cost, repeated)}
                    )
                    trips *= 2
        result: _Paths.Ways = {}
        for done, (cost, path) in ways.items():
            for work, (more, blocks) in steps.items():
                total = tuple(a + b for a, b in zip(done, work, strict=True))
                if all(a <= b for a, b in zip(total, self.limit, strict=True)):
                    self._keep_best(result, {total: (cost + more, path + blocks)})
        return result

    @staticmethod
    def _keep_best(into: _Paths.Ways, ways: _Paths.Ways) -> None:
        for work, way in ways.items():
            if work not in into or way[0] < into[work][0]:
                into[work] = way


def hot_path(body: list[Instruction | str], work: Work) -> Path:
    """The cheapest iteration of any loop that does the work.

    Raises ValueError if no loop does it.
    """
    blocks = blocks_of(body)
    loops = loops_of(blocks)
    paths = _Paths(blocks, loops, work)
    best: tuple[int, Counter[int]] | None = None
    size = 0
    for loop in loops:
        way = paths.iteration(loop).get(paths.limit)
        if way is not None and (best is None or way[0] < best[0]):
            best = way
            size = sum(len(blocks[index].instructions) for index in loop.blocks)
    if best is None:
        wanted = ", ".join(f"{number} {kind}" for kind, (_, number) in work.items())
        raise ValueError(f"no loop with an iteration of {wanted}")
    opcodes: Counter[str] = Counter()
    for index, times in best[1].items():
        for instruction in blocks[index].instructions:
            opcodes[instruction.opcode] += times
    return Path(opcodes, size)
