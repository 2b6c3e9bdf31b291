# SPDX-License-Identifier: Apache-2.0
"""The tensors of ops.sample from sequences, for prompts and for decode steps."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lampo.engine.request import Sequence
from lampo.ops.sample_inputs import PER_ROW

Array = NDArray[Any]
_EMPTY = (np.zeros(0, np.int32), np.zeros(0, np.int32))


def row_dtypes() -> dict[str, type[np.generic]]:
    """NumPy types of the fields of `SampleInputs` that have one value for each row."""
    return {
        name: torch.empty(0, dtype=row.dtype).numpy().dtype.type for name, row in PER_ROW.items()
    }


class SampleRows:
    """The per-row fields of `SampleInputs` in host memory, filled from sequences here alone.

    A field is the sampling parameter of its name; seeds and positions are the sequence's own.

    Args:
        arrays: [batch_size], by the names of :func:`row_dtypes`.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.positions = arrays["positions"]
        self._seeds = arrays["seeds"]
        self._parameters = [
            (name, array) for name, array in arrays.items() if name not in ("positions", "seeds")
        ]

    def take(self, row: int, sequence: Sequence) -> None:
        """Fills a row but for the position, which changes from step to step."""
        self._seeds[row] = sequence.seed
        for name, array in self._parameters:
            array[row] = getattr(sequence.params, name)

    def clear(self, first: int) -> None:
        """Fills rows from `first` on with padding: greedy and without cuts."""
        for name, array in self._parameters:
            array[first:] = 0 if name == "temperature" else PER_ROW[name].neutral


def sample_arrays(
    sequences: list[Sequence], vocab_size: int
) -> tuple[dict[str, Array], list[str | None]]:
    """The fields of `SampleInputs` for the draw of the sequences' next tokens.

    Returns:
        the arrays without neutral ones, and per row the error for which it can have no token, or
        None.
    """
    count = len(sequences)
    arrays: dict[str, Array] = {name: np.empty(count, kind) for name, kind in row_dtypes().items()}
    rows = SampleRows(arrays)
    for i, sequence in enumerate(sequences):
        rows.take(i, sequence)
        rows.positions[i] = len(sequence.token_ids)
    required = ("temperature", "seeds", "positions")
    found = {
        name: array
        for name, array in arrays.items()
        if name in required or (array != PER_ROW[name].neutral).any()
    }
    penalties = [
        _EMPTY if s.penalties is None else (s.penalties.ids, s.penalties.counts) for s in sequences
    ]
    if any(len(ids) for ids, _ in penalties):
        found["penalty_ids"], found["penalty_counts"], found["cu_penalties"] = _ragged(penalties)
    biases = [s.rules.biases(s.output.token_ids, s.stop_tokens_banned) for s in sequences]
    if any(len(ids) for ids, _ in biases):
        found["bias_ids"], found["bias_values"], found["cu_bias"] = _ragged(biases)
    errors: list[str | None] = [None] * count
    if any(s.grammar is not None or s.rules.allowed is not None for s in sequences):
        masks = np.full((count, -(-vocab_size // 32)), -1, dtype=np.int32)
        for i, sequence in enumerate(sequences):
            if sequence.grammar is not None:
                errors[i] = sequence.grammar.fill(masks[i])
            if sequence.rules.allowed is not None:
                masks[i] &= sequence.rules.allowed
        found["allowed_mask"] = masks
    return found, errors


def _ragged(rows: Iterable[tuple[Array, Array]]) -> tuple[Array, Array, Array]:
    """Concatenated ids and values, and the offsets of the rows."""
    columns = tuple(zip(*rows, strict=True))
    ids, values = map(np.concatenate, columns)
    return ids, values, np.array([0, *accumulate(map(len, columns[0]))], dtype=np.int32)
