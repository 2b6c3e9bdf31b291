# SPDX-License-Identifier: Apache-2.0
"""Arrays that the native functions take and refuse; threads, forks and the environment."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from lampo import _C, ops


def gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x)


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds this lampo; a hang is an error."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        timeout=120,
    )


# Arrays


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 8), dtype=np.float32)


def test_numpy_in_and_out(x):
    out = np.empty_like(x)
    _C.gelu(x, out, False)
    np.testing.assert_allclose(out, gelu(torch.from_numpy(x)), rtol=1e-5, atol=1e-6)


def test_numpy_views(x):
    """Rows in any order and anywhere in memory; only the last dimension is contiguous."""
    table = np.random.default_rng(1).standard_normal((9, 20), dtype=np.float32)
    view = table[::-2, 3:11]
    out = np.zeros((10, 8), np.float32)
    _C.gelu(view, out[::2], False)
    np.testing.assert_allclose(out[::2], gelu(torch.from_numpy(view.copy())), rtol=1e-5, atol=1e-6)
    assert not out[1::2].any()


def test_torch_views_with_an_offset():
    whole = torch.randn(6, 20)
    view = whole[2:5, 7:15]
    assert view.storage_offset()
    out = torch.zeros(5, 9)
    _C.gelu(view, out[1:4, 1:], False)
    torch.testing.assert_close(out[1:4, 1:], gelu(view))
    assert not out[0].any()
    assert not out[4].any()
    assert not out[:, 0].any()


def test_read_only_arrays(x):
    x.flags.writeable = False
    out = np.empty_like(x)
    _C.gelu(x, out, False)  # may be read
    before = x.copy()
    with pytest.raises(ValueError, match=r"^out: is written, but the array is read-only$"):
        _C.gelu(out, x, False)
    np.testing.assert_array_equal(x, before)


class Exporter:
    """A bare object with __dlpack__, as other frameworks' arrays are."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        return self._tensor.__dlpack__(max_version=max_version)


class OldExporter(Exporter):
    """Before DLPack 1.0: no max_version, an unversioned capsule."""

    def __dlpack__(self, *, stream: Any = None) -> Any:  # type: ignore[override]
        return self._tensor.__dlpack__()


@pytest.mark.parametrize("wrap", [Exporter, OldExporter])
def test_other_arrays(wrap):
    tensor, out = torch.randn(4, 8), torch.zeros(4, 8)
    _C.gelu(wrap(tensor), wrap(out), False)
    torch.testing.assert_close(out, gelu(tensor))


def test_arrays_are_released():
    """References to arguments are released after a call, also after a refused one."""
    tensor, out = torch.randn(4, 8), torch.zeros(4, 8)
    before = sys.getrefcount(tensor), sys.getrefcount(out)
    for wrap in (lambda t: t, Exporter, OldExporter):
        _C.gelu(wrap(tensor), wrap(out), False)
        with pytest.raises(ValueError, match="out: expected shape"):
            _C.gelu(wrap(tensor), wrap(out[:2]), False)
    assert (sys.getrefcount(tensor), sys.getrefcount(out)) == before


def test_parameters_and_tensors_that_require_gradients():
    """Inference: they are read as data, and nothing is recorded for autograd."""
    tensor = torch.randn(4, 8, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(8))
    out = ops.rms_norm(tensor, weight, 1e-6)
    assert not out.requires_grad
    expected = torch.nn.functional.rms_norm(tensor, (8,), weight, 1e-6)
    torch.testing.assert_close(out, expected.detach())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: [1.0], TypeError, "expected a tensor .*__dlpack__.*, got list"),
        (lambda: None, TypeError, "expected a tensor .*, got NoneType"),
        (lambda: np.zeros((), np.float32), ValueError, r"expected shape \[\*, \*\], got \[\]"),
        (lambda: np.zeros((1,) * 6, np.float32), ValueError, r"got \[1, 1, 1, 1, 1, 1\]"),
        (lambda: np.zeros((1,) * 7, np.float32), ValueError, "at most 6 dimensions, got 7"),
        (lambda: np.zeros((4, 8), np.float64), TypeError, r"unsupported dtype .*64 bits"),
        (lambda: np.zeros((4, 8), np.complex64), TypeError, "unsupported dtype"),
        (lambda: np.zeros((4, 8), ">f4"), TypeError, "cannot be read by DLPack: .*byte order"),
        (lambda: np.zeros((4, 8), np.float32)[:, ::-1], ValueError, "contiguous last .*stride -1"),
        (lambda: torch.zeros(4, 8, device="meta"), TypeError, "cannot be read by DLPack: "),
        (lambda: torch.zeros(4, 8).to_sparse(), TypeError, "cannot be read by DLPack: "),
    ],
)
def test_refused(make, error, message):
    """One line that starts with the argument's name."""
    with pytest.raises(error, match=f"^x: .*{message}") as caught:
        _C.gelu(make(), np.zeros((4, 8), np.float32), False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda: 3, "did not return a DLPack capsule"),
        (lambda: 1 // 0, "cannot be read by DLPack: integer division or modulo by zero"),
        (lambda: len(3), "cannot be read by DLPack: object of type 'int' has no len"),  # type: ignore[arg-type]
    ],
)
def test_exporters_that_fail(result, message):
    class Broken:
        def __dlpack__(self, **kwargs: Any) -> Any:
            return result()

    with pytest.raises(TypeError, match=f"^x: .*{message}"):
        _C.gelu(Broken(), np.zeros((4, 8), np.float32), False)


