# SPDX-License-Identifier: Apache-2.0
"""torch.ops.lampo.*: schemas that tell the truth, fake kernels, tracing by torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lampo import _C, ops

Arguments = tuple[Any, ...]


def _packed(rows: int, columns: int) -> torch.Tensor:
    blocks = torch.zeros(rows, columns // 32 * 34, dtype=torch.uint8)
    return ops.pack_weight(blocks, "q8_0").data


def _workspace(num_tokens: int, in_features: int) -> torch.Tensor:
    size = ops.linear_workspace_size(num_tokens, in_features)
    return torch.empty(size, dtype=torch.uint8)


# One way, or several, to call each op. The ops of other test files have their cases there.
CASES: dict[str, list[Callable[[], Arguments]]] = {
    "rms_norm": [
        lambda: (torch.randn(3, 8), torch.randn(8), None, torch.zeros(3, 8), 1e-6),
        lambda: (torch.randn(3, 8), torch.randn(8), torch.randn(3, 8), torch.zeros(3, 8), 1e-6),
    ],
    "layer_norm": [
        lambda: (torch.randn(3, 8), torch.randn(8), None, None, torch.zeros(3, 8), 1e-5),
        lambda: (
            torch.randn(3, 8),
            torch.randn(8),
            torch.randn(8),
            torch.randn(3, 8),
            torch.zeros(3, 8),
            1e-5,
        ),
    ],
    "silu_mul": [lambda: (torch.randn(3, 8), torch.zeros(3, 4))],
    "gelu_mul": [lambda: (torch.randn(3, 8), torch.zeros(3, 4), True)],
    "gelu": [lambda: (torch.randn(3, 8), torch.zeros(3, 8), False)],
    "scale_by_position": [
        lambda: (torch.randn(3, 8), torch.tensor([0, 5, 9]), torch.zeros(3, 8), 0.1, 4)
    ],
    "scale": [lambda: (torch.randn(3, 8), torch.zeros(3, 8), 0.5, 2.0)],
    "linear": [
        lambda: (
            torch.randn(3, 8),
            torch.randn(5, 8),
            16,
            torch.randn(5),
            *(None, 0.0, False, False),
            torch.zeros(3, 5),
            None,
        ),
        lambda: (
            torch.randn(3, 8),
            torch.randn(32, 8),
            16,
            None,
            *(torch.randn(8), 1e-6, True, True),
            torch.zeros(3, 16),
            _workspace(3, 8),
        ),
    ],
    "linear_packed": [
        lambda: (
            torch.randn(3, 64),
            _packed(20, 64),
            "q8_0",
            16,
            None,
            *(torch.randn(64), 1e-6, False, True),
            torch.zeros(3, 20),
            _workspace(3, 64),
        )
    ],
    "quantize_weight": [
        lambda: (torch.randn(20, 64), "q8_0", torch.zeros(20, 68, dtype=torch.uint8)),
    ],
    "pack_weight": [
        lambda: (
            torch.randint(256, (20, 68), dtype=torch.uint8),
            "q8_0",
            torch.zeros(2, ops.packed_strip_bytes("q8_0", 64), dtype=torch.uint8),
        )
    ],
    "embedding": [
        lambda a=a: (torch.tensor([4, 0]), torch.randn(5, 8), torch.zeros(2, 8), a)
        for a in (False, True)
    ],
    "embedding_packed": [
        lambda: (torch.tensor([4, 0]), _packed(20, 64), "q8_0", 20, torch.zeros(2, 64), True)
    ],
}


def registered_ops() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return sorted({name.split("::")[1].split(".")[0] for name in names if name[:7] == "lampo::"})


@pytest.mark.parametrize(
    ("name", "make"), [(name, make) for name, cases in CASES.items() for make in cases]
)
def test_opcheck(name: str, make: Callable[[], Arguments]) -> None:
    torch.manual_seed(0)
    torch.library.opcheck(getattr(torch.ops.lampo, name).default, make())


def test_every_op_is_opchecked() -> None:
    """Here, or in the op's own test file, by name."""
    elsewhere = [
        path.read_text()
        for path in Path(__file__).parent.glob("test_*.py")
        if path != Path(__file__) and "opcheck(" in path.read_text()
    ]
    unchecked = [
        name
        for name in registered_ops()
        if name not in CASES and not any(f"torch.ops.lampo.{name}" in text for text in elsewhere)
    ]
    assert not unchecked


def test_every_op_is_registered_under_its_native_name() -> None:
    assert registered_ops()
    for name in registered_ops():
        assert callable(getattr(_C, name))


def test_schemas_mark_what_is_written() -> None:
    """An op returns nothing, so it must write somewhere."""
    for name in registered_ops():
        schema = getattr(torch.ops.lampo, name).default._schema
        assert not schema.returns, name
        assert any(argument.is_write for argument in schema.arguments), name


def test_fake_tensors_need_no_kernel() -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(1 << 20, 1 << 20)
        torch.ops.lampo.gelu(x, x, False)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_traces_a_block(dynamic: bool) -> None:
    """No graph break, and the result of eager mode, for sizes that were not traced as well."""
    torch.manual_seed(0)
    norm, gate_up, down = torch.randn(64), torch.randn(96, 64), torch.randn(64, 48)
    packed = ops.pack_weight(torch.randint(100, (48, 68), dtype=torch.uint8), "q8_0")

    def block(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        hidden = ops.rms_norm(x, norm, residual=residual)
        hidden = ops.silu_mul(ops.linear(hidden, gate_up))
        return ops.linear(ops.gelu(ops.linear(hidden, down)), packed)

    compiled = torch.compile(block, fullgraph=True, backend="eager", dynamic=dynamic)
    for tokens in (3, 5):
        x, residual = torch.randn(tokens, 64), torch.randn(tokens, 64)
        expected_residual = residual.clone()
        expected = block(x, expected_residual)
        assert torch.equal(compiled(x, residual), expected)
        assert torch.equal(residual, expected_residual)


def test_workspace_size_is_the_native_one() -> None:
    for num_tokens in (0, 1, 7):
        for in_features in (1, 31, 32, 33, 576, 100_000):
            expected = _C.linear_workspace_size(num_tokens, in_features)
            assert ops.linear_workspace_size(num_tokens, in_features) == expected


def test_dispatcher_and_function_agree() -> None:
    x = torch.randn(3, 8)
    out = torch.zeros(3, 8)
    torch.ops.lampo.gelu(x, out, True)
    assert torch.equal(out, ops.gelu(x, tanh_approximation=True))
    with pytest.raises(ValueError, match=r"out: expected shape \[3, 8\]"):
        torch.ops.lampo.gelu(x, torch.zeros(3, 7), True)
