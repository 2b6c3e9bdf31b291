# SPDX-License-Identifier: Apache-2.0
"""Configurations: fields, ranges and refusals."""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import ROPES, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from lampo.models.config import ModelConfig, generation_config_from_hf
from lampo.models.config_reader import HEAD_DIMS
from lampo.models.registry import config_from_gguf, config_from_hf
from lampo.models.rope import RopeConfig
from lampo.weights.fields import read_json_object

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": [2, 3, 2],
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "some_field_of_tomorrow": {"x": 1},
}
GGUF: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 5,
    "tokenizer.ggml.padding_token_id": 2,
}
GGUF_TENSORS = {"token_embd.weight": (320, 64)}


def from_hf(values: dict[str, Any]) -> ModelConfig:
    return config_from_hf(values)[1]


def from_gguf(values: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> ModelConfig:
    return config_from_gguf(values, tensors)[1]


def rope_of(config: ModelConfig) -> RopeConfig:
    rope = config.layers[0].attention.rope
    assert rope is not None
    return rope


def test_from_hf_reads_fields() -> None:
    c = from_hf(LLAMA)
    a = c.layers[1].attention
    assert (c.architecture, c.num_layers, c.hidden_size) == ("llama", 2, 64)
    assert (a.head_dim, a.num_qo_heads, a.num_kv_heads, a.scale) == (32, 2, 1, 32**-0.5)
    assert c.layers[0].feed_forward.size == 96
    assert c.eos_token_ids == (2, 3)
    assert c.pad_token_id is None
    assert not c.tie_word_embeddings
    assert rope_of(c) == RopeConfig(theta=10000.0, rotary_dim=32)


def windows(config: ModelConfig) -> list[int | None]:
    return [layer.attention.window for layer in config.layers]


def test_mistral_window() -> None:
    mistral = {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    assert windows(from_hf({**mistral, "sliding_window": None})) == [None, None]
    assert windows(from_hf({**mistral, "sliding_window": 256})) == [None, None]
    assert windows(from_hf(mistral)) == [None, None], "the default, 4096, exceeds the context"
    assert windows(from_hf({**mistral, "sliding_window": 128})) == [128, 128]
    assert windows(from_hf({**mistral, "max_position_embeddings": 32768})) == [4096, 4096]
    types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match=r"^config.json: layer_types = .* is not supported"):
        from_hf({**mistral, "sliding_window": 64, "layer_types": types})


def test_qwen_windows() -> None:
    """On the upper layers, and only where use_sliding_window is set."""
    qwen = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    assert windows(from_hf({**qwen, "sliding_window": 64})) == [None, None]
    used = {"sliding_window": 64, "use_sliding_window": True}
    assert windows(from_hf({**qwen, **used, "max_window_layers": 1})) == [None, 64]
    types = ["sliding_attention", "full_attention"]
    assert windows(from_hf({**qwen, **used, "layer_types": types})) == [64, None]
    for bad in (types[:1], ["x", "y"], 7):
        with pytest.raises(ValueError, match=r"^config.json: layer_types: expected a list of 2"):
            from_hf({**qwen, **used, "layer_types": bad})
    with pytest.raises(
        ValueError, match=r"^config.json: layer_types: expected a list of 2, each f"
    ):
        from_hf({**qwen, "sliding_window": 64, "layer_types": types})


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("llama", "sliding_window", 128),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "query_pre_attn_scalar", 256),
        ("llama", "residual_multiplier", 0.22),
        ("llama", "no_rope_layers", [1, 0]),
        ("mistral", "attention_bias", True),
        ("mistral", "num_experts", 8),
        ("qwen3", "partial_rotary_factor", 0.25),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "activation_function", "relu"),
        ("gpt2", "n_inner", 0),
        ("gpt2", "n_embd", 65),
    ],
)
def test_fields_that_change_results_are_not_ignored(model_type, field, value) -> None:
    config = {**make_model(architecture=model_type, num_hidden_layers=1).config.to_dict()}
    config_from_hf(config)
    with pytest.raises(ValueError, match=f"^config.json: (rope_parameters: )?{field}") as info:
        from_hf({**config, field: value})
    assert "\n" not in str(info.value)


