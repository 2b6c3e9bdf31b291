# SPDX-License-Identifier: Apache-2.0
"""A forked child of a process that has used torch and lampo loads and runs a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint, make_gguf

SCRIPT = """
import faulthandler, os, sys
import torch
from lampo import LLM, SamplingParams

def answer():
    with LLM(sys.argv[1], dtype=sys.argv[2]) as llm:
        params = SamplingParams(max_tokens=4, temperature=0)
        return [r.outputs[0].token_ids for r in llm.generate([[5, 6, 7], [8] * 40], params)]

torch.set_num_threads(2)
torch.rand(1 << 20).exp().sum()  # starts torch's threads
expected = answer()
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(120, exit=True)  # where it hangs
    os._exit(0 if answer() == expected else 2)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("kind", ["stored", "converted", "gguf"])
def test_loads_after_fork(kind: str, tmp_path: Path) -> None:
    """Tensors are large enough for torch's threads; context, vocabulary and matrices."""
    sizes = {"vocab_size": 2000, "hidden_size": 256, "max_position_embeddings": 8192}
    path, dtype = tmp_path, "auto"
    if kind == "gguf":
        path = tmp_path / "m.gguf"
        make_gguf(path, quantization="Q8_0", tied=False, **sizes)
    else:
        make_checkpoint(path, dtype=torch.bfloat16, tied=False, **sizes)
        dtype = "auto" if kind == "stored" else "float32"
    command = [sys.executable, "-c", SCRIPT, str(path), dtype]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
