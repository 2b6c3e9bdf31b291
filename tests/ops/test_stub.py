# SPDX-License-Identifier: Apache-2.0
"""_C.pyi says what the extension offers: same names, same parameters, same results."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lampo
from lampo import _C

# pybind11's spelling of a type -> the stub's.
SPELLINGS = {
    "object": {"Tensor", "Tensor | None"},
    "typing.SupportsInt | typing.SupportsIndex": {"int"},
    "typing.SupportsFloat | typing.SupportsIndex": {"float"},
    "collections.abc.Sequence[str]": {"Sequence[str]"},
    "collections.abc.Callable": {"Callable[[int], int]"},
    "dict": {"dict[str, Any]"},
    "list": {"list[tuple[str, int, float]]"},
}


def stub_functions() -> dict[str, ast.FunctionDef]:
    """Functions by name, methods as Class.name; Tensor is a name of the stub alone."""
    text = (Path(lampo.__file__).parent / "_C.pyi").read_text()
    functions = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif isinstance(node, ast.ClassDef) and node.name != "Tensor":
            methods = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            functions |= {f"{node.name}.{method.name}": method for method in methods}
    return functions


def fits(native: str, stub: str) -> bool:
    return stub in SPELLINGS.get(native, {native})


def native_functions() -> dict[str, tuple[list[tuple[str, str]], str]]:
    """Per native function: (name, type) of its parameters, and its result's type."""
    callables = {name: value for name, value in vars(_C).items() if callable(value)}
    for owner in [value for value in callables.values() if isinstance(value, type)]:
        del callables[owner.__name__]
        methods = {name: m for name, m in vars(owner).items() if "self: " in (m.__doc__ or "")}
        callables |= {f"{owner.__name__}.{name}": method for name, method in methods.items()}
    functions = {}
    for name, function in callables.items():
        signature = function.__doc__.splitlines()[0]
        match = re.fullmatch(rf"{name.split('.')[-1]}\((.*)\) -> (.*)", signature)
        assert match, signature
        # Split at the commas outside brackets.
        parts = re.findall(r"(\w+): ((?:[^,\[]|\[[^\]]*\])+)", match[1])
        functions[name] = ([(p, t.split(" = ")[0]) for p, t in parts if p != "self"], match[2])
    return functions


def test_same_functions():
    assert stub_functions().keys() == native_functions().keys()


def test_same_signatures():
    stubs = stub_functions()
    for name, (parameters, result) in native_functions().items():
        stub = stubs[name].args
        declared = [a for a in (*stub.posonlyargs, *stub.args) if a.arg != "self"]
        assert len(declared) == len(parameters), name
        for ours, (theirs, type_) in zip(declared, parameters, strict=True):
            assert ours.annotation is not None, (name, ours.arg)
            assert fits(type_, ast.unparse(ours.annotation)), (name, ours.arg, type_)
            # Parameters without a name in the binding can be passed by position only.
            by_position = re.fullmatch(r"arg\d+", theirs) is not None
            assert by_position == (ours in stub.posonlyargs), (name, ours.arg)
            assert by_position or theirs == ours.arg, (name, ours.arg)
        returns = stubs[name].returns
        assert returns is not None, name
        assert fits(result, ast.unparse(returns)), (name, result)
