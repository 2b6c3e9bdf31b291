# SPDX-License-Identifier: Apache-2.0
"""The kernels of csrc/cuda/ as nvcc compiles them: PTX, translated to C++ and run on the CPU
(cuda_on_cpu/ptx/), against the kernels that g++ compiles, to the bit. Needs nvcc, no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_on_cpu.build import ARCHITECTURES, KERNELS_FROM_PTX, ptx_of
from cuda_on_cpu.ptx.build import demangle, short_name, translate

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
OPS = ("attention", "elementwise", "kv_cache", "linear", "recurrent", "sampling")
FILES = [HERE / f"test_cuda_on_cpu_{op}.py" for op in OPS]
# Every family of kernels, and the types of caches and weights.
CHOSEN = (
    "(test_rms_norm and (576 or 20000)) or (test_layer_norm and (576 or 20000))"
    " or (test_activation and 576) or (test_embedding and 64-3) or (test_merge_states and True-8)"
    " or (test_append_kv_with_norm and 64) or test_without_q or test_small_and_zero"
    " or (test_dense and 33) or (test_fused and True-True-True-3) or (test_packed and 544)"
    " or (test_shapes and 80) or (test_cache_dtypes and 80) or test_deterministic_splits"
    " or (test_options and soft_cap) or test_padding"
    " or (test_same_as_on_the_cpu and 2000) or (test_penalties and 1000)"
    " or test_without_optional or test_token_logprobs"
    " or test_causal_conv or (test_gated_delta and True) or test_sigmoid_mul"
)


def run_on_ptx(
    architecture: str, files: list[Path], chosen: str, log: Path
) -> tuple[int, set[str]]:
    """How many tests passed, and the kernels that they launched, without template arguments."""
    options = ["-m", "long", f"--ptx={architecture}", *(["-k", chosen] if chosen else [])]
    command = [sys.executable, "-m", "pytest", "-q", *options, *map(str, files)]
    environment = os.environ | {"PTX_LAUNCHED": str(log)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stdout[-6000:]
    launched = {short_name(name).split("<")[0] for name in log.read_text().splitlines()}
    return int(re.findall(r"(\d+) passed", ran.stdout)[-1]), launched


def families(architecture: str) -> set[str]:
    sources = [source for source in KERNELS_FROM_PTX if source.parent.name != "kernels"]
    kernels = [kernel for source in sources for kernel in translate(ptx_of(source, architecture))]
    assert len(kernels) > 140
    return {short_name(kernel.name).split("<")[0] for kernel in kernels}


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("ptx_client")
def test_every_kernel_once(tmp_path):
    passed, launched = run_on_ptx("sm_90a", FILES, CHOSEN, tmp_path / "launched")
    assert families("sm_90a") - launched == set()
    assert passed > 50


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all(architecture, file, ptx_client, tmp_path):
    passed, _ = run_on_ptx(architecture, [file], "", tmp_path / "launched")
    assert passed > 50


@pytest.mark.usefixtures("ptx_client")
def test_short_names():
    name = demangle(["_ZN5lampo4cuda12_GLOBAL__N_113linear_kernelINS_4BF16EfLi3ELi1ELb0EEEvl"])[0]
    assert short_name(f"linear.cu: {name}") == "linear_kernel<BF16, float, 3, 1, false>"
    name = "activation.cu: void activation_kernel<float, (lampo::Activation)0, true>(long)"
    assert short_name(name) == "activation_kernel<float, 0, true>"
