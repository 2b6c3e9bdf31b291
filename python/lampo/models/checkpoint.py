# SPDX-License-Identifier: Apache-2.0
"""A model's weights from any supported file, under Hugging Face's names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from lampo.error_text import shown
from lampo.models.architecture import Architecture, StoredTensor
from lampo.models.config import ModelConfig, generation_config_from_hf
from lampo.models.registry import config_from_gguf, config_from_hf, is_multimodal
from lampo.weights.default_model import recommended_sampling
from lampo.weights.experts import ExpertsFolder
from lampo.weights.fields import Fields, read_json_object
from lampo.weights.formats import CodedMatrix
from lampo.weights.gguf_shards import open_gguf
from lampo.weights.quantized.folder import QuantizedFolder
from lampo.weights.safetensors import SafetensorsFolder
from lampo.weights.shard_names import first_files
from lampo.weights.text_part import TextPart

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("lampo")

_MAX_CONFIG_BYTES = 4 << 20
_QUANTIZATION = ("quantization_config", "compression_config")
Folder = SafetensorsFolder | QuantizedFolder | ExpertsFolder | TextPart
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class TensorSource(Protocol):
    """Tensors of files, under the files' own names."""

    nbytes: int

    def load(self, name: str) -> torch.Tensor | CodedMatrix: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class _Place:
    """A tensor's name in its file, its shape there, and how safetensors store it."""

    name: str
    shape: tuple[int, ...]
    stored: StoredTensor | None = None

    @property
    def is_converted(self) -> bool:
        return self.stored is not None and (self.stored.transposed or self.stored.is_conv)


class Checkpoint:
    """The weights and the configuration of one model; a context manager.

    Attributes:
        config: sizes and constants of the model.
        architecture: the model's architecture, which builds its blocks.
        path: the file or folder.
        generation_config: checked sampling defaults, {} if the model has none.
        gguf_metadata: the key-value section of a GGUF file, None for safetensors.
        gguf_kinds: the types of its values, as :attr:`GGUFFile.kinds`.
        nbytes: bytes of the weight files.
    """

    def __init__(
        self,
        config: ModelConfig,
        architecture: Architecture,
        path: Path,
        source: TensorSource,
        tensors: Mapping[str, _Place],
        generation_config: dict[str, Any],
        gguf_metadata: Mapping[str, Any] | None,
        gguf_kinds: Mapping[str, tuple[int, int | None]] | None = None,
    ) -> None:
        self.config = config
        self.architecture = architecture
        self.path = path
        self.generation_config = generation_config
        self.gguf_metadata = gguf_metadata
        self.gguf_kinds = gguf_kinds or {}
        self.nbytes = source.nbytes
        self._source: TensorSource | None = source
        self._tensors = tensors

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: generation_config's, else the model's."""
        ids: tuple[int, ...] = self.generation_config.get("eos_token_ids", ())
        return ids or self.config.eos_token_ids

    def names(self) -> list[str]:
        """Hugging Face names of all tensors; tied weights have one, the embedding's."""
        return list(self._tensors)

    def load(self, name: str) -> torch.Tensor | CodedMatrix:
        """The tensor, in memory of its own.

        Quantized matrices stay in their codes.

        Raises:
            ValueError: no such tensor, scales that are not finite, or a file that has been cut
                short since it was opened.
        """
        source, place = self._find(name)
        tensor = source.load(place.name)
        if place.stored is None or isinstance(tensor, CodedMatrix):
            return tensor
        return place.stored.from_safetensors(tensor)

    def _find(self, name: str) -> tuple[TensorSource, _Place]:
        if self._source is None:
            raise ValueError(f"{self.path}: the checkpoint is closed")
        if name not in self._tensors:
            raise ValueError(f"{self.path}: no tensor {shown(name)}")
        return self._source, self._tensors[name]

    def close(self) -> None:
        """Closes the files; loaded tensors stay valid."""
        if self._source is not None:
            self._source.close()
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
        path: a .gguf file, or a shard of a split one; a folder with config.json and *.safetensors
            (one file, or shards and their index); or a folder that holds one GGUF model.

    Returns:
        the checkpoint; no weight has been read yet, but every shape has been checked. torch is not
        imported, unless an LM head has to be compared with the embedding.

    Raises:
        ValueError: one line naming the file, the field or tensor, and the fault.
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
    models = first_files(ggufs)
    if len(models) > 1:
        names = ", ".join(f.name for f in models[:4])
        raise ValueError(f"model: {folder}: it holds {len(models)} GGUF models; name one: {names}")
    return _load_gguf(ggufs[0])