# Threads and processes


# activation_bits, bias, norm_weight, norm_eps, silu_mul, accumulate of linear
PLAIN = (16, None, None, 0.0, False, False)


def test_the_gil_is_released():
    """Another Python thread goes on while one op runs for a second or so."""
    rows = 64
    table = torch.zeros(1 << 12, 1 << 12)
    elapsed = 0.0
    while elapsed < 0.5:  # as many rows as take long enough on this machine
        rows *= 2
        x, out = torch.zeros(rows, 1 << 12), torch.zeros(rows, 1 << 12)
        start = time.perf_counter()
        _C.linear(x, table, *PLAIN, out, None)
        elapsed = time.perf_counter() - start
    op = threading.Thread(target=_C.linear, args=(x, table, *PLAIN, out, None))
    ticks = 0
    op.start()
    while op.is_alive():
        time.sleep(0.005)
        ticks += 1
    op.join()
    assert ticks >= 10


def test_concurrent_calls():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 64, generator=generator)
    inputs = [torch.randn(n, 64, generator=generator) for n in range(1, 65)]
    expected = [ops.linear(x, weight) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = pool.map(lambda x: ops.linear(x, weight), inputs)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_thread_count_changes_under_way():
    """Nothing breaks when one thread changes the team's size while others run ops."""
    x, weight = torch.randn(33, 64), torch.randn(96, 64)
    expected = ops.linear(x, weight)
    before = _C.num_threads()
    try:
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(ops.linear, x, weight) for _ in range(200)]
            for count in (1, 3, 2, 4, 1, 2) * 5:
                _C.set_num_threads(count)
            assert all(torch.equal(job.result(), expected) for job in jobs)
    finally:
        _C.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use():
    """The child has no worker threads, so it starts its own; the parent keeps its own."""
    script = """
import os, numpy as np
from lampo import _C
_C.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((64, 512), dtype=np.float32)
w = np.random.default_rng(1).standard_normal((512, 512), dtype=np.float32)
def product():
    out = np.zeros((64, 512), np.float32)
    _C.linear(x, w, 16, None, None, 0.0, False, False, out, None)
    return out.tobytes()
expected = product()
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if product() == expected else 3)
    assert product() == expected
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("ok")
"""
    result = run_python(script)
    assert (result.stdout, result.returncode) == ("ok\n", 0), result.stderr


# The environment

