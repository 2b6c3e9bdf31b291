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
from lampo.models.step import Step
from lampo.ops import SampleInputs

# Prefix of the names of the draw's tensors.
_SAMPLE = "sample_"


def _layout(
    batch_size: int, max_pages_per_seq: int
) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
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
        offsets, size = {}, 0
        for name, (dtype, shape) in layout.items():
            offsets[name] = size
            size += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64
        on_gpu = device.type == "cuda"
        hosts = [torch.zeros(size, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(1 + on_gpu)]
        self._memory = torch.zeros(size, dtype=torch.uint8, device=device) if on_gpu else hosts[0]

        def views(memory: torch.Tensor) -> dict[str, torch.Tensor]:
            found = {}
            for name, (dtype, shape) in layout.items():
                nbytes = math.prod(shape) * np.dtype(dtype).itemsize
                kind = torch.from_numpy(np.empty(0, dtype)).dtype
                part = memory[offsets[name] : offsets[name] + nbytes]
                found[name] = part.view(kind).view(shape)
            return found

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


def prompt_step(
    work: list[tuple[Sequence, int]],
    last_of: list[int] | None,
    page_size: int,
    device: torch.device,
) -> Step:
    """The step that computes the next `count` tokens of every sequence, in new tensors.

    Args:
        work: sequences, with their pages reserved, and counts.
        last_of: as in :meth:`lampo.engine.runner.Runner.run`.
        page_size: tokens per page.
        device: of the tensors.
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

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Step(
        token_ids=tensor(token_ids),
        positions=tensor(positions),
        slot_mapping=tensor(slot_mapping),
        cu_seqlens_q=tensor(cu_seqlens_q),
        seq_lens=tensor(seq_lens),
        page_table=tensor(page_table),
        state_slots=tensor(state_slots),
        last_of=None if last_of is None else tensor(np.array(last_of, dtype=np.int64)),
    )
