# SPDX-License-Identifier: Apache-2.0
"""_C.pyi says what the extension offers: same names, same parameters, same results."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lampo
from lampo import _C

# What pybind11 writes for a type, and what the stub says.
SPELLINGS = {
    "object": {"Tensor", "Tensor | None"},
    "typing.SupportsInt | typing.SupportsIndex": {"int"},
    "typing.SupportsFloat | typing.SupportsIndex": {"float"},
    "collections.abc.Sequence[str]": {"Sequence[str]"},
    "dict": {"dict[str, Any]"},
}


def stub_functions() -> dict[str, ast.FunctionDef]:
    text = (Path(lampo.__file__).parent / "_C.pyi").read_text()
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def fits(native: str, stub: str) -> bool:
    return stub in SPELLINGS.get(native, {native})


def native_functions() -> dict[str, tuple[list[tuple[str, str]], str]]:
    """Of each native function: (name, type) of its parameters and its result's type."""
    functions = {}
    for name, function in vars(_C).items():
        if callable(function):
            signature = function.__doc__.splitlines()[0]
            match = re.fullmatch(rf"{name}\((.*)\) -> (.*)", signature)
            assert match, signature
            # Split at the commas outside brackets.
            parts = re.findall(r"(\w+): ((?:[^,\[]|\[[^\]]*\])+)", match[1])
            functions[name] = ([(p, t.split(" = ")[0]) for p, t in parts], match[2])
    return functions


def test_same_functions():
    assert stub_functions().keys() == native_functions().keys()


def test_same_signatures():
    stubs = stub_functions()
    for name, (parameters, result) in native_functions().items():
        stub = stubs[name].args
        declared = [*stub.posonlyargs, *stub.args]
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
