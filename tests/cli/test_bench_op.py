# SPDX-License-Identifier: Apache-2.0
"""`lampo bench op`: shapes, every op's case, wrong results, own kernels, output files."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lampo.ops
from lampo import _C
from lampo.bench import attention_cases, axes, cases, gpu_peers, op_bench, results
from lampo.cli.main import main
from lampo.runtime.machine_load import MachineLoad
from lampo.weights.formats import GGML_TYPES

TINY = {
    "paged_attention": "--batch 2 --seq-len 70 --heads 4/2x32 --page 16 --dtype bf16,f32,fp8,int8",
    "append_kv": "--rows 5 --heads 4/2x32 --page 4 --dtype bf16,f32,fp8,int8",
    "merge_states": "--rows 3 --splits 4 --heads 2x16 --dtype bf16,f32",
    "linear": "--shape 96x64 --rows 1,5 --dtype q4_0,q4_1,q8_0,bf16,f16,f32 --activation-bits 8,16",
    "route_tokens": "--rows 1,5 --experts 6 --top-k 2",
    "expert_linear": "--shape 32x64 --rows 1,5 --experts 6 --top-k 2 --dtype q8_0,q4_0,bf16,f32",
    "combine_experts": "--rows 1,5 --size 96 --top-k 2 --dtype bf16,f32",
    "embedding": "--shape 96x64 --rows 5 --dtype q4_0,q4_1,q8_0,bf16",
    "sample": "--batch 2 --vocab 1000 --logits flat,zipf --dtype f32,bf16 --top-k 0,5",
    "token_logprobs": "--batch 2 --vocab 1000 --num-top 0,3",
    "rms_norm": "--rows 3 --hidden 96 --dtype bf16,f32",
    "layer_norm": "--rows 3 --hidden 96 --dtype bf16,f32",
    "silu_mul": "--rows 3 --size 96 --dtype bf16,f32",
    "gelu_mul": "--rows 3 --size 96 --dtype bf16,f32",
    "gelu": "--rows 3 --size 96 --dtype bf16,f32",
    "sigmoid_mul": "--rows 3 --size 96 --dtype bf16,f32",
    "causal_conv": "--batch 2 --query-len 1,5 --size 70 --dtype bf16,f32",
    "gated_delta": "--batch 2 --query-len 1,5 --heads 4/2x16 --dtype bf16,f32",
    "scale": "--rows 3 --size 96 --dtype bf16,f32",
    "scale_by_position": "--rows 3 --size 96 --dtype bf16,f32",
    "call": "",
}
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """Runs `lampo bench op` on warm buffers, one sample a case; returns the JSON document."""
    monkeypatch.setenv("LAMPO_NUM_THREADS", str(_C.num_threads()))
    monkeypatch.setattr(op_bench, "_SAMPLE_S", 0.0)
    monkeypatch.setattr(op_bench, "_SETTLE_S", 0.0)

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        file = tmp_path / "result.json"
        options = ["--repeats", "1", "--warm", "--json", str(file)]
        assert main(["bench", "op", *words, *options]) == code, capsys.readouterr().err
        return json.loads(file.read_text())

    return run


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr of a command that ends with 2."""
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_op_of_the_library_is_listed() -> None:
    assert set(op_bench.CASES) == set(axes.OPS) == set(TINY)
    ops = {name for name in lampo.ops.__all__ if hasattr(torch.ops.lampo, name)}
    assert ops - {"pack_weight", "quantize_weight"} == set(axes.OPS) - {"call"}
    of_gguf = {kind.name for kind in GGML_TYPES.values()}
    assert set(axes.FORMATS) == set(lampo.ops.weight_formats()) & of_gguf


def test_all_formats_of_weights(bench: Bench) -> None:
    formats = ",".join(axes.FORMATS)
    words = ["--shape", "48x512", "--rows", "2", "--dtype", formats, "--peers", "none"]
    for op in ("linear", "embedding"):
        document = bench(op, *words)
        assert [row["case"]["dtype"] for row in document["cases"]] == list(axes.FORMATS)


@pytest.mark.parametrize("op", TINY)
def test_every_case_is_checked_and_timed(op: str, bench: Bench) -> None:
    document = bench(op, *TINY[op].split(), "--peers", "torch")
    assert document["benchmark"] == f"op {op}"
    assert document["notes"] == []  # of peers that disagree, for one
    assert document["cases"]
    for row in document["cases"]:
        assert row["us"] > 0
        assert 0 <= row["error"] <= 1
        assert next(iter(row["times_us"])) == "lampo"
        assert row["times_us"]["lampo"]["count"] == 1
    assert any(len(row["times_us"]) > 1 for row in document["cases"])
    if op != "call":
        assert all(row["bytes"] > 0 for row in document["cases"])


