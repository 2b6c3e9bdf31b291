# SPDX-License-Identifier: Apache-2.0
"""Matrix products with dense and with packed (2- to 8-bit) weights, and embedding lookup."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from lampo import _C
from lampo.error_text import shown
from lampo.ops._arguments import check_scalar, check_size, tensor
from lampo.ops._gemm import STRIP_ROWS, gemm_temporary_elements, linear_by_gemm, takes_gemm
from lampo.ops._registry import register

_FUSED = "Tensor? norm_weight, float norm_eps, bool silu_mul, bool accumulate"
_linear = register(
    f"linear(Tensor x, Tensor weight, int activation_bits, Tensor? bias, {_FUSED}, "
    "Tensor(a!) out, Tensor(b!)? workspace) -> ()",
    _C.linear,
)
_linear_packed = register(
    f"linear_packed(Tensor x, Tensor weight, str format, int activation_bits, Tensor? bias, "
    f"{_FUSED}, Tensor(a!) out, Tensor(b!) workspace) -> ()",
    _C.linear_packed,
)
_pack_weight = register(
    "pack_weight(Tensor blocks, str format, Tensor(a!) out) -> ()", _C.pack_weight
)
_quantize_weight = register(
    "quantize_weight(Tensor weight, str format, Tensor(a!) blocks) -> ()", _C.quantize_weight
)
_embedding = register(
    "embedding(Tensor token_ids, Tensor table, Tensor(a!) out, bool accumulate) -> ()",
    _C.embedding,
)
_embedding_packed = register(
    "embedding_packed(Tensor token_ids, Tensor table, str format, int vocab_size, "
    "Tensor(a!) out, bool accumulate) -> ()",
    _C.embedding_packed,
)


@dataclass(frozen=True)
class PackedWeight:
    """A weight in blocks of codes, its rows interleaved by 16 (csrc/common/formats/formats.h).

    The same numbers as a file's blocks, in the order in which the kernels read them.

    Attributes:
        data: [ceil(out_features / 16), strip_bytes] uint8.
        format: "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0",
            "iq4_nl", "iq4_xs", "mxfp4" or "nvfp4" of GGUF; "int4_g32", "int4_g64", "int4_g128",
            "int8_g128" (integers with a zero point for each 32 to 128), "nvfp4_g128" (with a
            factor of the tensor) or "fp8_g128" (E4M3) of quantized safetensors.
        shape: (out_features, in_features).
    """

    data: torch.Tensor
    format: str
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if not isinstance(self.shape, tuple) or len(self.shape) != 2:
            raise TypeError(f"shape: expected (out_features, in_features), got {shown(self.shape)}")
        rows, columns = (check_size("shape", n) for n in self.shape)
        check_scalar("format", self.format, str)
        block_size = _C.packed_block_size(self.format)
        if columns == 0 or columns % block_size:
            raise ValueError(
                f"shape: expected in_features a multiple of {block_size} for {self.format}, got "
                f"{columns}"
            )
        expected = [(rows + 15) // 16, packed_strip_bytes(self.format, columns)]
        if list(tensor("data", self.data, 2).shape) != expected:
            raise ValueError(
                f"data: expected shape {expected} for {self.format} weights of shape "
                f"{self.shape}, got {list(self.data.shape)}"
            )

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    def to(self, device: torch.device | str) -> PackedWeight:
        """The weight on another device."""
        return replace(self, data=self.data.to(device))


Weight = torch.Tensor | PackedWeight
_W = TypeVar("_W", torch.Tensor, PackedWeight)


def quantize_weight(
    weight: torch.Tensor, format: str, *, blocks: torch.Tensor | None = None
) -> torch.Tensor:
    """Quantize a weight to GGUF's blocks, by a search for the scales of least error.

    Errors of a group are weighted by |w| + 2 rms(w), and not at all in formats with a minimum.
    Infinities and NaN become 0.

    Args:
        weight: [out_features, in_features] float32, bfloat16 or float16, on the CPU, rows
            contiguous.
        format: "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0",
            "iq4_nl" or "iq4_xs".
        blocks: [out_features, row_bytes] uint8, written; allocated if absent.

    Returns:
        blocks, for :func:`pack_weight` or a GGUF file.

    Raises:
        ValueError, TypeError: a format, shape or dtype that does not fit, by name.
    """
    check_scalar("format", format, str)
    tensor("weight", weight, 2)
    if blocks is None:
        size, nbytes = _C.packed_block_size(format), _C.packed_block_bytes(format)
        rows, columns = weight.shape
        blocks = torch.empty(rows, columns // size * nbytes, dtype=torch.uint8)
    _quantize_weight(weight, format, blocks)
    return blocks


def pack_weight(
    blocks: torch.Tensor, format: str, *, out: torch.Tensor | None = None
) -> PackedWeight:
    """Interleave a weight's blocks for :func:`linear` and :func:`embedding`.

    Args:
        blocks: [out_features, row_bytes] uint8, rows of GGUF blocks as in the file, or of the
            blocks that csrc/common/formats/ describes.
        format: as of :class:`PackedWeight`.
        out: [ceil(out_features / 16), strip_bytes] uint8, its rows contiguous, written; allocated
            if absent.

    Raises:
        ValueError, TypeError: an unknown format, or a shape or dtype that does not fit, by name.

    Source: the GGUF block formats of ggml.
    """
    check_scalar("format", format, str)
    block_bytes = _C.packed_block_bytes(format)
    tensor("blocks", blocks, 2)
    if blocks.shape[1] % block_bytes or not blocks.shape[1]:
        raise ValueError(
            f"blocks: expected [rows, n * {block_bytes}] for {format}, got {tuple(blocks.shape)}"
        )
    block_size = _C.packed_block_size(format)
    rows, in_features = blocks.shape[0], blocks.shape[1] // block_bytes * block_size
    if out is None:
        strip_bytes = packed_strip_bytes(format, in_features)
        out = torch.empty((rows + 15) // 16, strip_bytes, dtype=torch.uint8)
    _pack_weight(blocks, format, out)
    return PackedWeight(out, format, (rows, in_features))


def gate_and_up(gate: _W, up: _W) -> _W:
    """Rows of two weights, or elements of two biases, interleaved by 16, for `silu_mul`.

    Args:
        gate, up: [size, ...] of one shape and kind, size a multiple of 16.

    Returns:
        [2 * size, ...]: gate 0 to 15, up 0 to 15, gate 16 to 31, ...

    Raises:
        ValueError: the shapes or formats differ or do not fit.
    """
    for name, value in (("gate", gate), ("up", up)):
        if not isinstance(value, torch.Tensor | PackedWeight):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if type(gate) is not type(up) or gate.device != up.device:
        raise ValueError("gate, up: expected two tensors or packed weights on one device")
    if not gate.shape or gate.shape != up.shape or gate.shape[0] % STRIP_ROWS:
        raise ValueError(
            "gate, up: expected one shape and a multiple of 16 rows, got "
            f"{tuple(gate.shape)} and {tuple(up.shape)}"
        )
    if isinstance(gate, torch.Tensor):
        if gate.dtype != up.dtype:
            raise ValueError(f"gate, up: expected one dtype, got {gate.dtype} and {up.dtype}")
        strips = [part.unflatten(0, (-1, STRIP_ROWS)) for part in (gate, up)]
        return torch.stack(strips, 1).flatten(0, 2)
    if gate.format != up.format:
        raise ValueError(f"gate, up: expected one format, got {gate.format} and {up.format}")
    data = torch.stack([gate.data, up.data], 1).flatten(0, 1)
    return replace(gate, data=data, shape=(2 * gate.shape[0], gate.shape[1]))


def weight_formats() -> list[str]:
    """The packed formats of :class:`PackedWeight`."""
    return _C.weight_formats()


def packed_strip_bytes(format: str, in_features: int) -> int:
    """Bytes of 16 rows of a packed weight: the width of ``PackedWeight.data``."""
    check_scalar("format", format, str)
    return int(_C.packed_strip_bytes(format, check_size("in_features", in_features)))


def linear_workspace_size(num_tokens: int, in_features: int) -> int:
    """Bytes of workspace that :func:`linear` needs with a norm or if it rounds x."""
    # csrc/ops/linear.cpp's formula; repeated, as torch.compile cannot trace native functions.
    if not torch.compiler.is_compiling():
        num_tokens = check_size("num_tokens", num_tokens)
        in_features = check_size("in_features", in_features)
    return num_tokens * ((in_features + 31) // 32) * 128


def linear_temporary_bytes(num_tokens: int, weight: Weight, dtype: torch.dtype) -> int:
    """Bytes that :func:`linear` allocates on CUDA beside its arguments, at most, and frees again.

    Args:
        num_tokens: rows of x.
        weight: the weight.
        dtype: of x.
    """
    packed = isinstance(weight, PackedWeight)
    weight_dtype = None if isinstance(weight, PackedWeight) else weight.dtype
    if not takes_gemm("cuda", num_tokens, dtype, weight_dtype, dtype):
        return 0
    rows, columns = weight.shape
    size = gemm_temporary_elements(num_tokens, rows, columns) + packed * rows * columns
    return size * int(dtype.itemsize) + packed * rows * 8  # the indices of the rows


def linear(
    x: torch.Tensor,
    weight: Weight,
    bias: torch.Tensor | None = None,
    *,
    norm_weight: torch.Tensor | None = None,
    norm_eps: float = 1e-6,
    silu_mul: bool = False,
    accumulate: bool = False,
    activation_bits: int | None = None,
    out: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """``y = norm(x) @ weight.T + bias``, accumulated in float32, with fused neighbours.

    The fused neighbours are the RMS norm before the product, and a gated activation or the addition
    to a residual stream after it. With a packed weight, norm(x) is quantized in groups of 32 and
    the products are integer. On CPU a row of the result does not depend, to the bit, on the other
    rows or on the thread count. On CUDA it does not depend on the other rows if these are few;
    cuBLAS multiplies many rows if x and weight have one type, and out that type or float32.

    Args:
        x: [num_tokens, in_features] float32 or bfloat16; on CUDA also float16.
        weight: [out_features, in_features] float32, bfloat16 or float16, or a :class:`PackedWeight`
            of that shape (in_features a multiple of 32).
        bias: [out_features] float32 or as ``x``.
        norm_weight: [in_features] float32 or as ``x``: takes ``x * norm_weight / sqrt(mean(x^2) +
            norm_eps)`` in place of ``x``, as :func:`rms_norm`.
        norm_eps: in [0, 1].
        silu_mul: the result is ``silu(gate) * up``. 16 columns of y belong to gate, the next 16 to
            up, and so on: the order of :func:`gate_and_up`, which a CPU core reads as one stream.
        accumulate: the result is added to ``out`` in place of replacing it.
        activation_bits: precision of x, in groups of 32 inputs. For a packed weight x is rounded to
            integers of 8 or 16 bits, on CUDA always of 16. 9 (the mean) means 16 bits for the word
            of four inputs with the largest magnitude, and 8 bits, on the others' scale, for the
            others. Beside "fp8_g128" x is as it is; on CUDA as beside a bfloat16 weight, of 16.
            For a bfloat16 weight, on CPUs that multiply bfloat16, x is rounded to one bfloat16 (8
            significant bits) or to the sum of two (16). 16 has 1/256 of the error for twice the
            multiplications, which costs little if memory is the limit. Default: 8 for packed
            weights, else 16.
        out: [num_tokens, out_features] (half of that with ``silu_mul``) float32 or as ``x``,
            written; as ``x`` if absent.
        workspace: uint8, at least ``linear_workspace_size(num_tokens, in_features)`` bytes, used
            with a norm and if x is rounded; allocated if absent.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: a shape, device, stride or dtype that does not fit, by name.
    """
    if not isinstance(weight, PackedWeight):
        tensor("weight", weight, 2)
    tensor("x", x, 2)
    if out is not None:
        tensor("out", out, 2)
    columns = weight.shape[0] // 2 if silu_mul is True else weight.shape[0]
    if out is None:
        if accumulate is True:
            raise ValueError("out: expected a tensor to accumulate into, got None")
        out = x.new_empty(x.shape[0], columns)
    weight_dtype = None if isinstance(weight, PackedWeight) else weight.dtype
    if takes_gemm(x.device.type, x.shape[0], x.dtype, weight_dtype, out.dtype):
        if isinstance(weight, PackedWeight):
            rows = torch.arange(weight.shape[0], device=x.device)
            weight = embedding(rows, weight, dtype=x.dtype)
        linear_by_gemm(x, weight, bias, norm_weight, norm_eps, silu_mul, accumulate, out)
        return out
    rounds = isinstance(weight, PackedWeight) or weight.dtype == torch.bfloat16
    if workspace is None and (rounds or norm_weight is not None):
        size = linear_workspace_size(x.shape[0], x.shape[-1])
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    fused = (norm_weight, norm_eps, silu_mul, accumulate)
    if activation_bits is None:
        activation_bits = 8 if isinstance(weight, PackedWeight) else 16
    if isinstance(weight, PackedWeight):
        if out.shape[1] != columns:
            raise ValueError(f"out: expected {columns} columns, got shape {tuple(out.shape)}")
        _linear_packed(x, weight.data, weight.format, activation_bits, bias, *fused, out, workspace)
    else:
        _linear(x, weight, activation_bits, bias, *fused, out, workspace)
    return out


def embedding(
    token_ids: torch.Tensor,
    table: Weight,
    *,
    dtype: torch.dtype | None = None,
    accumulate: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows of an embedding table: ``table[token_ids]``, dequantized if the table is packed.

    Args:
        token_ids: [num_tokens] int32 or int64, in [0, vocab_size); on CUDA other ids give zeros.
        table: [vocab_size, hidden_size] float32, bfloat16 or float16, or a :class:`PackedWeight`.
        dtype: of ``out`` if that is absent: float32 (default) or bfloat16.
        accumulate: add the rows to ``out``, which must then be given.
        out: [num_tokens, hidden_size] float32 or bfloat16, written.

    Returns:
        ``out``.

    Raises:
        ValueError, TypeError: an id, shape, device or dtype that does not fit, by name.
    """
    if out is None:
        if accumulate is True:
            raise ValueError("out: expected a tensor to accumulate into, got None")
        if not isinstance(table, PackedWeight):
            tensor("table", table, 2)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: expected a dtype, got {shown(dtype)}")
        shape = (tensor("token_ids", token_ids, 1).shape[0], table.shape[1])
        out = torch.empty(shape, dtype=dtype or torch.float32, device=token_ids.device)
    if isinstance(table, PackedWeight):
        _embedding_packed(token_ids, table.data, table.format, table.shape[0], out, accumulate)
    else:
        _embedding(token_ids, table, out, accumulate)
    return out
