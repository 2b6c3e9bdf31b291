# SPDX-License-Identifier: Apache-2.0
"""Chats: as transformers renders them, special tokens from the template only, limits, bad input."""

from __future__ import annotations

import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hostile_templates import BOMBS
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import BOS, EOS, SPECIALS, TEMPLATES, gguf_metadata, make_backend, save

from lampo.models.checkpoint import load_checkpoint
from lampo.models.registry import ARCHITECTURES
from lampo.text import chat_limits
from lampo.text.chat_families import chat_family
from lampo.text.chat_messages import SpecialTokenMask
from lampo.text.chat_sandbox import ChatEnvironment
from lampo.text.chat_template import ChatTemplate
from lampo.text.tokenizer import Tokenizer
from lampo.weights.default_model import cached_default_model

FAMILIES = list(TEMPLATES)
CHATS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": "Why is the sky blue?"}],
    "turns": [
        {"role": "user", "content": "  the dog  \n"},
        {"role": "assistant", "content": "a fox?\n\n"},
        {"role": "user", "content": "{{ 7 * 7 }} {% raw %} <b>&amp;</b> 🙂 don't"},
    ],
    "thought": [
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\na fox"},
        {"role": "user", "content": "and?"},
    ],
    "empty": [{"role": "user", "content": ""}],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "find", "description": "<b> & 'é'", "parameters": {"n": 1.5}},
    }
]


@cache
def tokenizer(family: str, template: str | None = None) -> Tokenizer:
    metadata = gguf_metadata(make_backend(family), family)
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return Tokenizer.from_gguf(metadata)


@cache
def peer(family: str) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_backend(family),
        chat_template=TEMPLATES[family],
        bos_token=BOS.get(family),
        eos_token=EOS[family],
    )


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def special_ids(family: str, ids: list[int]) -> list[int]:
    return [token_id for token_id in ids if token_id in tokenizer(family).special_token_ids]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_as_transformers(family: str, chat: str, prompt: bool) -> None:
    ours, theirs = tokenizer(family), peer(family)
    options = {"add_generation_prompt": prompt}
    text = theirs.apply_chat_template(CHATS[chat], tokenize=False, **options)
    assert ours.render_chat(CHATS[chat], **options) == text
    ids = theirs.apply_chat_template(CHATS[chat], tokenize=True, return_dict=False, **options)
    if family == "zephyr":  # its template leaves BOS to the tokenizer
        ids = [ours.bos_token_id, *ids]
    assert ours.encode_chat(CHATS[chat], **options) == ids


@pytest.mark.parametrize(
    ("family", "model_type"),
    [
        *(("chatml", name) for name in ("qwen2", "qwen3", "smollm3", "olmo3")),
        *(("llama3", "llama"), ("mistral", "mistral"), ("phi", "phi3"), ("gemma", "gemma2")),
        *(("gemma", "gemma3_text"), ("granite", "granite"), ("olmo", "olmo2")),
        ("ministral", "ministral3"),
    ],
)
def test_families_of_models(family: str, model_type: str) -> None:
    """An answer in a template of the family ends with the family's first mark for that."""
    found = chat_family(model_type)
    assert found is not None
    answer = [*user("the dog"), {"role": "assistant", "content": "a fox"}]
    text = peer(family).apply_chat_template(answer, tokenize=False)
    assert text.rstrip().endswith("a fox" + found.stops[0])


def test_every_architecture_has_a_family() -> None:
    assert [a.model_type for a in ARCHITECTURES if chat_family(a.model_type) is None] == []


