# SPDX-License-Identifier: Apache-2.0
"""The page of an explanation in a real browser: numbers, controls, keys, sizes, hostile text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Browser, Page, find_browser

from lampo import LLM, SamplingParams, ops
from lampo.explain.explanation import Explanation

pytestmark = pytest.mark.model

HOSTILE = (
    "</script><script>window.hit=1</script><!--<b>&amp;"
    "\u202egnp\u2066\x00\x1b[31m\r\n\U0001f468\u200d "
)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=8, max_model_len=1024) as llm:
        yield llm


@pytest.fixture(scope="module")
def explanation(llm: LLM) -> Explanation:
    params = SamplingParams(max_tokens=40, temperature=0.9, top_p=0.9, seed=3, ignore_eos=True)
    return llm.explain("Why is the sky blue?", params, command="lampo explain")


@pytest.fixture(scope="module")
def file(explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explanation.save(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with Browser(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser: Browser, file: Path) -> Page:
    return Page(browser, file)


def choose(page: Page, at: int) -> None:
    page.evaluate(f"choose({at}, false)")


def set_slider(page: Page, name: str, value: float) -> None:
    page.evaluate(
        f"(() => {{ const input = document.getElementById('{name}'); input.value = {value};"
        "input.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def text(page: Page, name: str) -> str:
    return str(page.evaluate(f"document.getElementById('{name}').textContent"))


def test_no_error_and_no_request(page: Page) -> None:
    for at in range(0, 70, 9):
        choose(page, at)
    assert page.errors == []
    assert page.evaluate("document.querySelectorAll('section').length") == 9


def test_it_is_small(file: Path) -> None:
    assert file.stat().st_size < 3_000_000


def test_the_page_has_the_library_s_numbers(llm: LLM, explanation: Explanation, page: Page) -> None:
    """Probabilities, ranks and counts of kept tokens are those of a generation's own report."""
    first = explanation.data["num_prompt_tokens"]
    ids = [token["id"] for token in explanation.data["tokens"]]
    params = SamplingParams(
        max_tokens=40, temperature=0.9, top_p=0.9, seed=3, ignore_eos=True, logprobs=20
    )
    (result,) = llm.generate([ids[:first]], params)
    output = result.outputs[0]
    assert output.token_ids == ids[first:]
    assert output.logprobs is not None and output.num_kept is not None
    for i, (table, kept) in enumerate(zip(output.logprobs, output.num_kept, strict=True)):
        choose(page, first + i - 1)
        best = {entry.rank: (token_id, entry) for token_id, entry in table.items()}
        shown = page.evaluate(
            "(() => { const c = candidates(); return c.ids.slice(0, 20).map("
            "(id, i) => [id, c.logits[i] - c.logSum]); })()"
        )
        for rank, (token_id, logprob) in enumerate(shown, 1):
            assert best[rank][0] == token_id
            assert best[rank][1].logprob == pytest.approx(logprob, abs=2e-6)
        found = page.evaluate(
            "(() => { const cut = cutOf(candidates(), asDrawn());"
            "return [cut.kept, candidates().ids[drawnPlace(cut, asDrawn())]]; })()"
        )
        assert found == [kept, output.token_ids[i]]


def test_draws_are_those_of_the_op(llm: LLM, explanation: Explanation, page: Page) -> None:
    """The script's own arithmetic against ops.sample, over settings, seeds and positions."""
    ids = [token["id"] for token in explanation.data["tokens"]]
    first = explanation.data["num_prompt_tokens"]
    logits = llm.inspector().inspect(ids).logits
    choices = random.Random(5)
    exact = 0
    for _ in range(150):
        at = choices.randrange(first - 1, len(ids))
        temperature = choices.choice([0.0, 0.3, 0.7, 1.0, 1.5, 2.0])
        top_k, top_p = choices.choice([0, 1, 5, 40, 500]), choices.choice([1.0, 0.9, 0.5, 0.99])
        min_p = choices.choice([0.0, 0.0, 0.02, 0.2])
        seed = choices.choice([0, 7, -3, 2**62 + 5, choices.randrange(2**63)])
        num_kept = torch.empty(1, dtype=torch.int32)
        drawn = ops.sample(
            logits[at : at + 1],
            ops.SampleInputs(
                temperature=torch.tensor([temperature]),
                top_k=torch.tensor([top_k], dtype=torch.int32),
                top_p=torch.tensor([top_p]),
                min_p=torch.tensor([min_p]),
                seeds=torch.tensor([seed]),
                positions=torch.tensor([at + 1]),
            ),
            num_kept=num_kept,
        )
        choose(page, at)
        kept, token_id = page.evaluate(
            f"(() => {{ const c = candidates(); const cut = cutOf(c, {{temperature: {temperature}, "
            f"topK: {top_k}, topP: {top_p}, minP: {min_p}}});"
            f"const place = draw(c, cut, '{seed}', {at + 1});"
            "return [cut.kept, place === null ? null : c.ids[place]]; })()"
        )
        if token_id is None:  # beyond the tokens on the page: about as many
            assert kept == pytest.approx(int(num_kept), rel=0.2, abs=5)
        else:
            exact += 1
            assert (kept, token_id) == (int(num_kept), int(drawn))
    assert exact > 100


