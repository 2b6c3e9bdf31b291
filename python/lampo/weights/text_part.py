# SPDX-License-Identifier: Apache-2.0
"""The text part of a multimodal model's folder."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from lampo.weights.formats import CodedMatrix

_TEXT = "language_model."
_OTHER = re.compile(r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector)\..*")


class Folder(Protocol):
    """Tensors of files, under the files' own names."""

    nbytes: int

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def load(self, name: str) -> torch.Tensor | CodedMatrix: ...
    def close(self) -> None: ...


class TextPart:
    """The tensors of the language model, under the names that they have in a model of text alone.

    Files name them ``language_model.model.layers...`` or ``model.language_model.layers...``.
    """

    def __init__(self, source: Folder) -> None:
        self._source = source
        self.nbytes = source.nbytes
        self._names = {
            name.replace(_TEXT, "", 1): name
            for name in source.names()
            if not _OTHER.fullmatch(name)
        }

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._names[name])

    def load(self, name: str) -> torch.Tensor | CodedMatrix:
        """The tensor, as the folder's own method."""
        return self._source.load(self._names[name])

    def close(self) -> None:
        self._source.close()
