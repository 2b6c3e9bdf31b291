# SPDX-License-Identifier: Apache-2.0
"""lampo: fast decoding of transformer language models, on hand-written CUDA and CPU kernels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lampo import ops
    from lampo._C import __version__
    from lampo.async_llm import AsyncLLM
    from lampo.evaluation import evaluate
    from lampo.llm import LLM
    from lampo.outputs import CompletionOutput, Logprob, RequestOutput, StreamOutput
    from lampo.profiling import profile
    from lampo.quantization import quantize
    from lampo.sampling_params import SamplingParams
    from lampo.text.structured_outputs import StructuredOutputs

__all__ = [
    "LLM",
    "AsyncLLM",
    "CompletionOutput",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StreamOutput",
    "StructuredOutputs",
    "__version__",
    "evaluate",
    "ops",
    "profile",
    "quantize",
]

# Resolved at first use, so that `import lampo` costs milliseconds and torch loads when needed.
_LAZY = {
    "__version__": "lampo._C",
    "AsyncLLM": "lampo.async_llm",
    "LLM": "lampo.llm",
    "CompletionOutput": "lampo.outputs",
    "Logprob": "lampo.outputs",
    "RequestOutput": "lampo.outputs",
    "SamplingParams": "lampo.sampling_params",
    "StreamOutput": "lampo.outputs",
    "StructuredOutputs": "lampo.text.structured_outputs",
    "evaluate": "lampo.evaluation",
    "profile": "lampo.profiling",
    "quantize": "lampo.quantization",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("lampo.ops")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lampo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
