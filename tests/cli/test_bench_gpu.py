# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmarks, tried out on the CPU: whole runs of tiny cases, and what they refuse."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_gpu_attention
import bench_gpu_decode
import bench_gpu_linear
import bench_gpu_sample
import gpu
import make_random_model
from lampo.bench import gpu_peers, timing

LAMPO = {"lampo", "lampo deterministic"}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a script's main() and returns its result file and its exit code."""

    def main(script, *arguments):
        path = tmp_path / "result.json"
        words = ["x.py", *arguments, "--device=cpu", "--quick", "--repeats=1", f"--json={path}"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            script.main()
        return json.loads(path.read_text()), ended.value.code

    monkeypatch.setenv("LAMPO_NUM_THREADS", "2")  # a script sets it
    # Not what is installed here, but torch alone.
    names = ("SDPA flash", "SDPA cuDNN")
    monkeypatch.setattr(gpu_peers, "ATTENTION", {n: gpu_peers.ATTENTION[n] for n in names})
    monkeypatch.setattr(gpu_peers, "SAMPLING", {"sort": gpu_peers.SAMPLING["sort"]})
    return main


def test_attention(run):
    document, code = run(bench_gpu_attention)
    assert code == 0
    assert [case["case"] for case in document["cases"]] == [
        case.name for case in bench_gpu_attention.QUICK
    ]
    decode, ragged, prefill = document["cases"]
    for case in document["cases"]:
        assert case["us"] > 0
        assert 0 < case["relative_error"]["lampo"] < bench_gpu_attention.MAX_ERROR
    for case in (decode, prefill):
        assert case["best peer"] == "SDPA flash"
        assert set(case["time_us"]) == {*LAMPO, "SDPA flash"}
    assert "best peer" not in ragged
    assert decode["MB"] == pytest.approx((200 * 4 * 8 * 128 + 2 * 2 * 2 * 32 * 128) / 1e6)
    assert prefill["TFLOP/s"] == pytest.approx(
        4 * 2 * 70 * 71 / 2 * 32 * 128 / prefill["us"] / 1e6, rel=1e-6
    )
    assert any("cuDNN is left out" in note for note in document["notes"])
    assert len(document["checks"]) == 1
    assert len(document["limits"]) == 2


def test_attention_leaves_out_who_disagrees(run, monkeypatch):
    def wrong(problem):
        peer = gpu_peers.sdpa_attention(problem, gpu_peers.SDPBackend.FLASH_ATTENTION)
        return gpu_peers.Peer(peer.prepare, lambda tensors: peer.run(tensors) * 1.05)

    monkeypatch.setitem(gpu_peers.ATTENTION, "SDPA flash", wrong)
    document, code = run(bench_gpu_attention, "--cases=decode 2")
    assert code == 0
    (case,) = document["cases"]
    assert set(case["time_us"]) == LAMPO
    assert any("SDPA flash is left out of decode" in note for note in document["notes"])
    document, _ = run(bench_gpu_attention, "--cases=decode 2", "--peers=SDPA c")
    assert not any("SDPA flash" in note for note in document["notes"])


def test_attention_times_nothing_wrong(run, monkeypatch):
    ours = bench_gpu_attention.lampo_attention

    def wrong(problem, **options):
        peer = ours(problem, **options)
        return gpu_peers.Peer(peer.prepare, lambda tensors: peer.run(tensors) * 1.05)

    monkeypatch.setattr(bench_gpu_attention, "lampo_attention", wrong)
    document, code = run(bench_gpu_attention)
    assert "3 cases failed" in code
    assert document["cases"] == document["checks"] == []


def test_skewed_batches_have_as_many_tokens():
    lens = {case.name: case.seq_lens for case in bench_gpu_attention.CASES}
    uniform = lens[bench_gpu_attention.UNIFORM]
    for name in bench_gpu_attention.SKEWED:
        assert sum(lens[name]) == sum(uniform)
        assert len(lens[name]) == len(uniform)
        assert max(lens[name]) > 5 * max(uniform)
        assert min(lens[name]) > 0


def test_names_of_absent_arguments():
    arguments = [SimpleNamespace(name=name) for name in ("q", "k_new", "out")]

    class Op:
        default = SimpleNamespace(_schema=SimpleNamespace(arguments=arguments))

        def __call__(self, **given):
            return given

    assert gpu_peers.call(Op(), q=1, out=2) == {"q": 1, "k_new": None, "out": 2}
    assert gpu_peers.call(Op(), q=1, typo=2)["typo"] == 2  # which a real op refuses


def test_sample(run, monkeypatch):
    monkeypatch.setattr(bench_gpu_sample, "VOCAB", 1000)
    document, code = run(bench_gpu_sample)
    assert code == 0
    assert [(case["batch"], case["cache"]) for case in document["cases"]] == [
        (batch, cache) for batch in bench_gpu_sample.QUICK_BATCHES for cache in ("cold", "warm")
    ]
    for case in document["cases"]:
        assert case["us"] > 0
        assert case["x sort"] > 0
        assert case["drawn_outside_of_the_nucleus"] == {"sort": 0}


def test_sample_times_nothing_wrong(run, monkeypatch):
    monkeypatch.setattr(bench_gpu_sample, "VOCAB", 1000)
    sampler = bench_gpu_sample.Sampler.__call__

    def wrong(self, logits, **more):
        return sampler(self, logits * 1.2, **more)

    monkeypatch.setattr(bench_gpu_sample.Sampler, "__call__", wrong)
    document, code = run(bench_gpu_sample)
    assert "4 cases failed" in code
    assert document["cases"] == []


def test_linear(run):
    document, code = run(bench_gpu_linear)
    assert code == 0
    for case in document["cases"]:
        assert case["us"] > 0
        assert case["x torch"] > 0
        many = case["rows"] >= bench_gpu_linear.DEQUANTIZED_FROM
        assert ("x dequantized" in case) == (many and case["format"] != "bf16")
    assert {case["format"] for case in document["cases"]} == set(bench_gpu_linear.FORMATS)


@pytest.mark.parametrize("weight_format", ["bf16", "q4_0", "q4_1", "q8_0"])
def test_model(run, tmp_path, weight_format):
    """A random model, written, loaded, compared with its reference, and timed."""
    folder = tmp_path / "tiny"
    if weight_format == "bf16":
        nbytes = make_random_model.write_model("tiny", folder)
    else:
        nbytes = make_random_model.write_packed_model("tiny", folder, weight_format)
    document, code = run(bench_gpu_decode, str(folder))
    assert code == 0
    assert len(document["checks"]) == 1
    prefill, decode = document["cases"]
    assert prefill["tok/s"] == pytest.approx(64e3 / prefill["first token ms"])
    assert decode["tok/s"] == pytest.approx(3e3 / decode["step ms"])
    assert decode["graph ms"] > 0
    assert 0.9 * nbytes < decode["cost"]["bytes"] < 2 * nbytes


@pytest.mark.parametrize("weight_format", make_random_model.BLOCK_BYTES)
def test_random_blocks_have_no_bias(weight_format):
    from lampo import ops

    blocks = make_random_model.random_blocks(weight_format, 64, 2048)
    weights = ops.embedding(torch.arange(64), ops.pack_weight(blocks, weight_format))
    assert 0.01 < float(weights.std()) < 0.05
    assert abs(float(weights.mean())) < 0.15 * float(weights.std())


def test_random_models_repeat_and_vary(tmp_path):
    for name in "ab":
        make_random_model.write_model("tiny", tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    from lampo.models.checkpoint import load_checkpoint

    with load_checkpoint(tmp_path / "a") as checkpoint:
        rows = checkpoint.load("model.layers.0.mlp.up_proj.weight").float()
        gate = checkpoint.load("model.layers.0.mlp.gate_proj.weight").float()
    assert float(rows.std() * rows.shape[1] ** 0.5) == pytest.approx(1, abs=0.05)
    assert not torch.equal(rows, gate)


@pytest.fixture
def device(monkeypatch):
    """A CPU in the role of a GPU, with lists of calls as graphs."""
    notes: list[str] = []
    options = SimpleNamespace(device="cpu", repeats=3)
    device = gpu.Device(options, SimpleNamespace(note=notes.append))
    device.on_gpu = True
    monkeypatch.setattr(timing, "cuda_graph", lambda fn: fn)
    return device, notes


def test_time_of_a_call_is_that_of_a_graph_over_its_calls(device, monkeypatch):
    device, notes = device
    monkeypatch.setattr(timing, "sample", lambda fn, inner, device: 6.0)
    calls = {"lampo": [lambda: None] * 3, "peer": [lambda: None] * 2}
    times = device.seconds(calls)
    assert {name: series.values for name, series in times.items()} == {
        "lampo": (2.0,) * 3,
        "peer": (3.0,) * 3,
    }
    assert notes == []


def test_what_cannot_be_captured_or_called_is_noted(device, monkeypatch):
    device, notes = device

    def fail() -> None:
        raise ValueError("no such head")

    def graph(fn):
        raise RuntimeError("not while capturing")

    monkeypatch.setattr(timing, "cuda_graph", graph)
    times = device.seconds({"lampo": [lambda: None], "peer": [fail]})
    assert set(times) == {"lampo"}
    assert [note.split(":")[0] for note in notes] == [
        "lampo is timed with its launches, as it was not captured",
        "peer is timed with its launches, as it was not captured",
        "peer is left out",
    ]
    with pytest.raises(RuntimeError, match="lampo failed"):
        device.seconds({"lampo": [fail]})


def test_buffers_exceed_the_cache(device):
    device, _ = device
    device.cover = 1000
    assert len(device.rotating(object, 100)) == 11
    assert len(device.rotating(object, 5000)) == 2
    assert len(device.rotating(object, 100, warm=True)) == 1


@pytest.mark.long
def test_sample_on_a_simulated_gpu(simulated_gpu, tmp_path, monkeypatch):
    """Features of GPUs alone: captured calls that never wait for the host, timed by events."""

    class Event:
        def __init__(self, enable_timing):
            self.at = 0.0

        def record(self):
            torch.cuda.synchronize()
            self.at = time.perf_counter()

        def synchronize(self):
            torch.cuda.synchronize()

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    side = SimpleNamespace(wait_stream=lambda _: None)
    properties = SimpleNamespace(
        name="simulated", total_memory=1 << 30, L2_cache_size=1 << 12, multi_processor_count=4
    )
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: side)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(gpu.Device, "copy_rate", lambda _: 1e9)
    monkeypatch.setattr(gpu_peers, "SAMPLING", {"sort": gpu_peers.SAMPLING["sort"]})
    monkeypatch.setattr(bench_gpu_sample, "VOCAB", 1000)
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["x.py", "--quick", "--repeats=1", f"--json={path}"])
    with pytest.raises(SystemExit) as ended:
        bench_gpu_sample.main()
    document = json.loads(path.read_text())
    assert ended.value.code == 0
    assert document["hardware"]["gpu"] == "simulated"
    assert len(document["cases"]) == 4
    assert all(case["us"] > 0 and case["x sort"] > 0 for case in document["cases"])
    assert not any("captured" in note for note in document["notes"])
