# SPDX-License-Identifier: Apache-2.0
"""The inputs of steps: those of decode steps in tensors at fixed addresses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lampo.engine.request import Sequence
from lampo.engine.sample_rows import SampleRows, row_dtypes
from lampo.models.step import Step, StepLimits
from lampo.ops import SampleInputs
from lampo.runtime.transfer import offsets_of, part_of, pinned

# Prefix of the names of the draw's tensors.
_SAMPLE = "sample_"


Layout = dict[str, tuple[type[np.generic], tuple[int, ...]]]


def _layout(batch_size: int, max_pages_per_seq: int) -> Layout:
    rows, i64, i32 = (batch_size,), np.int64, np.int32
    return {
        "token_ids": (i64, rows),
        "positions": (i64, rows),
        "slot_mapping": (i64, rows),
        "seq_lens": (i32, rows),
        "cu_seqlens_q": (i32, (batch_size + 1,)),
        "page_table": (i32, (batch_size, max_pages_per_seq)),
        "state_slots": (i64, rows),
        **{_SAMPLE + name: (kind, rows) for name, kind in row_dtypes().items()},
    }


def _offsets_of(layout: Layout) -> tuple[list[int], int]:
    return offsets_of(
        math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in layout.values()
    )


def step_input_bytes(batch_size: int, max_pages_per_seq: int) -> int:
    """Bytes of the inputs of a decode step on a GPU."""
    return _offsets_of(_layout(batch_size, max_pages_per_seq))[1]


class StepInputs:
    """The inputs of a decode step of up to `batch_size` sequences.

    On the CPU the tensors are written in place. For a GPU the host writes a pinned buffer, which
    one copy transfers. Two buffers alternate: when a step is written, the copy of the previous step
    may still be pending.

    Attributes:
        tensors: by name, on the device.
        step: those of the model.
        sample: those of the draw.
    """

    def __init__(self, batch_size: int, max_pages_per_seq: int, device: torch.device) -> None:
        layout = _layout(batch_size, max_pages_per_seq)
        offsets, size = _offsets_of(layout)
        if device.type == "cuda":
            hosts = [pinned(size, device) for _ in range(2)]
            self._memory = torch.zeros(size, dtype=torch.uint8, device=device)
        else:
            hosts = [torch.zeros(size, dtype=torch.uint8)]
            self._memory = hosts[0]

        def views(memory: torch.Tensor) -> dict[str, torch.Tensor]:
            return {
                name: part_of(memory, offset, np.dtype(dtype), shape)
                for (name, (dtype, shape)), offset in zip(layout.items(), offsets, strict=True)
            }

        self.tensors = views(self._memory)
        self._hosts = [
            (host, _HostRows({name: t.numpy() for name, t in views(host).items()}))
            for host in hosts
        ]
        self.step = Step(
            **{
                name: self.tensors[name]
                for name in (
                    *("token_ids", "positions", "slot_mapping"),
                    *("cu_seqlens_q", "seq_lens", "page_table", "state_slots"),
                )
            }
        )
        self.sample = SampleInputs(**{name: self.tensors[_SAMPLE + name] for name in row_dtypes()})

    def write(self, sequences: list[Sequence], page_size: int, ahead: int = 0) -> None:
        """Writes the next step; rows after the last sequence are padding.

        Args:
            sequences: with their pages reserved.
            page_size: tokens per page.
            ahead: 1 for the step after the one of their pending tokens: the token ids are unknown
                and left to the caller.
        """
        host, rows = self._hosts[0]
        rows.write(sequences, page_size, ahead)
        if self._memory is not host:
            self._memory.copy_(host, non_blocking=True)
            self._hosts.reverse()


class _HostRows:
    """The arrays of one step, a row per sequence; unchanged values are not written again."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._token_ids = arrays["token_ids"]
        self._positions = arrays["positions"]
        self._slots = arrays["slot_mapping"]
        self._seq_lens = arrays["seq_lens"]
        self._cu_seqlens_q = arrays["cu_seqlens_q"]
        self._page_table = arrays["page_table"]
        self._state_slots = arrays["state_slots"]
        self._sample = SampleRows({name: arrays[_SAMPLE + name] for name in row_dtypes()})
        # Per row, the sequence of its parameters, and the list of its page table and its length.
        self._members: list[Sequence | None] = [None] * len(self._positions)
        self._copied: list[tuple[list[int], int]] = [([], 0)] * len(self._positions)
        self._num_rows = -1

    def write(self, sequences: list[Sequence], page_size: int, ahead: int) -> None:
        for i, sequence in enumerate(sequences):
            position, pages = sequence.num_computed + ahead, sequence.pages
            self._token_ids[i] = 0 if ahead else sequence.token_ids[position]
            self._positions[i] = position
            self._slots[i] = pages[position // page_size] * page_size + position % page_size
            self._seq_lens[i] = self._sample.positions[i] = position + 1
            copied, count = self._copied[i]
            if copied is not pages or count != len(pages):
                self._page_table[i, : len(pages)] = pages
                self._copied[i] = (pages, len(pages))
            self._state_slots[i] = sequence.state_slot or 0
            if self._members[i] is not sequence:
                self._members[i] = sequence
                self._sample.take(i, sequence)
        if self._num_rows != len(sequences):
            self._num_rows = len(sequences)
            self._pad(len(sequences))

    def _pad(self, count: int) -> None:
        """Rows without a sequence have no query and write nothing; their draws are not read."""
        self._cu_seqlens_q[:] = np.minimum(np.arange(len(self._cu_seqlens_q)), count)
        self._slots[count:] = -1
        self._sample.clear(count)
        for array in (self._token_ids, self._positions, self._seq_lens):
            array[count:] = 0
        self._members[count:] = [None] * (len(self._members) - count)


def prompt_arrays(
    work: list[tuple[Sequence, int]], last_of: list[int] | None, page_size: int
) -> dict[str, NDArray[Any]]:
    """The fields of the step that computes the next `count` tokens of every sequence.

    Args:
        work: sequences, with their pages reserved, and counts.
        last_of: as in :meth:`lampo.engine.runner.Runner.run`.
        page_size: tokens per page.
    """
    batch_size, num_tokens = len(work), sum(count for _, count in work)
    token_ids = np.empty(num_tokens, dtype=np.int64)
    positions = np.empty(num_tokens, dtype=np.int64)
    slot_mapping = np.empty(num_tokens, dtype=np.int64)
    cu_seqlens_q = np.zeros(batch_size + 1, dtype=np.int32)
    seq_lens = np.empty(batch_size, dtype=np.int32)
    max_pages = max(len(s.pages) for s, _ in work)
    page_table = np.zeros((batch_size, max_pages), dtype=np.int32)
    state_slots = np.empty(batch_size, dtype=np.int64)
    at = 0
    for i, (sequence, count) in enumerate(work):
        start, end = sequence.num_computed, sequence.num_computed + count
        pages = np.asarray(sequence.pages, dtype=np.int64)
        where = np.arange(start, end)
        token_ids[at : at + count] = sequence.token_ids[start:end]
        positions[at : at + count] = where
        slot_mapping[at : at + count] = pages[where // page_size] * page_size + where % page_size
        at += count
        cu_seqlens_q[i + 1] = at
        seq_lens[i] = end
        page_table[i, : len(pages)] = pages
        state_slots[i] = sequence.state_slot or 0
    arrays: dict[str, NDArray[Any]] = {
        "token_ids": token_ids,
        "positions": positions,
        "slot_mapping": slot_mapping,
        "cu_seqlens_q": cu_seqlens_q,
        "seq_lens": seq_lens,
        "page_table": page_table,
        "state_slots": state_slots,
    }
    return arrays if last_of is None else arrays | {"last_of": np.array(last_of, dtype=np.int64)}


def prompt_bytes(limits: StepLimits) -> int:
    """Bytes of the arrays of the largest step of prompts, as :class:`Transfer` counts them."""
    tokens, rows = limits.num_tokens, limits.max_num_seqs
    pages = limits.max_pages_per_seq
    return offsets_of(
        [*3 * [8 * tokens], 4 * (rows + 1), 4 * rows, 4 * rows * pages, 8 * rows, 8 * rows]
    )[1]
