# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors, as llm-compressor writes it.

    pack-quantized        weight_packed I32 [out, in / (32 / bits)], 4 or 8 bits from the lowest up,
                          plus 8 or 128; weight_shape [2]
    int-quantized         weight I8 [out, in]
    both                  weight_scale [out, groups], or of one element; weight_zero_point likewise
                          (packed along outputs beside weight_packed); absent: 0
                          w = weight_scale (q - weight_zero_point)
    float-quantized       as in fp8.py
    nvfp4-pack-quantized  as in nvfp4.py

The tensors of a linear show its kind; config_groups says which kinds there are, and a linear of
another one is refused. Their targets are not used.
"""

from __future__ import annotations

from dataclasses import dataclass

from lampo.error_text import shown
from lampo.weights.fields import Fields
from lampo.weights.formats import CodedMatrix
from lampo.weights.quantized.fp8 import block_shape, fp8_matrix, fp8_shape
from lampo.weights.quantized.integers import IntegerMatrix, signed, unpacked
from lampo.weights.quantized.method import FLOATS, Method, Parts, read_ignored
from lampo.weights.quantized.nvfp4 import nvfp4_matrix, nvfp4_shape

_FORMATS = (
    *("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mixed-precision"),
)
_STRATEGIES = ("group", "channel", "tensor", "block", "tensor_group")
_MAX_GROUPS = 64


@dataclass(frozen=True)
class _Scheme:
    """The weights of an entry of config_groups.

    Attributes:
        type: "int" or "float".
        bits: 4 or 8.
        strategy: which weights have one scale.
        group_size: with the strategy "group", columns with one scale.
        block: with the strategy "block", rows and columns with one scale.
    """

    type: str
    bits: int
    strategy: str
    group_size: int | None
    block: tuple[int, int] | None


class CompressedTensors(Method):
    parts = (
        *("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point"),
        *("weight_g_idx", "weight_global_scale"),
        *("input_scale", "input_zero_point", "input_global_scale"),
    )

    def __init__(self, fields: Fields) -> None:
        fields.choice("format", _FORMATS, "mixed-precision")
        if fields.get("quantization_status") not in (None, "compressed", "frozen"):
            raise fields.error("quantization_status", "compressed")
        if fields.mapping("sparsity_config").get("format") not in (None, "dense"):
            raise fields.error("sparsity_config", "none, or the format dense")
        if fields.mapping("transform_config").get("config_groups"):
            raise fields.error("transform_config", "no transforms of activations")
        groups = fields.mapping("config_groups")
        if not 1 <= len(groups) <= _MAX_GROUPS:
            raise fields.error("config_groups", f"1 to {_MAX_GROUPS} groups")
        self._schemes = []
        where = f"{fields.source}: config_groups"
        for name, group in groups.items():
            if not isinstance(group, dict):
                raise ValueError(f"{where}: {shown(name)}: expected an object, got {shown(group)}")
            weights = Fields(where, group).mapping("weights")
            if weights:
                self._schemes.append(_scheme(Fields(f"{where}: weights", weights)))
        self.ignored = read_ignored(fields, "ignore")

    def marks(self, part: str, dtype: str) -> bool:
        return part in ("weight_packed", "weight_scale") or (
            part == "weight" and dtype in ("I8", "F8_E4M3")
        )

    def shape(self, parts: Parts) -> tuple[int, int]:
        kind = self._kind(parts)
        if kind == ("float", 4):
            return nvfp4_shape(parts)
        if kind == ("float", 8):
            return fp8_shape(parts, self._block(parts))
        return self._integer_shape(parts)[0]

    def load(self, parts: Parts) -> CodedMatrix:
        kind = self._kind(parts)
        if kind == ("float", 4):
            return nvfp4_matrix(parts)
        if kind == ("float", 8):
            return fp8_matrix(parts, self._block(parts))
        return self._integers(parts)

    def _kind(self, parts: Parts) -> tuple[str, int]:
        """Type and bits of a linear's weights, which some scheme must have."""
        if parts.has("weight_packed"):
            part = "weight_packed"
            if parts.dtype(part) == "U8":
                kind = "float", 4
            else:
                words = parts.check(part, ["I32"], (None, None))[1]
                columns = _stored_shape(parts)[1]
                bits = 32 * words // columns if columns > 0 else 0
                kind = "int", bits
                if 32 * words != bits * columns or bits not in (4, 8):
                    raise parts.error(part, f"4 or 8 bits for {columns} columns", f"{words} words")
        else:
            part = "weight"
            parts.check(part, ["I8", "F8_E4M3"], (None, None))
            kind = ("int", 8) if parts.dtype(part) == "I8" else ("float", 8)
        if kind not in {(scheme.type, scheme.bits) for scheme in self._schemes}:
            kinds = sorted({f"{s.type}{s.bits}" for s in self._schemes})
            known = " or ".join(kinds) or "no weights"
            raise parts.error(part, f"{known} by config_groups", f"{kind[0]}{kind[1]}")
        return kind

    def _block(self, parts: Parts) -> tuple[int, int] | None:
        """The blocks of FP8 weights: those of a scheme, if the scales are a grid of them."""
        if parts.has("weight_scale"):
            _, _, found = parts.files.stored(f"{parts.linear}.weight_scale")
            rows, columns = parts.check("weight", ["F8_E4M3"], (None, None))
            for scheme in self._schemes:
                if scheme.block is not None:
                    grid = -(-rows // scheme.block[0]), -(-columns // scheme.block[1])
                    if found == grid:
                        return scheme.block
        return None

    def _integer_shape(self, parts: Parts) -> tuple[tuple[int, int], int, tuple[int, ...]]:
        """The shape of integer weights, their bits, and the shape of their scales."""
        packed = parts.has("weight_packed")
        if packed:
            rows, words = parts.check("weight_packed", ["I32"], (None, None))
            stored = _stored_shape(parts)
            columns = stored[1]
            bits = 32 * words // columns
            if stored[0] != rows:
                raise parts.error("weight_shape", f"{rows} rows", str(stored[0]))
        else:
            rows, columns = parts.check("weight", ["I8"], (None, None))
            bits = 8
        if columns % 32:
            raise parts.error("weight", "a multiple of 32 columns", str(columns))
        schemes = [s for s in self._schemes if (s.type, s.bits) == ("int", bits)]
        allowed: list[tuple[int | None, ...]] = []
        for scheme in schemes:
            if scheme.strategy == "group":
                size = scheme.group_size or columns
                if columns % size == 0:
                    allowed.append((rows, columns // size))
                elif len(schemes) == 1:
                    expected = f"a multiple of {size} columns"
                    raise parts.error("weight_scale", expected, str(columns))
            elif scheme.strategy == "channel":
                allowed += [(rows, 1), (rows,)]
            else:
                allowed += [(1,), ()]
        scales = parts.check("weight_scale", FLOATS, *allowed)
        if parts.has("weight_zero_point"):
            if packed and len(scales) == 2:
                per_word = 32 // bits
                shape = (-(-rows // per_word), scales[1])
                parts.check("weight_zero_point", ["I32"], shape)
            else:
                parts.check("weight_zero_point", ["I8"], scales)
        if parts.has("weight_g_idx"):
            parts.check("weight_g_idx", ["I32", "I64"], (columns,))
        return (rows, columns), bits, scales

    def _integers(self, parts: Parts) -> IntegerMatrix:
        import torch

        (rows, columns), bits, _ = self._integer_shape(parts)
        scales = parts.load_scales("weight_scale")
        groups = scales.shape[1] if scales.dim() == 2 else 1
        scales = scales.reshape(-1, groups).expand(rows, groups).contiguous()
        packed = parts.has("weight_packed")
        if packed:
            codes = unpacked(parts.load("weight_packed"), bits).view(rows, columns)
            codes = signed(codes) if bits == 8 else codes
        else:
            codes = parts.load("weight")
        zeros = None
        if parts.has("weight_zero_point"):
            zeros = parts.load("weight_zero_point")
            if packed and zeros.dtype == torch.int32:
                fields = unpacked(zeros.t(), bits).view(groups, -1)[:, :rows].t()
                zeros = fields.to(torch.int16) - (128 if bits == 8 else 0)
            else:
                zeros = zeros.reshape(-1, groups).expand(rows, groups).to(torch.int16)
                zeros = zeros + (8 if bits == 4 else 0)
            zeros = zeros.contiguous()
        order = None
        if parts.has("weight_g_idx"):
            found = parts.load("weight_g_idx").long()
            unset = bool((found == -1).all())
            if not unset and bool(((found < 0) | (found >= groups)).any()):
                worst = int(found[(found < 0) | (found >= groups)][0])
                raise parts.error("weight_g_idx", f"numbers below {groups}", str(worst))
            if not unset and not torch.equal(found, torch.arange(columns) // (columns // groups)):
                order = found
        kind = f"INT{bits}" + (" with act order" if order is not None else "")
        nbytes = parts.nbytes("weight", "weight_packed", "weight_scale", "weight_zero_point")
        return IntegerMatrix(codes, scales, zeros, order, kind, nbytes)


def _scheme(fields: Fields) -> _Scheme:
    kind = fields.choice("type", ("int", "float"), "int")
    bits = int(fields.integer("num_bits", 1, 64, 8))
    if bits not in (4, 8):
        raise fields.error("num_bits", "4 or 8")
    group_size = fields.integer("group_size", -1, 1 << 20, -1)
    strategy = fields.choice("strategy", _STRATEGIES, "group" if group_size > 0 else "tensor")
    if (strategy, kind) == ("group", "int") and group_size % 32 and group_size != -1:
        raise fields.error("group_size", "-1, or a positive multiple of 32")
    block = block_shape(fields, "block_structure") if strategy == "block" else None
    return _Scheme(kind, bits, strategy, group_size if group_size > 0 else None, block)


def _stored_shape(parts: Parts) -> tuple[int, int]:
    """The content of weight_shape."""
    parts.check("weight_shape", ["I64", "I32"], (2,))
    name = f"{parts.linear}.weight_shape"
    data = parts.files.read_bytes(name)
    size = len(data) // 2
    rows, columns = (int.from_bytes(data[i : i + size], "little") for i in (0, size))
    if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31):
        raise parts.error("weight_shape", "two positive numbers", f"{rows} and {columns}")
    return rows, columns