def test_tools_and_arguments_as_transformers() -> None:
    ours, theirs = tokenizer("chatml"), peer("chatml")
    call = {"function": {"name": "find", "arguments": {"x": ["é", 1, None]}}}
    chat = [*CHATS["question"], {"role": "assistant", "content": None, "tool_calls": [call]}]
    text = theirs.apply_chat_template(
        chat, tools=TOOLS, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    options: dict[str, Any] = {"tools": TOOLS, "template_kwargs": {"enable_thinking": False}}
    assert ours.render_chat(chat, **options) == text
    assert ours.encode_chat(chat, **options) == ours.encode(text, parse_special=True)
    assert "<b> & 'é'" in text and text.endswith("</think>\n\n")


def test_folder_and_gguf_agree(tmp_path: Path) -> None:
    for family in FAMILIES:
        folder = Tokenizer.from_directory(save(make_backend(family), family, tmp_path / family))
        for chat in CHATS.values():
            assert folder.encode_chat(chat) == tokenizer(family).encode_chat(chat)


@pytest.mark.model
def test_default_model() -> None:
    path = cached_default_model()
    if path is None:
        pytest.skip("the default model is not cached; `lampo pull` fetches it")
    with load_checkpoint(path) as checkpoint:
        ours = Tokenizer.from_gguf(checkpoint.gguf_metadata or {})
    theirs = pytest.importorskip("transformers").PreTrainedTokenizerFast(
        tokenizer_object=make_backend("chatml"), chat_template=ours.chat_template
    )
    for chat in CHATS.values():
        text = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert ours.render_chat(chat) == text
        assert ours.encode_chat(chat) == ours.encode(text, parse_special=True)
    ids = ours.encode_chat(user("<|im_end|>"))
    assert ids.count(2) == 2 and ids.count(1) == 3


@pytest.mark.parametrize("family", ["llama3", "mistral", "zephyr"])
def test_bos_exactly_once(family: str) -> None:
    bos = tokenizer(family).bos_token_id
    for text in ("the dog", BOS[family], BOS[family] + "the dog"):
        ids = tokenizer(family).encode_chat(user(text))
        assert ids[0] == bos
        assert ids.count(bos) == 1


def harmless(text: str) -> str:
    """The same text with every first character of a special token replaced."""
    return text.replace("<", "(").replace("[", "(")


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_of_users_are_text(family: str) -> None:
    ours = tokenizer(family)
    for special in SPECIALS[family]:
        for text in (special, f"a{special}b", f" {special}\n", special * 3, special[0] + special):
            chat = user(text)
            ids = ours.encode_chat(chat)
            assert special_ids(family, ids) == special_ids(
                family, ours.encode_chat(user(harmless(text)))
            )
            shown = ours.render_chat(chat)
            assert shown == peer(family).apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
            assert (
                ours.decode(ids, skip_special_tokens=False)
                .replace(" ", "")
                .endswith(shown.replace(" ", ""))
            )


def test_ids_of_special_tokens_as_text_are_those_of_text() -> None:
    ours = tokenizer("chatml")
    ids = ours.encode_chat(user("a <|im_end|> b"), add_generation_prompt=False)
    start, end = (ours.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    inner, newline = ours.encode("user\na <|im_end|> b"), ours.encode("\n")
    assert ids == [start, *inner, end, *newline]


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_no_text_makes_special_tokens(family: str, data: st.DataObject) -> None:
    parts = [part for t in SPECIALS[family] for part in (t, t[:2], t[2:], t[:-1], t[1:], t[-1])]
    texts = st.lists(st.sampled_from([*parts, " ", "\n", "x", "</think>", "😀"]), max_size=6)
    content = "".join(data.draw(texts))
    chat = [*user(content), {"role": "assistant", "content": "".join(data.draw(texts))}]
    plain = [{**m, "content": harmless(m["content"])} for m in chat]
    ours = tokenizer(family)
    found = special_ids(family, ours.encode_chat(chat, add_generation_prompt=True))
    assert found == special_ids(family, ours.encode_chat(plain, add_generation_prompt=True))
    assert ours.render_chat(chat, add_generation_prompt=True) == peer(family).apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


def test_special_tokens_in_every_field() -> None:
    ours = tokenizer("chatml")
    bad = "<|im_end|>"
    call = {"function": {"name": bad, "arguments": {bad: [bad, {bad: bad}]}}}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": bad}], "name": bad},
        {"role": "assistant", "content": bad, "tool_calls": [call]},
        {"role": "tool" + bad, "content": bad},
    ]
    tools = [{"type": bad, bad: {"x": bad}}]
    ids = ours.encode_chat(chat, tools=tools)
    assert ids.count(ours.token_to_id(bad) or -1) == 4
    assert ours.render_chat(chat, tools=tools).count(bad) == 4 + 12


def test_split_special_tokens() -> None:
    """Begun by the template and ended by the user, and the other way round."""
    messages = [{"role": "user", "content": "im_end|> x <|im_"}, *user("end|>"), *user("<|")]
    template = "{{ '<|' }}{% for m in messages %}{{ m.content | trim }}{% endfor %}im_end|>"
    ours = tokenizer("chatml", template)
    assert ours.render_chat(messages) == "<|im_end|> x <|im_end|><|im_end|>"
    assert special_ids("chatml", ours.encode_chat(messages)) == []
    assert ours.encode_chat(messages) == ours.encode("<|im_end|> x <|im_end|><|im_end|>")
    innocent = user("a dog")
    ids = ours.encode_chat(innocent)
    assert ids == ours.encode("<|a dogim_end|>")


def test_special_tokens_made_of_pieces_by_the_template() -> None:
    cut = "{{ messages[0].content.split('</x>') | join }}{{ '<|im_end|>' }}"
    ours = tokenizer("chatml", cut)
    ids = ours.encode_chat(user("<|im_</x>end|> <|im_start</x>|>"))
    assert len(special_ids("chatml", ids)) == 1
    assert ours.render_chat(user("a</x>b")) == "ab<|im_end|>"
    drop = "{{ messages[0].content | replace('!', '') }}{{ messages[0].content[:3] }}im_end|>"
    ours = tokenizer("chatml", drop)
    assert special_ids("chatml", ours.encode_chat(user("<!|im_end|>"))) == []


def test_roles() -> None:
    """A template may build special tokens from well-known roles only."""
    ours = tokenizer("phi")
    ids = ours.encode_chat(user("a dog"))
    names = [ours.id_to_token(i) for i in special_ids("phi", ids)]
    assert names == ["<|user|>", "<|end|>", "<|assistant|>"]
    for role in ("endoftext", "user|><|endoftext", "end", "endoftext|>"):
        ids = ours.encode_chat([{"role": role, "content": "a"}])
        names = [ours.id_to_token(i) for i in special_ids("phi", ids)]
        assert names == ["<|end|>", "<|assistant|>"]


def test_masks_do_not_show_in_the_template() -> None:
    template = (
        "{% set m = messages[0] %}{{ m.role == 'user' }} {{ m.content | length }} "
        "{{ m.content | trim | length }} {{ m.content.startswith('x<') }} "
        "{{ '</think>' in m.content }} {{ [m.content] | tojson(ensure_ascii=true) }}"
    )
    text = " x</think> é<|im_end|> <|im "
    shown = tokenizer("chatml", template).render_chat(user(text))
    assert shown == 'True 28 26 False True [" x</think> \\u00e9<|im_end|> <|im "]'


def test_users_may_write_private_use_characters() -> None:
    ours = tokenizer("chatml")
    text = "".join(map(chr, range(0xF0000, 0xF0100))) + "<|im_end|>\U0010fffd"
    assert text in ours.render_chat(user(text))
    ids = ours.encode_chat(user(text))
    assert text in ours.decode(ids)
    everything = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    with pytest.raises(ValueError, match="private-use"):
        ours.encode_chat(user(everything + "<"))


def test_mask_of_strings() -> None:
    mask = SpecialTokenMask(["<|end|>", "[INST]"], ["<|", "x"])
    marks = {"<": "\U000f0000", "[": "\U000f0001", "e": "\U000f0002"}
    for text, hidden in [
        ("a < b [0]", "a < b [0]"),
        ("<|end|>", "\U000f0000|end|>"),
        ("a <|en", "a \U000f0000|en"),
        ("a[  ", "a\U000f0001  "),
        ("end|> a", "\U000f0002nd|> a"),
        ("end", "\U000f0002nd"),
        ("ended", "ended"),
        ("[[INST]", "[\U000f0001INST]"),
        ("", ""),
    ]:
        assert mask.mask(text, marks) == hidden


HOSTILE = {
    "long range": "{% for i in range(10**9) %}{% endfor %}",
    "longer range": "{% for i in range(10**30) %}{% endfor %}",
    "nested loops": "{% for i in range(9999) %}" * 4 + "{% endfor %}" * 4,
    "loops over a list": "{% set r = range(9999) | list %}"
    + "{% for i in r %}" * 4
    + "{% endfor %}" * 4,
    "filtered loops": "{% set r = range(9999) | list %}{% for i in r %}{% for j in r %}"
    "{% for k in r if false %}{% endfor %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "text": "{% for i in range(9999) %}" + "x" * 9999 + "{% endfor %}",
    "captured text": "{% set y %}{% for i in range(9999) %}"
    + "x" * 9999
    + "{% endfor %}{% endset %}",
    "times": "{{ 'x' * 10**10 }}",
    "times reversed": "{% set y = 10**10 * 'x' %}",
    "times list": "{% set y = [1] * 10**10 %}",
    "times nested list": "{{ ['x' * 9999] * 9999 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set n = namespace(x=9) %}"
    "{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling": "{% set n = namespace(x='x') %}"
    "{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='x') %}"
    "{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by join": "{% set n = namespace(x='x') %}"
    "{% for i in range(99) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "doubling by capture": "{% set n = namespace(x='x') %}"
    "{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "doubling by replace": "{% set n = namespace(x='xx') %}"
    "{% for i in range(99) %}{% set n.x = n.x.replace('x', n.x) %}{% endfor %}",
    "doubling lists": "{% set n = namespace(x=[]) %}"
    "{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "doubling dicts": "{% set n = namespace(x=1) %}"
    "{% for i in range(40) %}{% set n.x = dict(a=n.x, b=n.x) %}{% endfor %}{{ n.x == n.x }}",
    "replace": "{{ ('x' * 9999) | replace('', 'x' * 9999) }}",
    "replace method": "{{ ('x' * 9999).replace('x', 'x' * 9999) }}",
    "join": "{{ (range(9999) | list) | join('x' * 9999) }}",
    "join method": "{{ ('x' * 9999).join(range(9999) | map('string') | list) }}",
    "indent": "{{ 'x' | indent(10**9, true) }}",
    "round": "{{ 1.5 | round(10**8, 'floor') }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width argument": "{{ '%*d' % (10**9, 1) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "format map": "{{ '{x:>1000000000}'.format_map({'x': 1}) }}",
    "justify": "{{ 'x'.ljust(10**9) }}",
    "tabs": "{{ '\\t'.expandtabs(10**9) }}",
    "bytes": "{{ (5).to_bytes(10**10) }}",
    "time": "{{ strftime_now('%1000000000d') }}",
    "json": "{{ [1] | tojson(indent=10**9) }}",
    "json separators": "{{ [1, 2] | tojson(separators=('x' * 999999, 'x')) }}",
    "filter": "{{ 'x' | center(10**9) }}",
    "lipsum": "{{ lipsum(10**6) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "wide recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    "namespace": "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
    "underscore": "{% set n = namespace(_x=1) %}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__.x }}",
    "environment": "{{ self.__init__.__globals__ }}",
    "mutation": "{% set _ = messages.append(1) %}{{ messages.append(1) }}",
    "include": "{% include 'x' %}",
    "import": "{% from 'x' import y %}",
}
HOSTILE |= BOMBS


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_limits, "MAX_SECONDS", 0.5)
    template = ChatTemplate(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^chat template: "):
            template.render({"messages": []}, 0)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ x",
        "{% nonsense %}",
        "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
        "{% if x %}" * 5_000,
        "x" * (1 << 20),
        "{{ x }}" * 10_000,
        "{% if x %}" * 99 + "{{ y }}" + "{% endif %}" * 99,
        "{{ " + "x + " * 200 + "x }}",
    ],
)
def test_bad_template(source: str) -> None:
    with pytest.raises(ValueError, match=r"^chat template: "):
        ChatTemplate(source)