def test_sliders_change_the_numbers_and_sums_stay(page: Page) -> None:
    choose(page, 40)
    seen = set()
    for name, values in {
        "temperature": [0, 0.5, 2],
        "topK": [1, 3, 150, 0],
        "topP": [0.1, 0.95, 1],
        "minP": [0.4, 0.01, 0],
    }.items():
        for value in values:
            set_slider(page, name, value)
            assert text(page, "strategy-sum") == "100.00 %"
            assert text(page, "head-sum") == "100.00 %"
            seen.add(text(page, "kept"))
    assert len(seen) >= 6
    set_slider(page, "temperature", 2)
    set_slider(page, "topP", 1)
    assert "histogram" in text(page, "exactness")
    page.evaluate("document.getElementById('reset').click()")
    assert text(page, "temperature") == "" and "library's own" in text(page, "exactness")
    page.evaluate("document.getElementById('hundred').click()")
    counts = re.findall(r"(\d+) of 100", page.evaluate("document.body.textContent"))
    assert sum(map(int, counts)) >= 100
    assert page.errors == []


def test_keys_step_through_tokens(page: Page) -> None:
    choose(page, 10)
    page.evaluate("document.querySelector('#strip [aria-pressed=true]').focus()")
    chosen = "chips.indexOf(document.querySelector('#strip [aria-pressed=true]'))"
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.evaluate(chosen) == 12
    page.press("ArrowLeft")
    assert page.evaluate(chosen) == 11
    assert page.evaluate("chips.indexOf(document.activeElement)") == 11
    page.press("End")
    assert page.evaluate(chosen) == page.evaluate("TOKENS.length") - 1
    page.press("ArrowRight")  # stays
    assert page.evaluate(chosen) == page.evaluate("TOKENS.length") - 1
    assert page.evaluate("document.querySelectorAll('#strip [tabindex=\"0\"]').length") == 1


def test_every_picture_has_a_name_and_a_table(page: Page) -> None:
    assert page.evaluate(
        "Array.from(document.querySelectorAll('svg')).every("
        "svg => svg.getAttribute('role') === 'img' && svg.getAttribute('aria-label'))"
    )
    assert page.evaluate(
        "Array.from(document.querySelectorAll('section')).every(s => s.querySelector('table'))"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone(browser: Browser, file: Path, dark: bool) -> None:
    """No horizontal scroll at 360 pixels, with all tables open, and readable contrast."""
    page = Page(browser, file, width=360, height=740, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.errors == []
    paper, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light, strong = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink))
    assert (light < 150 < 600 < strong) if dark else (strong < 150 < 600 < light)


def test_hostile_text_is_text(browser: Browser, llm: LLM, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    found = llm.explain(HOSTILE, params, raw=True, command="</code><script>hit()</script>")
    page = Page(browser, found.save(tmp_path / "hostile.html"))
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    strip = page.evaluate("document.getElementById('strip').textContent")
    assert "</" in strip and "\\xe2\\x80\\xae" in strip and "\\x1b" in strip
    shown = page.evaluate("document.body.innerText")
    assert not set("\u202e\u2066\x00\x1b") & set(shown)
    assert "</code><script>hit()</script>" in page.evaluate(
        "document.getElementById('footer').textContent"
    )
    assert page.errors == []
