# SPDX-License-Identifier: Apache-2.0
"""Messages in the form that each template takes: tool history, text parts, continued answers."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import chat_templates
import pytest
from chat_templates import DEEPSEEK, LLAMA, PARTS_ONLY, PRINTS, QWEN
from tiny_tokenizers import gguf_metadata, make_backend

from lampo.text.tokenizer import Tokenizer

FAMILIES = {"llama": "llama3", "mistral": "mistral", "deepseek": "mistral"}
TEMPLATES = chat_templates.TEMPLATES
WITH_TOOLS = [name for name in TEMPLATES if name != "vision"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "finds a word",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    }
]
ARGUMENTS = {"word": "é"}


@cache
def tokenizer(template: str, family: str = "chatml") -> Tokenizer:
    metadata = gguf_metadata(make_backend(family), family)
    metadata["tokenizer.chat_template"] = template
    return Tokenizer.from_gguf(metadata)


def named(name: str) -> Tokenizer:
    return tokenizer(TEMPLATES[name], FAMILIES.get(name, "chatml"))


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def history(beside: dict[str, Any], arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "find", "arguments": arguments}
    call = {"id": "abcdefghi", "type": "function", "function": function}
    return [
        user("find it"),
        {"role": "assistant", **beside, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "found"},
    ]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tool_history(name: str) -> None:
    """Absent content, an empty one, arguments as text and as an object: the same chat."""
    ours = named(name)
    texts = {
        ours.render_chat(history(beside, arguments), tools=TOOLS)
        for beside in ({"content": None}, {}, {"content": ""}, {"content": []})
        for arguments in (ARGUMENTS, '{"word": "é"}')
    }
    (text,) = texts
    call = text.index('{"word": "é"}')
    assert text.index("find it") < call < text.index("found")
    assert "None" not in text and "\\" not in text


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_fields_at_none_are_absent(name: str) -> None:
    """An answer of OpenAI's client, sent back whole."""
    ours = named(name)
    none = {"refusal": None, "annotations": None, "audio": None, "name": None}
    whole = assistant("It is there.", function_call=None, tool_calls=None, **none)
    chat = [user("Where is it?"), whole, user("Thanks!")]
    text = ours.render_chat(chat)
    assert text == ours.render_chat([chat[0], assistant("It is there."), chat[2]])
    assert text == ours.render_chat([chat[0], assistant("It is there.", tool_calls=[]), chat[2]])
    assert "It is there." in text


def test_nothing_is_printed_as_none() -> None:
    chat = [*history({"content": None, "refusal": None}, ARGUMENTS), assistant(None, thinking="hm")]
    text = tokenizer(PRINTS).render_chat(chat, add_generation_prompt=False)
    assert text == 'user: find it;assistant:  find({"word": "é"});tool: found;assistant: ;'


def test_arguments_that_are_no_object_are_left_alone() -> None:
    for arguments in ("{", "[1]", '"x"', '{"a": "\\ud800"}', "[" * 100_000, 3, None):
        text = named("qwen").render_chat(history({}, arguments))
        assert '"arguments": ' + (arguments if isinstance(arguments, str) else "") in text
    for calls in (["x"], [{"function": "x"}], "x", {"a": 1}):
        chat = [user("a"), assistant("b", tool_calls=calls)]
        named("vision").render_chat(chat)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_text_parts(name: str, role: str) -> None:
    parts = [{"type": "text", "text": "Read the file?"}, {"type": "text", "text": "def f(): 1"}]
    message = {"role": role, "content": parts}
    chat = {
        "system": [message, user("Go on")],
        "user": [message],
        "assistant": [user("Go on"), message, user("Go on")],
    }[role]
    text = named(name).render_chat(chat)
    if name == "vision" and role != "system":
        assert "[Read the file?][def f(): 1]" in text
    else:
        assert "Read the file?\ndef f(): 1" in text
    assert parts == [{"type": "text", "text": part["text"]} for part in parts]