def test_a_template_that_does_not_compile_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = []
    parse = ChatEnvironment.parse
    monkeypatch.setattr(
        ChatEnvironment, "parse", lambda *args: counted.append(args) or parse(*args)
    )
    ours = tokenizer("chatml", "{% if messages %}{{ messages")
    for _ in range(3):
        with pytest.raises(ValueError, match=r"^chat template: TemplateSyntaxError: "):
            ours.encode_chat(user("a"))
    assert len(counted) == 1


def test_the_message_of_a_template_shows_the_text_of_users() -> None:
    ours = tokenizer("chatml", "{{ raise_exception('no: ' ~ messages[0].content) }}")
    with pytest.raises(ValueError, match=r"^chat template: no: a <\|im_end\|> b$"):
        ours.encode_chat(user("a <|im_end|> b"))


def test_the_message_of_a_template_is_short() -> None:
    with pytest.raises(ValueError, match=r"^chat template: a b") as caught:
        ChatTemplate("{{ raise_exception('a\nb' * 99999) }}").render({}, 0)
    assert len(str(caught.value)) <= 300


def test_what_templates_may_do() -> None:
    for source, expected in [
        ("{{ '{} {x:>3}|{0[0]!r}'.format([1, 'a'], x='b') }}", "[1, 'a']   b|1"),
        ("{{ '{a:.2f}'.format_map({'a': 1.234}) }} {{ '%s-%s' | format(1, 'a') }}", "1.23 1-a"),
        ("{{ '%03d|%-5s|%.2f|%5.1f%%' % (7, 'ab', 2.345, 99.5) }}", "007|ab   |2.35| 99.5%"),
        ("{{ '%(a)3s' % {'a': 1} }}", "  1"),
        ("{{ [1, 2.5] | sum }} {{ [{'n': 1}, {'n': 2}] | sum(attribute='n') }}", "3.5 3"),
        ("{% for r in [1, 2, 3] | batch(2, 'x') %}{{ r }}{% endfor %}", "[1, 2][3, 'x']"),
        (
            "{% set sep = joiner(', ') %}{% for i in 'abc' %}{{ sep() }}{{ i }}{% endfor %}",
            "a, b, c",
        ),
        ("{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}", "aba"),
        ("{% set l = [1].copy() + [2] %}{{ l }}{{ {'a': 1}.copy() }}", "[1, 2]{'a': 1}"),
        (
            "{{ 7 // 2 }} {{ 1 < 2 <= 2 < 3 }} {{ 1 < 2 > 2 }} {{ 'a' not in 'bc' }}",
            "3 True False True",
        ),
        ("{{ '3f' | int(0, 16) }} {{ 'a b c' | wordcount }} {{ 'x' | center(5) }}|", "63 3   x  |"),
        ("{{ 'a' in {'a': 1} }} {{ 2 is in([1, 2]) }} {{ 4 is divisibleby(2) }}", "True True True"),
        (
            "{% for i in [1, 2, 3] %}{% if i is odd %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "2",
        ),
        ("{{ ['b', 'a'] | map('upper') | first }} {{ ('x' | safe) + '<' }}", "B x&lt;"),
        ("{% for k in {'b': 1, 'a': 2}.keys() | sort %}{{ k }}{% endfor %}", "ab"),
        ("{{ 'a<b>c'.split('<b>')[-1].lstrip('c') }}{{ 'a.b'.rsplit('.', 1) }}", "['a', 'b']"),
        (
            "{% macro f() %}{{ caller(1) }}{% endmacro %}{% call(x) f() %}{{ x }}!{% endcall %}",
            "1!",
        ),
        (
            "{{ [1, 2] | tojson }}|{{ {'a': '<é>'} | tojson(indent=2) }}",
            '[1, 2]|{\n  "a": "<é>"\n}',
        ),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ 'é🙂' | tojson(ensure_ascii=true) }}", '"\\u00e9\\ud83d\\ude42"'),
        ("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}", "a1"),
        ("{{ '%s=%d' % ('a', 1) }} {{ 'a-b'.split('-') }} {{ 'x' * 3 }}", "a=1 ['a', 'b'] xxx"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ f('a' | upper) }}", "<1><A>"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 %}{{ ns.n }}", "2"),
        ("  {% if true %}\n  a\n  {% endif %}\n", "  a\n"),
        ("{{ none }}{{ missing }}{{ x is defined }}", "NoneFalse"),
        ("{% generation %}{% set y = 1 %}a{% endgeneration %}{{ y }}", "a"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        (
            "{{ ['b', 'a'] | sort | join(', ') }} {{ [3, 1] | max }} {{ 1.26 | round(1) }}",
            "a, b 3 1.3",
        ),
        ("{{ [{'r': 1}, {'r': 2}] | selectattr('r', 'equalto', 2) | list | length }}", "1"),
        ("{{ [1, 2, 3][::-1] }}{{ 'abc'[1:] }}{{ (1, 2)[0] }}", "[3, 2, 1]bc1"),
        ("{{ 'x' | indent(2, true) }}{{ 'a b' | replace(' ', '') }}", "  xab"),
    ]:
        assert ChatTemplate(source).render({}, 0) == expected