CALL = """
import numpy as np
from lampo import _C
x = np.zeros((1024, 64), np.float32)
try:
    _C.gelu(x, x, False)
    print(_C.num_threads(), _C.cpu_isa())
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("count", ["0", "-1", "two", "2.5", "1025", "99999999999999999999", " "])
def test_bad_thread_count(count):
    result = run_python(CALL, LAMPO_NUM_THREADS=count)
    expected = "ValueError: LAMPO_NUM_THREADS: expected an integer in [1, 1024], got "
    assert result.stdout == f"{expected}'{count}'\n", result.stderr


def test_thread_count_from_the_environment():
    assert run_python(CALL, LAMPO_NUM_THREADS="3").stdout.split()[0] == "3"
    assert run_python(CALL, LAMPO_NUM_THREADS="").stdout.split()[0] == str(_C.usable_cores())


@pytest.mark.parametrize("isa", ["avx1024", "AVX2", "baseline "])
def test_unknown_isa(isa):
    result = run_python(CALL, LAMPO_CPU_ISA=isa)
    assert result.stdout.startswith("ValueError: LAMPO_CPU_ISA"), result.stdout
    assert f"'{isa}'" in result.stdout
    assert "baseline" in result.stdout


def test_isa_from_the_environment():
    for isa in _C.compiled_isas():
        result = run_python(CALL, LAMPO_CPU_ISA=isa)
        if isa in _C.runnable_isas():
            assert result.stdout.split()[1] == isa
        else:
            assert "LAMPO_CPU_ISA" in result.stdout
            assert "this CPU lacks its instructions" in result.stdout


def test_bad_values_at_run_time():
    with pytest.raises(ValueError, match=r"num_threads: expected .*\[1, 1024\], got 0"):
        _C.set_num_threads(0)
    with pytest.raises(ValueError, match="isa"):
        _C.set_cpu_isa("sse")


@pytest.mark.parametrize("visible", ["junk", "", "0,0", "99"])
def test_import_with_a_broken_cuda_environment(visible):
    script = "import lampo; from lampo.runtime.device import cuda_info; print(lampo.__version__)"
    result = run_python(script, CUDA_VISIBLE_DEVICES=visible, CUDA_HOME="/does/not/exist")
    assert (result.stdout, result.returncode) == (f"{_C.__version__}\n", 0), result.stderr


def test_import_is_light():
    """`import lampo` alone loads neither torch nor NumPy."""
    script = "import lampo, sys; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert run_python(script).stdout == "[]\n"


def test_a_team_without_waits_keeps_all_threads(hooks):
    sizes = hooks.team_sizes(
        num_jobs=100, time=5_000_000, waited=[0.0] * 3 + [0.1], late=[0, 0, 0, 1]
    )
    assert set(sizes) == {4}


def test_a_team_leaves_out_late_threads_and_tries_them_again(hooks):
    """Two of 8 threads have lost their cores: 6 compute, with trials after growing pauses."""
    waited, late = [0.0] * 6 + [0.7, 0.8], [0] * 6 + [1, 2]
    sizes = hooks.team_sizes(num_jobs=2000, time=5_000_000, waited=waited, late=late)
    assert sizes[:4] == [8] * 4  # 20 ms decide
    assert sizes[4] == 6
    trials = [i for i in range(1, 2000) if sizes[i] == 8 and sizes[i - 1] == 6]
    pauses = [b - a for a, b in itertools.pairwise(trials)]
    assert pauses == sorted(pauses) and pauses[0] * 5 <= 150 and 1600 <= pauses[-1] * 5 <= 1700
    assert sizes.count(6) > 1900


def test_short_jobs_do_not_count(hooks):
    sizes = hooks.team_sizes(num_jobs=1000, time=900_000, waited=[0.0, 0.9], late=[0, 1])
    assert set(sizes) == {2}


def test_a_team_of_one_is_the_least(hooks):
    sizes = hooks.team_sizes(num_jobs=30, time=5_000_000, waited=[0.0, 0.9], late=[0, 1])
    assert min(sizes) == 1 and sizes[0] == 2


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"": "max 100000"}, 0),
        ("0::/\n", {"": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b": "max 100000", "a": "200000 100000", "": "400000 100000"}, 2),
        ("0::/of/the/host\n", {"": "50000 100000"}, 0.5),
        ("0::/\n", {}, 0),
        ("", {"": "50000 100000"}, 0),
        ("4:memory:/x\n3:cpu,cpuacct:/a/b\n", {"cpu/a/b": -1, "cpu/a": 300000, "cpu": -1}, 3),
        ("3:cpu:/of/the/host\n0::/\n", {"cpu": 100000, "": "max 100000"}, 1),
        ("3:cpuset:/a\n", {"cpu/a": 100000}, 0),
    ],
)
def test_quotas_of_cgroups(tmp_path, groups, files, expected):
    """Versions 1 and 2; the smallest of all groups above; paths of the host in a container."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, quota in files.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(quota, str):
            (folder / "cpu.max").write_text(f"{quota}\n")
        else:
            (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert _C.cgroup_cpus(str(tmp_path)) == expected
