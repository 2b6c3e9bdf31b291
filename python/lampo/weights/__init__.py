# SPDX-License-Identifier: Apache-2.0
"""Weight files: locating and fetching models, without torch, and safetensors and GGUF files,
validated before use. Independent of architectures."""

from lampo.weights.hub import DEFAULT_MODEL, ModelNotFoundError, pull, resolve_model

__all__ = ["DEFAULT_MODEL", "ModelNotFoundError", "pull", "resolve_model"]
