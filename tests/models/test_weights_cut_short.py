# SPDX-License-Identifier: Apache-2.0
"""Files that are cut short while they are in use: an error, or no effect, but no SIGBUS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, make_gguf

from lampo.models.checkpoint import Checkpoint, load_checkpoint

SCRIPT = """
import os, sys
from lampo import LLM, SamplingParams
llm = LLM(sys.argv[1])
os.truncate(sys.argv[2], 4096)
(result,) = llm.generate([list(range(3, 3900, 20))], SamplingParams(max_tokens=3))
os._exit(0 if len(result.outputs[0].token_ids) == 3 else 1)
"""


@pytest.fixture(params=["gguf", "safetensors"])
def paths(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The model's path, and the file with its weights."""
    if request.param == "gguf":
        path = tmp_path / "m.gguf"
        make_gguf(path, quantization="F32", vocab_size=4000, tied=False)
        return path, path
    make_checkpoint(tmp_path, vocab_size=4000, tied=False)
    return tmp_path, tmp_path / "model.safetensors"


def load_all(checkpoint: Checkpoint) -> None:
    for name in checkpoint.names():
        checkpoint.load(name)


def test_while_loading(paths: tuple[Path, Path]) -> None:
    model, file = paths
    with load_checkpoint(model) as checkpoint:
        checkpoint.load(checkpoint.names()[0])
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(ValueError, match="it has been cut short") as info:
            load_all(checkpoint)
        assert str(info.value).startswith(str(file))
        assert "\n" not in str(info.value)


def test_a_file_that_takes_the_name_is_not_read(paths: tuple[Path, Path]) -> None:
    model, file = paths
    with load_checkpoint(model) as checkpoint:
        (file.parent / "other").write_bytes(b"x")
        os.replace(file.parent / "other", file)
        load_all(checkpoint)


def test_after_loading(paths: tuple[Path, Path]) -> None:
    """In a process of its own, which a fault would end."""
    command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