def test_long_chats_are_within_the_limits() -> None:
    chat = [{"role": r, "content": "<p>the dog</p> " * 40} for r in ("user", "assistant")] * 500
    for family in FAMILIES:
        text = tokenizer(family).render_chat(chat)
        assert text.count("the dog") == 40_000
    assert len(tokenizer("chatml").render_chat(user("<" * 3_000_000))) > 3_000_000


def test_message_of_the_template() -> None:
    chat = [*CHATS["question"], *CHATS["question"]]
    with pytest.raises(ValueError, match=r"^chat template: roles must alternate: user, assist"):
        tokenizer("mistral").encode_chat(chat)


def test_model_without_template() -> None:
    metadata = gguf_metadata(make_backend("chatml"), "chatml")
    del metadata["tokenizer.chat_template"]
    bare = Tokenizer.from_gguf(metadata)
    assert bare.chat_template is None
    with pytest.raises(ValueError, match="this model has no chat template"):
        bare.encode_chat(user("hi"))


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages: expected a list of messages, got str"),
        ({"role": "user"}, "messages: expected a list of messages, got dict"),
        ([], "messages: expected at least one message"),
        (["hi"], r"messages\[0\]: expected a dict with role and content, got str"),
        ([{"content": "a"}], r"messages\[0\]\.role: expected 1 to 64 characters, got None"),
        ([{"role": "", "content": "a"}], r"messages\[0\]\.role: .* got ''"),
        ([{"role": "x" * 65, "content": "a"}], r"messages\[0\]\.role: "),
        ([*user("a"), {"role": "user"}], r"messages\[1\]\.content: missing"),
        ([*user("a"), {"role": "user", "content": 3}], r"messages\[1\]\.content: .* got 3"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "x"}]}],
            r"messages\[0\]\.content\[0\]: expected .*\"text\".*, got 'image'",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"messages\[0\]\.content\[0\]\.text: expected a string, got None",
        ),
        ([{"role": "user", "content": "a", "x": object()}], r"messages\[0\]\.x: a object is not"),
        ([{"role": "user", "content": "a", 3: 4}], r"messages\[0\]: expected string keys, got 3"),
        ([{"role": "user", "content": "\udc00"}], r"messages\[0\]\.content: U\+DC00 at index 0"),
        (
            [{"role": "user", "content": "a", "x": CIRCLE}],
            r"messages\[0\].*: nested deeper than 32",
        ),
    ],
)
def test_bad_messages(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer("chatml").encode_chat(messages)


def test_bad_arguments() -> None:
    ours = tokenizer("chatml")
    for arguments, message in [
        ({"chat_template": "x"}, "template_kwargs: 'chat_template' is not one of"),
        ({"messages": []}, "template_kwargs: 'messages' is not one of"),
        ({"enable_thinking": "yes"}, "template_kwargs.enable_thinking: expected bool, got 'yes'"),
        ({"thinking_budget": True}, "template_kwargs.thinking_budget: expected int, got True"),
    ]:
        with pytest.raises(ValueError, match=message):
            ours.encode_chat(user("a"), template_kwargs=arguments)
    for tools in ("x", [3], {"a": 1}):
        with pytest.raises(ValueError, match="tools: expected a list of JSON objects"):
            ours.encode_chat(user("a"), tools=tools)  # type: ignore[arg-type]


def test_parts_are_joined_and_messages_left_alone() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "dog<|im_end|>"}]
    chat = [{"role": "user", "content": parts}]
    ours = tokenizer("chatml")
    assert ours.encode_chat(chat) == ours.encode_chat(user("a \ndog<|im_end|>"))
    assert chat == [{"role": "user", "content": parts}] and parts[0]["text"] == "a "
