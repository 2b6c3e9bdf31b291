# SPDX-License-Identifier: Apache-2.0
"""Folders of safetensors: what is written is what is loaded, and every lie is one clear error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from lampo.models.checkpoint import load_checkpoint

INDEX = "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_loads_what_was_saved(
    dtype: torch.dtype, architecture: str, tied: bool, sharded: bool, tmp_path: Path
) -> None:
    model = make_checkpoint(
        tmp_path, dtype=dtype, architecture=architecture, tied=tied, sharded=sharded
    )
    assert (tmp_path / INDEX).exists() == sharded
    state = model.state_dict()
    with load_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.architecture == architecture
        assert checkpoint.config.tie_word_embeddings is tied
        assert checkpoint.gguf_metadata is None
        assert checkpoint.nbytes == sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
        names = checkpoint.names()
        assert set(state) - set(names) == ({"lm_head.weight"} if tied else set())
        for name in names:
            loaded = checkpoint.load(name)
            assert isinstance(loaded, torch.Tensor)
            assert loaded.dtype == dtype
            assert torch.equal(loaded, state[name])


def test_biases(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, attention_bias=True, mlp_bias=True)
    with load_checkpoint(tmp_path) as checkpoint:
        biases = [name for name in checkpoint.names() if name.endswith(".bias")]
        assert len(biases) == 14
        assert set(checkpoint.names()) == set(model.state_dict()) - {"lm_head.weight"}


def test_stored_copy_of_a_tied_head_is_ignored(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    edit(tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": ones(16)}))
    with load_checkpoint(tmp_path) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names()


def test_generation_config(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, generation={"temperature": 0.5, "eos_token_id": [2, 7]})
    with load_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.generation_config["temperature"] == 0.5
        assert checkpoint.config.eos_token_ids == (2,)
        assert checkpoint.eos_token_ids == (2, 7)
    (tmp_path / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(ValueError, match=r"generation_config\.json: top_p: .* got 7"):
        load_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    with load_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.generation_config == {}
        assert checkpoint.eos_token_ids == (2,)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop(UP), f"tensor {UP} is missing"),
        (lambda t: t.update({UP: ones(96, 65)}), r"expected shape \(96, 64\) .* got \(96, 65\)"),
        (lambda t: t.update({UP: ones(96 * 64)}), r"got \(6144,\)"),
        (lambda t: t.update({UP: ones(96, 64).double()}), "dtype F64 is not supported"),
        (lambda t: t.update({UP: ones(96, 64).char()}), "dtype I8 is not supported"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": ones(96, 64)}), "has no place"),
        (lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": ones(32)}), "has no place"),
    ],
)
def test_wrong_tensor_is_refused(
    change: Callable[[dict[str, torch.Tensor]], Any], reason: str, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path, tokenizer=False)
    edit(tmp_path, change)
    with pytest.raises(ValueError, match=reason) as info:
        load_checkpoint(tmp_path)
    assert "\n" not in str(info.value)


def test_base_model(tmp_path: Path) -> None:
    """Saved from a class without an LM head: names without "model.", and a tied head or none."""
    model = make_checkpoint(tmp_path, tokenizer=False)
    names = {f"model.{name}": name for name in model.model.state_dict()}
    edit(tmp_path, lambda t: [t.update({new: t.pop(old)}) for old, new in names.items()])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaModel"]}))
    with load_checkpoint(tmp_path) as checkpoint:
        for name in checkpoint.names():
            assert torch.equal(checkpoint.load(name), model.state_dict()[name])
    headless = config | {"architectures": ["LlamaModel"], "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(headless))
    with pytest.raises(ValueError, match=r"lm_head.weight is missing: the model has no LM head"):
        load_checkpoint(tmp_path)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": ones(320, 64)}))
    with load_checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.load("lm_head.weight"), ones(320, 64))


def header(entries: dict[str, Any]) -> bytes:
    data = json.dumps(entries).encode()
    return struct.pack("<Q", len(data)) + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        header({}) + b"\0",
        header({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        header({"t": {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 16]}}) + b"\0" * 16,
        header({"t": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}) + b"\0" * 24,
        header({"t": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}) + b"\0" * 16,
        header({"t": {"dtype": "X32", "shape": [4], "data_offsets": [0, 16]}}) + b"\0" * 16,
        struct.pack("<Q", 10) + b"not a json" + b"\0" * 16,
    ],
)
def test_lying_file_is_refused(content: bytes, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tokenizer=False)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.*safetensors") as info:
        load_checkpoint(tmp_path)
    assert str(info.value).startswith(str(tmp_path))
    assert "\n" not in str(info.value)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tokenizer=False)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for length in (*range(0, 2000, 101), len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a safetensors file that can be read"):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "..\\outside.safetensors",
        "C:outside.safetensors",
        ".hidden.safetensors",
        "nul\0.safetensors",
        "model.bin",
        "",
        7,
        None,
        ["model.safetensors"],
        "a\ud800.safetensors",
    ],
)
def test_index_names_plain_files_only(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_checkpoint(folder, sharded=True, tokenizer=False)
    source = next(folder.glob("*.safetensors"))
    (tmp_path / "outside.safetensors").write_bytes(source.read_bytes())
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][UP] = name
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"weight_map: .*: expected the plain name of a"):
        load_checkpoint(folder)


def test_index_and_shards_agree(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, sharded=True, tokenizer=False)
    text = (tmp_path / INDEX).read_text()
    weight_map: dict[str, str] = json.loads(text)["weight_map"]

    def refused(changed: dict[str, Any], reason: str) -> None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ValueError, match=reason):
            load_checkpoint(tmp_path)

    other = next(f for f in weight_map.values() if f != weight_map[UP])
    refused({**weight_map, UP: other}, f"should be in {other}; it is in {weight_map[UP]}")
    refused({**weight_map, "model.extra": other}, "'model.extra' should be in .* in no file")
    refused({**weight_map, UP: "absent.safetensors"}, r"absent\.safetensors: no such file")
    refused({}, "weight_map: expected an object")
    refused({k: v for k, v in weight_map.items() if v == other}, "is missing")

    (tmp_path / INDEX).write_text(text)
    tensors = {k: v.clone() for k, v in load_file(tmp_path / other).items()}
    save_file({**tensors, UP: ones(96, 64)}, tmp_path / other)
    with pytest.raises(ValueError, match=f"tensor '{UP}' stands in both"):
        load_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(ValueError, match=f"{INDEX}: not JSON"):
        load_checkpoint(tmp_path)


def test_a_header_of_odd_length(tmp_path: Path) -> None:
    """It is legal, and kernels never see odd addresses."""
    model = make_checkpoint(tmp_path, tokenizer=False)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = content[8 : 8 + length].rstrip() + b" "
    head += b" " * (len(head) % 2 == 0)
    path.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + length :])
    with load_checkpoint(tmp_path) as checkpoint:
        for name in checkpoint.names():
            tensor = checkpoint.load(name)
            assert isinstance(tensor, torch.Tensor)
            assert tensor.data_ptr() % 4 == 0
            assert torch.equal(tensor, model.state_dict()[name])


def test_what_a_path_may_be(tmp_path: Path) -> None:
    def refused(path: Path, reason: str) -> None:
        with pytest.raises(ValueError, match=reason) as info:
            load_checkpoint(path)
        assert "\n" not in str(info.value)
        assert path.name in str(info.value)

    refused(tmp_path / "absent", "no such file or folder")
    refused(tmp_path, "holds no .*safetensors and no .*gguf")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(tmp_path, "pytorch_model.bin, and pickled weights are refused")
    refused(tmp_path / "pytorch_model.bin", "pickled weights are refused")
    (tmp_path / "pytorch_model.bin").unlink()
    make_checkpoint(tmp_path, tokenizer=False)
    refused(tmp_path / "model.safetensors", "name its folder")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, r"config\.json: no such file")
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "a.gguf", "only 4 bytes")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    refused(tmp_path, r"2 GGUF models; name one: a\.gguf, b\.gguf")
    (tmp_path / "text").write_text("hello " * 10)
    refused(tmp_path / "text", "starts with b'hell'")


def test_which_files_of_a_folder(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tokenizer=False)
    (tmp_path / "consolidated.safetensors").write_bytes(b"")  # model.safetensors goes first
    load_checkpoint(tmp_path).close()
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="exactly one"):
        load_checkpoint(tmp_path)
    (tmp_path / "consolidated.safetensors").unlink()
    load_checkpoint(str(tmp_path)).close()


def test_folder_with_one_gguf(tmp_path: Path) -> None:
    from checkpoints import make_gguf

    make_gguf(tmp_path / "x.gguf")
    with load_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "x.gguf"
        assert checkpoint.gguf_metadata is not None
        assert checkpoint.gguf_metadata["tokenizer.ggml.pre"] == "smollm"


def test_unknown_name(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, tokenizer=False)
    with (
        load_checkpoint(tmp_path) as checkpoint,
        pytest.raises(ValueError, match="no tensor 'nope'"),
    ):
        checkpoint.load("nope")
