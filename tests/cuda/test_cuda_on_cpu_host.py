# SPDX-License-Identifier: Apache-2.0
"""The host's side of CUDA on two simulated GPUs: streams, devices, graphs, memory."""

from __future__ import annotations

import gc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from test_binding import run_python

from cuda_on_cpu import device as simulated
from lampo import _C, LLM, SamplingParams, ops
from lampo.engine.memory_plan import MemoryPlan, plan_memory

pytestmark = pytest.mark.long

SHAPE = {"page_size": 16, "max_num_seqs": 4, "max_model_len": 128}
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = ["a", "Hello, world", "x" * 40]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(folder)
    return folder


def token_ids(llm: LLM) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in llm.generate(PROMPTS, PARAMS)]


# Streams


def test_ops_run_on_torchs_current_stream(simulated_gpu, cuda_kernels: ModuleType) -> None:
    cuda_kernels.take_host_calls()
    for gpu in simulated.GPUS:
        ops.silu_mul(torch.randn(3, 8).to(gpu))
        stream = torch.cuda.current_stream(gpu).cuda_stream
        assert stream != 0
        assert cuda_kernels.take_host_calls()["launches"] == [(gpu.index, stream)]


def test_an_unknown_stream_is_refused() -> None:
    ran = run_python(
        """
import numpy as np
from lampo import _C
class OnGpu(np.ndarray):
    def __dlpack_device__(self):
        return 2, 0
x = np.zeros((2, 8), np.float32).view(OnGpu)
try:
    _C.gelu(x, x, False)
except TypeError as error:
    print(error)
"""
    )
    assert "the current stream of cuda:0 is unknown: import lampo.ops" in ran.stdout, ran.stderr


def test_the_null_stream_is_named_as_dlpack_names_it() -> None:
    ran = run_python(
        """
import numpy as np
from lampo import _C, ops
class OnGpu(np.ndarray):
    def __dlpack_device__(self):
        return 2, 0
    def __dlpack__(self, **options):
        print(options)
        return np.asarray(self).__dlpack__()
x = np.zeros((2, 8), np.float32).view(OnGpu)
_C.gelu(x, x, False)
_C.set_current_stream_function(lambda device: 0x70)
_C.gelu(x, x, False)
"""
    )
    passed = [f"{{'max_version': (1, 0), 'stream': {stream}}}" for stream in (1, 1, 0x70, 0x70)]
    assert sorted(ran.stdout.splitlines()) == sorted(passed), ran.stderr


# Devices


def test_no_context_on_a_device_that_was_never_used(simulated_gpu, cuda_kernels) -> None:
    ops.silu_mul(torch.randn(3, 8).to(simulated.GPUS[0]))
    cuda_kernels.take_host_calls()
    ops.silu_mul(torch.randn(3, 8).to(simulated.GPUS[1]))
    assert cuda_kernels.take_host_calls()["contexts"] == {1}, "the device before had none"


def test_limits_of_shared_memory_are_raised_once(simulated_gpu, cuda_kernels) -> None:
    """To the device's: two threads that set what their launches need would lower each other's."""

    def attend(head_dim: int) -> None:
        q = torch.zeros(40, 2, head_dim, dtype=torch.bfloat16, device=simulated_gpu)
        cache = torch.zeros(3, 2, 16, head_dim, dtype=torch.bfloat16, device=simulated_gpu)
        pages = torch.arange(3, dtype=torch.int32, device=simulated_gpu)[None]
        lens = torch.tensor([40], dtype=torch.int32, device=simulated_gpu)
        starts = torch.tensor([0, 40], dtype=torch.int32, device=simulated_gpu)
        ops.paged_attention(q, cache, cache, pages, lens, starts)

    cuda_kernels.take_host_calls()
    for head_dim in (64, 128, 256):
        attend(head_dim)
    first = cuda_kernels.take_host_calls()["shared_limits"]
    for head_dim in (128, 256, 64):
        attend(head_dim)
    assert set(first) <= {227 << 10}
    assert cuda_kernels.take_host_calls()["shared_limits"] == []


def test_two_models_on_two_devices(path: Path, simulated_gpu, cuda_kernels) -> None:
    with LLM(path, device="cuda:0", **SHAPE) as llm:
        expected = token_ids(llm)
    simulated.graphs.clear()
    simulated.pinned_by.clear()
    cuda_kernels.take_host_calls()
    with LLM(path, device="cuda:1", **SHAPE) as second:
        assert token_ids(second) == expected
        calls = cuda_kernels.take_host_calls()
        assert {device for device, _ in calls["launches"]} == {1}
        assert calls["contexts"] <= {1}
        assert simulated.pinned_by == {1}, "memory is pinned in the context that uses it"
        assert simulated.graphs
        for graph in simulated.graphs:
            assert len(graph) > 0
            assert graph.stream.index == 1
            assert graph.mode == "thread_local", "the other model's thread may allocate meanwhile"
        with LLM(path, device="cuda:0", **SHAPE) as first:
            assert token_ids(first) == expected
            assert token_ids(second) == expected


# Graphs


def test_steps_are_captured_at_load(path: Path, simulated_gpu) -> None:
    """Those of all sizes: no request waits for a capture, unless it wants log-probabilities."""
    lines: list[str] = []
    with LLM(path, device="cuda", **SHAPE, on_progress=lines.append) as llm:
        assert [line for line in lines if line.startswith("capturing")] == [
            f"capturing decode steps {done} / 3" for done in (1, 2, 3)
        ]
        assert len(simulated.graphs) == 3
        token_ids(llm)
        assert len(simulated.graphs) == 3
        llm.generate("a", SamplingParams(max_tokens=3, logprobs=1, ignore_eos=True))
        assert len(simulated.graphs) == 4