YARN = {**ROPES["yarn"], "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
SU = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("model_type", "fields", "message"),
    [
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types: expected a list of 2, each"),
        ("gemma2", {"layer_types": "full_attention"}, "layer_types: expected a list of 2, got"),
        ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping: expected a finite"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True is"),
        ("gemma2", {"head_dim": 512}, "head_dim: expected a head_dim that is a multiple of 4"),
        ("granite", {"residual_multiplier": 0}, "residual_multiplier: expected a finite number"),
        ("granite", {"embedding_multiplier": "12"}, "embedding_multiplier: expected a finite"),
        ("granite", {"position_embedding_type": "nope"}, "position_embedding_type = 'nope' is not"),
        ("ministral3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": -1}}, "rope_para"),
        ("ministral3", {"rope_parameters": {**YARN, "other": 1}}, "rope_parameters: 'other' = 1"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv = 8.0 is not supported"),
        ("olmo3", {"layer_types": ["full_attention"] * 3}, "layer_types: expected a list of 2"),
        ("olmo3", {"sliding_window": 0}, "sliding_window: expected an integer from 1"),
        ("phi3", {"partial_rotary_factor": 0.05}, "rope_parameters: partial_rotary_factor: expe"),
        ("phi3", {"rope_scaling": SU}, "rope_scaling: short_factor: expected a list of 16 numbers"),
        ("phi3", {"rope_scaling": {**SU, "type": "linear"}}, "rope_scaling: type: expected one of"),
        ("phi3", {"embd_layer_norm": 1, "qk_layernorm": True}, "qk_layernorm = True is not supp"),
        ("mistral3", {}, "text_config: expected the fields of the text part, it is missing"),
    ],
)
def test_bad_fields_of_architectures(model_type: str, fields: dict[str, Any], message: str) -> None:
    """Named in one line."""
    config = {**LLAMA, "model_type": model_type, "architectures": None, **fields}
    with pytest.raises(ValueError, match=re.escape(f"config.json: {message}")) as info:
        from_hf(config)
    assert "\n" not in str(info.value)


def test_an_unknown_architecture_names_its_fields() -> None:
    """The nearest architecture, and what it does not read."""
    config = {**LLAMA, "model_type": "lllama", "mamba_d_state": 16, "use_bias": False}
    with pytest.raises(
        ValueError, match=r"nearest is llama, which does not read .*fields: "
    ) as info:
        from_hf(config)
    assert "'mamba_d_state'" in str(info.value) and "use_bias" not in str(info.value)
    gguf = {key.replace("llama.", "lama."): value for key, value in GGUF.items()}
    gguf |= {"general.architecture": "lama", "lama.ssm.inner_size": 8}
    with pytest.raises(ValueError, match=r"'lama' is not supported .*: 'lama.ssm.inner_size'$"):
        from_gguf(gguf, GGUF_TENSORS)


