# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M, a published Q4_K_M file of five types of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from gemma_file import gemma_file
from model_harness import twin_logits

from lampo import LLM, SamplingParams, evaluate
from lampo.models.checkpoint import Checkpoint, load_checkpoint

pytestmark = pytest.mark.slow
TEXT = (
    "The Colosseum is an elliptical amphitheatre in the centre of the city of Rome, just east of "
    "the Roman Forum. It is the largest ancient amphitheatre ever built, despite its age."
)


def twin_of(checkpoint: Checkpoint) -> Any:
    """transformers' model with the dequantized weights of a file, in float32."""
    c = checkpoint.config
    layers = [layer.attention for layer in c.layers]
    config = transformers.Gemma3TextConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=c.layers[0].feed_forward.size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=layers[0].num_qo_heads,
        num_key_value_heads=layers[0].num_kv_heads,
        head_dim=layers[0].head_dim,
        max_position_embeddings=c.max_position_embeddings,
        sliding_window=next(a.window for a in layers if a.window is not None),
    )
    twin: Any = transformers.Gemma3ForCausalLM(config).eval()
    stored = checkpoint.architecture.tensors(c)
    state = {}
    for name in checkpoint.names():
        tensor: Any = checkpoint.load(name)
        tensor = tensor.float() if isinstance(tensor, torch.Tensor) else tensor.dequantize()
        state[name] = tensor - 1 if stored[name].less_one else tensor
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    twin.tie_weights()
    return twin


def test_a_published_file() -> None:
    path = gemma_file()
    with load_checkpoint(path) as checkpoint:
        twin = twin_of(checkpoint)
    with LLM(path, dtype="float32", max_model_len=2048) as exact:
        ids = exact.encode(TEXT)
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        generated = exact.generate([ids], params)[0].outputs[0].token_ids
        logits = exact.inspector().inspect(ids, logits_from=0).logits.float()
        expected = twin_logits(twin, ids + generated)
        difference = logits.log_softmax(-1) - expected[: len(ids)].log_softmax(-1)
        assert float(difference.abs().max()) < 2e-3
        assert generated == expected[len(ids) - 1 : -1].argmax(-1).tolist()
        with LLM(path, max_model_len=2048) as packed:
            assert packed.weight_bytes < 1.07 * path.stat().st_size
            found = evaluate(packed, ids, reference=exact).kl_divergence
    assert found is not None and found < 5e-3
