# SPDX-License-Identifier: Apache-2.0
"""The native extension. lampo.ops documents its ops and is what other code calls.

Ops take their arguments by position, write into the tensors they are given, and return nothing.
tests/ops/test_stub.py compares this file with the extension.
"""

from collections.abc import Callable
from typing import Any, Protocol

class Tensor(Protocol):
    """Anything that speaks DLPack: arrays of torch, NumPy, JAX, CuPy."""

    def __dlpack__(self) -> Any: ...

__version__: str

# bindings/program.cpp
class Program:
    def __init__(self) -> None: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def replay(self) -> None: ...
    def profile(self) -> list[tuple[str, int, float]]: ...
    def __len__(self) -> int: ...

# bindings/elementwise.cpp
def rms_norm(
    x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor, eps: float, /
) -> None: ...
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    eps: float,
    /,
) -> None: ...
def silu_mul(gate_up: Tensor, out: Tensor, /) -> None: ...
def gelu_mul(gate_up: Tensor, out: Tensor, tanh_approximation: bool, /) -> None: ...
def gelu(x: Tensor, out: Tensor, tanh_approximation: bool, /) -> None: ...
def scale(x: Tensor, out: Tensor, factor: float, soft_cap: float, /) -> None: ...
def scale_by_position(
    x: Tensor, positions: Tensor, out: Tensor, beta: float, length: int, /
) -> None: ...

# bindings/recurrent.cpp
def sigmoid_mul(x: Tensor, gate: Tensor, out: Tensor, /) -> None: ...
def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    gate_in: Tensor | None,
    gate_out: Tensor | None,
    silu: bool,
    out: Tensor,
    /,
) -> None: ...
def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    decay: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    state_slots: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    tiled: bool,
    scale: float,
    gate: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    out: Tensor,
    /,
) -> None: ...

# bindings/linear.cpp
def linear(
    x: Tensor,
    weight: Tensor,
    activation_bits: int,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
    silu_mul: bool,
    accumulate: bool,
    out: Tensor,
    workspace: Tensor | None,
    /,
) -> None: ...
def linear_packed(
    x: Tensor,
    weight: Tensor,
    format: str,
    activation_bits: int,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
    silu_mul: bool,
    accumulate: bool,
    out: Tensor,
    workspace: Tensor,
    /,
) -> None: ...
def quantize_weight(weight: Tensor, format: str, blocks: Tensor, /) -> None: ...
def pack_weight(blocks: Tensor, format: str, out: Tensor, /) -> None: ...
def packed_block_bytes(format: str, /) -> int: ...
def packed_block_size(format: str, /) -> int: ...
def weight_formats() -> list[str]: ...
def packed_strip_bytes(format: str, in_features: int, /) -> int: ...
def linear_workspace_size(num_tokens: int, in_features: int) -> int: ...
def embedding(token_ids: Tensor, table: Tensor, out: Tensor, accumulate: bool, /) -> None: ...
def embedding_packed(
    token_ids: Tensor, table: Tensor, format: str, vocab_size: int, out: Tensor, accumulate: bool, /
) -> None: ...

# bindings/experts.cpp
def route_tokens(
    logits: Tensor,
    normalized: bool,
    experts: Tensor,
    weights: Tensor,
    rows: Tensor,
    x_rows: Tensor,
    offsets: Tensor,
    /,
) -> None: ...
def expert_linear(
    x: Tensor,
    weight: Tensor,
    format: str | None,
    activation_bits: int,
    bias: Tensor | None,
    offsets: Tensor,
    x_rows: Tensor | None,
    norm_weight: Tensor | None,
    norm_eps: float,
    silu_mul: bool,
    swiglu_limit: float,
    out: Tensor,
    workspace: Tensor,
    /,
) -> None: ...
def combine_experts(
    y: Tensor, rows: Tensor, weights: Tensor, accumulate: bool, out: Tensor, /
) -> None: ...

# bindings/attention.cpp
def append_kv(
    q: Tensor | None,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor | None,
    cos_sin: Tensor | None,
    interleaved: bool,
    hadamard: bool,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    /,
) -> None: ...
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    page_table: Tensor,
    seq_lens: Tensor,
    cu_seqlens_q: Tensor,
    softmax_scale: float,
    causal: bool,
    sliding_window: int,
    soft_cap: float,
    deterministic: bool,
    planned: bool,
    sinks: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    lse: Tensor | None,
    out: Tensor,
    workspace: Tensor,
    /,
) -> None: ...
def paged_attention_workspace_size(
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_seq_len: int,
    batch_size: int = 0,
    num_tokens: int = 0,
    deterministic: bool = False,
    cuda_device: int = -1,
) -> int: ...
def merge_states(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor, lse: Tensor | None, /
) -> None: ...

# bindings/runtime.cpp
def num_threads() -> int:
    """Threads that an op may use: LAMPO_NUM_THREADS, else one per usable core."""

def set_num_threads(count: int) -> None: ...
def cgroup_cpus(root: str = "") -> float:
    """CPUs that the cgroups of this process may use; 0 without a limit. root: of /proc and /sys."""

def usable_cores() -> int:
    """Physical cores of the process's affinity mask, within its cgroup's limit."""

def cpu_isa() -> str:
    """The kernel table in use: LAMPO_CPU_ISA, else the widest that this CPU runs."""

def set_cpu_isa(isa: str) -> None: ...
def compiled_isas() -> list[str]: ...
def runnable_isas() -> list[str]: ...
def peak_rate(products: str) -> float:
    """Operations per second of all threads with the kernels' widest instruction; 0: none.

    products: "f32", "bf16" or "int8".
    """

def cuda_info(measure_free: bool = False) -> dict[str, Any]:
    """Raw form of runtime.device.cuda_info(). Measuring free memory costs a context per device."""

def call_cost(
    t0: Tensor, t1: Tensor, t2: Tensor, t3: Tensor, t4: Tensor, t5: Tensor, /
) -> None: ...

# bindings/sampling.cpp
def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    seeds: Tensor | None,
    positions: Tensor | None,
    penalty_ids: Tensor | None,
    penalty_counts: Tensor | None,
    cu_penalties: Tensor | None,
    repetition_penalty: Tensor | None,
    presence_penalty: Tensor | None,
    frequency_penalty: Tensor | None,
    bias_ids: Tensor | None,
    bias_values: Tensor | None,
    cu_bias: Tensor | None,
    allowed_mask: Tensor | None,
    token_ids: Tensor,
    status: Tensor,
    logprobs: Tensor | None,
    kept: Tensor | None,
    num_kept: Tensor | None,
    processed_logprobs: Tensor | None,
    workspace: Tensor,
    /,
) -> None: ...
def token_logprobs(
    logits: Tensor,
    token_ids: Tensor,
    logprob: Tensor,
    rank: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    workspace: Tensor,
    /,
) -> None: ...
def sampling_workspace_size(vocab_size: int, cuda_device: int = -1, batch_size: int = 1) -> int: ...

# bindings/stream.cpp
def set_current_stream_function(function: Callable[[int], int]) -> None:
    """The function that names the stream for ops on a CUDA device: index -> cudaStream_t."""

def captured_nodes(cuda_device: int) -> int:
    """Nodes in the graph that is being captured on the device's current stream; 0: none is."""
