# SPDX-License-Identifier: Apache-2.0
"""Every architecture, from safetensors and from GGUF, against transformers and against itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import LONGROPE, SHAPE, make_checkpoint, make_gguf, make_model
from model_harness import Runner, twin_logits
from safetensors.torch import load_file, save_file

from lampo import LLM, SamplingParams
from lampo.models.checkpoint import load_checkpoint
from lampo.models.loader import load_model
from lampo.models.registry import ARCHITECTURES, gguf_reader

# A window of 40 ends within pages of 16, and within tiles of keys.
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama narrow": {"head_dim": 20},
    "mistral": {"sliding_window": 40},
    "qwen2": {},
    "qwen2 window": {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {},
    "qwen3 bias": {"attention_bias": True, "head_dim": 64},
    "gemma3_text": {"num_hidden_layers": 3, "sliding_window": 40, "sliding_window_pattern": 2},
    "gemma3_text scale": {"sliding_window": 16, "query_pre_attn_scalar": 20},
    "gemma2": {
        "num_hidden_layers": 3,
        "sliding_window": 40,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "granite": {
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.05,
        "residual_multiplier": 0.22,
        "logits_scaling": 8.0,
    },
    "ministral3": {"num_hidden_layers": 3},
    "olmo2": {},
    "olmo3": {"num_hidden_layers": 5, "sliding_window": 40, "rope": "yarn"},
    "phi3": {
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": 16,
        "sliding_window": 40,
        "initializer_range": 0.1,
    },
    "smollm3": {"num_hidden_layers": 5, "initializer_range": 0.1},
    "smollm3 layers": {"no_rope_layers": [0, 1], "attention_bias": True},
    "gpt2": {"num_attention_heads": 2},
    "lfm2": {},
    "lfm2 bias": {"conv_bias": True, "layer_types": ["full_attention", "conv"]},
    "qwen3_5_text": {},
    "qwen3_5_text last": {
        "layer_types": ["full_attention", "linear_attention"],
        "initializer_range": 0.15,
    },
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_moe layers": {"num_hidden_layers": 3, "mlp_only_layers": [1], "num_experts_per_tok": 3},
    "mixtral": {"num_local_experts": 3},
    "gpt_oss": {"sliding_window": 40},
}
# transformers reads these from GGUF files too, but for windows and mixtures of layers.
WINDOW = 40


def case(name: str) -> dict[str, Any]:
    return {"architecture": name.split()[0], "num_hidden_layers": 2, **CASES[name]}


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHAPE["vocab_size"], (count,), generator=generator).tolist()


def largest_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.log_softmax(-1) - expected.log_softmax(-1)).abs().max())


def test_every_architecture_is_here() -> None:
    alone = {a.model_type for a in ARCHITECTURES}
    assert alone == {name.split()[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_safetensors(tmp_path: Path, name: str, tied: bool) -> None:
    """Log-probabilities of every position, past the window too, within 1e-4 of transformers."""
    twin = make_checkpoint(tmp_path, tied=tied, **case(name))
    ids = tokens(200)
    with load_checkpoint(tmp_path) as checkpoint:
        model = load_model(checkpoint, "float32")
    assert largest_difference(Runner(model)(ids), twin_logits(twin, ids)) < 1e-4


@pytest.mark.parametrize("name", [name for name in CASES if " " not in name])
@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_logits_of_gguf(tmp_path: Path, name: str, quantization: str) -> None:
    """The same model as in safetensors: F32 within 1e-4 of transformers, Q8_0 close."""
    path = tmp_path / "model.gguf"
    twin = make_gguf(path, quantization=quantization, **case(name))
    ids = tokens(200)
    with load_checkpoint(path) as checkpoint:
        logits = Runner(load_model(checkpoint, "auto"))(ids)
    expected = twin_logits(twin, ids)
    if quantization == "F32":
        assert largest_difference(logits, expected) < 1e-4
    else:
        p, q = expected.log_softmax(-1), logits.log_softmax(-1)
        assert float((p.exp() * (p - q)).sum(-1).mean()) < 0.05


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens(tmp_path: Path, name: str) -> None:
    """An LLM, with a batch of ragged prompts in chunks: the tokens of transformers, one by one."""
    twin = make_checkpoint(tmp_path, **case(name))
    prompts = [tokens(n, seed=n) for n in (1, 7, 60, 131)]
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    with LLM(tmp_path, dtype="float32", page_size=16, max_num_batched_tokens=48) as llm:
        outputs = llm.generate(prompts, params)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = prompt + output.outputs[0].token_ids
        expected = twin_logits(twin, ids)[len(prompt) - 1 : -1].argmax(-1)
        assert output.outputs[0].token_ids == expected.tolist()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_bits_do_not_depend_on_company(tmp_path: Path, isa: str, name: str, dtype: str) -> None:
    """Tokens and log-probabilities: alone, in a batch, in chunks, with prefix hits."""
    if name in ("qwen3", "gpt2"):
        make_gguf(tmp_path / "model.gguf", quantization="Q8_0", **case(name))
    else:
        make_checkpoint(tmp_path, **case(name))
    shared = tokens(70, seed=5)
    prompts = [shared, shared + tokens(9, seed=1), tokens(3, seed=2), shared + tokens(40, seed=3)]
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=30, ignore_eos=True, logprobs=2)

    def run(llm: LLM, batches: list[list[list[int]]]) -> list[list[tuple[int, float]]]:
        found = []
        for batch in batches:
            for output in llm.generate(batch, params):
                completion = output.outputs[0]
                assert completion.logprobs is not None
                found.append(
                    [
                        (token, table[token].logprob)
                        for token, table in zip(
                            completion.token_ids, completion.logprobs, strict=True
                        )
                    ]
                )
        return found

    with LLM(tmp_path, dtype=dtype, page_size=16, enable_prefix_caching=False) as llm:
        expected = run(llm, [[prompt] for prompt in prompts])
    with LLM(tmp_path, dtype=dtype, page_size=16, max_num_batched_tokens=32) as llm:
        assert run(llm, [prompts]) == expected
        assert run(llm, [prompts]) == expected, "after prefix hits"


@pytest.mark.parametrize("names", ["language_model.{}", "{}"])
def test_text_of_a_multimodal_folder(tmp_path: Path, names: str) -> None:
    """In the two ways in which files name its tensors, beside those of other parts."""
    twin = make_checkpoint(tmp_path, **case("ministral3"))
    path = tmp_path / "model.safetensors"
    inner = "model.language_model." if names == "{}" else "model."
    state = {
        names.format(name.replace("model.", inner, 1)): tensor
        for name, tensor in load_file(path).items()
    }
    state["vision_tower.patch_conv.weight"] = torch.ones(3, 5)
    state["model.multi_modal_projector.norm.weight"] = torch.ones(3)
    save_file(state, path)
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"]}
    whole |= {"text_config": text, "vision_config": {"model_type": "pixtral"}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    ids = tokens(30)
    with load_checkpoint(tmp_path) as checkpoint:
        logits = Runner(load_model(checkpoint, "float32"))(ids)
    assert largest_difference(logits, twin_logits(twin, ids)) < 1e-4


def test_short_factors_within_the_original_length(tmp_path: Path) -> None:
    """Of LongRoPE: of a model that cannot leave it, as transformers takes for such sequences."""
    options = {**case("phi3"), "original_max_position_embeddings": 64}
    twin = make_checkpoint(tmp_path, **options)
    ids = tokens(60)
    with load_checkpoint(tmp_path) as checkpoint:
        logits = Runner(load_model(checkpoint, "float32", max_model_len=64))(ids)
    assert largest_difference(logits, twin_logits(twin, ids)) < 1e-4


def test_sampling_sees_capped_logits(tmp_path: Path) -> None:
    """Log-probabilities of eager and of recorded steps are those of transformers' logits."""
    twin = make_checkpoint(tmp_path, **case("gemma2"))
    prompt = tokens(20)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1)
    with LLM(tmp_path, dtype="float32", page_size=16) as llm:
        completion = llm.generate([prompt], params)[0].outputs[0]
    expected = twin_logits(twin, prompt + completion.token_ids).log_softmax(-1)[19:]
    assert completion.logprobs is not None
    for token, table, row in zip(completion.token_ids, completion.logprobs, expected, strict=False):
        assert table[token].logprob == pytest.approx(float(row[token]), abs=1e-4)


