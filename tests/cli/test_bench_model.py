# SPDX-License-Identifier: Apache-2.0
"""`lampo bench decode`, `prefill` and `batch` on a tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint, make_gguf

from lampo import _C
from lampo.bench import model_bench, model_peers, timing
from lampo.bench.cost import Cost
from lampo.bench.model_bench import ModelBench, Work
from lampo.cli.main import main

Bench = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "tiny.gguf"
    make_gguf(path, quantization="Q4_1")
    return path


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """Runs a command with one sample a case; returns the JSON document."""
    monkeypatch.setenv("LAMPO_NUM_THREADS", str(_C.num_threads()))
    take_turns = timing.take_turns
    monkeypatch.setattr(
        timing, "take_turns", lambda calls, repeats: take_turns(calls, repeats=repeats, settle_s=0)
    )

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        file = tmp_path / "result.json"
        options = ["--repeats", "1", "--json", str(file)]
        assert main(["bench", *words, *options]) == code, capsys.readouterr().err
        return json.loads(file.read_text())

    return run


def test_decode(packed: Path, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    document = bench("decode", str(packed), "--depth", "0,50", "--tokens", "4")
    assert document["benchmark"] == "decode tiny.gguf"
    assert document["notes"] == []
    first, second = document["cases"]
    assert (first["case"], second["case"]) == (
        {"depth": 0, "tokens": 4},
        {"depth": 50, "tokens": 4},
    )
    for row in (first, second):
        assert row["us"] > 0
        assert row["tok/s"] == pytest.approx(1e6 / row["us"])
        assert row["limit %"] > 0
    assert second["bytes"] > first["bytes"]
    assert second["operations"] > first["operations"]
    assert any("int8 instructions" in name for name in document["limits"])
    assert "| depth | tok/s |" in capsys.readouterr().out


def test_prefill_has_new_prompts(
    folder: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[list[int]]] = []
    prompts = ModelBench.prompts

    def recorded(self: ModelBench, work: Work, turn: int) -> list[list[int]]:
        seen.append(prompts(self, work, turn))
        return seen[-1]

    monkeypatch.setattr(ModelBench, "prompts", recorded)
    document = bench("prefill", str(folder), "--prompt", "20")
    (row,) = document["cases"]
    assert row["tok/s"] == pytest.approx(20e6 / row["us"])
    *_, warm_up, timed = seen
    assert warm_up != timed


def test_batch(folder: Path, bench: Bench) -> None:
    words = ["--batch", "1,3", "--prompt", "9", "--tokens", "4", "--plot"]
    document = bench("batch", str(folder), *words, str(folder / "plot.svg"))
    one, three = document["cases"]
    assert three["tok/s"] == pytest.approx(3e6 / three["us"])
    assert three["operations"] > one["operations"]
    assert "Latency over batch" in (folder / "plot.svg").read_text()


def test_costs_of_work() -> None:
    assert Work.of("decode", {"depth": 100, "tokens": 32}) == Work(1, 101, 32)
    assert Work.of("prefill", {"prompt": 64}).max_tokens == 1
    assert model_bench._pairs(Work(1, 10, 1, prefill=True), None) == 55
    assert model_bench._pairs(Work(1, 10, 1, prefill=True), 4) == sum(
        min(i + 1, 4) for i in range(10)
    )
    assert model_bench._pairs(Work(2, 10, 4), 4) == 8
    assert model_bench._pairs(Work(2, 10, 4), None) == 24


def test_a_wrong_model_is_not_timed(
    folder: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelBench, "_gaps", lambda self, prompt, tokens: [0.0, 3.0])
    document = bench("decode", str(folder), "--depth", "0", "--tokens", "2", code=1)
    assert document["cases"] == []
    assert "wrong, not timed: decoded tokens differ" in document["notes"][0]


def test_transformers_as_a_peer(folder: Path, bench: Bench) -> None:
    pytest.importorskip("transformers")
    words = ["--batch", "2", "--prompt", "9", "--tokens", "3", "--peers", "transformers,torch"]
    document = bench("batch", str(folder), *words)
    assert list(document["cases"][0]["times_us"]) == ["lampo", "transformers"]
    assert document["notes"] == ["torch has no whole models"]


def test_peers_that_disagree_are_left_out(
    folder: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __init__(self, path: Path, threads: int) -> None: ...

        def tokens(self, prompts: list[list[int]], count: int) -> list[list[int]]:
            return [list(range(40, 40 + count)) for _ in prompts]

        def seconds(self, prompts: list[list[int]], max_tokens: int, prefill: bool) -> float:
            return 1.0

    monkeypatch.setitem(model_peers.PEERS, "transformers", Wrong)
    document = bench("decode", str(folder), "--depth", "8", "--peers", "transformers")
    assert list(document["cases"][0]["times_us"]) == ["lampo"]
    assert "transformers is left out: its tokens are not lampo's" in document["notes"][0]


def test_llama_bench(
    packed: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "llama-bench"
    code = "import json, sys; w = sys.argv; n = dict(zip(w[1::2], w[2::2]))"
    code += "; assert n['-r'] == '1' and n['-o'] == 'json' and n['-m'].endswith('.gguf')"
    code += "; work = int(n['-n']) or int(n['-p']); print(json.dumps([{'avg_ns': 1e6 * work}]))"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    document = bench("decode", str(packed), "--depth", "8", "--tokens", "3", "--peers", "llama.cpp")
    assert document["cases"][0]["llama.cpp us"] == pytest.approx(1000)
    document = bench("prefill", str(packed), "--prompt", "20", "--peers", "llama.cpp")
    assert document["cases"][0]["llama.cpp us"] == pytest.approx(20_000)
    words = ["--batch", "2", "--prompt", "4", "--tokens", "2", "--peers", "llama.cpp"]
    document = bench("batch", str(packed), *words)
    assert document["notes"] == ["llama.cpp is left out: llama-bench decodes one sequence"]


def test_absent_peers_are_named(
    packed: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["--depth", "0", "--tokens", "2", "--peers", "llama.cpp"]
    document = bench("decode", str(packed), *words)
    assert "no llama-bench on PATH" in document["notes"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["decode", "--depth", "-1"], "depth: expected a number, such as 8 or 4k"),
        (["decode", "--depth", "1m"], "exceed the context of"),
        (["batch", "--batch", "65"], "batch: expected at most max_num_seqs, 64"),
        (["prefill", "--prompt", "0"], "prompt: expected a number in [1,"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", words[0], str(folder), *words[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_cost_is_unknown_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    bench = ModelBench.__new__(ModelBench)
    bench.device = torch.device("cuda")
    assert bench._cost(Work(1, 1, 1)) == (Cost(0, 0), ())