def test_prefill_and_windows(bench: Bench) -> None:
    words = shlex.split("--batch 2 --seq-len 70,200 --query-len 7,all --heads 2/1x32")
    document = bench("paged_attention", *words, "--window", "0,16", "--peers", "none")
    assert len(document["cases"]) == 8
    assert all(row["error"] <= 1 for row in document["cases"])


def test_peers_of_prefill(bench: Bench) -> None:
    words = shlex.split("--batch 2 --seq-len 40 --query-len 7,all --heads 2/1x32")
    for row in bench("paged_attention", *words)["cases"]:
        assert list(row["times_us"]) == ["lampo", "torch sdpa", "torch matmul"]


def test_limits_of_cold_runs(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "cold.json"
    words = ["--rows", "2k", "--hidden", "8k", "--repeats", "1", "--json", str(file)]
    words += ["--peers", "none"]
    assert main(["bench", "op", "rms_norm", *words]) == 0
    document = json.loads(file.read_text())
    (row,) = document["cases"]
    assert row["limit %"] > 0
    assert row["bound by"] in ("memory", "compute")
    assert row["limit %"] == pytest.approx(100 * row["least_us"] / row["us"])
    assert all(value > 0 for value in document["limits"].values())
    assert any("read bandwidth" in name for name in document["limits"])


def test_lists_of_shapes() -> None:
    found = axes.combinations("paged_attention", {"seq_len": "1k,4k,1024", "heads": "9/3x64,8x16"})
    assert [case["seq_len"] for case in found] == [1024, 1024, 4096, 4096] * 2
    assert {str(case["heads"]) for case in found} == {"9/3x64", "8/8x16"}
    assert found[0]["page"] == 64
    (case,) = axes.combinations(
        "linear", {"shape": "4kx14336", "rows": "1", "dtype": "bf16", "activation_bits": None}
    )
    assert (case["shape"].out_features, case["shape"].in_features) == (4096, 14336)
    assert axes.count("2m") == 2 << 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["op", "paged_attention", "--batch", "0"], "batch: expected a number in [1,"),
        (["op", "paged_attention", "--seq-len", "1k,x"], "seq_len: expected a number, such as"),
        (["op", "paged_attention", "--seq-len", "1k,"], "seq_len: expected a number"),
        (["op", "paged_attention", "--heads", "32/5x128"], "heads: expected QUERY/KVxSIZE with KV"),
        (["op", "paged_attention", "--vocab", "9"], "vocab: paged_attention has batch, seq_len"),
        (["op", "paged_attention", "--dtype", "q4_0"], "dtype: expected one of bf16, f32"),
        (["op", "paged_attention", "--seq-len", "8", "--query-len", "9"], "query_len: expected at"),
        (["op", "linear", "--shape", "4096"], "shape: expected OUTxIN"),
        (["op", "linear", "--shape", "64x40", "--dtype", "q4_0"], "shape: q4_0 needs input"),
        (["op", "sample", "--top-p", "1.5"], "top_p: expected a number in (0, 1]"),
        (["op", "rms_norm", "--rows", ",".join(map(str, range(1, 70)))], "rows: expected at most"),
        (["op", "conv"], "op: expected one of paged_attention"),
        (["op", "rms_norm", "--peers", "numpy"], "peers: expected none or some of torch"),
        (["op", "rms_norm", "--json", "/no/such/folder/x.json"], "/no/such/folder: no such folder"),
        (["op", "rms_norm", "--kernel", "my.py"], "kernel: expected FILE.py:FUNCTION"),
        (["op", "rms_norm", "--kernel", "nothing.py:f"], "nothing.py: kernel: no such file"),
        (["op", "rms_norm", "--device", "tpu"], "device:"),
        (["compare", "a.json", "b.json"], "a.json: No such file"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, *words)


def test_too_many_cases() -> None:
    many = ",".join(map(str, range(1, 60)))
    with pytest.raises(ValueError, match="more than 512 cases"):
        axes.combinations("rms_norm", {"rows": many, "hidden": many})


def test_a_wrong_op_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(**arguments: Any) -> torch.Tensor:
        out = lampo.ops.paged_attention(**arguments)
        if arguments["k_cache"].dtype == torch.float32:
            out[1, 2, 3] += 0.5
        return out

    monkeypatch.setattr(attention_cases.PagedAttention, "op", staticmethod(wrong))
    words = shlex.split("--batch 2 --seq-len 70 --heads 4/2x32 --page 16 --dtype bf16,f32")
    document = bench("paged_attention", *words, "--peers", "none", code=1)
    assert [row["case"]["dtype"] for row in document["cases"]] == ["bf16"]
    (note,) = document["notes"]
    assert "dtype f32: wrong, not timed" in note
    assert "sequence 1, from token 0: differs from the reference by 0.5" in note
    assert " at [0, 2, 3]: expected" in note