def test_longrope_depends_on_the_longest_sequence_alone() -> None:
    """Long factors for a model that may go beyond the original length, at all positions."""
    scaling = {**SU, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    fields = {"rope_scaling": scaling, "original_max_position_embeddings": 64}
    rope = rope_of(from_hf({**LLAMA, "model_type": "phi3", "architectures": None, **fields}))
    assert torch.equal(rope.inverse_frequencies(64), 2 * rope.inverse_frequencies(65))
    first, second = (rope.cos_sin(start, 32, 256) for start in (0, 16))
    assert (first[16:] == second).all()
    # sqrt(1 + ln(256 / 64) / ln 64)
    assert rope.attention_factor == pytest.approx((4 / 3) ** 0.5)


def test_head_dims_are_those_of_the_kernels() -> None:
    """Each is taken by paged_attention, and their neighbours are not."""
    from lampo import ops

    def attend(head_dim: int) -> None:
        cache = torch.zeros(1, 1, 16, head_dim)
        one = torch.tensor([1], dtype=torch.int32)
        starts = torch.tensor([0, 1], dtype=torch.int32)
        table = torch.zeros(1, 1, dtype=torch.int32)
        ops.paged_attention(torch.zeros(1, 1, head_dim), cache, cache, table, one, starts)

    for head_dim in (*HEAD_DIMS, 1, 6, 34, 260, 264):
        config = {**LLAMA, "head_dim": head_dim}
        if head_dim in HEAD_DIMS:
            attend(head_dim)
            assert from_hf(config).layers[0].attention.head_dim == head_dim
        else:
            with pytest.raises(ValueError, match="head_dim"):
                attend(head_dim)
            with pytest.raises(
                ValueError, match=r"^config.json: head_dim: expected .*multiple of 4 up to 256"
            ):
                from_hf(config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt_neox"),
        ("model_type", None),
        ("architectures", ["LlamaForSequenceClassification"]),
        ("architectures", "LlamaForCausalLM"),
        ("vocab_size", 0),
        ("vocab_size", 1 << 40),
        ("vocab_size", True),
        ("vocab_size", 320.0),
        ("hidden_size", -64),
        ("hidden_size", 63),
        ("hidden_size", None),
        ("intermediate_size", "96"),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 8),
        ("head_dim", 15),
        ("head_dim", 4096),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", math.nan),
        ("rms_norm_eps", math.inf),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", 1),
        ("attention_bias", "yes"),
        ("bos_token_id", 1.0),
        ("eos_token_id", [2, True]),
        ("eos_token_id", list(range(100))),
        ("pad_token_id", "x"),
        ("rope_theta", 1.0),
        ("rope_scaling", "linear"),
        ("layer_types", ["sliding_attention"]),
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("custom_pipelines", {"x": "y"}),
        ("trust_remote_code", True),
        ("num_local_experts", 8),
    ],
)
def test_from_hf_refuses(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^config.json: (rope_parameters: )?{field}") as info:
        from_hf({**LLAMA, field: value})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_type", "longrope"),
        ("factor", 0.5),
        ("factor", None),
        ("factor", math.nan),
        ("factor", "8"),
        ("low_freq_factor", 0),
        ("low_freq_factor", None),
        ("high_freq_factor", 1.0),
        ("original_max_position_embeddings", 0),
        ("original_max_position_embeddings", 1 << 30),
        ("partial_rotary_factor", 1.5),
        ("partial_rotary_factor", 0.1),
        ("rope_theta", -1),
        ("full_attention", {"rope_type": "default"}),
        ("short_factor", [1.0]),
    ],
)
def test_from_hf_refuses_rope(field: str, value: object) -> None:
    rope = {**ROPES["llama3"], field: value}
    with pytest.raises(ValueError, match=f"^config.json: rope_parameters: '?{field}"):
        from_hf({**LLAMA, "rope_parameters": rope})


def test_from_hf_old_rope_fields() -> None:
    scaling = {"type": "linear", "factor": 2.0}
    rope = rope_of(from_hf({**LLAMA, "rope_theta": 1e6, "rope_scaling": scaling}))
    assert (rope.theta, rope.scaling, rope.factor) == (1e6, "linear", 2.0)
    rope = rope_of(from_hf({**LLAMA, "rope_scaling": None, "rope_theta": 5e5}))
    assert (rope.theta, rope.scaling) == (5e5, "default")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=20), v, max_size=4),
    max_leaves=8,
)


@given(
    changes=st.dictionaries(st.sampled_from(sorted({*LLAMA, "rope_scaling"})), JSON_VALUES),
    rope=st.dictionaries(st.sampled_from(sorted(ROPES["llama3"])), JSON_VALUES),
    base=st.sampled_from(sorted(ROPES)),
)
@settings(max_examples=300, deadline=None, database=None)
def test_fuzz_from_hf(changes: dict[str, Any], rope: dict[str, Any], base: str) -> None:
    d = {**LLAMA, "rope_parameters": {**ROPES[base], **rope}, **changes}
    with contextlib.suppress(ValueError):
        config = from_hf(d)
        assert rope_of(config).inverse_frequencies().isfinite().all()


