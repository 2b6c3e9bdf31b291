# SPDX-License-Identifier: Apache-2.0
"""What is known of a model before its weights are read: without torch, which takes a second."""

from __future__ import annotations

import time
from pathlib import Path

from lampo.checks import check_integer
from lampo.engine.sampling_rules import SamplingRules
from lampo.models.checkpoint import Checkpoint, load_checkpoint
from lampo.prompts import check_length
from lampo.sampling_params import SamplingParams
from lampo.text.tokenizer import Tokenizer
from lampo.weights import resolve_model


class ModelFiles:
    """The files of a model, opened and checked; no weight has been read.

    :class:`LLM` takes it instead of a name, once.

    Args:
        model: as for :class:`LLM`.
        max_model_len: longest sequence, prompt and output; the model's context if absent.

    Attributes:
        checkpoint: the open weight files.
        tokenizer, config, path, generation_config: of the model.
        eos_token_ids: tokens that end a completion.
        max_model_len: the argument, or the model's context.
        length_is_given: whether it is the argument; `LLM` may have room for less than a context.
        open_time: seconds that opening took.

    Raises:
        ValueError, TypeError: a file or an argument that does not fit, in one line.
    """

    def __init__(self, model: str | Path | None = None, max_model_len: int | None = None) -> None:
        begin = time.perf_counter()
        self.checkpoint = load_checkpoint(resolve_model(model))
        self.path = self.checkpoint.path
        self.config = self.checkpoint.config
        self.generation_config = self.checkpoint.generation_config
        self.tokenizer = _load_tokenizer(self.checkpoint)
        self.eos_token_ids = frozenset(self.checkpoint.eos_token_ids) | self.tokenizer.eos_token_ids
        context = self.config.max_position_embeddings
        self.max_model_len = context if max_model_len is None else max_model_len
        self.length_is_given = max_model_len is not None
        check_integer("max_model_len", self.max_model_len, 1, context)
        self.open_time = time.perf_counter() - begin

    def check_request(self, token_ids: list[int], params: SamplingParams) -> None:
        """Raises what `LLM.request` raises for a prompt and resolved parameters."""
        check_length("prompt", len(token_ids), params, self.max_model_len)
        SamplingRules(
            params,
            token_ids,
            tokenizer=self.tokenizer,
            vocab_size=self.config.vocab_size,
            eos_token_ids=self.eos_token_ids,
        )


def _load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.gguf_metadata is not None:
        return Tokenizer.from_gguf(checkpoint.gguf_metadata)
    return Tokenizer.from_directory(checkpoint.path)
