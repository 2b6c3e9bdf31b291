# SPDX-License-Identifier: Apache-2.0
"""What an explanation records, its forms and its errors."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint

from lampo import LLM, SamplingParams
from lampo.cli.main import main
from lampo.explain.explanation import Explanation
from lampo.explain.predictions import Prediction
from lampo.explain.shown import shown
from lampo.explain.terminal import lines_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    make_checkpoint(folder, num_hidden_layers=2, max_position_embeddings=600)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, page_size=16) as llm:
        yield llm


@pytest.fixture(scope="module")
def explanation(llm: LLM) -> Explanation:
    params = SamplingParams(max_tokens=20, temperature=0.9, seed=4, ignore_eos=True)
    return llm.explain(list(range(5, 30)), params)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b" the", "·the"),
        (b"  ", "··"),
        (b"a b ", "a b·"),
        (b"\n\t", "↵⇥"),
        (b"\xe2\x82", "\\xe2\\x82"),
        ("é€🙂".encode(), "é€🙂"),
        ("\u202eabc".encode(), "\\u202eabc"),
        ("\u200b\xa0".encode(), "\\u200b\\xa0"),
        ("\u0301".encode(), "◌\u0301"),
        (b"\x00\x1b[31m\x7f", "\\x00\\x1b[31m\\x7f"),
        ("\U000e0041".encode(), "\\U000e0041"),
        (b"", ""),
    ],
)
def test_shown(data: bytes, text: str) -> None:
    assert shown(data) == text


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_tail_gives_sums_at_every_temperature(spread: float) -> None:
    logits = (np.random.default_rng(1).standard_normal(50_000) * spread).astype(np.float32)
    logits[7] = np.nan
    found = Prediction.of(logits, 100)
    exact = np.sort(logits[~np.isnan(logits)].astype(np.float64))[::-1]
    assert found.logits.tolist() == exact[:100].tolist()
    assert found.tail[:, 0].sum() == len(exact) - 100
    assert found.log_sum == pytest.approx(math.log(np.exp(exact).sum()), abs=1e-9)
    for temperature in (0.3, 0.7, 1.0, 2.0):
        numbers, means, variances = found.tail.T
        tail = numbers * np.exp(means / temperature) * (1 + variances / (2 * temperature**2))
        total = tail.sum() + np.exp(exact[:100] / temperature).sum()
        assert total == pytest.approx(np.exp(exact / temperature).sum(), rel=1e-4)


def test_ties_are_by_id() -> None:
    assert Prediction.of(np.array([1, 3, 3, 2, 3], np.float32), 4).ids.tolist() == [1, 2, 4, 3]


def test_the_record(llm: LLM, explanation: Explanation) -> None:
    data = explanation.data
    assert json.loads(explanation.json()) == json.loads(json.dumps(data))
    assert data["num_prompt_tokens"] == 25 and len(data["tokens"]) == 45
    assert [t["role"] for t in data["tokens"]] == ["prompt"] * 25 + ["generated"] * 20
    assert len(data["predictions"]) == 45
    assert len(data["tracks"]["one_by_one"]) == 25 and len(data["tracks"]["tokens"]) == 20
    assert data["cache"]["equal"] is True and len(data["cache"]["uncached"]) == 20
    assert [len(layer["ids"]) for layer in data["lens"]] == [45] * 3
    assert data["attention"]["layers"] == [0, 1]
    assert [a["seed"] for a in data["answers"]["answers"]] == ["4", "5", "6", "7"]
    assert data["answers"]["answers"][0]["ids"] == [t["id"] for t in data["tokens"][25:]]
    assert data["model"]["num_parameters"] == sum(p["num_parameters"] for p in data["outline"])
    assert set(data["texts"]["ids"]) >= {t["id"] for t in data["tokens"]}
    # The same seeds through generate().
    params = SamplingParams(max_tokens=20, temperature=0.9, seed=5, ignore_eos=True, n=3)
    (result,) = llm.generate([list(range(5, 30))], params)
    assert [o.token_ids for o in result.outputs] == [
        a["ids"] for a in data["answers"]["answers"][1:]
    ]


def test_attention_of_the_record(llm: LLM, explanation: Explanation) -> None:
    """Bytes are roots of the inspector's weights, a triangle per head."""
    data = explanation.data
    ids = [t["id"] for t in data["tokens"]]
    weights = llm.inspector().inspect(ids, attention=[1]).attention[1].numpy()
    heads, size = weights.shape[:2]
    found = np.frombuffer(base64.b64decode(data["attention"]["triangles"]["1"]), np.uint8)
    triangles = (found.reshape(heads, -1) / 255.0) ** 2
    rows, columns = np.tril_indices(size)
    assert np.abs(triangles - weights[:, rows, columns]).max() < 0.004


