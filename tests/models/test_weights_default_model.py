# SPDX-License-Identifier: Apache-2.0
"""The default model as it comes from the cache."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from checkpoints import make_gguf

from lampo.models.checkpoint import load_checkpoint
from lampo.weights import DEFAULT_MODEL, resolve_model
from lampo.weights.default_model import cached_default_model
from lampo.weights.formats import QuantizedTensor

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def path() -> Path:
    cached = cached_default_model()
    if cached is None:
        pytest.skip("the default model is not cached; `lampo pull` fetches it")
    return cached


def test_configuration(path: Path) -> None:
    assert resolve_model(None) == resolve_model(DEFAULT_MODEL) == path
    with load_checkpoint(path) as checkpoint:
        c = checkpoint.config
        assert (c.num_layers, c.hidden_size, c.vocab_size) == (30, 576, 49152)
        attention = c.layers[29].attention
        assert (attention.num_qo_heads, attention.num_kv_heads, attention.head_dim) == (9, 3, 64)
        assert attention.rope is not None and attention.rope.theta == 100000.0
        assert c.max_position_embeddings == 8192
        assert c.tie_word_embeddings
        assert checkpoint.eos_token_ids == (2,)
        assert checkpoint.nbytes == path.stat().st_size
        assert checkpoint.gguf_metadata is not None
        assert len(checkpoint.gguf_metadata["tokenizer.ggml.tokens"]) == 49152


def test_sampling_settings(path: Path, tmp_path: Path) -> None:
    """Its authors' recommendation, which the file lacks; another file of the name has none."""
    with load_checkpoint(path) as checkpoint:
        assert checkpoint.generation_config == {"temperature": 0.2, "top_p": 0.9}
    copy = tmp_path / path.name
    copy.symlink_to(path)
    with load_checkpoint(copy) as checkpoint:
        assert checkpoint.generation_config == {"temperature": 0.2, "top_p": 0.9}
    make_gguf(tmp_path / "other.gguf")
    with load_checkpoint(tmp_path / "other.gguf") as checkpoint:
        assert checkpoint.generation_config == {}


def test_weights(path: Path) -> None:
    import gguf

    with load_checkpoint(path) as checkpoint:
        formats = {}
        for name in checkpoint.names():
            tensor = checkpoint.load(name)
            formats[name] = tensor.format if isinstance(tensor, QuantizedTensor) else "plain"
        assert formats["model.embed_tokens.weight"] == "q8_0"
        assert list(formats.values()).count("q4_1") == 210
        q = checkpoint.load("model.layers.7.self_attn.q_proj.weight")
        assert isinstance(q, QuantizedTensor)
        expected = gguf.quants.dequantize(q.blocks.numpy(), gguf.GGMLQuantizationType.Q4_1)
        assert torch.equal(q.dequantize(), torch.from_numpy(expected))


def test_memory_stays_low(path: Path) -> None:
    """Touches every tensor of the file, one after the other, as a repacking loader does."""
    script = """
        import sys
        import torch
        from lampo.models.checkpoint import load_checkpoint
        from lampo.weights.formats import QuantizedTensor

        def resident():
            lines = open("/proc/self/status").read().splitlines()
            return int(next(l for l in lines if l.startswith("VmHWM:")).split()[1]) * 1024

        load_checkpoint(sys.argv[1]).close()
        before = resident()
        with load_checkpoint(sys.argv[1]) as checkpoint:
            for name in checkpoint.names():
                tensor = checkpoint.load(name)
                data = tensor.blocks if isinstance(tensor, QuantizedTensor) else tensor
                data.numpy().max()
        print((resident() - before) / checkpoint.nbytes)
    """
    if sys.platform != "linux":
        pytest.skip("reads the peak from Linux's /proc")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(result.stdout) < 0.45  # the largest tensor has 0.31 of the bytes
