# SPDX-License-Identifier: Apache-2.0
"""Names of the files of split GGUF models: NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"(?P<model>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def shard_names(name: str) -> list[str]:
    """The names of all files of a model, from the name of one."""
    match = _NAME.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    return [f"{match['model']}-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]


def model_name(name: str) -> str:
    """A file's name without the number of its shard."""
    match = _NAME.fullmatch(name)
    return name if match is None else f"{match['model']}.gguf"


def first_files(files: Iterable[Path]) -> list[Path]:
    """One file per model: of shards the first that is there."""
    found: dict[Path, Path] = {}
    for file in sorted(files):
        found.setdefault(file.with_name(model_name(file.name)), file)
    return list(found.values())
