# SPDX-License-Identifier: Apache-2.0
"""The weights of a model in order of use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

import torch

from lampo import ops
from lampo.models.decoder import Decoder


@dataclass(frozen=True)
class Part:
    """One weight of a model.

    Attributes:
        name: its place, such as "mixer.qkv.weights.0".
        layer: its block, from 0; None: outside of the blocks.
        shape: (out_features, in_features) of a matrix, (size,) of a vector.
        format: "q4_1", "bfloat16" and the like.
        num_parameters, nbytes: its sizes. A matrix that is used twice, as the embedding and as the
            LM head, is listed twice and has 0 of both the second time.
    """

    name: str
    layer: int | None
    shape: tuple[int, ...]
    format: str
    num_parameters: int
    nbytes: int


def outline(model: Decoder) -> list[Part]:
    """The weights of a model: embedding, blocks, final norm, LM head."""
    places: list[tuple[str, int | None, object]] = [("embedding", None, model.embedding)]
    places += [("", i, block) for i, block in enumerate(model.blocks)]
    places += [("norm", None, model.norm), ("lm_head", None, model.lm_head)]
    seen: set[int] = set()
    found = []
    for place, layer, part in places:
        for name, weight in _weights(place, part):
            first = id(weight) not in seen
            seen.add(id(weight))
            shape = tuple(weight.shape)
            found.append(
                Part(
                    name,
                    layer,
                    shape,
                    _format(weight),
                    math.prod(shape) if first else 0,
                    weight.nbytes if first else 0,
                )
            )
    return found


def _format(weight: ops.Weight) -> str:
    if isinstance(weight, ops.PackedWeight):
        return weight.format
    return str(weight.dtype).removeprefix("torch.")


def _weights(name: str, part: object) -> Iterator[tuple[str, ops.Weight]]:
    """The weights in a part of a model with their names; tables of positions are none."""
    if isinstance(part, torch.Tensor | ops.PackedWeight):
        yield name, part
    elif isinstance(part, list | tuple):
        for i, item in enumerate(part):
            yield from _weights(name if len(part) == 1 else f"{name}.{i}", item)
    elif is_dataclass(part):
        for field in fields(part):
            inner = name if field.name in ("weight", "weights") else f"{name}.{field.name}"
            yield from _weights(inner.removeprefix("."), getattr(part, field.name))
