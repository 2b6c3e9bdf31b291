# SPDX-License-Identifier: Apache-2.0
"""lampo.quantize: the file is the model, in the formats of its type, and appears when complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from checkpoints import LONGROPE, ROPES, SHAPE_256, make_checkpoint, make_gguf
from model_harness import Runner

import lampo
from lampo import LLM, ops
from lampo.cli.main import main
from lampo.models.checkpoint import Checkpoint, load_checkpoint
from lampo.models.loader import load_model
from lampo.weights.file_types import FILE_TYPES

TOKENS = list(range(3, 60))


def logits(path: Path, dtype: str = "float32", quantize: str | None = None) -> torch.Tensor:
    with load_checkpoint(path) as checkpoint:
        return Runner(load_model(checkpoint, dtype, quantize=quantize))(TOKENS)


def formats(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tied": False}),
        ("mistral", {"sliding_window": 20}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gpt2", {"num_attention_heads": 2}),
        ("granite", {"residual_multiplier": 0.25, "attention_multiplier": 0.1}),
        ("ministral3", {}),
        ("olmo2", {}),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    ],
)
def test_a_folder_as_a_file(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    make_checkpoint(tmp_path / "m", architecture=architecture, **options)
    lampo.quantize(tmp_path / "m", tmp_path / "m.gguf", "f32")
    expected = logits(tmp_path / "m")
    torch.testing.assert_close(logits(tmp_path / "m.gguf"), expected, rtol=1e-4, atol=1e-4)
    with load_checkpoint(tmp_path / "m") as folder, load_checkpoint(tmp_path / "m.gguf") as file:
        assert file.config.eos_token_ids == folder.config.eos_token_ids
        assert file.config.bos_token_id == folder.config.bos_token_id
        windows = [[layer.attention.window for layer in c.config.layers] for c in (folder, file)]
        assert windows[0] == windows[1]


NOT_IN_GGUF = ("yarn_mscale", "yarn_not_truncated")


@pytest.mark.parametrize("rope", [name for name in ROPES if name not in NOT_IN_GGUF])
def test_rope(tmp_path: Path, rope: str) -> None:
    make_checkpoint(tmp_path / "m", rope=rope, num_hidden_layers=1)
    lampo.quantize(tmp_path / "m", tmp_path / "m.gguf", "f32")
    found = []
    for path in (tmp_path / "m", tmp_path / "m.gguf"):
        with load_checkpoint(path) as checkpoint:
            config = checkpoint.config.layers[0].attention.rope
            assert config is not None
            found.append(torch.from_numpy(config.cos_sin(0, 256, 256)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("type", ["q8_0", "q6_k", "q5_0", "q4_0", "q4_1", "q5_1"])
@pytest.mark.parametrize("shape", [{}, SHAPE_256])
def test_the_file_is_the_model_quantized_at_load(
    tmp_path: Path, type: str, shape: dict[str, Any]
) -> None:
    """Bit for bit, where both choose the same formats: all but the embedding of untied models."""
    make_gguf(tmp_path / "exact.gguf", quantization="F32", **shape)
    lampo.quantize(tmp_path / "exact.gguf", tmp_path / "m.gguf", type)
    expected = logits(tmp_path / "exact.gguf", "auto", type)
    assert torch.equal(logits(tmp_path / "m.gguf", "auto"), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_types(tmp_path: Path, dtype: torch.dtype) -> None:
    """Each is read, has its formats and is as close to the model as its bits allow."""
    shape = {**SHAPE_256, "num_hidden_layers": 8, "initializer_range": 0.05}
    make_checkpoint(tmp_path / "m", dtype=dtype, tied=False, **shape)
    expected = logits(tmp_path / "m")
    limits = {"f32": 1e-4, "f16": 0.002, "bf16": 0.01, "q8_0": 0.03, "q6_k": 0.11}
    limits |= {"q5_k": 0.18, "q5_1": 0.18, "q5_0": 0.24, "q4_k": 0.32, "q4_1": 0.34, "q4_0": 0.35}
    limits |= {"iq4_": 0.35, "q3_k": 0.7, "q2_k": 0.9}
    for type, file_type in FILE_TYPES.items():
        path = lampo.quantize(tmp_path / "m", tmp_path / f"{type}.gguf", type)
        reader = gguf.GGUFReader(path)
        assert reader.fields["general.file_type"].contents() == file_type.number
        assert reader.fields["general.quantization_version"].contents() == 2
        assert formats(path)["blk.3.ffn_gate.weight"] == file_type.format
        error = float((logits(path) - expected).norm() / expected.norm())
        assert error < limits[type[:4]], (type, error)


def test_mixture() -> None:
    """What llama.cpp chooses for a Llama of 32 layers with 4 query heads per key head."""
    place: dict[str, Any] = {"tied": False, "num_layers": 32, "group_size": 4}

    def of(type: str, name: str, columns: int = 4096) -> str:
        return FILE_TYPES[type].of_tensor(f"{name}.weight", columns, **place)

    more = [i for i in range(32) if of("q4_k_m", f"blk.{i}.ffn_down") == "q6_k"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert more == [i for i in range(32) if of("q5_k_m", f"blk.{i}.attn_v") == "q6_k"]
    assert [of("q4_k_s", f"blk.{i}.attn_v") for i in (3, 4)] == ["q5_k", "q4_k"]
    assert [of("q3_k_m", f"blk.{i}.ffn_down") for i in (1, 2)] == ["q5_k", "q4_k"]
    assert of("q4_k_m", "output") == of("q2_k", "output") == of("q4_0", "output") == "q6_k"
    assert of("q4_k_m", "token_embd") == "q4_k"
    assert of("q2_k", "blk.9.attn_v") == "q4_k" and of("iq4_xs", "blk.9.attn_v") == "q5_k"
    assert of("q4_k_m", "blk.9.attn_qkv") == "q6_k" and of("q4_k_m", "blk.9.attn_q") == "q4_k"
    place |= {"tied": True, "group_size": 1}
    assert of("q4_k_m", "token_embd") == "q6_k" and of("q2_k", "blk.9.attn_v") == "q3_k"
    # Widths that are no multiple of 256, or of 32.
    assert of("q4_k_m", "token_embd", 576) == "q8_0"
    narrow = {"q2_k": "q4_0", "q3_k_s": "q4_0", "q4_k_m": "q5_0", "q5_k_s": "q5_1"}
    for type, format in (narrow | {"q6_k": "q8_0", "iq4_xs": "iq4_nl"}).items():
        assert of(type, "blk.0.attn_q", 576) == format
    assert of("q8_0", "blk.0.attn_q", 100) == "f16"


def test_metadata_of_a_file_is_kept(tmp_path: Path) -> None:
    """Keys, values and their types; what described the old types is not."""
    old = {"general.file_type": 2, "general.quantization_version": 1, "general.name": "Tiny"}
    old |= {"split.no": 0, "split.count": 1, "quantize.imatrix.file": "x", "custom.list": [1.5]}
    make_gguf(tmp_path / "a.gguf", quantization="Q8_0", rope="llama3", metadata=old)
    lampo.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_0")
    before, after = (gguf.GGUFReader(tmp_path / f"{name}.gguf").fields for name in "ab")
    gone = {"split.no", "split.count", "quantize.imatrix.file"}
    assert {k for k in before if not k.startswith("GGUF.")} - set(after) == gone
    for key in set(before) & set(after) - {"general.file_type", "general.quantization_version"}:
        if not key.startswith("GGUF."):
            assert after[key].types == before[key].types, key
            assert after[key].contents() == before[key].contents(), key
    assert after["general.file_type"].contents() == 2
    assert "rope_freqs.weight" in formats(tmp_path / "b.gguf")
    # A tensor that has its format already is copied.
    lampo.quantize(tmp_path / "b.gguf", tmp_path / "c.gguf", "q4_0")
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before is gone when the next is read, and pieces are small."""
    make_checkpoint(tmp_path / "m", dtype=torch.bfloat16)
    monkeypatch.setattr("lampo.quantization._PIECE", 1024)
    alive: list[weakref.ref[Any]] = []
    load, quantize_weight = Checkpoint.load, ops.quantize_weight

    def counted_load(self: Checkpoint, name: str) -> Any:
        assert not any(ref() is not None for ref in alive)
        tensor = load(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    def counted(weight: torch.Tensor, format: str, *, blocks: torch.Tensor) -> torch.Tensor:
        assert weight.numel() <= 1024
        return quantize_weight(weight, format, blocks=blocks)

    monkeypatch.setattr(Checkpoint, "load", counted_load)
    monkeypatch.setattr(ops, "quantize_weight", counted)
    seen: list[tuple[int, int]] = []
    path = lampo.quantize(
        tmp_path / "m", tmp_path / "m.gguf", "q8_0", on_progress=lambda *s: seen.append(s)
    )
    assert len(alive) == len(formats(path))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == sum(t.n_bytes for t in gguf.GGUFReader(path).tensors)
    monkeypatch.undo()
    whole = lampo.quantize(tmp_path / "m", tmp_path / "whole.gguf", "q8_0")
    assert whole.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    make_gguf(tmp_path / "a.gguf", quantization="F16")
    (tmp_path / "b.gguf").write_bytes(b"old")
    calls = []

    def fail(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 5:
            raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):  # type: ignore[arg-type]
        lampo.quantize(
            tmp_path / "a.gguf", tmp_path / "b.gguf", "q8_0", overwrite=True, on_progress=fail
        )
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]
    assert (tmp_path / "b.gguf").read_bytes() == b"old"


