# SPDX-License-Identifier: Apache-2.0
"""One view of a model's weights, whatever file they come from, under Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from lampo.models.config import ModelConfig, generation_config_from_hf
from lampo.weights.fields import read_json_object, shown
from lampo.weights.formats import QuantizedTensor
from lampo.weights.gguf import GGUFFile
from lampo.weights.safetensors import SafetensorsFolder

_MAX_CONFIG_BYTES = 4 << 20
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What stands in files and that nobody needs: tables that are computed, and copies of tied weights.
_UNUSED = re.compile(r"rope_freqs\.weight|.*attn_rot_embd\.weight|.*rotary_emb\.inv_freq")

# Hugging Face's name of a layer's part -> GGUF's.
_LAYER_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class TensorSource(Protocol):
    """Files that hold tensors under their own names."""

    nbytes: int

    def load(self, name: str) -> torch.Tensor | QuantizedTensor: ...
    def release(self, name: str) -> None: ...


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a model of this configuration has, in the order of their use."""
    c = config
    q_rows, kv_rows = c.num_qo_heads * c.head_dim, c.num_kv_heads * c.head_dim
    matrices = {
        "self_attn.q_proj": (q_rows, c.hidden_size, c.attention_bias),
        "self_attn.k_proj": (kv_rows, c.hidden_size, c.attention_bias),
        "self_attn.v_proj": (kv_rows, c.hidden_size, c.attention_bias),
        "self_attn.o_proj": (c.hidden_size, q_rows, c.attention_bias),
        "mlp.gate_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.up_proj": (c.intermediate_size, c.hidden_size, c.mlp_bias),
        "mlp.down_proj": (c.hidden_size, c.intermediate_size, c.mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (c.vocab_size, c.hidden_size)
    }
    for layer in range(c.num_layers):
        for part in _LAYER_PARTS:
            name = f"model.layers.{layer}.{part}"
            if part not in matrices:
                shapes[f"{name}.weight"] = (c.hidden_size,)
                continue
            rows, columns, has_bias = matrices[part]
            shapes[f"{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{name}.bias"] = (rows,)
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return shapes


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor: model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight."""
    stem, _, kind = name.rpartition(".")
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_LAYER_PARTS[part]}.{kind}"


class Checkpoint:
    """The weights and the configuration of one model; a context manager.

    Attributes:
        config: shape and constants of the model.
        path: the file or folder.
        generation_config: checked sampling defaults, {} where the model has none.
        gguf_metadata: the key-value section of a GGUF file, None for safetensors.
        nbytes: bytes of the weight files.
    """

    def __init__(
        self,
        config: ModelConfig,
        path: Path,
        source: TensorSource,
        source_names: Mapping[str, str],
        generation_config: dict[str, Any],
        gguf_metadata: Mapping[str, Any] | None,
    ) -> None:
        self.config = config
        self.path = path
        self.generation_config = generation_config
        self.gguf_metadata = gguf_metadata
        self.nbytes = source.nbytes
        self._source: TensorSource | None = source
        self._source_names = source_names

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: generation_config's, else the model's."""
        ids: tuple[int, ...] = self.generation_config.get("eos_token_ids", ())
        return ids or self.config.eos_token_ids

    def names(self) -> list[str]:
        """Hugging Face names of all tensors; tied weights have one, model.embed_tokens.weight."""
        return list(self._source_names)

    def load(self, name: str) -> torch.Tensor | QuantizedTensor:
        """The tensor: a view of the mapped file, to be read only.

        Q4_0, Q4_1 and Q8_0 matrices stay packed; other quantized types become f32.
        """
        source, source_name = self._find(name)
        return source.load(source_name)

    def release(self, name: str) -> None:
        """Drops the tensor's pages from memory; a view stays valid and reads the file again."""
        source, source_name = self._find(name)
        source.release(source_name)

    def _find(self, name: str) -> tuple[TensorSource, str]:
        if self._source is None:
            raise ValueError(f"{self.path}: the checkpoint is closed")
        if name not in self._source_names:
            raise ValueError(f"{self.path}: no tensor {shown(name)}")
        return self._source, self._source_names[name]

    def close(self) -> None:
        """Lets go of the files; a mapping ends with the last tensor that views it."""
        self._source = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Opens and validates a model: a .gguf file, or a folder.

    Args:
        path: a .gguf file; a folder with config.json and *.safetensors (one file, or shards and
            their index); or a folder that holds exactly one .gguf file.

    Returns:
        the checkpoint; no weight has been read yet, but every shape has been checked.

    Raises:
        ValueError: one line naming the file, the field or tensor, and what is wrong with it.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            return _load_folder(path)
        if not path.is_file():
            raise ValueError(f"model: no such file or folder: {path}")
        return _load_gguf(_check_suffix(path))
    except OSError as error:
        raise ValueError(f"model: cannot read {path}: {error.strerror or error}") from None


def _check_suffix(path: Path) -> Path:
    if path.suffix in _PICKLED:
        raise ValueError(f"model: {path}: pickled weights are refused; use safetensors or GGUF")
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise ValueError(f"model: {path}: name its folder, which holds config.json too")
    return path


def _load_folder(folder: Path) -> Checkpoint:
    ggufs = sorted(folder.glob("*.gguf"))
    has_safetensors = any(folder.glob("*.safetensors*"))
    if has_safetensors or not ggufs:
        if not has_safetensors:
            pickled = [f.name for f in sorted(folder.iterdir()) if f.suffix in _PICKLED]
            found = f" but {pickled[0]}, and pickled weights are refused" if pickled else ""
            raise ValueError(f"model: {folder}: it holds no *.safetensors and no *.gguf{found}")
        return _load_safetensors(folder)
    if len(ggufs) > 1:
        names = ", ".join(f.name for f in ggufs[:4])
        raise ValueError(f"model: {folder}: it holds {len(ggufs)} GGUF files; name one: {names}")
    return _load_gguf(ggufs[0])


def _load_safetensors(folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    config = ModelConfig.from_hf(read_json_object(config_path, _MAX_CONFIG_BYTES), str(config_path))
    generation_path = folder / "generation_config.json"
    generation_config: dict[str, Any] = {}
    if generation_path.exists():
        generation_config = generation_config_from_hf(
            read_json_object(generation_path, _MAX_CONFIG_BYTES),
            config.vocab_size,
            str(generation_path),
        )
    source = SafetensorsFolder(folder)
    wanted = {name: name for name in expected_shapes(config)}
    present = {name: source.shape(name) for name in source.names() if not _UNUSED.fullmatch(name)}
    _check_shapes(folder, config, wanted, present)
    return Checkpoint(config, folder, source, wanted, generation_config, None)


def _load_gguf(path: Path) -> Checkpoint:
    source = GGUFFile(path)
    metadata, shapes = source.metadata, source.shapes()
    if metadata.get("split.count", 0) not in (0, 1):
        raise ValueError(f"{path}: split.count = {shown(metadata['split.count'])}: merge it first")
    config = ModelConfig.from_gguf(metadata, shapes, source.freq_factors(), str(path))
    wanted = {name: gguf_name(name) for name in expected_shapes(config)}
    present = {name: shape for name, shape in shapes.items() if not _UNUSED.fullmatch(name)}
    _check_shapes(path, config, wanted, present)
    return Checkpoint(config, path, source, wanted, {}, metadata)


def _check_shapes(
    path: Path,
    config: ModelConfig,
    wanted: Mapping[str, str],
    present: Mapping[str, tuple[int, ...]],
) -> None:
    """Every expected tensor is there in its shape, and none that would go unused."""
    shapes = expected_shapes(config)
    for name, source_name in wanted.items():
        if source_name not in present:
            raise ValueError(f"{path}: tensor {source_name} is missing")
        if present[source_name] != shapes[name]:
            raise ValueError(
                f"{path}: tensor {source_name}: expected shape {shapes[name]} by the "
                f"configuration, got {present[source_name]}"
            )
    known = {*wanted.values(), "lm_head.weight"}
    for source_name in present:
        if source_name not in known:
            raise ValueError(
                f"{path}: tensor {shown(source_name)} has no place in a {config.architecture} model"
            )