def test_a_template_of_parts_gets_parts() -> None:
    ours = tokenizer(PARTS_ONLY)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ours.render_chat([user("a dog"), assistant("yes"), user(parts)]) == (
        "User: a dog<end>\nAssistant: yes<end>\nUser: a b<end>\nAssistant:"
    )


def test_special_tokens_in_parts_and_calls_are_text() -> None:
    bad = "<|im_end|>"
    for template in (TEMPLATES["vision"], QWEN):
        ours = tokenizer(template)
        chat = [*history({}, json.dumps({bad: bad})), user([{"type": "text", "text": bad}])]
        plain = [*history({}, '{"x": "x"}'), user([{"type": "text", "text": "x"}])]
        end = ours.token_to_id(bad)
        assert ours.encode_chat(chat).count(end) == ours.encode_chat(plain).count(end)


PREFILLS = ["The answer is", " 4", "```json\n{", "a <|im_end|>", "a <|im_", "", "é 🙂"]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prefill", PREFILLS)
def test_an_answer_is_continued(name: str, prefill: str) -> None:
    """The chat ends with the prefill; what precedes it is the beginning of an answer."""
    ours = named(name)
    chat = [user("How much?"), assistant(prefill)]
    text = ours.render_chat(chat)
    assert text == ours.render_chat(chat, continue_final_message=True)
    assert text == ours.render_chat(chat, add_generation_prompt=False, continue_final_message=True)
    written = prefill.strip() if name in ("llama", "mistral") else prefill
    assert text.endswith(written)
    if name != "harmony":  # it ends in the middle of a header
        whole = ours.render_chat(chat, add_generation_prompt=False)
        assert whole.startswith(text)
    ids = ours.encode_chat(chat)
    parts = [*chat[:-1], assistant([{"type": "text", "text": prefill}])]
    assert ours.render_chat(parts).endswith(written)
    specials = ours.encode_chat([*chat[:-1], assistant("x")])
    assert [i for i in ids if i in ours.special_token_ids] == [
        i for i in specials if i in ours.special_token_ids
    ]


def test_a_continued_answer_as_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for template in (QWEN, LLAMA):
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_object=make_backend("chatml"), chat_template=template, bos_token="<s>"
        )
        metadata = gguf_metadata(make_backend("chatml"), "chatml")
        metadata |= {"tokenizer.chat_template": template}
        ours = Tokenizer.from_gguf(metadata)
        for prefill in ("The answer", "The answer "):
            chat = [user("How much?"), assistant(prefill)]
            expected = theirs.apply_chat_template(chat, tokenize=False, continue_final_message=True)
            assert ours.render_chat(chat) == expected.removeprefix("<s>")