def test_windows_bound_the_memory_of_a_sequence(tmp_path: Path) -> None:
    """A pool of the window's pages and a step's serves a context many times as long."""
    make_checkpoint(tmp_path, **case("mistral"), max_position_embeddings=4096)
    with LLM(tmp_path, dtype="float32", page_size=16, max_num_seqs=1) as unbounded:
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        prompt = tokens(700)
        expected = unbounded.generate([prompt], params)[0].outputs[0].token_ids
        page = unbounded.shared_engine().engine.pool.bytes_per_page
    pages = -(-(WINDOW + 32) // 16) + 1
    options: dict[str, Any] = {"max_num_batched_tokens": 32, "kv_cache_memory": pages * page}
    with LLM(tmp_path, dtype="float32", page_size=16, max_num_seqs=1, **options) as llm:
        engine = llm.shared_engine().engine
        assert engine.pool.num_pages == pages < 700 // 16
        output = llm.generate([prompt], params)[0]
        assert output.outputs[0].token_ids == expected
        assert 0 < output.metrics.cache_bytes <= pages * page
        assert engine.scheduler.num_preemptions == 0
        assert engine.scheduler.allocator.num_available == pages
    with pytest.raises(
        ValueError, match=r"kv_cache_memory: .* a sequence of max_model_len needs 6"
    ):
        LLM(tmp_path, page_size=16, max_num_batched_tokens=32, kv_cache_memory=1000)


def test_gpt2_as_its_authors_stored_it(tmp_path: Path) -> None:
    """Names without "transformer.", and the causal mask among the tensors."""
    twin = make_checkpoint(tmp_path, **case("gpt2"))
    path = tmp_path / "model.safetensors"
    state = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 256, 256).tril()
    save_file(state, path)
    ids = tokens(30)
    with load_checkpoint(tmp_path) as checkpoint:
        logits = Runner(load_model(checkpoint, "float32"))(ids)
    assert largest_difference(logits, twin_logits(twin, ids)) < 1e-4


