# SPDX-License-Identifier: Apache-2.0
"""Resolves a model's name to files on disk: paths, the default model, Hugging Face ids."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

from lampo.error_text import shown
from lampo.weights.default_model import (
    ModelNotFoundError,
    cached_default_model,
    folder_bytes,
    pull_default_model,
)
from lampo.weights.shard_names import first_files

__all__ = ["DEFAULT_MODEL", "ModelNotFoundError", "pull", "resolve_model"]

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
_ALIASES = {DEFAULT_MODEL.lower(), "smollm2"}

Progress = Callable[[int, "int | None"], None]

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::([\w.-]{1,64}))?")
_ALLOWED = [
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
]
_REFUSED = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.py", "*/*"]
_POLL_SECONDS = 0.2


def resolve_model(model: str | Path | None) -> Path:
    """The file or folder of a model; fetched if it is not on disk yet.

    Args:
        model: None or a name of the default model; a path; or a Hugging Face id, "org/name" for
            safetensors, "org/name:Q4_0" for the one GGUF file of a repository with that word.

    Raises:
        ModelNotFoundError: one line; also when offline and not cached.
    """
    return _resolve(model, None)


def pull(model: str | None, progress: Progress | None = None) -> Path:
    """Like `resolve_model`, with `progress(done_bytes, total_bytes_or_None)` called meanwhile."""
    return _resolve(model, progress)


def is_default(name: str) -> bool:
    """Whether a name is the default model's."""
    return name.lower() in _ALIASES


def _resolve(model: str | Path | None, progress: Progress | None) -> Path:
    if model is None:
        return _default(progress)
    text = str(model)
    path = Path(text).expanduser() if text.strip() and "\0" not in text else None
    try:
        if path is not None and path.exists():
            return path
    except OSError:  # a name too long to be a path
        pass
    if isinstance(model, str):
        if is_default(text):
            return _default(progress)
        match = _HUB_ID.fullmatch(text)
        if match and not text.endswith((".gguf", ".safetensors")) and ".." not in text:
            return _from_hub(match[1], match[2], progress)
    raise ModelNotFoundError(
        f"model: {shown(text)} is no file or folder here, not {DEFAULT_MODEL!r}, and no "
        "Hugging Face id (org/name)"
    )


def _default(progress: Progress | None) -> Path:
    cached = cached_default_model()
    if cached is None:
        return pull_default_model(progress)
    if progress is not None:
        progress(cached.stat().st_size, cached.stat().st_size)
    return cached


def _from_hub(repo_id: str, tag: str | None, progress: Progress | None) -> Path:
    if tag is None and "gguf" in repo_id.lower():
        raise ModelNotFoundError(
            f"model: {repo_id!r} holds GGUF files: name the one to fetch, as in '{repo_id}:Q4_0'"
        )
    patterns = _ALLOWED
    if tag is not None:
        patterns = [f"*{form}*.gguf" for form in dict.fromkeys((tag, tag.lower(), tag.upper()))]
    folder = _snapshot(repo_id, patterns, progress)
    if tag is None:
        if not any(folder.glob("*.safetensors")):
            raise ModelNotFoundError(
                f"model: {repo_id!r} has no *.safetensors; a GGUF file is named as '{repo_id}:Q4_0'"
            )
        return folder
    files = first_files(f for f in folder.glob("*.gguf") if tag.lower() in f.name.lower())
    if len(files) != 1:
        names = ", ".join(f.name for f in files[:4]) or "none"
        raise ModelNotFoundError(
            f"model: {repo_id!r}: expected one GGUF file with {tag!r} in its name, got {names}"
        )
    return files[0]


def _snapshot(repo_id: str, patterns: list[str], progress: Progress | None) -> Path:
    """`snapshot_download` with errors of one line."""
    import huggingface_hub  # lazy: most runs do not need it
    from huggingface_hub import errors
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    folder = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with _Polling(folder, progress):
            return Path(
                huggingface_hub.snapshot_download(
                    repo_id, allow_patterns=patterns, ignore_patterns=_REFUSED
                )
            )
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "it is not cached, and the Hugging Face hub cannot be reached"
    except errors.GatedRepoError:
        reason = "its owner restricts access; run `hf auth login` after being granted it"
    except errors.RepositoryNotFoundError:
        reason = "the Hugging Face hub has no such public model"
    except Exception as error:  # the library's exceptions have no common base
        first_line = next(iter(str(error).splitlines()), "")
        reason = f"the download failed: {type(error).__name__}: {first_line[:200]}"
    finally:
        if had_bars:
            enable_progress_bars()
    raise ModelNotFoundError(f"model: {repo_id!r}: {reason}")


class _Polling:
    """Calls `progress` with the growth of a folder, from a thread, while a block runs."""

    def __init__(self, folder: Path, progress: Progress | None) -> None:
        self._folder = folder
        self._progress = progress
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self._progress is not None:
            self._thread = threading.Thread(target=self._run, args=(self._progress,), daemon=True)
            self._thread.start()

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, progress: Progress) -> None:
        while True:
            stopped = self._stop.wait(_POLL_SECONDS)
            done = folder_bytes(self._folder)
            progress(done, done if stopped else None)
            if stopped:
                return
