# SPDX-License-Identifier: Apache-2.0
"""`lampo list` and `lampo rm`, over caches of empty files; `lampo models`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from lampo.cli.main import main
from lampo.models.registry import ARCHITECTURES
from lampo.weights import default_model
from lampo.weights.cache import cached_models

COMMIT = "0" * 40


def add(hub: Path, repo_id: str, *files: str, kind: str = "models") -> None:
    """A repository in the hub's cache: blobs, and a snapshot of links to them."""
    repo = hub / f"{kind}--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for i, name in enumerate(files):
        (repo / "blobs" / f"blob{i}").write_bytes(bytes(1000 * (i + 1)))
        (snapshot / name).symlink_to(Path("../../blobs") / f"blob{i}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache; that of the default model is beside it, and has it."""
    hub = tmp_path / "hub"
    hub.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("LAMPO_CACHE", str(tmp_path / "lampo"))
    monkeypatch.setenv("COLUMNS", "40")
    (tmp_path / "lampo").mkdir()
    with (tmp_path / "lampo" / default_model._GGUF).open("wb") as file:
        file.truncate(default_model._GGUF_BYTES)
    add(hub, "org/dense", "config.json", "model.safetensors")
    add(hub, "org/packed", "tiny-Q4_0.gguf", "tiny-Q8_0.gguf")
    add(hub, "org/one", "one.Q4_1.gguf")
    add(hub, "org/tokenizer", "tokenizer.json")
    add(hub, "org/words", "words.safetensors", kind="datasets")
    return hub


def names() -> list[str]:
    return [model.name for model in cached_models()]


ALL = ["SmolLM2-135M-Instruct", "org/dense", "org/one:Q4_1", "org/packed:Q4_0", "org/packed:Q8_0"]


def test_list(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Models alone, by the names that -m takes; a narrow terminal cuts nothing."""
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *ALL]
    assert " 98.4 MB " in lines[1]
    assert " 3.0 kB " in lines[2]
    assert " 2.0 kB " in lines[5]
    assert main(["list", "--json"]) == 0
    assert [model["name"] for model in json.loads(capsys.readouterr().out)] == ALL


def test_nothing_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "no"))
    monkeypatch.setenv("LAMPO_CACHE", str(tmp_path / "none"))
    assert main(["list"]) == 0
    assert capsys.readouterr() == (
        "",
        "lampo: no model is in the cache; `lampo pull` fetches the default model\n",
    )


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("smollm2", ["SmolLM2-135M-Instruct"]),
        ("org/dense", ["org/dense"]),
        ("ORG/packed:q4_0", ["org/packed:Q4_0"]),
        ("org/packed", ["org/packed:Q4_0", "org/packed:Q8_0"]),
        ("org/one", ["org/one:Q4_1"]),
    ],
)
def test_remove(
    name: str, removed: list[str], hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rm", "--yes", name]) == 0
    assert names() == [other for other in ALL if other not in removed]
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in said] == removed
    left = [path for path in hub.rglob("*") if path.is_symlink() and not path.exists()]
    assert left == []
    blobs = {blob.name for blob in hub.glob("models--org--packed/blobs/*")}
    assert len(blobs) == 2 - sum("packed" in name for name in removed)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "kept"), [("y\n", False), ("n\n", True), ("", True)])
def test_confirmation(
    typed: str,
    kept: bool,
    hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert main(["rm", "org/dense"]) == (2 if kept else 0)
    assert ("org/dense" in names()) == kept
    assert capsys.readouterr().err.startswith("remove org/dense (3.0 kB)? [y/N] ")


def test_nobody_to_ask(
    hub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(["rm", "org/dense"]) == 2
    assert "--yes removes without asking" in capsys.readouterr().err
    assert names() == ALL


@pytest.mark.parametrize("name", ["org/none", "org/tokenizer", "org/words", "/etc/passwd", "x" * 9])
def test_unknown_names(name: str, hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is not known removes nothing, also of the others."""
    assert main(["rm", "--yes", "org/dense", name]) == 2
    assert f"model: {name!r} is not in the cache" in capsys.readouterr().err
    assert names() == ALL


def test_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every architecture, by its names in both kinds of files; a narrow terminal cuts nothing."""
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sorted(a.model_type for a in ARCHITECTURES)
    (olmo,) = (line for line in lines if line.startswith("olmo3"))
    assert olmo.split()[1] == "olmo2" and "window" in olmo
    assert main(["models", "--json"]) == 0
    found = {row["model_type"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(found) == {a.model_type for a in ARCHITECTURES}
    assert found["qwen3"]["class"] == "Qwen3ForCausalLM"
    assert found["qwen3"]["thoughts"] == ["<think>", "</think>"]
    assert all(row["models"] and row["stops"] for row in found.values())
