# SPDX-License-Identifier: Apache-2.0
"""Files of weights: where models are found, and safetensors and GGUF, memory-mapped and validated
before anything is used. Knows no model; finding and fetching one does without torch."""

from lampo.weights.hub import DEFAULT_MODEL, ModelNotFoundError, pull, resolve_model

__all__ = ["DEFAULT_MODEL", "ModelNotFoundError", "pull", "resolve_model"]
