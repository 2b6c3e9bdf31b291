# SPDX-License-Identifier: Apache-2.0
"""Construction of a model's parts from the tensors of a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from typing import Protocol

import torch

from lampo import ops
from lampo.models.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    GatedDeltaConfig,
    ShortConvConfig,
)
from lampo.models.experts import ExpertProjection, MixtureOfExperts
from lampo.models.layers import Attention, Block, FeedForward, GatedFeedForward, Mixer
from lampo.models.projection import (
    GATE_UP,
    INNER,
    SENSITIVE,
    ActivationBits,
    LayerNorm,
    Norm,
    Projection,
    RMSNorm,
    Unnormed,
)
from lampo.models.recurrent import GatedDeltaNet, ShortConv
from lampo.models.rope import RopeConfig, RotaryTable
from lampo.runtime.huge_pages import Arena
from lampo.weights.file_types import fitting
from lampo.weights.formats import Blocks, CodedMatrix

logger = logging.getLogger("lampo")

_STRIP_ROWS = 16
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


class Tensors(Protocol):
    """The interface of a checkpoint that a loader uses."""

    def load(self, name: str) -> torch.Tensor | CodedMatrix: ...


class WeightLoader:
    """Converts the matrices of a checkpoint to the ops' formats, side by side in huge pages.

    Args:
        source: the tensors.
        dtype: convert (and dequantize) to this; None keeps packed weights packed and dense ones in
            their own dtype. A matrix that no packed format holds is then dequantized to bfloat16,
            with a warning per kind.
        norm_eps: epsilon of all norms.
        max_positions: rows of the rotary tables.
        quantize: quantize dense matrices, and those that no packed format holds, to this format;
            None: keep them.
        activation_bits: of all inputs of packed weights; None: as each layer needs.
    """

    def __init__(
        self,
        source: Tensors,
        dtype: torch.dtype | None,
        norm_eps: float = 1e-6,
        max_positions: int = 1,
        *,
        quantize: str | None = None,
        activation_bits: int | None = None,
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.norm_eps = norm_eps
        self.max_positions = max_positions
        self.prefix = ""
        self._formats = ops.weight_formats()
        self._quantize = quantize
        self._activation_bits = activation_bits
        self._announced: set[str] = set()
        self._arena = Arena()
        self._rotary_tables: dict[RopeConfig, RotaryTable] = {}

    def under(self, prefix: str) -> WeightLoader:
        """The same loader, for names that begin with `prefix`."""
        loader = copy.copy(self)
        loader.prefix = prefix
        return loader

    def quantizing(self, format: str | None) -> WeightLoader:
        """The same loader, quantizing dense matrices to another format, or not at all."""
        loader = copy.copy(self)
        loader._quantize = format
        return loader

    def block(
        self,
        mixer_norm: Norm,
        mixer: Mixer,
        feed_forward_norm: Norm,
        feed_forward: GatedFeedForward | FeedForward | MixtureOfExperts,
    ) -> Block:
        """A block of these parts."""
        return Block(mixer_norm, mixer, feed_forward_norm, feed_forward)

    def rms_norm(self, name: str) -> RMSNorm:
        return RMSNorm(self._vector(f"{name}.weight"), self.norm_eps)

    def no_norm(self) -> Unnormed:
        return Unnormed()

    def norm_of_scaled(self, name: str) -> RMSNorm:
        """A norm of a residual stream that is divided by the root of its width."""
        norm = self.rms_norm(name)
        return dataclasses.replace(norm, eps=norm.eps / len(norm.weight))

    def norm_to_scaled(self, name: str) -> RMSNorm:
        """A norm whose result is added to a residual stream divided by the root of its width."""
        norm = self.rms_norm(name)
        return dataclasses.replace(norm, weight=norm.weight / len(norm.weight) ** 0.5)

    def layer_norm(self, name: str) -> LayerNorm:
        bias = self._vector(f"{name}.bias")
        return LayerNorm(self._vector(f"{name}.weight"), bias, self.norm_eps)

    def attention(
        self,
        config: AttentionConfig,
        qkv: Sequence[str] = QKV,
        out: str = "self_attn.o_proj",
        *,
        post_norm: RMSNorm | None = None,
    ) -> Attention:
        """An attention layer.

        Args:
            config: its sizes, and whether there are biases and norms of q and k.
            qkv: names of the projections to q, k and v, or of one fused projection.
            out: name of the output projection.
            post_norm: of its output.
        """
        has_norms = config.qk_norm or config.joint_qk_norm
        return Attention(
            config=config,
            qkv=self.projection(list(qkv), bias=config.qkv_bias, activation_bits=SENSITIVE),
            out=self.projection([out], bias=config.out_bias),
            rotary=None if config.rope is None else self._rotary_table(config.rope),
            q_norm=self.rms_norm("self_attn.q_norm") if has_norms else None,
            k_norm=self.rms_norm("self_attn.k_norm") if has_norms else None,
            post_norm=post_norm,
            sinks=self._vector("self_attn.sinks") if config.sinks else None,
        )

    def short_conv(self, config: ShortConvConfig) -> ShortConv:
        """A short convolution, under LFM2's names."""
        bias = config.bias
        return ShortConv(
            config=config,
            projection=self.projection(["conv.in_proj"], bias=bias, activation_bits=SENSITIVE),
            weight=self._exact("conv.conv.weight").t().contiguous(),
            bias=self._vector("conv.conv.bias") if bias else None,
            out=self.projection(["conv.out_proj"], bias=bias),
        )

    def gated_delta(self, config: GatedDeltaConfig) -> GatedDeltaNet:
        """Linear attention by the gated delta rule, under Qwen3.5's names."""
        parts = [f"linear_attn.in_proj_{part}" for part in ("qkv", "z", "b", "a")]
        return GatedDeltaNet(
            config=config,
            projection=self.projection(parts, activation_bits=SENSITIVE),
            weight=self._exact("linear_attn.conv1d.weight").t().contiguous(),
            decay=self._vector("linear_attn.A_log"),
            dt_bias=self._vector("linear_attn.dt_bias"),
            norm_weight=self._vector("linear_attn.norm.weight"),
            eps=self.norm_eps,
            out=self.projection(["linear_attn.out_proj"]),
        )

    def gated_feed_forward(
        self,
        config: FeedForwardConfig,
        gate: str = "mlp.gate_proj",
        up: str = "mlp.up_proj",
        down: str = "mlp.down_proj",
        *,
        gate_up: str | None = None,
        gelu_tanh: bool = False,
        post_norm: RMSNorm | None = None,
    ) -> GatedFeedForward | MixtureOfExperts:
        """A gated feed-forward of the three named projections, as :class:`GatedFeedForward`, or a
        mixture of them.

        `gate_up` names one projection, without biases, of gate and up, in place of both.
        """
        if config.experts is not None:
            return self._mixture_of_experts(config, config.experts)
        names, bias = [gate, up] if gate_up is None else [gate_up], config.bias
        weights = self.weights(names, interleaved=not gelu_tanh)
        biases = None
        if bias:
            parts = [self._vector(f"{name}.bias") for name in names]
            fused = len(weights) == 1 and not gelu_tanh
            biases = ops.gate_and_up(*parts) if fused else torch.cat(parts)
        both = Projection(weights, biases, self.activation_bits(GATE_UP))
        return GatedFeedForward(both, self.projection([down], bias=bias), gelu_tanh, post_norm)

    def _mixture_of_experts(self, config: FeedForwardConfig, c: ExpertsConfig) -> MixtureOfExperts:
        gate_up, down = (
            self._expert_projection(parts, config.bias, c.num_experts, bits)
            for parts, bits in ((("gate", "up"), GATE_UP), (("down",), INNER))
        )
        if len(gate_up.weights) > 1 and c.swiglu_limit > 0:
            raise ValueError(
                f"model: {self.prefix}mlp.experts: expected gate and up in one format, as their "
                "activation is clamped"
            )
        # A few rows, whose errors change the choice: never quantized further.
        router = self.quantizing(None).projection(["mlp.gate"], bias=c.router_bias)
        router.activation_bits = dataclasses.replace(router.activation_bits, packed=16)
        return MixtureOfExperts(config, router, gate_up, down)

    def _expert_projection(
        self, parts: Sequence[str], bias: bool, num_experts: int, bits: ActivationBits
    ) -> ExpertProjection:
        """Projections of all experts, gate and up interleaved for each."""
        names = [f"mlp.experts.{part}_proj" for part in parts]
        weights = self.weights(names, interleaved=len(names) == 2)
        biases = None
        if bias:
            biases = [self._vector(f"{name}.bias") for name in names]
            if len(weights) < len(biases):
                biases = [ops.gate_and_up(*biases)]
        return ExpertProjection(weights, num_experts, biases, self.activation_bits(bits))

    def feed_forward(
        self, up: str, down: str, *, bias: bool = False, tanh_approximation: bool
    ) -> FeedForward:
        """A feed-forward with GELU of the two named projections, with biases or without."""
        return FeedForward(
            self.projection([up], bias=bias, activation_bits=GATE_UP),
            self.projection([down], bias=bias),
            tanh_approximation,
        )

    def projection(
        self,
        names: list[str],
        *,
        bias: bool = False,
        activation_bits: ActivationBits = INNER,
    ) -> Projection:
        """Weights and, with `bias`, biases (as float32) of the named layers."""
        biases = torch.cat([self._vector(f"{name}.bias") for name in names]) if bias else None
        return Projection(self.weights(names), biases, self.activation_bits(activation_bits))

    def activation_bits(self, needed: ActivationBits) -> ActivationBits:
        """The precision that a projection needs, or the one that is asked for."""
        if self._activation_bits is None:
            return needed
        return dataclasses.replace(needed, packed=self._activation_bits)

    def table(self, name: str) -> ops.Weight:
        """A matrix for reading single rows: a dense one stays as it is loaded."""
        tensor = self.source.load(f"{self.prefix}{name}.weight")
        kept = self._quantize is None and self.dtype in (None, getattr(tensor, "dtype", None))
        if isinstance(tensor, torch.Tensor) and kept:
            return tensor
        (weight,) = self.weights([name])
        return weight

    def weights(self, names: list[str], *, interleaved: bool = False) -> list[ops.Weight]:
        """The named matrices ("mlp.up_proj"), stacked if their formats agree.

        Args:
            names: without prefix and ".weight".
            interleaved: whether to stack two matrices, or the halves of one, as ops.gate_and_up
                does.
        """
        names = [f"{self.prefix}{name}.weight" for name in names]
        tensors = [self._converted(self.source.load(name)) for name in names]
        if interleaved and len(tensors) == 1:
            tensors = _halves(tensors[0])
        packed = [t for t in tensors if isinstance(t, Blocks)]
        dense = [t for t in tensors if isinstance(t, torch.Tensor)]
        stackable = not interleaved or all(t.shape[0] % _STRIP_ROWS == 0 for t in tensors)
        weights: list[ops.Weight]
        if packed and not dense and stackable and len({t.format for t in packed}) == 1:
            weights = self._pack(packed, interleaved)
        elif dense and not packed and stackable and len({t.dtype for t in dense}) == 1:
            weights = [self._stack(dense, interleaved)]
        else:
            weights = []
            for t in tensors:
                weights += self._pack([t]) if isinstance(t, Blocks) else [self._stack([t])]
        return weights

    def _converted(self, tensor: torch.Tensor | CodedMatrix) -> torch.Tensor | Blocks:
        """A matrix in a format that the kernels take; those of experts one above the other."""
        if isinstance(tensor, torch.Tensor) and tensor.dim() == 3:
            tensor = tensor.flatten(0, 1)
        if isinstance(tensor, CodedMatrix):
            if self.dtype is not None:
                return tensor.dequantize(self.dtype)
            packed = tensor.packed(self._formats)
            if packed is not None:
                return packed
            if self._quantize is None:
                self._announce(tensor)
                return tensor.dequantize(torch.bfloat16)
            tensor = tensor.dequantize()
        if self._quantize is not None:
            return quantized(tensor, self._quantize)
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def _announce(self, matrix: CodedMatrix) -> None:
        """A warning of the memory that a dequantized matrix takes, once per kind."""
        if matrix.format not in self._announced:
            self._announced.add(matrix.format)
            logger.warning(
                "%s: no kernels for it: tensors are dequantized to bfloat16 at load, in %.1f times "
                "the memory",
                matrix.format.upper(),
                2 * matrix.shape[0] * matrix.shape[1] / matrix.nbytes,
            )

    def _vector(self, name: str) -> torch.Tensor:
        """A vector, or those of experts one after the other, as float32."""
        tensor = self.source.load(self.prefix + name)
        assert isinstance(tensor, torch.Tensor)
        return tensor.float().flatten()

    def _exact(self, name: str) -> torch.Tensor:
        """A matrix as float32, for an op that takes no other."""
        tensor = self.source.load(self.prefix + name)
        return tensor.float() if isinstance(tensor, torch.Tensor) else tensor.dequantize()

    def _rotary_table(self, rope: RopeConfig) -> RotaryTable:
        if rope not in self._rotary_tables:
            self._rotary_tables[rope] = RotaryTable(rope, self.max_positions)
        return self._rotary_tables[rope]

    def _stack(self, tensors: list[torch.Tensor], interleaved: bool = False) -> torch.Tensor:
        """Dense matrices of one dtype as one."""
        rows, (columns,) = sum(len(t) for t in tensors), {t.shape[1] for t in tensors}
        out = self._arena.empty(rows, columns, dtype=tensors[0].dtype)
        if not interleaved:
            return torch.cat(tensors, out=out)
        strips = [t.unflatten(0, (-1, _STRIP_ROWS)) for t in tensors]
        torch.stack(strips, 1, out=out.view(-1, len(tensors), _STRIP_ROWS, columns))
        return out

    def _pack(self, tensors: list[Blocks], interleaved: bool = False) -> list[ops.Weight]:
        """One packed matrix if the parts fill whole strips, else one per part."""
        if any(t.shape[0] % _STRIP_ROWS for t in tensors[:-1]):
            return [weight for t in tensors for weight in self._pack([t])]
        format, columns = tensors[0].format, tensors[0].shape[1]
        strips = [-(-t.shape[0] // _STRIP_ROWS) for t in tensors]
        strip_bytes = ops.packed_strip_bytes(format, columns)
        data = self._arena.empty(sum(strips), strip_bytes, dtype=torch.uint8)
        if interleaved:
            parts = data.view(-1, len(tensors), strip_bytes).unbind(1)
        else:
            parts = data.split(strips)
        for tensor, part in zip(tensors, parts, strict=True):
            ops.pack_weight(tensor.blocks, format, out=part)
        rows = sum(t.shape[0] for t in tensors)
        return [ops.PackedWeight(data, format, (rows, columns))]


def _halves(tensor: torch.Tensor | Blocks) -> list[torch.Tensor | Blocks]:
    """The upper and the lower rows of a matrix."""
    if isinstance(tensor, torch.Tensor):
        return list(tensor.chunk(2))
    rows, columns = tensor.shape
    return [
        Blocks(blocks, tensor.format, (rows // 2, columns)) for blocks in tensor.blocks.chunk(2)
    ]


def quantized(tensor: torch.Tensor, format: str) -> torch.Tensor | Blocks:
    """A matrix in blocks of a format, or of the nearest one that its width allows.

    A width that is no multiple of 256 takes blocks of 32 with a bit more, as llama.cpp's converters
    do; one that is no multiple of 32 stays dense.
    """
    rows, columns = tensor.shape
    fit = fitting(format, columns)
    if fit is None:
        return tensor
    return Blocks(ops.quantize_weight(tensor, fit), fit, (rows, columns))
