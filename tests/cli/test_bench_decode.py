# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the end-to-end benchmarks, and their engines on a tiny model."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import make_gguf

from lampo.models.checkpoint import load_checkpoint

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_answers
import bench_decode
import bench_quality
import make_models
import peers
import readme_table
from lampo import profiling
from lampo.bench import cost, limits

ON_GGUF = ["lampo", "lampo int8 cache", "transformers f32"]
ON_GGUF += ["llama.cpp", "llama.cpp -fa off", "llama.cpp q8_0 cache"]
PROMPTS = [[1, 17, 42, 9], [3, 100, 8, 250]]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A tiny model that all engines read."""
    path = tmp_path / "tiny.gguf"
    make_gguf(path, quantization="Q4_1")
    monkeypatch.setattr(peers, "model_path", lambda weight_format: path)
    return path


class Fake:
    """The interface of a worker for run_case(), with invented times."""

    def __init__(self, engine, weight_format, step_s):
        self.engine, self.weight_format = engine, weight_format
        self.name = f"{engine} {weight_format}"
        self.step_s = step_s
        self.requests = []
        self.model = Path(weight_format)

    def generate(self, prompts, max_tokens, reuse=False):
        self.requests.append((prompts, reuse))
        return {"ttft_s": 0.5, "total_s": 0.5 + self.step_s * (max_tokens - 1)}


class FakeReport:
    def __init__(self):
        self.rows = []

    def add(self, row, **details):
        assert set(row) <= set(bench_decode.COLUMNS)
        self.rows.append(row)


@pytest.fixture
def rows(monkeypatch):
    """Runs a case on fake workers, on a machine of 50 GB/s and 1 TOP/s."""
    monkeypatch.setattr(profiling, "read_bandwidth", lambda *_: [50e9])
    monkeypatch.setattr(limits, "peak_rate", lambda *_: 1e12)
    monkeypatch.setattr(cost, "model_shape_of_gguf", lambda _: cost.SMOLLM2_135M)
    monkeypatch.setattr(peers, "SETTLE_S", 0.0)

    def run(case, workers):
        report = FakeReport()
        bench_decode.run_case(case, workers, 2, 3, report)
        return report.rows

    return run


def test_case_lists():
    names = [case.name for case in bench_decode.CASES]
    assert len(set(names)) == len(names)
    for depth in (0, 1, 4, 7):
        assert any(name.startswith(f"decode, depth {depth}") for name in names)
    assert {f"prefill {n}" for n in (128, 512, 2048)} <= set(names)
    assert {f"decode, batch {n}" for n in (4, 8, 32)} <= set(names)
    assert all(case.prompt_tokens + case.max_tokens <= 8192 for case in bench_decode.CASES)


def test_prompts():
    prefill = bench_decode.Case("prefill", 1, 64, 1)
    decode = bench_decode.Case("decode", 4, 64, 8)
    assert prefill.prompts(1000, 1) == prefill.prompts(1000, 1)
    assert prefill.prompts(1000, 1) != prefill.prompts(1000, 2)  # no cache of prompts may help
    assert decode.prompts(1000, 1) == decode.prompts(1000, 2)
    assert [len(prompt) for prompt in decode.prompts(1000, 1)] == [64] * 4
    assert len({tuple(prompt) for prompt in decode.prompts(1000, 1)}) == 4
    assert all(100 <= token < 1000 for prompt in decode.prompts(1000, 1) for token in prompt)


def test_decode_row(rows):
    case = bench_decode.Case("decode", 4, 32, 33)
    workers = [
        Fake("lampo", "Q4_1", 4e-3),
        Fake("lampo", "Q8_0", 5e-3),
        Fake("llama.cpp", "Q4_1", 16e-3),
        Fake("llama.cpp", "Q4_0", 10e-3),
        Fake("OpenVINO", "int8", 12e-3),
        Fake("llama.cpp -fa off", "Q4_1", 1e-3),  # not at this depth
    ]
    four, eight = rows(case, workers)
    assert (four["case"], four["lampo"], four["bound by"]) == ("decode", "Q4_1", "memory")
    assert four["ms"] == pytest.approx(4)
    assert four["tok/s"] == pytest.approx(1000)
    step = cost.decode_step(cost.SMOLLM2_135M, 4, 32 + 16 - 1)
    assert four["limit %"] == pytest.approx(100 * step.nbytes / 50e9 / 4e-3)
    assert four["GB/s"] == pytest.approx(step.nbytes / 4e-3 / 1e9)
    assert four["x llama.cpp"] == pytest.approx(4)
    assert (four["best peer"], four["its tok/s"]) == ("llama.cpp Q4_0", pytest.approx(400))
    assert four["x best peer"] == pytest.approx(2.5)
    # Peers with fewer bits of a weight do not count.
    assert (eight["lampo"], eight["best peer"]) == ("Q8_0", "OpenVINO int8")
    assert "x llama.cpp" not in eight
    assert workers[-1].requests == []
    assert len(workers[0].requests) == 4  # one is a warm-up
    assert all(reuse for _, reuse in workers[2].requests)


def test_row_of_an_8_bit_cache(rows):
    case = bench_decode.Case("decode", 1, 4096, 64)
    engines = ["lampo", "lampo int8 cache", "llama.cpp q8_0 cache"]
    seconds = [4e-3, 3e-3, 12e-3]
    workers = [Fake(e, "Q4_1", s) for e, s in zip(engines, seconds, strict=True)]
    sixteen, eight = rows(case, workers)
    assert (sixteen["lampo"], eight["lampo"]) == ("Q4_1", "Q4_1, int8 cache")
    assert (sixteen["x llama.cpp"], eight["x llama.cpp"]) == (pytest.approx(3), pytest.approx(4))
    shape = replace(cost.SMOLLM2_135M, kv_dtype="int8")
    step = cost.decode_step(shape, 1, 4096 + 32 - 1)
    assert eight["GB/s"] == pytest.approx(step.nbytes / 3e-3 / 1e9)
    assert eight["best peer"] == "llama.cpp q8_0 cache Q4_1"


def test_prefill_row(rows):
    case = bench_decode.Case("prefill", 1, 2048, 1)
    workers = [Fake("lampo", "Q4_1", 0), Fake("llama.cpp", "Q4_1", 0)]
    workers.append(Fake("llama.cpp -fa off", "Q4_1", 0))
    (row,) = rows(case, workers)
    assert row["tok/s"] == pytest.approx(2048 / 0.5)
    assert row["bound by"] == "compute"
    flops = cost.prefill_step(cost.SMOLLM2_135M, 2048).flops
    assert row["limit %"] == pytest.approx(100 * flops / 1e12 / 0.5)
    assert row["x llama.cpp"] == pytest.approx(1)
    assert workers[2].requests == []  # only where decoding is timed
    assert len(workers[1].requests) == 4
    assert not any(reuse for _, reuse in workers[1].requests)


def test_engines_read_known_formats():
    for engine in peers.ENGINES.values():
        assert set(engine.formats) <= set(peers.FORMATS)


def test_engines_held_to_an_instruction_set(monkeypatch):
    monkeypatch.setattr(peers, "ENGINES", dict(peers.ENGINES))
    monkeypatch.delenv("LAMPO_CPU_ISA", raising=False)
    native = peers.ENGINES["llama.cpp"].command
    peers.hold_to("avx2")
    assert os.environ.pop("LAMPO_CPU_ISA") == "avx2"
    assert peers.ENGINES["llama.cpp"].command == (f"{native[0]}_avx2", *native[1:])
    assert set(peers.ENGINES) == set(ON_GGUF)


@pytest.mark.parametrize("engine", ON_GGUF)
def test_engine_process(engine, tiny, tmp_path):
    """Each engine in its process: the same logits, and tokens that are the best ones."""
    if not peers.installed(engine):
        pytest.skip(f"{engine} is not installed: see benchmarks/install_peers")
    from model_harness import transformers_twin, twin_logits

    with load_checkpoint(tiny) as checkpoint:
        twin = transformers_twin(checkpoint)
    worker = peers.Worker(engine, "Q4_1", 1)
    try:
        prompt = [token for prompt in PROMPTS for token in prompt] * 3
        worker.write_logits(prompt, tmp_path / "logits")
        both = worker.generate(PROMPTS, 6)
        again = worker.generate(PROMPTS, 6, reuse=True)
        one = worker.generate(PROMPTS[1:], 6)
    finally:
        worker.close()
    logits = torch.frombuffer(bytearray((tmp_path / "logits").read_bytes()), dtype=torch.float32)
    expected = twin_logits(twin, prompt)
    assert bench_quality.divergence(expected, logits.view(len(prompt), -1)) < 1e-2
    assert 0 < both["ttft_s"] < both["total_s"]
    assert both["token_ids"] == again["token_ids"]
    assert both["token_ids"][1:] == one["token_ids"]
    for prompt, token_ids in zip(PROMPTS, both["token_ids"], strict=True):
        logits = twin_logits(twin, prompt + token_ids)[len(prompt) - 1 : -1].log_softmax(-1)
        chosen = logits.gather(-1, torch.tensor(token_ids)[:, None])[:, 0]
        assert float((logits.amax(-1) - chosen).max()) < 0.5


def test_divergence_and_perplexity():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    q = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
    expected = (0.5 * torch.tensor(2.0).log() - 0.25 * torch.tensor(2.0).log()) / 2
    assert bench_quality.divergence(p.log(), q.log() + 3) == pytest.approx(float(expected))
    assert bench_quality.divergence(p.log(), p.log()) == 0
    assert bench_quality.perplexity(p.log(), [0, 1]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("name", "largest"), [("Q4_0", 0.13), ("Q8_0", 1 / 127), ("BF16", 1 / 256)]
)
def test_make_models_requantizes(tiny, tmp_path, name, largest):
    """The same tensors and metadata; weights off by at most a step of the format."""
    path = tmp_path / "other.gguf"
    make_models.requantize(tiny, path, name)
    with load_checkpoint(tiny) as source, load_checkpoint(path) as target:
        assert source.names() == target.names()
        same = {key: value for key, value in source.gguf_metadata.items() if "file_type" not in key}
        assert same.items() <= target.gguf_metadata.items()
        for tensor in source.names():
            a, b = source.load(tensor), target.load(tensor)
            a, b = (t.dequantize() if hasattr(t, "dequantize") else t.float() for t in (a, b))
            assert float((a - b).abs().max() / a.abs().max()) <= largest
    shape = cost.model_shape_of_gguf(path)
    assert shape.weight_format == name.lower()
    assert shape.head_format == {"Q4_0": "q8_0"}.get(name, name.lower())


def test_readme_table_fills_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path)
    (tmp_path / "one.json").write_text(
        '{"columns": ["case", "tok/s"], "cases": [{"case": "a", "tok/s": 12.345}, {"case": "b"}],'
        ' "hardware": {"cpu": "a CPU"}, "threads": 1, "command": "python x.py",'
        ' "date": "2026-11-22"}'
    )
    text = "before\n<!-- results: one missing -->\nold\n<!-- /results -->\nafter\n"
    filled = readme_table.filled(text)
    assert "| a | 12.3 |\n| b | - |\n<!-- /results -->\nafter" in filled
    assert "`python x.py`: a CPU, 1 thread, 2026-11-22" in filled
    assert "old" not in filled
    assert readme_table.filled(filled) == filled


def test_agreement_of_answers() -> None:
    exact = [[1, 2, 3, 4], [5, 6], [], [7, 8]]
    found = [[1, 2, 9, 4], [5, 6], [], [7]]
    assert bench_answers.agreement(exact, found) == (2, (0.5 + 1 + 1 + 0.5) / 4)
    assert bench_answers.until([1, 2, 3, 2], (2, 3)) == [1]
    assert bench_answers.until([1, 2], ()) == [1, 2]