def test_nearest_tokens(llm: LLM, explanation: Explanation) -> None:
    rows = llm.inspector().token_embeddings().double()
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    for token_id, entry in explanation.data["embeddings"].items():
        cosines = rows @ rows[int(token_id)]
        cosines[int(token_id)] = -2
        best = cosines.topk(8)
        assert [i for i, _ in entry["nearest"]] == best.indices.tolist()
        assert [c for _, c in entry["nearest"]] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_greedy_shows_other_answers(llm: LLM) -> None:
    found = llm.explain([5, 6, 7], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert found.data["answers"]["greedy"] is True
    assert found.data["answers"]["temperature"] == 1.0


def test_forms(explanation: Explanation, tmp_path: Path) -> None:
    page = explanation.save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == explanation.html() and page.startswith("<!doctype html>")
    assert json.loads(explanation.save(tmp_path / "a.json").read_text()) == explanation.data
    frame = explanation._repr_html_()
    assert frame.startswith("<iframe srcdoc=") and "<script" not in frame
    text = "\n".join(lines_of(explanation.data))
    assert "sum  100.00 %" in text and "the tokens are the same" in text
    assert text.count("seed ") >= 4


@pytest.mark.parametrize(
    ("prompt", "params", "arguments", "message"),
    [
        ([5] * 500, {"max_tokens": 20}, {}, "prompt: has 500 tokens, and max_tokens is 20: a page"),
        ([5], {"max_tokens": 0}, {}, "max_tokens: expected at least 1, got 0"),
        ([5], {"stop": "x"}, {}, "stop: an explanation cannot compute it"),
        ([5], {"presence_penalty": 1.0}, {}, "presence_penalty: an explanation cannot"),
        ([], {}, {}, "prompt: is empty"),
        ("", {}, {}, "prompt: is empty"),
        ([5], {}, {"system": "x"}, "system: only a chat template has a place for it"),
        ([5], {}, {"attention_layers": [9]}, r"attention\[0\]: expected a value in \[0, 1\]"),
    ],
)
def test_bad_input(llm: LLM, prompt, params: dict, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.explain(prompt, SamplingParams(**params), **arguments)


def test_roles(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's text is told from the template's; without a template all is the user's."""
    params = SamplingParams(max_tokens=2)
    found = llm.explain("ab", params)
    own = llm.tokenizer.encode("ab", add_bos=False)
    assert found.data["settings"]["templated"] is True
    assert [t["id"] for t in found.data["tokens"] if t["role"] == "prompt"] == own
    assert {t["role"] for t in found.data["tokens"]} == {"template", "prompt", "generated"}
    monkeypatch.setattr(llm.tokenizer, "chat_template", None)
    for raw in (llm.explain("ab", params), llm.explain("ab", params, raw=True)):
        assert raw.data["settings"]["templated"] is False
        assert {t["role"] for t in raw.data["tokens"]} == {"prompt", "generated"}


def test_the_command(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ["-m", str(folder), "-n", "4"]
    file = tmp_path / "page.html"
    monkeypatch.setattr("sys.argv", ["lampo", "explain", "ab"])
    assert main(["explain", "ab", *model, "-o", str(file)]) == 0
    assert "page.html" in capfd.readouterr().err
    assert "lampo explain ab" in file.read_text(encoding="utf-8")
    assert main(["explain", "ab", *model, "--text"]) == 0
    assert "LM HEAD" in capfd.readouterr().out
    assert main(["explain", "ab", *model, "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["format"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{tmp}/none/page.html"], "none: the folder does not exist"),
        (["-o", "{tmp}"], "is a folder, expected a file"),
        (["-o", "x.html", "--text"], "output: choose one of --output, --text and --json"),
        (["--raw", "--system", "x"], "system: a raw prompt has no messages"),
        (["--text", "-n", "600"], "a page shows at most 512"),
        (["--text", "--attention-layer", "7"], "attention[0]: expected a value in [0, 1]"),
    ],
)
def test_bad_command_lines(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    words = [word.format(tmp=tmp_path) for word in arguments]
    assert main(["explain", "ab", "-m", str(folder), *words]) == 2
    error = capfd.readouterr().err
    assert message in error and error.count("\n") == 1
