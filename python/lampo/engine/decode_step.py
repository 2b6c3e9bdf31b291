# SPDX-License-Identifier: Apache-2.0
"""One decode step of a batch, over fixed tensors: recorded at first, replayed from then on."""

from __future__ import annotations

import numpy as np
import torch

from lampo.engine.kv_pool import KVPool
from lampo.engine.sequence import Sequence
from lampo.models.decoder import Decoder, Step
from lampo.program import Program


class DecodeStep:
    """Embedding to logits for the next token of each of `batch_size` sequences.

    Attributes:
        program: the recorded step.
        logits: [batch_size, vocab_size] float32, of the last run.
    """

    def __init__(
        self, model: Decoder, pool: KVPool, batch_size: int, max_pages_per_seq: int
    ) -> None:
        self.program = Program()
        self.logits = torch.empty(0)
        self._model, self._pool = model, pool
        self._token_ids = np.zeros(batch_size, dtype=np.int64)
        self._positions = np.zeros(batch_size, dtype=np.int64)
        self._slots = np.zeros(batch_size, dtype=np.int64)
        self._seq_lens = np.zeros(batch_size, dtype=np.int32)
        self._page_table = np.zeros((batch_size, max_pages_per_seq), dtype=np.int32)
        # The lists that the rows of the page table were copied from, and how long they were.
        self._copied: list[tuple[list[int], int]] = [([], 0)] * batch_size
        self._step = Step(
            token_ids=torch.from_numpy(self._token_ids),
            positions=torch.from_numpy(self._positions),
            slot_mapping=torch.from_numpy(self._slots),
            cu_seqlens_q=torch.arange(batch_size + 1, dtype=torch.int32),
            seq_lens=torch.from_numpy(self._seq_lens),
            page_table=torch.from_numpy(self._page_table),
        )

    def run(self, sequences: list[Sequence]) -> torch.Tensor:
        """Computes one token of each sequence: `batch_size` of them, holding pages enough.

        Returns:
            ``logits``, valid until the next run.
        """
        self._fill(sequences)
        if len(self.program):
            self.program.replay()
        else:
            with self.program.record():
                hidden = self._model.forward(self._step, self._pool.cache)
                self.logits = self._model.logits(hidden)
        for sequence in sequences:
            sequence.num_computed += 1
        return self.logits

    def _fill(self, sequences: list[Sequence]) -> None:
        page_size = self._pool.page_size
        for i, sequence in enumerate(sequences):
            position, pages = sequence.num_computed, sequence.pages
            self._token_ids[i] = sequence.token_ids[position]
            self._positions[i] = position
            self._slots[i] = pages[position // page_size] * page_size + position % page_size
            self._seq_lens[i] = position + 1
            copied, count = self._copied[i]
            if copied is not pages or count != len(pages):
                self._page_table[i, : len(pages)] = pages
                self._copied[i] = (pages, len(pages))
