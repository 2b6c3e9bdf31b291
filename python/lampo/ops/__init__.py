# SPDX-License-Identifier: Apache-2.0
"""The native ops, on CPU and CUDA tensors: functions here, and ``torch.ops.lampo.*``.

Each writes into ``out`` (allocated where it is not given) and is stateless.
"""

from __future__ import annotations

from lampo.ops.activation import gelu, gelu_mul, silu_mul
from lampo.ops.norm import layer_norm, rms_norm
from lampo.ops.sampling import sample, sampling_workspace_size, token_logprobs

__all__ = [
    "gelu",
    "gelu_mul",
    "layer_norm",
    "rms_norm",
    "sample",
    "sampling_workspace_size",
    "silu_mul",
    "token_logprobs",
]
