# SPDX-License-Identifier: Apache-2.0
"""Properties of every build, with CUDA or without, on machines with a GPU or without."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from dlpack_stub import CUDA, StubTensor

from lampo import _C
from lampo.runtime.device import CudaDevice, CudaInfo, cuda_info

# No machine has this one, so nothing is ever launched on a stub's memory.
NO_SUCH_DEVICE = (CUDA, 99)


def test_import_needs_no_cuda_library():
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not installed")
    text = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True).stdout
    linked = [line.split()[0] for line in text.splitlines()]
    assert not [name for name in linked if "cuda" in name or "torch" in name or "python" in name]
    assert "not found" not in text


def test_import_and_info_without_any_device():
    """CUDA_VISIBLE_DEVICES hides the GPUs of a machine that has some."""
    script = (
        "from lampo.runtime.device import cuda_info; i = cuda_info(True); print(i.usable, i.why)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(sys.path)},
        check=True,
    )
    assert result.stderr == ""
    assert result.stdout.startswith("False ")
    assert len(result.stdout.split()) > 3, "no reason given"


def test_info_is_consistent():
    info = cuda_info()
    assert info.decision.startswith("LAMPO_CUDA=")
    assert info.compiled == bool(info.architectures) == (info.runtime_version is not None)
    assert info.usable == any(device.usable for device in info.devices)
    if not info.compiled:
        assert info.decision in info.why
        assert not info.devices
    for index, device in enumerate(info.devices):
        assert device.index == index
        assert device.name
        assert device.num_sms > 0
        assert device.memory_total > 0
        assert device.memory_free is None
        assert device.usable == bool(device.kernel_image)
    assert _C.cuda_info() == _C.cuda_info(measure_free=False)


def test_describe():
    device = CudaDevice(0, "NVIDIA X", (9, 0), 132, 150_000_000_000, None, "sm_90a", "")
    info = CudaInfo(True, "LAMPO_CUDA=ON", "", ("80", "90a-real"), "13.0", "13.1", (device,))
    assert info.describe() == [
        "CUDA: yes (runtime 13.0, driver 13.1, built for 80, 90a-real)",
        "cuda:0 NVIDIA X, 9.0, 132 SMs, 150.0 GB, kernels: sm_90a",
    ]
    without = CudaInfo(False, "LAMPO_CUDA=OFF", "not compiled", (), None, None, ())
    assert without.describe() == ["CUDA: no: not compiled"]


@pytest.mark.parametrize(
    ("architectures", "capability", "image"),
    [
        (["80", "90a-real"], (8, 0), "sm_80"),
        (["80", "90a-real"], (8, 6), "sm_80"),  # machine code of the same major version
        (["80", "86", "89"], (8, 6), "sm_86"),
        (["89", "86", "80"], (8, 6), "sm_86"),
        (["80", "90a-real"], (9, 0), "sm_90a"),
        (["80", "90a-real"], (10, 0), "compute_80"),  # only PTX crosses major versions
        (["80", "90a-real"], (12, 0), "compute_80"),
        (["80-real", "90a-real"], (12, 0), ""),
        (["80-virtual"], (8, 0), "compute_80"),
        (["90", "90a-real"], (9, 0), "sm_90a"),
        (["90a"], (10, 0), ""),
        (["100f-real"], (10, 3), "sm_100f"),
        (["100f"], (12, 0), ""),
        (["80", "120"], (12, 1), "sm_120"),
        (["80", "90a-real"], (7, 5), ""),
        ([], (9, 0), ""),
    ],
)
def test_kernel_image(hooks, architectures, capability, image):
    assert hooks.kernel_image_for(architectures, *capability) == image


def test_default_architectures_cover_every_supported_gpu(hooks):
    for capability in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]:
        assert hooks.kernel_image_for(["80", "90a-real"], *capability)


def run_op(name: str) -> None:
    def stub(*shape: int) -> StubTensor:
        return StubTensor(shape, NO_SUCH_DEVICE)

    match name:
        case "rms_norm":
            _C.rms_norm(stub(2, 8), stub(8), None, stub(2, 8), 1e-6)
        case "silu_mul":
            _C.silu_mul(stub(2, 8), stub(2, 4))
        case "merge_states":
            _C.merge_states(stub(3, 2, 4, 8), stub(3, 2, 4), stub(2, 4, 8), stub(2, 4))
        case "gelu":
            _C.gelu(stub(2, 8), stub(2, 8), False)


@pytest.mark.parametrize("name", ["rms_norm", "silu_mul", "merge_states", "gelu"])
def test_unusable_cuda_tensor(name):
    info = cuda_info()
    if not info.compiled:
        expected = f"{name}: this build has no CUDA kernels .* rebuild with LAMPO_CUDA=ON"
    elif info.driver_version is None:
        expected = f"{name} on cuda:99: no NVIDIA driver is installed"
    elif info.devices:
        expected = f"{name} on cuda:99: there is no such device, this process sees"
    else:
        expected = f"{name} on cuda:99: "
    for _ in range(2):  # an error leaves nothing behind
        with pytest.raises(RuntimeError, match=expected):
            run_op(name)


def test_empty_cuda_tensor_needs_no_device():
    if not cuda_info().compiled:
        pytest.skip("this build has no CUDA backend")
    empty = StubTensor((0, 8), NO_SUCH_DEVICE)
    _C.rms_norm(empty, StubTensor((8,), NO_SUCH_DEVICE), None, empty, 1e-6)
    _C.silu_mul(empty, StubTensor((0, 4), NO_SUCH_DEVICE))


def test_devices_must_agree():
    x = StubTensor((2, 8), NO_SUCH_DEVICE)
    with pytest.raises(ValueError, match=r"weight: expected a tensor on cuda:99, got one on cpu"):
        _C.rms_norm(x, StubTensor((8,), (1, 0)), None, x, 1e-6)


@pytest.mark.parametrize("element_size", [2, 4])
def test_row_layout(hooks, element_size):
    per_vector = 16 // element_size
    for hidden_size in [*range(1, 3000, 7), 4096, 5120, 8192, 16384, 28672, 65536, 1 << 20]:
        threads, rows, rounds = hooks.row_layout(hidden_size, element_size)
        vectors = -(-hidden_size // per_vector)
        assert threads % 32 == 0
        assert 32 <= threads * rows <= 1024
        assert rows == 1 or threads == 32, "rows that share a block must not need its barrier"
        assert rounds in (0, 1, 2, 4)
        if rounds:
            assert threads * rounds >= vectors, "a vector nobody reads"
            assert threads * rounds < 2 * vectors + 64, "most threads idle"
        else:
            assert vectors > 2 * 1024
    assert hooks.row_layout(576, 2) == (32, 4, 4)
    assert hooks.row_layout(4096, 2) == (256, 1, 2)
    assert hooks.row_layout(65536, 2) == (1024, 1, 0)


SAMPLE_SCRATCH = 2048 * 12 + 4096 * 8  # bytes of a row: at least its histogram and its list


@pytest.mark.parametrize("num_sms", [4, 108, 132])
def test_sample_plan(hooks, num_sms):
    for vocab_size in (1, 256, 257, 5003, 32000, 128256, 1 << 23):
        blocks = -(-vocab_size // 256)
        previous = 0
        for batch_size in (0, 1, 2, 16, 64, 512, 4096):
            rows, parts, workspace, *raw = hooks.sample_plan(batch_size, vocab_size, num_sms)
            assert 1 <= parts <= 32
            assert parts <= blocks, "a part without tokens"
            assert rows <= batch_size
            assert rows == batch_size or rows * vocab_size * 4 <= 48 << 20 or rows == 1
            assert rows >= min(1, batch_size), "no progress"
            assert workspace >= max(previous, rows * vocab_size * 4)
            previous = workspace
            for element_bytes, raw_rows in zip((2, 4), raw, strict=True):
                assert min(rows, batch_size) <= raw_rows <= batch_size
                assert raw_rows * vocab_size * element_bytes <= 48 << 20 or raw_rows == rows
                assert raw_rows == rows or raw_rows * SAMPLE_SCRATCH <= workspace
    assert [hooks.sample_plan(n, 128256, 132)[:2] for n in (1, 64, 512)] == [
        (1, 32), (64, 9), (98, 6)
    ]  # fmt: skip
    assert hooks.sample_plan(512, 128256, 132)[3:] == (196, 98), "nothing is counted for copies"


@pytest.mark.parametrize("element_size", [2, 4])
def test_element_layout(hooks, element_size):
    per_vector = 16 // element_size
    for size in [*range(1, 5000, 3), 14336, 28672, 1 << 30]:
        threads, blocks = hooks.element_layout(size, element_size)
        vectors = -(-size // per_vector)
        assert threads % 32 == 0
        assert 32 <= threads <= 256
        assert threads * (blocks - 1) < vectors <= threads * blocks
    assert hooks.element_layout(192, 2) == (32, 1)
    assert hooks.element_layout(14336, 2) == (256, 7)


@pytest.mark.parametrize("shared_bytes", [227 << 10, 99 << 10])
@pytest.mark.parametrize("chunk_bytes", [40, 64, 72, 192])
@pytest.mark.parametrize("in_flight", [2, 4, 8, 12, 16])
def test_linear_tile(hooks, shared_bytes, chunk_bytes, in_flight):
    for tokens in (1, 2, 7, 8, 9, 15, 16, 17, 100):
        for in_features in (0, 1, 32, 577, 4096, 14336, 53248, 1 << 20):
            for columns, gated in ((1, False), (16, True), (2112, False), (6144, False)):
                tile = hooks.linear_tile(
                    *(tokens, in_features, columns, gated, chunk_bytes, in_flight),
                    *(132, shared_bytes),
                )
                chunks, strips = -(-in_features // 32), -(-columns // 16)
                assert 1 <= tile["tokens"] <= min(tokens, 16)
                assert tile["shared_bytes"] <= shared_bytes
                assert tile["num_groups"] == (strips if gated else -(-strips // tile["strips"]))
                assert tile["strips"] == 2 or not gated
                sums = 16 * tile["strips"] * tile["tokens"] * 20 * 4
                assert tile["x_bytes"] % 16 == 0, "what follows is not aligned"
                if tile["one_slab"]:
                    assert tile["slab_rounds"] * 16 >= chunks
                    assert tile["x_bytes"] >= chunks * tile["tokens"] * chunk_bytes
                    assert tile["shared_bytes"] >= tile["x_bytes"] + sums
                else:
                    assert tile["strips"] == 2, "one strip reloads x too often"
                    assert tile["slab_rounds"] > 0
                    assert tile["slab_rounds"] % (in_flight // 2) == 0, "a slab ends within a turn"
                    assert (
                        tile["x_bytes"] >= tile["slab_rounds"] * 16 * tile["tokens"] * chunk_bytes
                    )
                    assert tile["shared_bytes"] >= max(tile["x_bytes"], sums)


def test_linear_tile_examples(hooks):
    """The choices of csrc/cuda/linear/linear_tile.h for bfloat16 on 132 multiprocessors."""

    def tile(
        tokens: int, in_features: int, columns: int, shared: int = 227 << 10
    ) -> tuple[int, ...]:
        found = hooks.linear_tile(tokens, in_features, columns, False, 64, 4, 132, shared)
        names = ("strips", "tokens", "num_groups", "one_slab", "slab_rounds", "x_bytes")
        return [int(found[name]) for name in names]

    assert tile(1, 4096, 28672) == [2, 1, 896, 1, 8, 8 << 10]
    assert tile(16, 4096, 6144) == [1, 16, 384, 1, 8, 128 << 10]
    assert tile(16, 14336, 4096) == [2, 16, 128, 0, 14, 224 << 10]
    assert tile(16, 14336, 4096, 99 << 10) == [2, 16, 128, 0, 6, 96 << 10]
    assert tile(17, 4096, 4096)[1] == 16