def test_when_an_answer_is_continued() -> None:
    ours = named("qwen")
    question, answer = user("How much?"), assistant("Four")
    opened = "<|im_start|>assistant\n"
    for chat, options, ending in [
        ([question], {}, opened),
        ([question], {"add_generation_prompt": False}, "<|im_end|>\n"),
        ([question], {"continue_final_message": True}, "How much?"),
        ([question], {"continue_final_message": False}, opened),
        ([question, answer], {"continue_final_message": False}, opened),
        ([question, answer], {"add_generation_prompt": True}, opened),
        ([question, answer], {"add_generation_prompt": False}, "Four<|im_end|>\n"),
        (history({}, ARGUMENTS)[:2], {}, opened),
    ]:
        assert ours.render_chat(chat, **options).endswith(ending), options
    with pytest.raises(ValueError, match="continue_final_message: does not go with add_gen"):
        ours.render_chat([answer], continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(ValueError, match="continue_final_message: the last message has no text"):
        ours.render_chat(history({}, ARGUMENTS)[:2], continue_final_message=True)
    with pytest.raises(ValueError, match="continue_final_message: the chat template does not wr"):
        tokenizer("{{ messages[0].content }}").render_chat([question, answer])


def test_an_answer_that_is_written_twice() -> None:
    twice = "{% for m in messages %}{{ m.content }};{{ m.content | trim }};{% endfor %}"
    chat = [user("a"), assistant("b ")]
    assert tokenizer(twice).render_chat(chat) == "a;a;b ;b"


SEARCHES = """
{%- set content = messages[-1].content -%}
{{ '</think>' in content }} {{ '</think>' not in content }} {{ '</think>' is in(content) }}
{{ content.split('</think>') | length }} {{ (content | replace('</think>', '#')).count('#') }}
{{ content.find('</think>\\n') }} {{ content.startswith('<think>') }} {{ 'x</think>' in content }}
{{ content.removeprefix('<think>').rpartition('</think>')[2] | trim }}"""


@pytest.mark.parametrize("special", [True, False])
def test_templates_find_special_tokens_in_user_text(special: bool) -> None:
    """A thought is dropped also if its end is a special token; text still makes no such token."""
    metadata = gguf_metadata(make_backend("chatml"), "chatml")
    if special:
        metadata["tokenizer.ggml.tokens"] += ["<think>", "</think>"]
        metadata["tokenizer.ggml.token_type"] += [3, 3]
    metadata["tokenizer.chat_template"] = QWEN
    ours = Tokenizer.from_gguf(metadata)
    thought = "<think>\nhm <|im_end|> <b>\n</think>\n\na fox <|im_end|> <"
    chat = [user("a dog"), assistant(thought), user("and? <b </think>")]
    text = ours.render_chat(chat)
    assert "hm" not in text and "<|im_start|>assistant\na fox <|im_end|> <<|im_end|>" in text
    plain = [user("a dog"), assistant("a fox"), user("and?")]
    specials = [i for i in ours.encode_chat(chat) if i in ours.special_token_ids]
    assert specials == [i for i in ours.encode_chat(plain) if i in ours.special_token_ids]
    metadata["tokenizer.chat_template"] = SEARCHES
    ours = Tokenizer.from_gguf(metadata)
    assert ours.render_chat([user("<think> b </think>\n c <")], add_generation_prompt=False) == (
        "True False True\n2 1\n10 True False\nc <"
    )


def test_a_template_that_writes_nothing() -> None:
    ours = tokenizer("{% if messages[0].content == 'x' %}y{% endif %}")
    assert ours.encode_chat([user("x")])
    with pytest.raises(ValueError, match=r"^messages: the chat template writes nothing"):
        ours.encode_chat([user("a")])


def test_a_template_of_calls_beside_absent_content() -> None:
    """An empty content beside calls would lose them without a word."""
    text = tokenizer(DEEPSEEK, "mistral").render_chat(history({"content": ""}, ARGUMENTS))
    assert '<|call|>function<|sep|>find\n```json\n{"word": "é"}\n```' in text


def test_errors_are_short() -> None:
    long = "x" * 70_000
    chats: list[Any] = [
        [user({"a": long})],
        [user("a") | {"role": long}],
        [user([long])],
        [user([{"type": long}])],
        [user([{"type": "text", "text": [long]}])],
        [user("a") | {long: object()}],
        [user("a") | {"x": {long: {long: object()}}}],
        [user("a") | {"x": long + "\ud800"}],
    ]
    for chat in chats:
        with pytest.raises(ValueError, match=r"^messages\[0\]") as caught:
            named("qwen").encode_chat(chat)
        assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match=r"^template_kwargs") as caught:
        named("qwen").encode_chat([user("a")], template_kwargs={long: 1})
    assert len(str(caught.value)) < 600


def test_a_developer_is_the_system_where_the_template_knows_no_developer() -> None:
    def written(template: str, role: str) -> str:
        messages = [{"role": role, "content": "Be brief."}, user("Hi")]
        return tokenizer(template).decode(
            tokenizer(template).encode_chat(messages), skip_special_tokens=False
        )

    assert written(QWEN, "developer") == written(QWEN, "system")
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    assert "<|im_start|>system\nBe brief." in written(plain, "developer")
    knows = plain + "{% if 'developer' in messages %}{% endif %}"
    assert "<|im_start|>developer\nBe brief." in written(knows, "developer")
