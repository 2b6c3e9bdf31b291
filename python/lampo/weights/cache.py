# SPDX-License-Identifier: Apache-2.0
"""The models that were fetched to this machine: what there is, and its removal."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lampo.weights.default_model import ModelNotFoundError, cached_default_model
from lampo.weights.hub import DEFAULT_MODEL, is_default
from lampo.weights.shard_names import model_name


@dataclass(frozen=True)
class CachedModel:
    """A model in lampo's or the Hugging Face hub's cache.

    Attributes:
        name: what `resolve_model` calls it.
        nbytes: its size on disk.
        modified: time.time() at which it was fetched.
        paths: files and folders that are its own.
    """

    name: str
    nbytes: int
    modified: float
    paths: tuple[Path, ...]

    def remove(self) -> None:
        """Deletes it from disk. Raises: OSError."""
        for path in self.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def cached_models() -> list[CachedModel]:
    """The default model and those of the hub with weights that lampo can read, by name."""
    return [*_default_model(), *sorted(_hub_models(), key=lambda model: model.name.lower())]


def find_cached(name: str) -> list[CachedModel]:
    """The cached models of a name; "org/name" stands for all GGUF files of a repository.

    Raises: ModelNotFoundError: there are none.
    """
    if is_default(name):
        name = DEFAULT_MODEL
    wanted = name.lower()
    found = [
        model
        for model in cached_models()
        if wanted in (model.name.lower(), model.name.lower().partition(":")[0])
    ]
    if not found:
        raise ModelNotFoundError(f"model: {name!r} is not in the cache; `lampo list` shows it")
    return found


def _default_model() -> Iterator[CachedModel]:
    path = cached_default_model()
    if path is not None:
        yield CachedModel(DEFAULT_MODEL, path.stat().st_size, path.stat().st_mtime, (path,))


def _hub_models() -> Iterator[CachedModel]:
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in repos:
        files = [file for revision in repo.revisions for file in revision.files]
        ggufs = {file.file_name for file in files if file.file_name.endswith(".gguf")}
        if repo.repo_type != "model":
            continue
        if any(file.file_name.endswith(".safetensors") for file in files):
            paths = (repo.repo_path,)
            yield CachedModel(repo.repo_id, repo.size_on_disk, repo.last_modified, paths)
        else:
            yield from _gguf_models(repo, files, ggufs)


def _gguf_models(repo: Any, files: list[Any], names: set[str]) -> Iterator[CachedModel]:
    """One model per GGUF file, or per set of shards; the last one takes the folder with it."""
    models: dict[str, list[Any]] = {}
    for file in files:
        if file.file_name in names:
            models.setdefault(model_name(file.file_name), []).append(file)
    formats = Counter(_format(name) for name in models)
    for name, same in models.items():
        tag = _format(name) if formats[_format(name)] == 1 else Path(name).stem
        paths = [path for file in same for path in (file.file_path, file.blob_path)]
        sizes = {file.file_name: file.size_on_disk for file in same}  # once in many revisions
        yield CachedModel(
            f"{repo.repo_id}:{tag}",
            sum(sizes.values()),
            max(file.blob_last_modified for file in same),
            (repo.repo_path,) if len(models) == 1 else tuple(dict.fromkeys(paths)),
        )


def _format(name: str) -> str:
    """The end of a GGUF file's name, as a rule its format: "Q4_0" of "tiny-chat-Q4_0.gguf"."""
    return re.split(r"[-.]", Path(name).stem)[-1]
