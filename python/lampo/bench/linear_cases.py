# SPDX-License-Identifier: Apache-2.0
"""Cases of linear and embedding, on dense and packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import torch

from lampo import _C, ops
from lampo.bench import cost, reference
from lampo.bench.attention_cases import random_values
from lampo.bench.axes import FORMATS, Shape
from lampo.bench.cases import DTYPES, Arguments, Case, Peer, Tensors

_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in FORMATS}
# Places of the f16 factors in a block, other than at its begin.
_FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("q4_1", "q5_1", "q4_k", "q5_k"), (0, 2)),
    **{"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "mxfp4": (), "nvfp4": ()},
}
_CHECKED_ROWS = 2048  # at either end of a weight
_ERRORS = {8: 5e-2, 9: 3e-2, 16: 1e-3}  # by the bits of the input


def random_blocks(rows: int, columns: int, format: str) -> torch.Tensor:
    """[rows, row_bytes] uint8: GGUF blocks with random codes and finite scales."""
    groups = columns // _C.packed_block_size(format)
    blocks = torch.randint(256, (rows, groups, _C.packed_block_bytes(format)), dtype=torch.uint8)
    for at in _FACTORS.get(format, (0,)):
        scale = torch.rand(rows, groups, 1).add_(0.5).mul_(0.01).half()
        blocks[:, :, at : at + 2] = scale.view(torch.uint8)
    if format == "mxfp4":  # an exponent
        blocks[:, :, 0] = torch.randint(115, 125, (rows, groups), dtype=torch.uint8)
    if format == "nvfp4":  # four scales in float8
        blocks[:, :, :4] = torch.randint(32, (rows, groups, 4), dtype=torch.uint8)
    return blocks.flatten(1)


class Weights(Case):
    """A case with a weight [out_features, in_features].

    Attributes:
        stored: the last weight as dense values or as GGUF blocks, for the reference.
    """

    shape: Shape
    rows: int
    dtype: str
    stored: torch.Tensor

    @property
    def packed(self) -> bool:
        return self.dtype in FORMATS

    def _take(self, shape: Shape, rows: int, dtype: str) -> None:
        self.shape, self.rows, self.dtype = shape, rows, dtype
        if self.packed and shape.in_features % (size := _C.packed_block_size(dtype)):
            raise ValueError(
                f"shape: {dtype} needs input features in multiples of {size}, got {shape}"
            )

    def _weight(self) -> ops.Weight:
        rows, columns = self.shape.out_features, self.shape.in_features
        if not self.packed:
            self.stored = random_values((rows, columns), DTYPES[self.dtype]).to(self.device)
            return self.stored
        self.stored = random_blocks(rows, columns, self.dtype)
        return ops.pack_weight(self.stored, self.dtype).to(self.device)

    def _values(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the last weight in float64."""
        chosen = self.stored[rows.to(self.stored.device)].cpu()
        if self.packed:
            dense = gguf.quants.dequantize(chosen.numpy(), _TYPES[self.dtype])
            return torch.from_numpy(dense).double()
        return chosen.double()


class Linear(Weights):
    op = staticmethod(ops.linear)

    def prepare(self, shape: Shape, rows: int, dtype: str, activation_bits: int) -> None:
        self._take(shape, rows, dtype)
        self.bits = activation_bits if self.packed else 16
        if not self.packed:
            self.values["activation_bits"] = None
        self.x_dtype = "f32" if self.device.type == "cpu" else "bf16"
        self.products = ("int8",) if self.packed else ("f32", "bf16")
        self.passes = self.bits / 8 if self.packed else 1.0
        end = shape.out_features
        few = end <= 2 * _CHECKED_ROWS
        ends = torch.arange(_CHECKED_ROWS)
        self._checked = torch.arange(end) if few else torch.cat([ends, end - 1 - ends.flip(0)])

    @property
    def cost(self) -> cost.Cost:
        shape = (self.shape.in_features, self.shape.out_features)
        return cost.linear(self.rows, *shape, self.dtype, self.x_dtype)

    def make(self) -> Arguments:
        x = torch.randn(self.rows, self.shape.in_features, dtype=torch.float32)
        size = ops.linear_workspace_size(self.rows, self.shape.in_features)
        x_dtype, device = DTYPES[self.x_dtype], self.device
        out = torch.full((self.rows, self.shape.out_features), torch.nan, dtype=x_dtype)
        arguments: Arguments = {
            "x": x.to(device, x_dtype),
            "weight": self._weight(),
            "out": out.to(device),
            "workspace": torch.empty(size, dtype=torch.uint8, device=device),
        }
        if self.packed:
            arguments["activation_bits"] = self.bits
        return arguments

    def expected(self, arguments: Arguments) -> Tensors:
        weight = self._values(self._checked)
        return {self._name(): reference.linear(arguments["x"].cpu(), weight, None)}

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        out = arguments["out"] if returned is None else returned
        return {self._name(): out[:, self._checked.to(out.device)]}

    def _name(self) -> str:
        if len(self._checked) == self.shape.out_features:
            return "out"
        return f"the first and last {_CHECKED_ROWS} columns of out"

    def tolerance(self, name: str, found: torch.Tensor) -> float:
        own = _ERRORS[self.bits]
        return own if found.dtype == torch.float32 else max(own, super().tolerance(name, found))

    def peers(self) -> dict[str, Peer]:
        dtype = torch.bfloat16 if self.packed else DTYPES[self.dtype]

        def peer(arguments: Arguments) -> Callable[[], torch.Tensor]:
            weight = arguments["weight"]
            if isinstance(weight, ops.PackedWeight):
                every = torch.arange(self.shape.out_features, device=self.device)
                weight = ops.embedding(every, weight, dtype=torch.bfloat16)
            x = arguments["x"].to(dtype)
            return lambda: torch.nn.functional.linear(x, weight)

        return {f"torch {'bf16' if self.packed else self.dtype}": peer}


class Embedding(Weights):
    op = staticmethod(ops.embedding)

    def prepare(self, shape: Shape, rows: int, dtype: str) -> None:
        self._take(shape, rows, dtype)
        self._table: ops.Weight | None = None  # the same for all sets, which differ in their rows

    @property
    def cost(self) -> cost.Cost:
        return cost.embedding(self.rows, self.shape.in_features, self.dtype, "f32")

    def make(self) -> Arguments:
        if self._table is None:
            self._table = self._weight()
        out = torch.full((self.rows, self.shape.in_features), torch.nan)
        return {
            "token_ids": torch.randint(self.shape.out_features, (self.rows,), device=self.device),
            "table": self._table,
            "out": out.to(self.device),
        }

    def expected(self, arguments: Arguments) -> Tensors:
        return {"out": self._values(arguments["token_ids"].cpu())}

    def results(self, arguments: Arguments, returned: Any) -> Tensors:
        return {"out": arguments["out"] if returned is None else returned}

    def peers(self) -> dict[str, Peer]:
        if self.packed:
            return {}

        def peer(arguments: Arguments) -> Callable[[], torch.Tensor]:
            ids, table = arguments["token_ids"], arguments["table"]
            return lambda: torch.nn.functional.embedding(ids, table).float()

        return {"torch": peer}
