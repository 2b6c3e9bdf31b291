# SPDX-License-Identifier: Apache-2.0
"""One decode step of a batch, over fixed tensors: recorded at first, replayed from then on.

Between two steps Python runs with cold caches (the weights have just passed through them), so
little is left to it: the draw is part of the recording.
"""

from __future__ import annotations

import numpy as np
import torch

from lampo import ops
from lampo.engine.kv_pool import KVPool
from lampo.engine.sequence import Sequence
from lampo.models.decoder import Decoder, Step
from lampo.program import Program


class DecodeStep:
    """Embedding to the next token of each of `batch_size` sequences.

    Attributes:
        program: the recorded step, empty before the first run.
        logits: [batch_size, vocab_size] float32, of the last run.
        token_ids: drawn from them by temperature, top-k, top-p and min-p.
        status: of the draw, as :func:`lampo.ops.sample` writes it.
    """

    def __init__(
        self, model: Decoder, pool: KVPool, logits: torch.Tensor, max_pages_per_seq: int
    ) -> None:
        batch_size = logits.shape[0]
        self.program = Program()
        self.logits = logits
        self.token_ids: list[int] = []
        self.status: list[int] = []
        self._model, self._pool = model, pool
        self._drawn = np.zeros(batch_size, dtype=np.int64)
        self._status = np.zeros(batch_size, dtype=np.int32)
        self._token_ids = np.zeros(batch_size, dtype=np.int64)
        self._positions = np.zeros(batch_size, dtype=np.int64)
        self._slots = np.zeros(batch_size, dtype=np.int64)
        self._seq_lens = np.zeros(batch_size, dtype=np.int32)
        self._drawn_positions = np.zeros(batch_size, dtype=np.int64)
        self._page_table = np.zeros((batch_size, max_pages_per_seq), dtype=np.int32)
        self._seeds = np.zeros(batch_size, dtype=np.int64)
        self._temperature = np.zeros(batch_size, dtype=np.float32)
        self._top_k = np.zeros(batch_size, dtype=np.int32)
        self._top_p = np.ones(batch_size, dtype=np.float32)
        self._min_p = np.zeros(batch_size, dtype=np.float32)
        # Whose parameters the rows hold; the lists that the page table was copied from.
        self._members: list[Sequence | None] = [None] * batch_size
        self._copied: list[tuple[list[int], int]] = [([], 0)] * batch_size
        self._step = Step(
            token_ids=torch.from_numpy(self._token_ids),
            positions=torch.from_numpy(self._positions),
            slot_mapping=torch.from_numpy(self._slots),
            cu_seqlens_q=torch.arange(batch_size + 1, dtype=torch.int32),
            seq_lens=torch.from_numpy(self._seq_lens),
            page_table=torch.from_numpy(self._page_table),
        )

    def run(self, sequences: list[Sequence]) -> None:
        """Computes one token of each sequence: `batch_size` of them, holding pages enough."""
        self._fill(sequences)
        if len(self.program):
            self.program.replay()
        else:
            program = Program()
            with program.record():
                self._record()
            self.program = program  # not before: one that was interrupted is never replayed
        self.token_ids = self._drawn.tolist()
        self.status = self._status.tolist()

    def _record(self) -> None:
        hidden = self._model.forward(self._step, self._pool.cache)
        self._model.logits(hidden, out=self.logits)
        batch_size, vocab_size = self.logits.shape
        workspace = ops.sampling_workspace_size(vocab_size, self.logits.device, batch_size)
        ops.sample(
            self.logits,
            temperature=torch.from_numpy(self._temperature),
            top_k=torch.from_numpy(self._top_k),
            top_p=torch.from_numpy(self._top_p),
            min_p=torch.from_numpy(self._min_p),
            seeds=torch.from_numpy(self._seeds),
            positions=torch.from_numpy(self._drawn_positions),
            token_ids=torch.from_numpy(self._drawn),
            status=torch.from_numpy(self._status),
            workspace=torch.empty(workspace, dtype=torch.uint8),
        )

    def _fill(self, sequences: list[Sequence]) -> None:
        page_size = self._pool.page_size
        for i, sequence in enumerate(sequences):
            position, pages = sequence.num_computed, sequence.pages
            self._token_ids[i] = sequence.token_ids[position]
            self._positions[i] = position
            self._slots[i] = pages[position // page_size] * page_size + position % page_size
            self._seq_lens[i] = self._drawn_positions[i] = position + 1
            copied, count = self._copied[i]
            if copied is not pages or count != len(pages):
                self._page_table[i, : len(pages)] = pages
                self._copied[i] = (pages, len(pages))
            if self._members[i] is not sequence:
                self._members[i] = sequence
                self._take_parameters(i, sequence)

    def _take_parameters(self, row: int, sequence: Sequence) -> None:
        params = sequence.params
        self._seeds[row] = sequence.seed
        self._temperature[row] = params.temperature
        self._top_k[row] = max(params.top_k or 0, 0)
        self._top_p[row] = params.top_p
        self._min_p[row] = params.min_p
