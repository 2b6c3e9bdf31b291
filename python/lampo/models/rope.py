# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: its parameters, validated, and tables of cosines and sines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lampo.error_text import shown
from lampo.weights.fields import Fields

if TYPE_CHECKING:
    import torch

ROPE_SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")
MAX_POSITIONS = 1 << 24
_MAX_FACTOR = 1e4
_TABLE_CHUNK = 1024
_HF_KEYS = {"type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned", "factor"}
_HF_KEYS |= {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
_HF_KEYS |= {"beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the first `rotary_dim` channels of every head.

    Channel pair i is rotated by `position * f_i`. `f_i = theta ** (-2 i / rotary_dim)` is modified
    by `scaling`, and divided by `freq_factors[i]` if a GGUF file has them.

    Attributes:
        theta: base of the frequencies.
        rotary_dim: number of rotated channels, even.
        interleaved: pairs are channels (2 i, 2 i + 1); otherwise (i, i + rotary_dim / 2).
        scaling: "default", "linear", "dynamic", "llama3", "yarn" or "longrope".
        factor: stretch factor of the context, all scalings but "default" and "longrope".
        original_max_position_embeddings: the length before stretching: dynamic, llama3, yarn,
            longrope.
        low_freq_factor, high_freq_factor: llama3.
        beta_fast, beta_slow, truncate: yarn, the ramp between the two kinds of frequency.
        attention_factor: yarn and longrope, multiplies cosines and sines; 1.0 otherwise.
        freq_factors: `rotary_dim / 2` divisors of the frequencies, or None.
        long_factors: longrope, those in place of `freq_factors` of a model that is to reach
            positions beyond the length before stretching.
    """

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    freq_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.theta) and self.theta > 1):
            raise ValueError(f"rope theta: expected a finite number above 1, got {self.theta}")
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(f"rotary_dim: expected a positive even number, got {self.rotary_dim}")
        known = (*ROPE_SCALINGS, "longrope")
        if self.scaling not in known:
            raise ValueError(f"rope scaling: expected one of {known}, got {self.scaling!r}")
        if (self.scaling == "longrope") != (self.long_factors is not None):
            raise ValueError("rope scaling: long_factors and 'longrope' need each other")
        if self.scaling in ("dynamic", "llama3", "yarn", "longrope"):
            length = self.original_max_position_embeddings
            if not 1 <= length <= MAX_POSITIONS:
                raise ValueError(f"original_max_position_embeddings: {length} is out of range")
        if self.scaling == "dynamic" and self.rotary_dim < 4:
            raise ValueError(f"rotary_dim: dynamic scaling needs 4 or more, got {self.rotary_dim}")
        for name, factors in (("freq", self.freq_factors), ("long", self.long_factors)):
            count = self.rotary_dim // 2
            if factors is not None and len(factors) != count:
                raise ValueError(
                    f"rope {name}_factors: expected {count} numbers, got {len(factors)}"
                )
            if not all(math.isfinite(f) and f > 0 for f in factors or ()):
                raise ValueError(f"rope {name}_factors: expected finite numbers above 0")

    def inverse_frequencies(self, seq_len: int | None = None) -> torch.Tensor:
        """Angle per position, for all channel pairs: [rotary_dim / 2] f64.

        Args:
            seq_len: the longest sequence in use; "dynamic" and "longrope" depend on it.
        """
        import torch

        dim = self.rotary_dim
        theta = self.theta
        if self.scaling == "dynamic":
            # The base grows with the part of the sequence beyond the trained length.
            trained = self.original_max_position_embeddings
            stretch = self.factor * max(seq_len or 0, trained) / trained - (self.factor - 1)
            theta = theta * stretch ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        frequencies = torch.pow(torch.tensor(theta, dtype=torch.float64), -exponents)
        if self.scaling == "linear":
            frequencies = frequencies / self.factor
        elif self.scaling == "llama3":
            frequencies = self._llama3(frequencies)
        elif self.scaling == "yarn":
            frequencies = self._yarn(frequencies)
        factors = self.freq_factors
        if self.scaling == "longrope" and (seq_len or 0) > self.original_max_position_embeddings:
            factors = self.long_factors
        if factors is not None:
            frequencies = frequencies / torch.tensor(factors, dtype=torch.float64)
        return frequencies

    def cos_sin(self, start: int, end: int, max_positions: int) -> npt.NDArray[np.float32]:
        """Cosines, then sines, of positions from `start` to `end - 1`: [end - start, rotary_dim].

        Computed in f64 and rounded once, by NumPy: torch's threads do not survive a fork. With
        "dynamic" scaling and "longrope" the frequencies are those of a sequence of `max_positions`
        tokens, the same for all positions.
        """
        frequencies = self.inverse_frequencies(max_positions).numpy()
        angles = np.outer(np.arange(start, end, dtype=np.float64), frequencies)
        both = np.cos(angles), np.sin(angles)
        scaled = [part * self.attention_factor for part in both]
        return np.concatenate(scaled, axis=1).astype(np.float32)

    def _llama3(self, frequencies: torch.Tensor) -> torch.Tensor:
        """Keeps high frequencies, divides low ones by `factor`, blends in between (Llama 3.1)."""
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        width = self.high_freq_factor - self.low_freq_factor
        keep = ((turns - self.low_freq_factor) / width).clamp(0, 1)
        return keep * frequencies + (1 - keep) * frequencies / self.factor

    def _yarn(self, frequencies: torch.Tensor) -> torch.Tensor:
        """Blends original and divided frequencies on a ramp of channels (arXiv:2309.00071)."""

        def pair_with(turns: float) -> float:  # pair with these turns in the trained length
            wave = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return self.rotary_dim * math.log(wave) / (2 * math.log(self.theta))

        import torch

        low, high = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        if low == high:
            high += 0.001
        pairs = torch.arange(frequencies.shape[0], dtype=torch.float64)
        slowed = ((pairs - low) / (high - low)).clamp(0, 1)
        return slowed * frequencies / self.factor + (1 - slowed) * frequencies


class RotaryTable:
    """Cosines and sines of positions, computed as far as sequences have come.

    All rows have their address from the beginning, so recorded steps stay valid. On the CPU a row
    takes memory once it is computed: a file may name any context.

    Args:
        rope: the embedding.
        max_positions: rows of the table.
        device: of the table; the CPU if absent.

    Attributes:
        cos_sin: [max_positions, rotary_dim] float32, cosines, then sines; see :meth:`reach`.

    Raises:
        ValueError: `max_positions` is out of range.
    """

    def __init__(
        self, rope: RopeConfig, max_positions: int, device: torch.device | None = None
    ) -> None:
        import torch

        from lampo.runtime.huge_pages import reserve

        if not 1 <= max_positions <= MAX_POSITIONS:
            raise ValueError(f"max_positions: expected 1 to {MAX_POSITIONS}, got {max_positions}")
        self.rope = rope
        self._num_computed = 0
        shape = max_positions, rope.rotary_dim
        if device is None or device.type == "cpu":
            self.cos_sin = reserve(4 * math.prod(shape)).view(torch.float32).view(shape)
        else:
            self.cos_sin = torch.empty(shape, dtype=torch.float32, device=device)

    def reach(self, num_positions: int) -> None:
        """Computes the rows of the first `num_positions` positions, as far as the table has them,
        and up to a thousand more."""
        import torch

        while self._num_computed < min(num_positions, len(self.cos_sin)):
            start = self._num_computed
            rows = self.cos_sin[start : start + _TABLE_CHUNK]
            values = self.rope.cos_sin(start, start + len(rows), len(self.cos_sin))
            if rows.device.type == "cpu":
                rows.numpy()[:] = values
            else:
                rows.copy_(torch.from_numpy(values))
            self._num_computed += len(rows)

    def to(self, device: torch.device) -> RotaryTable:
        """The table on `device`."""
        if device == self.cos_sin.device:
            return self
        return RotaryTable(self.rope, len(self.cos_sin), device)


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Attention factor that YaRN recommends for a context stretched by `factor`."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_from_hf(
    fields: Fields, head_dim: int, max_position_embeddings: int, default_theta: float = 1e4
) -> RopeConfig:
    """Reads `rope_parameters`, or the older `rope_scaling` and `rope_theta`, of a config.json."""
    name = "rope_scaling" if fields.mapping("rope_scaling") else "rope_parameters"
    values: dict[str, Any] = dict(fields.mapping(name))
    unknown = sorted(set(values) - _HF_KEYS)
    if unknown:
        raise ValueError(
            f"{fields.source}: {name}: {shown(unknown[0])} = {shown(values[unknown[0]])} is not "
            f"supported; known are {', '.join(sorted(_HF_KEYS))}"
        )
    for key in ("rope_theta", "partial_rotary_factor"):
        if values.get(key) is None and fields.has(key):
            values[key] = fields.get(key)
    if values.get("rope_type") is None and values.get("type") is not None:
        values["rope_type"] = values["type"]
    rope = Fields(f"{fields.source}: {name}", values)

    scaling = rope.choice("rope_type", ROPE_SCALINGS, "default")
    # transformers ignores it with rope_type "default" and follows it with others.
    if rope.number("partial_rotary_factor", 0, 1, 1.0, open_low=True) != 1.0:
        raise rope.error("partial_rotary_factor", "1: these architectures rotate whole heads")
    arguments: dict[str, Any] = {
        "theta": rope.number("rope_theta", 1, 1e12, default_theta, open_low=True),
        "rotary_dim": head_dim,
        "scaling": scaling,
    }
    if scaling in ("linear", "dynamic", "llama3"):
        arguments["factor"] = rope.number("factor", 1, _MAX_FACTOR)
    if scaling == "dynamic":
        arguments["original_max_position_embeddings"] = max_position_embeddings
    if scaling in ("llama3", "yarn"):
        if fields.has("original_max_position_embeddings"):  # takes precedence over rope_scaling's
            rope = Fields(rope.source, {**values, **_original_length(fields)})
        arguments["original_max_position_embeddings"] = rope.integer(
            "original_max_position_embeddings", 1, MAX_POSITIONS, max_position_embeddings
        )
    if scaling == "llama3":
        low = rope.number("low_freq_factor", 0, _MAX_FACTOR, open_low=True)
        arguments["low_freq_factor"] = low
        arguments["high_freq_factor"] = rope.number(
            "high_freq_factor", low, _MAX_FACTOR, open_low=True
        )
    if scaling == "yarn":
        arguments |= _yarn_arguments(rope, max_position_embeddings, arguments)
    return RopeConfig(**arguments)


def _original_length(fields: Fields) -> Mapping[str, int]:
    key = "original_max_position_embeddings"
    return {key: fields.integer(key, 1, MAX_POSITIONS)}


def _yarn_arguments(
    rope: Fields, max_position_embeddings: int, known: Mapping[str, Any]
) -> dict[str, Any]:
    implied = max_position_embeddings / known["original_max_position_embeddings"]
    factor = rope.number("factor", 1, _MAX_FACTOR, max(implied, 1.0))
    beta_slow = rope.number("beta_slow", 0, _MAX_FACTOR, 1.0, open_low=True)
    mscale = rope.number("mscale", 0, 100, 0.0)
    mscale_all_dim = rope.number("mscale_all_dim", 0, 100, 0.0)
    recommended = yarn_mscale(factor)
    if mscale and mscale_all_dim:
        recommended = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    return {
        "factor": factor,
        "beta_slow": beta_slow,
        "beta_fast": rope.number("beta_fast", beta_slow, _MAX_FACTOR, 32.0, open_low=True),
        "truncate": rope.boolean("truncate", True),
        "attention_factor": rope.number("attention_factor", 0, 100, recommended, open_low=True),
    }


def rope_from_gguf(
    fields: Fields,
    prefix: str,
    head_dim: int,
    context: int,
    freq_factors: tuple[float, ...] | None,
    *,
    interleaved: bool,
) -> RopeConfig:
    """Reads `<prefix>.rope.*`.

    Args:
        fields: metadata of a GGUF file.
        prefix: its architecture.
        head_dim, context: of the model.
        freq_factors: the content of rope_freqs.weight, or None.
        interleaved: whether the architecture's q and k rows are stored for interleaved pairs.
    """
    rope = f"{prefix}.rope"
    rotary_dim = fields.integer(f"{rope}.dimension_count", 2, head_dim, head_dim)
    if rotary_dim % 2:
        raise fields.error(f"{rope}.dimension_count", "an even number")
    # A factor without a type stretches linearly, as in llama.cpp.
    scaling = fields.choice(f"{rope}.scaling.type", ("none", "linear", "yarn"), "linear")
    arguments: dict[str, Any] = {
        "theta": fields.number(f"{rope}.freq_base", 1, 1e12, 10000.0, open_low=True),
        "rotary_dim": rotary_dim,
        "interleaved": interleaved,
        "freq_factors": freq_factors,
    }
    key = f"{rope}.scaling.factor"
    if not fields.has(key) and fields.has(f"{rope}.scale_linear"):
        key = f"{rope}.scale_linear"
    factor = fields.number(key, 0, _MAX_FACTOR, 1.0) or 1.0  # 0 means "no scaling"
    if factor < 1:
        raise fields.error(key, "0, or a finite number from 1")
    if scaling == "none" or factor == 1.0:
        return RopeConfig(**arguments)
    arguments |= {"scaling": scaling, "factor": factor}
    if scaling == "yarn":
        key = f"{rope}.scaling.yarn_ext_factor"
        if fields.number(key, -1, 100, 1.0) not in (1.0, -1.0):
            raise fields.error(key, "1.0, all that is supported")
        # mscale_all_dim of config.json, as llama.cpp reads it.
        multiplier = fields.number(f"{rope}.scaling.yarn_log_multiplier", 0, 100, 0.0)
        recommended = yarn_mscale(factor)
        if multiplier:
            recommended /= yarn_mscale(factor, multiplier)
        slow = fields.number(f"{rope}.scaling.yarn_beta_slow", 0, _MAX_FACTOR, 1.0, open_low=True)
        extra = fields.number(f"{rope}.scaling.yarn_attn_factor", 0, 100, 1.0, open_low=True)
        extra *= fields.number(f"{rope}.scaling.attn_factor", 0, 100, 1.0, open_low=True)
        arguments |= {
            "original_max_position_embeddings": fields.integer(
                f"{rope}.scaling.original_context_length", 1, MAX_POSITIONS, context
            ),
            "beta_slow": slow,
            "beta_fast": fields.number(
                f"{rope}.scaling.yarn_beta_fast", slow, _MAX_FACTOR, 32.0, open_low=True
            ),
            "attention_factor": extra * recommended,
        }
    return RopeConfig(**arguments)
