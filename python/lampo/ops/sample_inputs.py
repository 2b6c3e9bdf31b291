# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters per row of logits, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch


@dataclass(frozen=True)
class PerRow:
    """A tensor with one value per row.

    Attributes:
        dtype: of the tensor.
        neutral: the value that changes nothing, as if the tensor were absent.
    """

    dtype: torch.dtype
    neutral: float = 0


def _row(dtype: torch.dtype, neutral: float = 0) -> dict[str, PerRow]:
    return {"row": PerRow(dtype, neutral)}


@dataclass
class SampleInputs:
    """Parameters of :func:`lampo.ops.sample` per row of logits [batch_size, vocab_size].

    An absent tensor changes nothing. On CPU values are checked. On CUDA values out of range are
    clamped, and ids and offsets out of range are skipped.

    Attributes:
        temperature: [batch_size] float32, divides the logits; 0: greedy.
        top_k: [batch_size] int32 >= 0, 0: off.
        top_p: [batch_size] float32 in (0, 1].
        min_p: [batch_size] float32 in [0, 1].
        seeds, positions: [batch_size] int64, inputs of the noise; seeds may be absent on CPU if all
            rows are greedy.
        penalty_ids, penalty_counts, cu_penalties: [nnz], [nnz], [batch_size + 1] int32: row b's
            distinct ids are at cu[b] to cu[b + 1]; counts are those in the output, 0: prompt only.
        repetition_penalty, presence_penalty, frequency_penalty: [batch_size] float32, for the
            tokens of penalty_ids.
        bias_ids, bias_values, cu_bias: [nnz] int32, [nnz] float32, [batch_size + 1] int32.
        allowed_mask: [batch_size, ceil(vocab_size / 32)] int32, bit ``i % 32`` of word ``i // 32``.
    """

    temperature: torch.Tensor = field(metadata=_row(torch.float32, 1))
    top_k: torch.Tensor | None = field(default=None, metadata=_row(torch.int32))
    top_p: torch.Tensor | None = field(default=None, metadata=_row(torch.float32, 1))
    min_p: torch.Tensor | None = field(default=None, metadata=_row(torch.float32))
    seeds: torch.Tensor | None = field(default=None, metadata=_row(torch.int64))
    positions: torch.Tensor | None = field(default=None, metadata=_row(torch.int64))
    penalty_ids: torch.Tensor | None = None
    penalty_counts: torch.Tensor | None = None
    cu_penalties: torch.Tensor | None = None
    repetition_penalty: torch.Tensor | None = field(default=None, metadata=_row(torch.float32, 1))
    presence_penalty: torch.Tensor | None = field(default=None, metadata=_row(torch.float32))
    frequency_penalty: torch.Tensor | None = field(default=None, metadata=_row(torch.float32))
    bias_ids: torch.Tensor | None = None
    bias_values: torch.Tensor | None = None
    cu_bias: torch.Tensor | None = None
    allowed_mask: torch.Tensor | None = None

    def tensors(self) -> list[torch.Tensor | None]:
        """All tensors, in the order of the op's arguments."""
        return [getattr(self, name) for name in SAMPLE_INPUT_NAMES]


SAMPLE_INPUT_NAMES = [f.name for f in fields(SampleInputs)]
PER_ROW: dict[str, PerRow] = {
    f.name: f.metadata["row"] for f in fields(SampleInputs) if "row" in f.metadata
}