def test_wrong_draws_are_found() -> None:
    (values,) = axes.combinations(
        "sample", {"batch": "4", "vocab": "1000", "logits": "flat", "dtype": "f32"}
    )
    case = op_bench.CASES["sample"](values, torch.device("cpu"))
    case.check(lampo.ops.sample)
    for wrong in (
        lambda logits, **rest: logits.argmax(-1),  # greedy
        lambda logits, **rest: torch.multinomial(torch.softmax(logits, -1), 1)[:, 0],  # no top-p
        lambda logits, **rest: logits.argmin(-1),
    ):
        with pytest.raises(cases.WrongResult):
            case.check(wrong)


def test_a_peer_that_disagrees_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cases, "_by_sdpa", lambda q, k, v, hidden: torch.zeros_like(q))
    words = shlex.split("--batch 1 --seq-len 70 --heads 4/2x32 --dtype f32")
    document = bench("paged_attention", *words)
    assert list(document["cases"][0]["times_us"]) == ["lampo", "torch matmul"]
    assert "torch sdpa is left out: WrongResult" in document["notes"][0]


KERNEL = """
import torch


def good(x, weight, eps, out):
    out.copy_(torch.nn.functional.rms_norm(x.float(), x.shape[1:], weight.float(), eps))


def returns(x, weight, eps, **rest):
    return torch.nn.functional.rms_norm(x.float(), x.shape[1:], weight.float(), eps)


def wrong(x, weight, eps, out):
    good(x, weight, eps, out)
    out[2, 7] = 100


def raises(x, weight, eps, out):
    return x.no_such_method()


def signature(x, weight):
    return x


def shape(x, **rest):
    return x[:1]


def text(**rest):
    return "text"


number = 3
"""


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(KERNEL)
    return path


NORM = ["rms_norm", "--rows", "3", "--hidden", "96", "--peers", "none"]


@pytest.mark.parametrize("name", ["good", "returns"])
def test_own_kernel_is_timed(name: str, kernels: Path, bench: Bench) -> None:
    document = bench(*NORM, "--kernel", f"{kernels}:{name}")
    (row,) = document["cases"]
    assert list(row["times_us"]) == ["lampo", f"my.py:{name}"]
    assert row[f"my.py:{name} us"] > 0
    assert row[f"x my.py:{name}"] > 0


