# SPDX-License-Identifier: Apache-2.0
"""A folder of safetensors with quantized linears, each under the name of its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lampo.error_text import shown
from lampo.weights.fields import Fields
from lampo.weights.formats import CodedMatrix
from lampo.weights.quantized.awq import AWQ
from lampo.weights.quantized.bitsandbytes import BitsAndBytes
from lampo.weights.quantized.compressed_tensors import CompressedTensors
from lampo.weights.quantized.fp8 import FP8
from lampo.weights.quantized.gptq import GPTQ
from lampo.weights.quantized.method import Method, Parts
from lampo.weights.safetensors import SafetensorsFolder

if TYPE_CHECKING:
    import torch

METHODS: dict[str, type[Method]] = {
    "fp8": FP8,
    "fbgemm_fp8": FP8,
    "awq": AWQ,
    "gptq": GPTQ,
    "compressed-tensors": CompressedTensors,
    "bitsandbytes": BitsAndBytes,
}
# Scales of cached keys and values, which lampo finds by itself.
_UNUSED = (
    *(".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point"),
    *(".k_proj.output_scale", ".v_proj.output_scale", ".q_proj.output_scale"),
)


class QuantizedFolder:
    """The tensors of a folder: a quantized linear has one, "model.layers.0.mlp.up_proj.weight".

    Args:
        files: the folder.
        config: a `quantization_config`, with the name of its file.

    Attributes:
        nbytes: bytes of the files.

    Raises:
        ValueError: one line naming file, tensor or field, expectation and what was found.
    """

    def __init__(self, files: SafetensorsFolder, config: Fields) -> None:
        method = METHODS[config.choice("quant_method", tuple(METHODS))](config)
        self.nbytes = files.nbytes
        self._files = files
        self._method = method
        self._quantized: dict[str, Parts] = {}
        hidden = set()
        ends = sorted((f".{part}" for part in method.parts), key=len, reverse=True)
        for name in files.names():
            end = next((end for end in ends if name.endswith(end)), None)
            if end is not None and method.marks(end[1:], files.stored(name)[1]):
                linear = name.removesuffix(end)
                self._quantized[f"{linear}.weight"] = Parts(files, linear)
                hidden |= {linear + end for end in ends}
        if not self._quantized:
            raise ValueError(
                f"{config.source}: quant_method is {shown(config.get('quant_method'))}, but no "
                f"tensor in {files.folder} is quantized"
            )
        self._plain = [
            name for name in files.names() if name not in hidden and not name.endswith(_UNUSED)
        ]
        for name, parts in self._quantized.items():
            if "weight" not in method.parts and name in files:
                raise ValueError(
                    f"{files.folder}: {shown(parts.linear)}: expected one weight, found a "
                    "quantized and a plain one"
                )
            for module in method.ignored:
                if f".{parts.linear}.".find(f".{module}.") >= 0:
                    raise ValueError(
                        f"{config.source}: {shown(module)} is excluded from quantization, but "
                        f"{shown(parts.linear)} is quantized in {files.folder}"
                    )

    def close(self) -> None:
        self._files.close()

    def names(self) -> list[str]:
        return [*self._quantized, *self._plain]

    def is_quantized(self, name: str) -> bool:
        return name in self._quantized

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape; dtypes and shapes of all its parts are checked first."""
        if name in self._quantized:
            return self._method.shape(self._quantized[name])
        return self._files.shape(name)

    def load(self, name: str) -> torch.Tensor | CodedMatrix:
        """The tensor, in memory of its own.

        Raises:
            ValueError: scales that are not finite, or a file that has been cut short.
        """
        if name in self._quantized:
            return self._method.load(self._quantized[name])
        return self._files.load(name)