@pytest.mark.parametrize("failure", ["empty", "refused"])
def test_a_step_that_is_not_captured_is_called(
    path: Path, simulated_gpu, monkeypatch, caplog, failure: str
) -> None:
    with LLM(path, device="cuda", **SHAPE) as llm:
        expected = token_ids(llm)
    if failure == "empty":  # the work went to another stream
        monkeypatch.setattr(_C, "captured_nodes", lambda _: 1)
    else:
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: 1 / 0)
    with LLM(path, device="cuda", **SHAPE) as llm:
        assert token_ids(llm) == expected
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [w.split(" could not")[0] for w in warnings] == [
        f"the decode step of {rows} sequences" for rows in (4, 2, 1)
    ], "once per size"
    why = "nodes of the graph" if failure == "empty" else "division by zero"
    assert all(why in w for w in warnings)


def test_launches_of_a_decode_step(tmp_path: Path, simulated_gpu, cuda_kernels) -> None:
    """A layer: q, k and v with their norm; rotation and cache; attention; its output; gate and up
    with norm and activation; down. All layers share the plan of attention; one launch draws."""
    for layers in (1, 3):
        folder = tmp_path / str(layers)
        folder.mkdir()
        make_checkpoint(folder, num_hidden_layers=layers)
        with LLM(folder, device="cuda", page_size=16, max_num_seqs=1, max_model_len=32) as llm:
            counts = []
            for max_tokens in (3, 4):
                cuda_kernels.take_host_calls()
                llm.generate("a", SamplingParams(max_tokens=max_tokens, ignore_eos=True))
                counts.append(len(cuda_kernels.take_host_calls()["launches"]))
        around = ["embedding", "plan", "LM head", "draw"]
        assert counts[1] - counts[0] == 6 * layers + len(around)


def test_launches_of_sample(simulated_gpu, cuda_kernels) -> None:
    """One for few rows that are not edited; a launch for each pass over many."""

    def launches(rows: int, **options: torch.Tensor) -> int:
        cuda_kernels.take_host_calls()
        per_row = {"temperature": torch.ones(rows), "top_p": torch.full((rows,), 0.9)}
        per_row |= {"seeds": torch.arange(rows)}
        there = {name: value.to(simulated_gpu) for name, value in (per_row | options).items()}
        ops.sample(torch.randn(rows, 300).to(simulated_gpu), **there)
        return len(cuda_kernels.take_host_calls()["launches"])

    assert launches(1) == 1
    assert launches(1, allowed_mask=torch.full((1, 10), -1, dtype=torch.int32)) == 2
    assert launches(2) == 4, "two clusters are more than the simulated GPU holds at once"


def test_prompts_do_not_read_the_weight_for_every_16_rows(simulated_gpu, cuda_kernels) -> None:
    """Where lampo's own kernel multiplies: float16 is not given to cuBLAS."""
    x = torch.randn(150, 64).half().to(simulated_gpu)
    weight = torch.randn(32, 64).half().to(simulated_gpu)
    cuda_kernels.take_host_calls()
    ops.linear(x, weight, out=torch.empty(150, 32, device=simulated_gpu))
    assert len(cuda_kernels.take_host_calls()["launches"]) == 1


# Memory


def test_prompts_do_not_wait_for_copies(path: Path, simulated_gpu) -> None:
    """Inputs and results of a step of prompts cross in pinned blocks."""
    with LLM(path, device="cuda", **SHAPE) as llm:
        simulated.blocking.clear()
        llm.generate(
            PROMPTS,
            SamplingParams(
                **{"max_tokens": 3, "ignore_eos": True, "logprobs": 2, "prompt_logprobs": 1},
                **{"repetition_penalty": 1.2, "logit_bias": {3: 1.0}, "min_tokens": 2},
            ),
        )
        assert simulated.blocking == []


@pytest.mark.parametrize("kv_cache_dtype", ["bfloat16", "int8"])
def test_memory_is_as_planned(
    path: Path, simulated_gpu, monkeypatch, caplog, kv_cache_dtype: str
) -> None:
    """At load all but temporary memory is allocated; no sequence of prompts changes that."""
    plans: list[MemoryPlan] = []

    def plan(*args: Any, **options: Any) -> MemoryPlan:
        plans.append(plan_memory(*args, **options))
        return plans[-1]

    monkeypatch.setattr("lampo.llm.plan_memory", plan)
    shape = SHAPE | {"max_num_batched_tokens": 48}
    gc.collect()
    before = simulated.allocations.most[0] = simulated.allocations.allocated[0]
    with LLM(path, device="cuda", kv_cache_dtype=kv_cache_dtype, **shape) as llm:
        (found,) = plans
        cache = found.num_pages * found.page_bytes
        for count in (1, 2, 4):  # the steps of all sizes that return log-probabilities
            llm.generate(["a"] * count, SamplingParams(max_tokens=2, ignore_eos=True, logprobs=0))
        held = simulated.allocations.allocated[0] - before
        for lengths in ([1], [100], [3, 90, 1, 17], [50, 50, 50], [2] * 9, [120, 1, 120]):
            prompts = [[5] * n for n in lengths]
            llm.generate(prompts, SamplingParams(max_tokens=4, ignore_eos=True))
            llm.generate(prompts[:1], SamplingParams(max_tokens=1, prompt_logprobs=0))
        assert held == found.weights + found.held + cache
        most = simulated.allocations.most[0] - before
        assert held < most <= held + found.temporary
        assert simulated.allocations.allocated[0] - before == held