def test_own_kernel_of_the_documentation(tmp_path: Path, bench: Bench) -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^    lampo bench (op .*--kernel .*)$", text, re.MULTILINE)
    (tmp_path / "my.py").write_text(example)
    words = shlex.split(command.replace("my.py", str(tmp_path / "my.py")))
    document = bench(*words[1:], "--peers", "none")
    assert {name for row in document["cases"] for name in row["times_us"]} == {
        "lampo",
        "my.py:rms_norm",
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "my.py:wrong: out: differs from the reference by"),
        ("raises", "my.py:raises raised AttributeError in line 19: 'Tensor' object has no"),
        ("signature", "must take the keyword arguments x, weight, eps, out: got an unexpected"),
        ("shape", "my.py:shape: out: expected shape [3, 96], got [1, 96]"),
        ("text", "my.py:text: out: expected a tensor, got str"),
        ("number", "has no function number"),
        ("absent", "has no function absent"),
    ],
)
def test_own_kernel_is_refused(
    name: str, message: str, kernels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(capsys, "op", *NORM, "--repeats", "1", "--kernel", f"{kernels}:{name}")
    assert message in line
    if name == "wrong":
        assert "at [2, 7]" in line
        assert "1 of 288 values are wrong" in line


def test_own_kernel_is_checked_in_all_cases_first(
    kernels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: op_bench.OpBench, case: cases.Case) -> None:
        raise AssertionError("timed before all cases were checked")

    monkeypatch.setattr(op_bench.OpBench, "measure", measure)
    words = ["op", "rms_norm", "--rows", "3,1", "--hidden", "96", "--kernel", f"{kernels}:wrong"]
    kernels.write_text(KERNEL.replace("out[2, 7] = 100", "out[0, 7] += len(x) == 1"))
    assert "my.py:wrong: out: differs from the reference by" in error_of(capsys, *words)


def test_own_kernel_that_does_not_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.py").write_text("import torch\n\nraise OSError('broken')\n")
    line = error_of(capsys, "op", *NORM, "--kernel", f"{tmp_path / 'my.py'}:f")
    assert "kernel: my.py raised OSError in line 3: broken" in line


def test_busy_rows_are_marked(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = iter([MachineLoad(2, 1.5, 0.0), MachineLoad(2, 0.9, 0.0), MachineLoad(2, 0.0, 0.0)])

    class Meter:
        def load(self) -> MachineLoad:
            return next(loads)

    monkeypatch.setattr(op_bench, "LoadMeter", Meter)
    document = bench("rms_norm", "--rows", "1,2,3", "--hidden", "96")
    assert [row["busy"] for row in document["cases"]] == [True, False, False]
    out, err = capsys.readouterr()
    assert [" *" in line for line in out.splitlines() if line.startswith("|")][2:] == [
        True,
        False,
        False,
    ]
    assert "took more than half of the cores during 1 of 3 cases" in err


def test_output_files(tmp_path: Path, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    words = ["rms_norm", "--rows", "1,3", "--hidden", "96"]
    document = bench(*words, "--csv", str(file))
    out = capsys.readouterr().out
    assert "## op rms_norm, hidden 96, dtype bf16\n" in out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({len(line) for line in table}) == 1
    assert table[0].split()[1:4] == ["rows", "|", "us"]
    lines = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [(line["rows"], line["contestant"]) for line in lines] == [
        ("1", "lampo"), ("1", "torch"), ("3", "lampo"), ("3", "torch"),
    ]  # fmt: skip
    assert float(lines[0]["us"]) == pytest.approx(document["cases"][0]["us"], rel=1e-4)
    assert document["command"].startswith("lampo ")
    assert {"versions", "platform", "isa", "date", "commit"} <= set(document)


def test_json_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    words = "bench op rms_norm --rows 1 --hidden 96 --warm --repeats 1 --peers none --json -"
    assert main(words.split()) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document["cases"][0]["times_us"]) == ["lampo"]


def test_peers_that_have_no_op_are_named(bench: Bench) -> None:
    document = bench(*NORM[:5], "--peers", "llama.cpp,torch")
    assert document["notes"] == ["llama.cpp has whole models alone: see `lampo bench decode`"]


def test_gpu_peers_on_the_cpu_are_named(bench: Bench) -> None:
    document = bench(*NORM[:5], "--peers", "flashinfer,fa3")
    assert list(document["cases"][0]["times_us"]) == ["lampo"]
    assert document["notes"] == [
        f"{name} is left out: it needs a GPU, --device cuda" for name in ("flashinfer", "fa3")
    ]


def test_gpu_peers_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their adapters, with torch's attention in place of theirs."""

    def stand_in(problem: gpu_peers.Attention) -> gpu_peers.Peer:
        return gpu_peers.sdpa_attention(problem, gpu_peers.SDPBackend.FLASH_ATTENTION)

    for name in ("FA3", "FlashInfer fa2", "FlashInfer fa3", "FlashInfer cuda cores"):
        monkeypatch.setitem(gpu_peers.ATTENTION, name, stand_in)
    lists = {"batch": "2", "seq_len": "70", "heads": "4/2x32", "query_len": "1,all", "page": "16"}
    names = ["FlashInfer fa2", "FlashInfer fa3"]
    for values in axes.combinations("paged_attention", lists):
        case = op_bench.CASES["paged_attention"](values, torch.device("cpu"))
        decode = values["query_len"] == 1
        found = case.gpu_peers("flashinfer")
        assert list(found) == (["FlashInfer cuda cores", *names] if decode else names)
        assert list(case.gpu_peers("fa3")) == ["FA3"]
        for peer in found.values():
            assert case.check_peer(peer) <= 1
    case = op_bench.CASES["rms_norm"]({"rows": 1, "hidden": 8, "dtype": "f32"}, case.device)
    with pytest.raises(ValueError, match="has no such op"):
        case.gpu_peers("fa3")


def test_numbers_in_cells() -> None:
    cells = [results.text(v) for v in (123.4, 12.34, 1.234, 0.1234, 0.01234, 1e-5, 0.0, None, 7)]
    assert cells == ["123", "12.3", "1.23", "0.123", "0.0123", "1.0e-05", "0.0000", "-", "7"]


def test_peak_rates() -> None:
    before = _C.cpu_isa()
    try:
        for isa in _C.runnable_isas():
            _C.set_cpu_isa(isa)
            assert _C.peak_rate("f32") > 1e8
            assert (_C.peak_rate("bf16") > 0) == (isa == "avx512")
    finally:
        _C.set_cpu_isa(before)
    with pytest.raises(ValueError, match="products: expected f32, bf16 or int8, got 'int4'"):
        _C.peak_rate("int4")
