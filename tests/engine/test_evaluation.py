# SPDX-License-Identifier: Apache-2.0
"""Perplexity and divergence: against transformers, over windows, and of a model from itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint, make_gguf

from lampo import LLM, evaluate
from lampo.cli.main import main
from lampo.evaluation import _windows


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    make_checkpoint(folder / "exact", num_hidden_layers=2)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder / "exact", dtype="float32", max_num_batched_tokens=32) as llm:
        yield llm


@pytest.mark.parametrize(
    ("count", "context", "stride"), [(2, 8, 4), (8, 8, 8), (9, 8, 1), (100, 16, 5), (31, 30, 30)]
)
def test_windows_score_every_token_once(count: int, context: int, stride: int) -> None:
    ids = list(range(count))
    scored = []
    for i, (window, first) in enumerate(_windows(ids, context, stride)):
        assert len(window) <= context and window == list(range(window[0], window[-1] + 1))
        assert i == 0 or first + 1 >= min(context - stride, window[first] + 1)
        scored += window[first + 1 :]
    assert scored == ids[1:]


def test_perplexity_is_that_of_transformers(tmp_path: Path) -> None:
    twin = make_checkpoint(tmp_path, num_hidden_layers=2)
    ids = tokens(150)
    with torch.inference_mode():
        logits = twin(torch.tensor([ids[:100]])).logits[0]
        first = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:100]))
        logits = twin(torch.tensor([ids[50:]])).logits[0]
        second = torch.nn.functional.cross_entropy(logits[49:-1], torch.tensor(ids[100:]))
    with LLM(tmp_path, dtype="float32", max_num_batched_tokens=32) as llm:
        found = evaluate(llm, ids, context=100, stride=50)
    expected = math.exp((99 * float(first) + 50 * float(second)) / 149)
    assert found.num_tokens == 149
    assert found.perplexity == pytest.approx(expected, rel=1e-4)
    assert found.perplexity_error > 0 and found.kl_divergence is None


def test_a_model_does_not_diverge_from_itself(llm: LLM) -> None:
    found = evaluate(llm, tokens(60), reference=llm)
    assert found.kl_divergence == 0.0 and found.kl_99 == 0.0 and found.same_top == 1.0
    assert found.reference_perplexity == found.perplexity


def test_divergence_of_a_rounded_model(llm: LLM, folder: Path) -> None:
    """By the definition, from the logits of both."""
    ids = tokens(60)
    with LLM(folder / "exact", dtype="bfloat16") as rounded:
        found = evaluate(rounded, ids, reference=llm)
        q = rounded.inspector().inspect(ids).logits[:-1].double().log_softmax(-1)
    p = llm.inspector().inspect(ids).logits[:-1].double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert found.kl_divergence == pytest.approx(float(kl.mean()), rel=1e-9)
    assert found.kl_divergence > 0
    assert found.same_top == float((p.argmax(-1) == q.argmax(-1)).double().mean())


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ([5], {}, "text: expected at least 2 tokens, got 1"),
        ("", {}, "text: is empty"),
        ([5, 6], {"context": 1}, r"context: expected a value in \[2, 256\], got 1"),
        ([5, 6], {"context": 500}, r"context: expected a value in \[2, 256\], got 500"),
        ([5, 6], {"context": 8, "stride": 9}, r"stride: expected a value in \[1, 8\], got 9"),
        ([5, 6], {"max_tokens": 1}, "max_tokens: expected a value in"),
    ],
)
def test_bad_input(llm: LLM, text, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(llm, text, **arguments)


def test_the_vocabularies_must_agree(llm: LLM, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, vocab_size=330)
    with LLM(tmp_path) as other, pytest.raises(ValueError, match="reference: expected a vocab"):
        evaluate(llm, [5, 6], reference=other)


def test_the_command(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_gguf(folder / "m.gguf", num_hidden_layers=1)
    text = folder / "text.txt"
    text.write_text("abab ab ba" * 20, encoding="utf-8")
    words = ["eval", str(text), "-m", str(folder / "m.gguf")]
    assert main([*words, "--exact", "-n", "100"]) == 0
    out = capfd.readouterr().out
    assert "perplexity" in out and "same best token" in out
    assert main([*words, "--json", "--context", "20"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (
        found["perplexity"] > 1 and found["kl_divergence"] is None and "cpu" in str(found["made"])
    )
    assert main([*words, "--exact", "--reference", "x"]) == 2
    assert "give --exact or --reference, not both" in capfd.readouterr().err
    assert main(["eval", str(folder / "none.txt")]) == 2
    assert "none.txt" in capfd.readouterr().err
