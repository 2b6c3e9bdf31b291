# SPDX-License-Identifier: Apache-2.0
"""The tree: who may import whom, and who knows an architecture by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lampo
from lampo.models.architecture import Architecture
from lampo.models.registry import ARCHITECTURES

PACKAGE = Path(lampo.__file__).parent

# Each part of the package, and the parts that it may import. Folders are parts; so are the modules
# beside them.
ARROWS: dict[str, set[str]] = {
    "_C": set(),
    "error_text": set(),
    "checks": {"error_text"},
    "outputs": set(),
    "ops": {"checks", "error_text", "_C"},
    "text": {"error_text"},
    "weights": {"error_text"},
    "runtime": {"ops", "_C"},
    "models": {"error_text", "ops", "runtime", "weights"},
    "parameters": {"checks", "error_text"},
    "sampling_params": {"parameters", "text"},
    "prompts": {"checks", "error_text", "sampling_params"},
    "llm_arguments": {"checks", "error_text"},
    "model_files": {
        *("engine", "models", "weights", "text", "checks", "prompts", "sampling_params"),
    },
    "engine": {
        *("models", "ops", "runtime", "text", "_C"),
        *("outputs", "sampling_params", "checks"),
    },
    "progress": {"engine"},
    # What it needs of an LLM is a protocol, so that LLM.explain can stand above it.
    "explain": {"engine", "models", "runtime", "outputs", "sampling_params", "text", "_C"},
    "llm": {
        *("engine", "models", "runtime", "model_files", "llm_arguments", "explain"),
        *("checks", "error_text", "outputs", "prompts", "progress", "sampling_params", "text"),
    },
    "async_llm": {"llm", "engine", "checks", "outputs", "prompts", "sampling_params"},
    "evaluation": {"llm", "checks"},
    "quantization": {"models", "ops", "text", "weights"},
    "profiling": {"llm", "runtime", "checks", "_C"},
    "bench": {
        *("llm", "async_llm", "checks", "error_text", "ops", "profiling", "runtime"),
        *("sampling_params", "_C"),
    },
    "server": {"async_llm", "outputs", "sampling_params", "parameters", "text", "lampo"},
    "cli": {
        *("llm", "async_llm", "profiling", "evaluation", "quantization", "bench", "server"),
        *("runtime", "weights", "models"),
        *("ops", "_C", "outputs", "parameters", "sampling_params", "lampo"),
        *("model_files", "llm_arguments", "text", "checks", "explain"),
    },
    "__main__": {"cli"},
    # The package itself offers the public names.
    "lampo": {
        "llm",
        "async_llm",
        "ops",
        "outputs",
        "profiling",
        "evaluation",
        "quantization",
        "sampling_params",
        "text",
        "_C",
    },
}


def name_of(path: Path) -> str:
    parts = ("lampo", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))} | {
    "lampo._C": PACKAGE / "_C.pyi"
}


def imports_of(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in the file, for types alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            # `from lampo.x import y`: y may be a module, or a name in x.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        else:
            continue
        yield from (name for name in names if name in MODULES)


GRAPH = {name: sorted({*imports_of(path)} - {name}) for name, path in MODULES.items()}


def part_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "lampo"


def test_imports_point_down() -> None:
    assert {part_of(name) for name in MODULES} == set(ARROWS)
    wrong = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if part_of(other) != part_of(name) and part_of(other) not in ARROWS[part_of(name)]
    ]
    assert wrong == []


def test_every_arrow_is_used() -> None:
    used = {(part_of(name), part_of(other)) for name, others in GRAPH.items() for other in others}
    assert [(a, b) for a, others in ARROWS.items() for b in others if (a, b) not in used] == []


def circles(graph: dict[str, list[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_imports_make_no_circle() -> None:
    assert circles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    # The package's own names are looked up when they are first asked for.
    graph = {name: [o for o in others if o != "lampo"] for name, others in GRAPH.items()}
    del graph["lampo"]
    assert circles(graph) == []


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.model_type)
def test_an_architecture_is_one_file(architecture: Architecture) -> None:
    """Its name stands in its own file and in the registry, and nowhere else in the package."""
    names = {architecture.model_type, architecture.hf_class, architecture.gguf_name}
    own = type(architecture).__module__
    knowing = set()
    for module, path in MODULES.items():
        if module.startswith("lampo.text"):  # tokenizers have families of the same names
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            said = isinstance(node, ast.Constant) and node.value in names
            meant = isinstance(node, ast.Name) and node.id == type(architecture).__name__
            if (said and node.value is not None) or meant:
                knowing.add(module)
    knowing |= {name for name, others in GRAPH.items() if own in others}
    assert knowing == {own, "lampo.models.registry"}


def test_native_code_points_down() -> None:
    """Includes: bindings -> ops -> cpu, cuda -> common; the two backends never see each other."""
    csrc = Path(__file__).parents[1] / "csrc"
    if not csrc.is_dir():
        pytest.skip("needs the sources")
    allowed = {
        "common": {"common"},
        "cpu": {"cpu", "common", "params.h", "ops.h"},
        "cuda": {"cuda", "common", "params.h", "ops.h"},
        "ops": {"ops", "cpu", "cuda", "common", "params.h", "ops.h"},
        "bindings": {"bindings", "cpu", "common", "ops.h"},
    }
    wrong = []
    for path in sorted(csrc.rglob("*.*")):
        part = path.relative_to(csrc).parts[0]
        for line in path.read_text().splitlines():
            if part not in allowed or not line.startswith('#include "'):
                continue
            target = line.split('"')[1].split("/")[0]
            if target not in allowed[part] and "/" in line:
                wrong.append(f"{path.relative_to(csrc)}: {line}")
    assert wrong == []