@pytest.mark.parametrize("same", [False, True])
def test_a_stored_head_beside_a_tied_embedding(tmp_path: Path, same: bool, caplog: Any) -> None:
    """One that differs is used, as transformers does, with a warning."""
    twin = make_checkpoint(tmp_path, tied=True)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    head = state["model.embed_tokens.weight"].clone()
    state["lm_head.weight"] = head if same else head.flip(0)
    save_file(state, path, metadata={"format": "pt"})
    if not same:
        twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = tokens(30)
    with load_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.tie_word_embeddings is same
        logits = Runner(load_model(checkpoint, "float32"))(ids)
    assert largest_difference(logits, twin_logits(twin.eval(), ids)) < 1e-4
    assert ("they are not tied" in caplog.text) is not same


def test_names_of_base_models_and_shards_without_an_index(tmp_path: Path) -> None:
    """Names without "model.", in files that name their place among all."""
    twin = make_checkpoint(tmp_path, tied=True)
    state = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    for i in range(3):
        shard = {name: state[name] for name in names[i::3]}
        save_file(shard, tmp_path / f"model-0000{i + 1}-of-00003.safetensors")
    ids = tokens(30)
    with load_checkpoint(tmp_path) as checkpoint:
        logits = Runner(load_model(checkpoint, "float32"))(ids)
    assert largest_difference(logits, twin_logits(twin, ids)) < 1e-4
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model.safetensors, .* exactly one"):
        load_checkpoint(tmp_path)


def test_gguf_with_biases_of_q_k_and_v_alone(tmp_path: Path) -> None:
    """As Qwen2's, in a file of the llama architecture."""
    model = make_model(attention_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()
    path = tmp_path / "model.gguf"
    make_gguf(path, quantization="F32", model=model, left_out=("attn_output.bias",))
    ids = tokens(30)
    with load_checkpoint(path) as checkpoint:
        attention = checkpoint.config.layers[0].attention
        assert attention.qkv_bias and not attention.out_bias
        logits = Runner(load_model(checkpoint, "auto"))(ids)
    assert largest_difference(logits, twin_logits(model, ids)) < 1e-4


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("in_gguf", [False, True])
def test_configurations_that_contradict_the_weights(
    tmp_path: Path, name: str, in_gguf: bool
) -> None:
    """Refused before a weight is read: file, tensor, expected shape and found one, in a line."""
    wider = {"intermediate_size": 128, "moe_intermediate_size": 128, "n_inner": 128}
    if name.startswith("lfm2"):
        wider = {"intermediate_size": 192}  # of which it takes two thirds
    if in_gguf:
        if " " in name:
            pytest.skip("GGUF files do not say this")
        path = tmp_path / "model.gguf"
        found = next(a for a in ARCHITECTURES if a.model_type == name)
        architecture = gguf_reader(found).gguf_name
        fields = ("feed_forward_length", "expert_feed_forward_length")
        metadata = {f"{architecture}.{field}": 128 for field in fields}
        make_gguf(path, quantization="F32", metadata=metadata, **case(name))
    else:
        path = tmp_path
        make_checkpoint(path, **case(name))
        config = path / "config.json"
        text = config.read_text()
        for field, value in wider.items():
            text = re.sub(rf'"{field}": \d+', f'"{field}": {value}', text)
        config.write_text(text)
    message = (
        rf"^{re.escape(str(path))}: tensor \S+: expected shape \(.*(128|256).*\) by the .*, got \("
    )
    with pytest.raises(ValueError, match=message) as info:
        load_checkpoint(path)
    assert "\n" not in str(info.value)


def test_layers_that_differ(tmp_path: Path) -> None:
    """Blocks have caches of their own: windows here, heads and sizes likewise."""
    make_checkpoint(tmp_path, **case("qwen2 window"))
    with load_checkpoint(tmp_path) as checkpoint:
        model = load_model(checkpoint, "float32")
    assert [kept.window for kept in model.keeps] == [None, 40]


def test_moved_models_share_what_was_shared() -> None:
    from lampo.models.layers import moved, parts_of

    table = torch.zeros(3)
    parts = [(table, [table]), table]
    there = moved(parts, torch.device("meta"), {})
    assert there[0][0] is there[1] and there[0][1][0] is there[1]
    assert there[1].is_meta and len(parts_of(there, torch.Tensor)) == 1


def test_twins_differ() -> None:
    """The random models are no constants: two seeds, two answers."""
    models = [make_model(**case("gpt2"), seed=seed) for seed in (0, 1)]
    first, second = (twin_logits(model, tokens(5)) for model in models)
    assert largest_difference(first, second) > 0.5