@given(changes=st.dictionaries(st.sampled_from(sorted(GGUF)), JSON_VALUES))
@settings(max_examples=200, deadline=None, database=None)
def test_fuzz_from_gguf(changes: dict[str, Any]) -> None:
    with contextlib.suppress(ValueError):
        from_gguf({**GGUF, **changes}, GGUF_TENSORS)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize(
    ("value", "expected", "warned"),
    [
        (-1, (), None),
        ([-1], (), None),
        ([], (), None),
        ([3], (3,), None),
        ([-1, 5, 5], (5,), None),
        (320, (), "320"),
        (32000, (), "32000"),
        (-2, (), "-2"),
        ([2, 1 << 70], (2,), f"{1 << 70}"),
    ],
)
def test_token_ids_outside_of_the_vocabulary_mean_none(
    key: str,
    value: object,
    expected: tuple[int, ...],
    warned: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One rule for all ids and files: other engines go on too."""
    config = from_hf({**LLAMA, key: value})
    generation = generation_config_from_hf({key: value}, 320)
    if key == "eos_token_id":
        assert config.eos_token_ids == expected
        assert generation.get("eos_token_ids", ()) == expected
    else:
        first = expected[0] if expected else None
        assert getattr(config, key) == generation.get(key) == first
    where = ("config.json", "generation_config.json") if warned else ()
    texts = [
        f"{file}: {key}: {warned} is ignored: it is not one of 320 token ids" for file in where
    ]
    assert caplog.messages == texts


def test_token_ids_outside_of_the_vocabulary_of_a_gguf(caplog: pytest.LogCaptureFixture) -> None:
    keys = {f"tokenizer.ggml.{name}_token_id": 320 for name in ("bos", "eos", "padding")}
    config = from_gguf({**GGUF, **keys}, GGUF_TENSORS)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (5,), None)
    assert caplog.messages == []  # the tokenizer warns


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "LlamaModel"),
        ("mistral", "MistralModel"),
        ("qwen2", "Qwen2Model"),
        ("qwen3", "Qwen3Model"),
        ("gpt2", "GPT2Model"),
    ],
)
def test_base_classes_are_known(model_type: str, name: str) -> None:
    config = make_model(architecture=model_type).config.to_dict()
    assert from_hf({**config, "architectures": [name]}) == from_hf(config)
    with pytest.raises(ValueError, match=f"architectures: expected a list with .* or {name}"):
        from_hf({**config, "architectures": [name.replace("Model", "ForTokenClassification")]})


def error_of(values: dict[str, Any]) -> str:
    try:
        from_hf(values)
    except ValueError as error:
        return str(error)
    return ""


def test_long_values_are_shortened() -> None:
    long = "x" * 70_000
    for field in (*LLAMA, "hidden_act", "rope_scaling", "tie_word_embeddings"):
        for value in (long, [long], {long: long}, [1] * 70_000):
            assert len(error_of({**LLAMA, field: value})) < 600


def test_partial_rotary_is_refused() -> None:
    """transformers ignores it with one rope_type and follows it with others."""
    rope = {"rope_type": "default", "partial_rotary_factor": 0.5}
    for config in ({**LLAMA, "rope_parameters": rope}, {**LLAMA, "partial_rotary_factor": 0.5}):
        with pytest.raises(ValueError, match=r"^config.json: rope_p.*: partial_rotary_factor: exp"):
            from_hf(config)
    assert rope_of(from_hf({**LLAMA, "partial_rotary_factor": 1.0})).rotary_dim == 32


def test_from_gguf_reads_fields() -> None:
    c = from_gguf(GGUF, GGUF_TENSORS)
    assert (c.vocab_size, c.num_layers, c.eos_token_ids) == (320, 2, (2, 5))
    assert c.tie_word_embeddings
    assert rope_of(c).interleaved
    untied = from_gguf(GGUF, {**GGUF_TENSORS, "output.weight": (320, 64)})
    assert not untied.tie_word_embeddings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("general.architecture", "gptneox"),
        ("general.architecture", None),
        ("llama.block_count", 0),
        ("llama.context_length", None),
        ("llama.context_length", 1 << 60),
        ("llama.embedding_length", 63),
        ("llama.attention.head_count", [4, 4]),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.key_length", 17),
        ("llama.attention.value_length", 8),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.attention.scale", 0.1),
        ("llama.logit_scale", 2.0),
        ("llama.attention.layer_norm_rms_epsilon", math.nan),
        ("llama.expert_shared_count", 1),
        ("llama.vocab_size", 321),
        ("llama.rope.dimension_count", 17),
        ("llama.rope.dimension_count", 7),
        ("llama.rope.freq_base", math.inf),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.scaling.factor", 0.5),
        ("tokenizer.ggml.tokens", ["x"] * 321),
        ("tokenizer.ggml.tokens", "x"),
        ("tokenizer.ggml.eos_token_id", "x"),
    ],
)
def test_from_gguf_refuses(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^GGUF: {field}") as info:
        from_gguf({**GGUF, field: value}, GGUF_TENSORS)
    assert len(str(info.value)) < 400


def test_from_gguf_needs_the_embedding() -> None:
    for tensors in ({}, {"token_embd.weight": (320,)}):
        with pytest.raises(ValueError, match=r"token_embd\.weight"):
            from_gguf(GGUF, tensors)


def test_from_gguf_scalings() -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    rope = rope_of(from_gguf({**GGUF, **linear}, GGUF_TENSORS))
    assert (rope.scaling, rope.factor) == ("linear", 4.0)
    rope = rope_of(from_gguf({**GGUF, "llama.rope.scale_linear": 2.0}, GGUF_TENSORS))
    assert (rope.scaling, rope.factor) == ("linear", 2.0)
    untyped = {"llama.rope.scaling.factor": 4.0}
    assert rope_of(from_gguf({**GGUF, **untyped}, GGUF_TENSORS)) == rope_of(
        from_gguf({**GGUF, **linear}, GGUF_TENSORS)
    )
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert rope_of(from_gguf({**GGUF, **none}, GGUF_TENSORS)).scaling == "default"
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
    }
    rope = rope_of(from_gguf({**GGUF, **yarn}, GGUF_TENSORS))
    hf = rope_of(from_hf({**LLAMA, "rope_parameters": ROPES["yarn"]}))
    assert np.array_equal(rope.cos_sin(0, 256, 256), hf.cos_sin(0, 256, 256))
    bad = {**GGUF, **yarn, "llama.rope.scaling.yarn_ext_factor": 0.5}
    with pytest.raises(ValueError, match="yarn_ext_factor"):
        from_gguf(bad, GGUF_TENSORS)


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": "ü"}', encoding="utf-8-sig")
    assert read_json_object(path, 1 << 20) == {"a": "ü"}


def test_generation_config() -> None:
    values = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "eos_token_id": [2, 5],
        "_from_model_config": True,
        "transformers_version": "4.40.0",
    }
    assert generation_config_from_hf(values, 320) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "eos_token_ids": (2, 5),
    }
    assert generation_config_from_hf({}, 320) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("eos_token_id", "2"),
        ("do_sample", "yes"),
    ],
)
def test_generation_config_refuses(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^generation_config.json: {field}"):
        generation_config_from_hf({field: value}, 320)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", "not JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b'{"a": "' + b"x" * (2 << 20) + b'"}', "larger than"),
    ],
)
def test_read_json_object_refuses(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as info:
        read_json_object(path, 1 << 20)
    assert str(info.value).startswith(str(path))
    assert "\n" not in str(info.value)


def test_read_json_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match="no such file"):
        read_json_object(path, 1 << 20)
    path.write_text(json.dumps(LLAMA))
    assert read_json_object(path, 1 << 20) == LLAMA
