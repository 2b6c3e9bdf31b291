# SPDX-License-Identifier: Apache-2.0
"""The native extension. lampo.ops documents its ops and is what other code calls.

Ops take their arguments by position, write into the tensors they are given, and return nothing.
tests/test_stub.py compares this file with the extension.
"""

from collections.abc import Sequence
from typing import Any, Protocol

class Tensor(Protocol):
    """Anything that speaks DLPack: arrays of torch, NumPy, JAX, CuPy."""

    def __dlpack__(self) -> Any: ...

__version__: str

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

# bindings/linear.cpp
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, /) -> None: ...
def linear_packed(
    x: Tensor,
    weight: Tensor,
    format: str,
    bias: Tensor | None,
    out: Tensor,
    workspace: Tensor,
    /,
) -> None: ...
def pack_weight(blocks: Tensor, format: str, out: Tensor, /) -> None: ...
def packed_strip_bytes(format: str, in_features: int, /) -> int: ...
def linear_workspace_size(num_tokens: int, in_features: int) -> int: ...
def embedding(token_ids: Tensor, table: Tensor, out: Tensor, /) -> None: ...
def embedding_packed(
    token_ids: Tensor, table: Tensor, format: str, vocab_size: int, out: Tensor, /
) -> None: ...

# bindings/runtime.cpp
def num_threads() -> int:
    """Threads that an op may use: LAMPO_NUM_THREADS, else one per usable core."""

def set_num_threads(count: int) -> None: ...
def usable_cores() -> int:
    """Physical cores of the process's affinity mask, within its cgroup's limit."""

def cpu_isa() -> str:
    """The kernel table in use: LAMPO_CPU_ISA, else the widest that this CPU runs."""

def set_cpu_isa(isa: str) -> None: ...
def compiled_isas() -> list[str]: ...
def runnable_isas() -> list[str]: ...
def cuda_info(measure_free: bool = False) -> dict[str, Any]:
    """Raw form of lampo.device.cuda_info(). Measuring free memory costs a context per device."""

def cuda_kernel_image_for(architectures: Sequence[str], major: int, minor: int) -> str: ...
def cuda_row_layout(hidden_size: int, element_size: int) -> tuple[int, int, int]:
    """threads_per_row, rows_per_block, rounds."""

def cuda_element_layout(size: int, element_size: int) -> tuple[int, int]:
    """threads, blocks_per_row."""

def call_cost(
    t0: Tensor, t1: Tensor, t2: Tensor, t3: Tensor, t4: Tensor, t5: Tensor, /
) -> None: ...
