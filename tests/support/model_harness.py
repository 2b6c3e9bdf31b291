# SPDX-License-Identifier: Apache-2.0
"""Runs a model without an LLM around it, and builds its oracle in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lampo import LLM
from lampo.engine.kv_pool import KVPool
from lampo.engine.snapshot import violations
from lampo.models.checkpoint import Checkpoint
from lampo.models.decoder import Decoder
from lampo.models.step import Step
from lampo.weights.formats import QuantizedTensor


class Runner:
    """One sequence over shuffled pages; the cache is NaN before it is written."""

    def __init__(
        self, model: Decoder, *, page_size: int = 16, kv_dtype: torch.dtype = torch.float32
    ) -> None:
        config = model.config
        num_pages = -(-config.max_position_embeddings // page_size) + 3
        self.model = model
        self.pool = KVPool(model.keeps, num_pages, page_size, kv_dtype)
        for tensor in self.pool.cache.paged_tensors():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 127)
        generator = torch.Generator().manual_seed(7)
        self.pages = torch.randperm(num_pages, generator=generator).to(torch.int32)[None]
        self.length = 0

    def __call__(self, token_ids: list[int]) -> torch.Tensor:
        """Appends the tokens and returns the logits that follow each: [len(token_ids), vocab]."""
        positions = torch.arange(self.length, self.length + len(token_ids))
        page_size = self.pool.page_size
        pages = self.pages[0, positions // page_size].long()
        self.length += len(token_ids)
        self.model.reach(self.length)
        step = Step(
            token_ids=torch.tensor(token_ids),
            positions=positions,
            slot_mapping=pages * page_size + positions % page_size,
            cu_seqlens_q=torch.tensor([0, len(token_ids)], dtype=torch.int32),
            seq_lens=torch.tensor([self.length], dtype=torch.int32),
            page_table=self.pages,
            state_slots=torch.tensor([0]),
        )
        return self.model.logits(self.model.forward(step, self.pool.cache))

    def chunks(self, token_ids: list[int], size: int) -> torch.Tensor:
        pieces = [token_ids[i : i + size] for i in range(0, len(token_ids), size)]
        return torch.cat([self(piece) for piece in pieces])


class ExactRotary(torch.nn.Module):
    """transformers' default rotary embedding with angles in float64.

    Its own are in float32: near position 2,000 their rounding alone moves log-probabilities of
    SmolLM2 by 1.2e-3, and ours, from exact angles, by 1e-4.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        pairs = torch.arange(0, head_dim, 2, dtype=torch.float64)
        self.frequencies = theta ** (-pairs / head_dim)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def transformers_twin(checkpoint: Checkpoint) -> Any:
    """A transformers model in float32 with the (dequantized) weights of a Llama checkpoint."""
    import transformers

    c = checkpoint.config
    attention, feed_forward = c.layers[0].attention, c.layers[0].feed_forward
    rope = attention.rope
    assert rope is not None and rope.scaling == "default"
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.hidden_size,
        intermediate_size=feed_forward.size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=attention.num_qo_heads,
        num_key_value_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": rope.theta},
        tie_word_embeddings=c.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    state = {}
    for name in checkpoint.names():
        weight = checkpoint.load(name)
        weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.float()
        if rope.interleaved and name.endswith(("q_proj.weight", "k_proj.weight")):
            # GGUF stores the rows of a head as pairs, transformers as halves.
            pairs = weight.unflatten(0, (-1, attention.head_dim // 2, 2))
            weight = pairs.transpose(1, 2).flatten(0, 2)
        state[name] = weight.contiguous().clone()
    if c.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = ExactRotary(attention.head_dim, rope.theta)
    return model.eval()


def twin_logits(twin: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return twin(torch.tensor([token_ids])).logits[0].float()


def prompts() -> list[str]:
    """Twenty texts of many kinds, from a few tokens to about 2,000."""
    license_text = (Path(__file__).parents[2] / "LICENSE").read_text()
    short = [
        "Why is the sky blue?",
        "The capital of France is",
        "Once upon a time, in a village by the sea, there lived a clockmaker who",
        "def quicksort(items):\n    if len(items) <= 1:\n        return items\n    pivot =",
        "1 + 1 = 2\n2 + 2 = 4\n3 + 3 =",
        "Water boils at 100 degrees Celsius, which in Fahrenheit is",
        "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY",
        "Der schnelle braune Fuchs springt über den faulen Hund. Das bedeutet",
        "Les sanglots longs des violons de l'automne",
        "\n\n\n   \t  indented\n\t\ttabs and   spaces   ",
        "🙂🚀 émojis, ligatures ﬁ, and 中文字符 mixed with العربية",
        "<|im_start|>user\nIs this a special token?<|im_end|>\n",
        "A B C D E F G A B C D E F G A B C D E",
        '{"name": "lampo", "version": [0, 1, 0], "tags": ["fast", "decoding"]}',
        "x",
        "The mitochondria is the powerhouse of the cell. Photosynthesis, in contrast,",
    ]
    lengths = (600, 1500, 3200, 10300)
    starts = (0, 2000, 1000, 500)
    long = [license_text[s : s + n] for s, n in zip(starts, lengths, strict=True)]
    return short + long


def all_pages_available(llm: LLM) -> bool:
    """Whether every page of an idle engine is free or a cached prefix."""
    engine = llm.shared_engine().engine
    assert violations(engine.snapshot()) == []
    return engine.scheduler.allocator.num_available == engine.pool.num_pages