def test_interrupted_command(tmp_path: Path) -> None:
    """A process that is interrupted while it writes."""
    make_gguf(tmp_path / "a.gguf", quantization="F16")
    script = (
        "import os, signal, sys, lampo.quantization as q\n"
        # A parent in the background hands on that SIGINT is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from lampo import ops\n"
        "old = ops.quantize_weight\n"
        "def new(*a, **k):\n"
        f"    os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        "    return old(*a, **k)\n"
        "ops.quantize_weight = new\n"
        "sys.argv = ['lampo', 'quantize', 'a.gguf', 'b.gguf']\n"
        "from lampo.cli.main import program\n"
        "program()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=250)
    assert done.returncode == 130
    assert [f.name for f in tmp_path.iterdir()] == ["a.gguf"]


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_checkpoint(tmp_path / "m", **SHAPE_256)
    target = tmp_path / "m.gguf"
    words = ["quantize", str(tmp_path / "m"), str(target)]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert out == f"{target}\n" and "m.gguf: " in err
    assert FILE_TYPES["q4_k_m"].number == 15
    assert gguf.GGUFReader(target).fields["general.file_type"].contents() == 15
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()
    with LLM(target) as llm:
        assert llm.encode_chat([{"role": "user", "content": "ab"}])
    assert main(words) == 2
    assert "m.gguf: it exists; --force" in capfd.readouterr().err
    assert main([*words, "--force", "-q", "--type", "Q8_0"]) == 0
    assert capfd.readouterr() == (f"{target}\n", "")
    for arguments, message in (
        ([str(target), str(target), "--force"], "it is the model that is read"),
        ([str(target), str(tmp_path / "x.bin")], "expected a name that ends in .gguf"),
        ([str(target), str(tmp_path / "no" / "x.gguf")], "no such folder"),
        ([str(target), str(tmp_path / "x.gguf"), "--type", "q9"], "type: expected one of f32, "),
        ([str(tmp_path / "none"), str(tmp_path / "x.gguf")], "none"),
    ):
        assert main(["quantize", *arguments]) == 2
        err = capfd.readouterr().err
        assert message in err and err.count("\n") == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m", "m.gguf"]


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_what_gguf_cannot_express(tmp_path: Path) -> None:
    make_checkpoint(
        tmp_path / "a",
        architecture="qwen2",
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=1,
    )
    with pytest.raises(ValueError, match="attention differs"):
        lampo.quantize(tmp_path / "a", tmp_path / "a.gguf")
    for rope in NOT_IN_GGUF:
        make_checkpoint(tmp_path / "b", rope=rope)
        with pytest.raises(ValueError, match="truncate"):
            lampo.quantize(tmp_path / "b", tmp_path / "b.gguf")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


PEERS = os.environ.get("LAMPO_PEERS")
WORKER = Path(PEERS or "", "bin", "llama_cpp_worker")


@pytest.mark.skipif(not PEERS or not WORKER.is_file(), reason="LAMPO_PEERS names no llama.cpp")
@pytest.mark.parametrize(
    ("architecture", "types"),
    [
        ("llama", ["q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "iq4_nl", "q3_k_m", "q2_k", "bf16"]),
        ("mistral", ["q4_k_s", "q5_0"]),
        ("qwen2", ["q4_k_m", "q4_0"]),
        ("qwen3", ["q4_k_m", "q5_1"]),
        ("gpt2", ["q4_k_m", "f16"]),
    ],
)
def test_llama_cpp_draws_the_same_tokens(
    tmp_path: Path, architecture: str, types: list[str]
) -> None:
    """Its greedy tokens are those of the file's dequantized weights, but for near ties.

    llama.cpp rounds activations to 8 bits, so that few tokens differ, where two logits are close:
    those of a wrong model would be more than the logits' standard deviation apart.
    """
    shape = {**SHAPE_256, "initializer_range": 0.08}
    make_checkpoint(tmp_path / "m", architecture=architecture, **shape)
    prompt = list(range(20, 40))
    same = total = 0
    for type in types:
        path = lampo.quantize(tmp_path / "m", tmp_path / f"{type}.gguf", type)
        done = subprocess.run(
            [str(WORKER), "auto", "f16", str(path), "1"],
            input=json.dumps({"prompts": [prompt], "max_tokens": 32}) + "\n",
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr
        (tokens,) = json.loads(done.stdout.splitlines()[-1])["token_ids"]
        with load_checkpoint(path) as checkpoint:
            rows = Runner(load_model(checkpoint, "float32"))(prompt + tokens)
        rows = rows[len(prompt) - 1 : -1]
        gaps = rows.amax(1) - rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert float((gaps / rows.std(1)).max()) < 0.3, (type, gaps)
        same += int((gaps == 0).sum())
        total += len(tokens)
    assert same > 0.8 * total