def _load_safetensors(folder: Path) -> Checkpoint:
    config_path = folder / "config.json"
    values = read_json_object(config_path, _MAX_CONFIG_BYTES)
    architecture, config = config_from_hf(values, str(config_path))
    generation_path = folder / "generation_config.json"
    generation_config: dict[str, Any] = {}
    if generation_path.exists():
        generation_config = generation_config_from_hf(
            read_json_object(generation_path, _MAX_CONFIG_BYTES),
            config.vocab_size,
            str(generation_path),
        )
    files = SafetensorsFolder(folder)
    plain: SafetensorsFolder | QuantizedFolder = files
    with ExitStack() as on_error:
        on_error.callback(files.close)
        fields = Fields(str(config_path), values)
        method = next((key for key in _QUANTIZATION if fields.has(key)), None)
        if method is not None:
            quantization = Fields(f"{config_path}: {method}", fields.mapping(method))
            # MXFP4 is of experts alone: an ExpertsFolder reads it.
            if quantization.get("quant_method") != "mxfp4":
                plain = QuantizedFolder(files, quantization)
        source: Folder = plain
        if is_multimodal(values):
            source = TextPart(plain)
        elif any(".experts." in name for name in plain.names()):
            source = ExpertsFolder(plain, by_turns=architecture.experts_by_turns)
        names = {name for name in source.names() if not architecture.is_unused(name, config)}
        config = _untied_if_stored(config, architecture, source, names)
        prefix = architecture.optional_prefix
        if any(name.startswith(prefix) for name in names):
            prefix = ""
        places = {
            name: _Place(name.removeprefix(prefix), stored.shape_in_safetensors, stored)
            for name, stored in architecture.tensors(config).items()
        }
        present = {name: source.shape(name) for name in names}
        if isinstance(source, QuantizedFolder | ExpertsFolder):
            for place in places.values():
                if place.is_converted and source.is_quantized(place.name):
                    raise ValueError(
                        f"{config_path}: {method}: quantized {config.architecture} models are not "
                        "supported"
                    )
        _check_shapes(folder, architecture, config, places, present)
        on_error.pop_all()
    return Checkpoint(config, architecture, folder, source, places, generation_config, None)


def _untied_if_stored(
    config: ModelConfig,
    architecture: Architecture,
    source: Folder,
    names: set[str],
) -> ModelConfig:
    """Untied, if the file holds an LM head that differs from the embedding. As in transformers."""
    head, embedding = (f"{part[0]}.weight" for part in (architecture.head, architecture.embedding))
    if not config.tie_word_embeddings or not {head, embedding} <= names:
        return config
    if source.shape(head) == source.shape(embedding):
        import torch

        tensors = [source.load(name) for name in (head, embedding)]
        plain = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        if len(plain) == 2 and torch.equal(*plain):
            return config
    logger.warning(
        "tie_word_embeddings is true, but %s differs from %s: they are not tied", head, embedding
    )
    return replace(config, tie_word_embeddings=False)


def _load_gguf(path: Path) -> Checkpoint:
    source = open_gguf(path)
    with ExitStack() as on_error:
        on_error.callback(source.close)
        metadata, shapes = source.metadata, source.shapes()
        architecture, config = config_from_gguf(metadata, shapes, source.freq_factors(), str(path))
        tensors = architecture.tensors(config)
        places = {name: _Place(stored.gguf, stored.shape) for name, stored in tensors.items()}
        present = {n: s for n, s in shapes.items() if not architecture.is_unused(n, config)}
        _check_shapes(path, architecture, config, places, present)
        on_error.pop_all()
    sampling = recommended_sampling(path)
    return Checkpoint(
        config, architecture, source.path, source, places, sampling, metadata, source.kinds
    )


def _check_shapes(
    path: Path,
    architecture: Architecture,
    config: ModelConfig,
    places: Mapping[str, _Place],
    present: Mapping[str, tuple[int, ...]],
) -> None:
    """Checks that all expected tensors exist in their shapes, and no unexpected ones."""
    for name, place in places.items():
        if place.name not in present:
            headless = name == f"{architecture.head[0]}.weight"
            hint = (
                ": the model has no LM head, and tie_word_embeddings is false" if headless else ""
            )
            raise ValueError(f"{path}: tensor {place.name} is missing{hint}")
        if present[place.name] != place.shape:
            raise ValueError(
                f"{path}: tensor {place.name}: expected shape {place.shape} by the configuration, "
                f"got {present[place.name]}"
            )
    known = {place.name for place in places.values()} | {f"{n}.weight" for n in architecture.head}
    for name in present:
        if name not in known:
            raise ValueError(
                f"{path}: tensor {shown(name)} has no place in a {config.architecture} model"
            )
