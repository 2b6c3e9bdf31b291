# SPDX-License-Identifier: Apache-2.0
"""The native ops, on CPU and CUDA tensors: functions here, and ``torch.ops.lampo.*``.

Every op writes into ``out`` (allocated if absent) and is stateless.
"""

from __future__ import annotations

from lampo.ops.activation import gelu, gelu_mul, scale, scale_by_position, silu_mul
from lampo.ops.attention import merge_states, paged_attention, paged_attention_workspace_size
from lampo.ops.experts import Routing, combine_experts, expert_linear, route_tokens
from lampo.ops.kv_cache import append_kv
from lampo.ops.linear import (
    PackedWeight,
    Weight,
    embedding,
    gate_and_up,
    linear,
    linear_temporary_bytes,
    linear_workspace_size,
    pack_weight,
    packed_strip_bytes,
    quantize_weight,
    weight_formats,
)
from lampo.ops.norm import layer_norm, rms_norm
from lampo.ops.recurrent import causal_conv, gated_delta, sigmoid_mul
from lampo.ops.sample_inputs import SampleInputs
from lampo.ops.sampling import sample, sampling_workspace_size, token_logprobs

__all__ = [
    "PackedWeight",
    "Routing",
    "SampleInputs",
    "Weight",
    "append_kv",
    "causal_conv",
    "combine_experts",
    "embedding",
    "expert_linear",
    "gate_and_up",
    "gated_delta",
    "gelu",
    "gelu_mul",
    "layer_norm",
    "linear",
    "linear_temporary_bytes",
    "linear_workspace_size",
    "merge_states",
    "pack_weight",
    "packed_strip_bytes",
    "paged_attention",
    "paged_attention_workspace_size",
    "quantize_weight",
    "rms_norm",
    "route_tokens",
    "sample",
    "sampling_workspace_size",
    "scale",
    "scale_by_position",
    "sigmoid_mul",
    "silu_mul",
    "token_logprobs",
    "weight_formats",
]
