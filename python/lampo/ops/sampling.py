# SPDX-License-Identifier: Apache-2.0
"""Sampling of tokens from logits, and tables of log-probabilities."""

from __future__ import annotations

import contextlib

import torch

from lampo import _C
from lampo.ops._arguments import check_size, cuda_index, tensor
from lampo.ops._registry import is_recording, register
from lampo.ops.sample_inputs import SAMPLE_INPUT_NAMES, SampleInputs

_ROWS = ", ".join(
    f"Tensor{'' if name == 'temperature' else '?'} {name}" for name in SAMPLE_INPUT_NAMES
)
_sample = register(
    f"sample(Tensor logits, {_ROWS}, Tensor(a!) token_ids, Tensor(b!) status, "
    "Tensor(c!)? logprobs, Tensor(d!)? kept, Tensor(e!)? num_kept, "
    "Tensor(f!)? processed_logprobs, Tensor(g!) workspace) -> ()",
    _C.sample,
)
_token_logprobs = register(
    "token_logprobs(Tensor logits, Tensor token_ids, Tensor(a!) logprob, Tensor(b!) rank, "
    "Tensor(c!) top_ids, Tensor(d!) top_logprobs, Tensor(e!) workspace) -> ()",
    _C.token_logprobs,
)

# Workspaces of CPU calls that have ended: fresh pages take more time than sampling a row. They are
# no thread's own. The end of a thread would free them, and torch then needs the GIL, which a daemon
# may not get any more.
_idle: list[torch.Tensor] = []


def sampling_workspace_size(
    vocab_size: int, device: torch.device | str = "cpu", batch_size: int = 1
) -> int:
    """Bytes of workspace for :func:`sample` and :func:`token_logprobs` on rows of this width.

    On CPU the size depends on the number of threads (query it again after a change) and suffices
    for any batch. On CUDA it suffices for up to ``batch_size`` rows.
    """
    return int(
        _C.sampling_workspace_size(
            check_size("vocab_size", vocab_size),
            cuda_index("device", device),
            check_size("batch_size", batch_size),
        )
    )


def _take_workspace(logits: torch.Tensor) -> torch.Tensor:
    """Memory for one call. On CUDA torch's allocator caches it per stream."""
    batch_size, vocab_size = tensor("logits", logits, 2).shape
    cuda_index("logits", logits.device)
    size = sampling_workspace_size(vocab_size, logits.device, batch_size)
    if not torch.compiler.is_compiling() and not logits.is_cuda:
        with contextlib.suppress(IndexError):
            idle = _idle.pop()
            if idle.numel() >= size:
                return idle
    return logits.new_empty(size, dtype=torch.uint8)


def _give_back(workspace: torch.Tensor) -> None:
    if not torch.compiler.is_compiling() and not workspace.is_cuda and not is_recording():
        _idle.append(workspace)


def sample(
    logits: torch.Tensor,
    inputs: SampleInputs | None = None,
    *,
    token_ids: torch.Tensor | None = None,
    status: torch.Tensor | None = None,
    logprobs: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    num_kept: torch.Tensor | None = None,
    processed_logprobs: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
    **rows: torch.Tensor | None,
) -> torch.Tensor:
    """Draw one token per row of logits; csrc/common/sampling.h defines every step to the bit.

    (1) penalties, bias and mask on raw logits; (2) divide by temperature; (3) top-k; (4) top-p of
    the remaining tokens, the crossing token included; (5) min-p: ``p_i >= min_p * p_max``; (6) the
    draw, ``argmax(log p_i + Gumbel noise)`` with noise from Philox(seed, position, token). Order:
    by descending logit, ties by index. NaN counts as -inf; +inf tokens share all probability.

    Args:
        logits: [batch_size, vocab_size] float32 or bfloat16, not modified.
        inputs: the parameters; or its fields as arguments: ``sample(logits, temperature=t)``.
        token_ids, status: [batch_size] int64 and int32, written; -1 and 1 without a candidate.
        logprobs: [batch_size, 2] float32, written: raw log-softmax; log of the drawn probability.
        kept: [batch_size, vocab_size] bool, written: candidates after (1) to (5).
        num_kept: [batch_size] int32, written: number of candidates; 1 for a greedy row.
        processed_logprobs: [batch_size, vocab_size] float32, written: log-probabilities of the
            distribution that (6) draws from, -inf for other tokens.
        workspace: [:func:`sampling_workspace_size`] uint8.

    Returns:
        ``token_ids``.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.
    """
    if inputs is None:
        inputs = SampleInputs(**rows)  # type: ignore[arg-type]
    elif rows:
        raise TypeError(f"{next(iter(rows))}: is a field of inputs, which are given")
    batch_size = tensor("logits", logits, 2).shape[0]
    if token_ids is None:
        token_ids = logits.new_empty(batch_size, dtype=torch.int64)
    if status is None:
        status = logits.new_empty(batch_size, dtype=torch.int32)
    scratch = _take_workspace(logits) if workspace is None else workspace
    _sample(
        logits,
        *inputs.tensors(),
        token_ids,
        status,
        logprobs,
        kept,
        num_kept,
        processed_logprobs,
        scratch,
    )
    if workspace is None:
        _give_back(scratch)
    return token_ids


def token_logprobs(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    num_top: int = 0,
    *,
    logprob: torch.Tensor | None = None,
    rank: torch.Tensor | None = None,
    top_ids: torch.Tensor | None = None,
    top_logprobs: torch.Tensor | None = None,
    workspace: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax of raw logits at one token per row, its rank, and the most likely tokens.

    Args:
        logits: [batch_size, vocab_size] float32 or bfloat16; NaN counts as -inf.
        token_ids: [batch_size] int64; -1: none (logprob NaN, rank 0).
        num_top: columns of the table, 0 to vocab_size.
        logprob: [batch_size] float32, written.
        rank: [batch_size] int32, written: tokens with a strictly larger logit, plus 1.
        top_ids, top_logprobs: [batch_size, num_top] int32 and float32, written: by descending
            logit, ties by ascending id.
        workspace: [:func:`sampling_workspace_size`] uint8.

    Returns:
        ``(logprob, rank, top_ids, top_logprobs)``.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.
    """
    batch_size = tensor("logits", logits, 2).shape[0]
    if logprob is None:
        logprob = logits.new_empty(batch_size, dtype=torch.float32)
    if rank is None:
        rank = logits.new_empty(batch_size, dtype=torch.int32)
    if top_ids is None or top_logprobs is None:
        num_top = check_size("num_top", num_top, 0, logits.shape[1])
    if top_ids is None:
        top_ids = logits.new_empty(batch_size, num_top, dtype=torch.int32)
    if top_logprobs is None:
        top_logprobs = logits.new_empty(batch_size, num_top, dtype=torch.float32)
    scratch = _take_workspace(logits) if workspace is None else workspace
    _token_logprobs(logits, token_ids, logprob, rank, top_ids, top_logprobs, scratch)
    if workspace is None:
        _give_back(scratch)
    return logprob, rank, top_ids, top_logprobs
