# SPDX-License-Identifier: Apache-2.0
"""Completions of random models that match what was asked for, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import make_backend, save

from lampo import LLM, SamplingParams, StructuredOutputs
from lampo.text.structured_limits import MAX_BYTES, closed_schema
from lampo.text.structured_outputs import compile_grammar
from lampo.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

PARAMS = SamplingParams(temperature=1, max_tokens=200, seed=1)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    with LLM(path, dtype="float32", page_size=16) as llm:
        yield llm


def outputs(llm: LLM, n: int = 8, logit_bias: Any = None, **wanted: Any) -> list[str]:
    """Texts of n completions, each of which ended by itself."""
    params = dataclasses.replace(
        PARAMS,
        n=n,
        logit_bias=logit_bias or {},
        structured_outputs=StructuredOutputs(**wanted),
    )
    completions = llm.generate("Hello", params)[0].outputs
    assert [(c.finish_reason, c.error) for c in completions] == [("stop", None)] * n
    return [c.text for c in completions]


@pytest.mark.parametrize("schema", [PERSON, json.dumps(PERSON)])
def test_json_schema(llm, schema):
    for text in outputs(llm, json=schema, disable_any_whitespace=True):
        value = json.loads(text)
        assert list(value) == ["name", "age", "tags"]
        assert isinstance(value["name"], str) and len(value["name"]) <= 8
        assert type(value["age"]) is int and 0 <= value["age"] <= 150
        assert len(value["tags"]) <= 3 and set(value["tags"]) <= {"a", "b"}
        assert " " not in text.replace(value["name"], "")


def test_json_object(llm):
    # A random model seldom closes an object: only that it is the beginning of one is certain.
    params = dataclasses.replace(
        PARAMS, n=4, max_tokens=20, structured_outputs=StructuredOutputs(json_object=True)
    )
    for completion in llm.generate("Hello", params)[0].outputs:
        assert completion.text.lstrip().startswith("{")
        assert re.fullmatch(r'\s*\{\s*(".*|\}\s*)?', completion.text, re.DOTALL)


@pytest.mark.parametrize(
    "regex",
    [r"[0-9]{4}-[0-9]{2}", r"^\d{3}$", r"(red|green)+ \w{2,5}", r"[^a]{1,3}/\$", "x", "é🙂?"],
)
def test_regex(llm, regex):
    for text in outputs(llm, regex=regex):
        assert re.fullmatch(regex, text, re.ASCII)


def test_choice(llm):
    choices = ["yes", "yes, of course", 'no "never"', "é\n\\🙂", "a/b|c"]
    found = outputs(llm, n=40, choice=choices)
    assert set(found) <= set(choices)
    assert len(set(found)) > 2


def test_grammar(llm):
    grammar = 'start: "(" item ("," item)* ")"\nitem: NUMBER | start\nNUMBER: /[1-9]/'
    opening = llm.tokenizer.encode("(")[0]
    for text in outputs(llm, grammar=grammar, logit_bias={opening: -4.0}):
        while text != "1":  # the innermost brackets become a number
            text, count = re.subn(r"\([1-9](,[1-9])*\)", "1", text)
            assert count


ARITHMETIC = r"""
%llguidance {}
// sums of products: 100% & more
start: sum
sum: product (("+" | "-") product)*
product: atom (/[*\/]/ atom)*
atom: NUMBER | "(" sum ")" | NAME "(" sum ("," sum)? ")"
NUMBER: DIGIT{1,20} ("." DIGIT+)?
DIGIT: /[0-9]/
NAME: "sqrt" | "exp" | "{&}"
%ignore /[ ]{1,3}/
"""


def test_an_ordinary_grammar_is_not_refused_for_its_cost(llm):
    params = dataclasses.replace(PARAMS, max_tokens=20)
    wanted = dataclasses.replace(params, structured_outputs=StructuredOutputs(grammar=ARITHMETIC))
    completion = llm.generate("Hello", wanted)[0].outputs[0]
    assert completion.finish_reason in ("stop", "length")
    assert set(completion.text) <= set("0123456789+-*/()., {&}sqrtexp")


def test_the_end_comes_only_where_the_structure_allows_it(llm):
    (eos,) = llm.eos_token_ids
    wanted = StructuredOutputs(regex="a{3,5}")
    params = dataclasses.replace(PARAMS, temperature=0, structured_outputs=wanted)
    eager = dataclasses.replace(params, logit_bias={eos: 100})
    completion = llm.generate("Hello", eager)[0].outputs[0]
    assert (completion.text, completion.finish_reason) == ("aaa", "stop")
    assert completion.token_ids[-1] == eos
    never = dataclasses.replace(params, logit_bias={eos: -100})
    completion = llm.generate("Hello", never)[0].outputs[0]
    assert (completion.text, completion.finish_reason) == ("aaaaa", "stop")
    assert eos not in completion.token_ids
    ignoring = dataclasses.replace(eager, ignore_eos=True)
    completion = llm.generate("Hello", ignoring)[0].outputs[0]
    assert (completion.text, completion.finish_reason) == ("aaa", "stop")
    short = dataclasses.replace(params, max_tokens=2)
    completion = llm.generate("Hello", short)[0].outputs[0]
    assert (completion.text, completion.finish_reason) == ("aa", "length")


def test_completions_are_independent(llm):
    texts = outputs(llm, n=3, regex="[a-z]{6}")
    assert len(set(texts)) == 3
    alone = dataclasses.replace(PARAMS, structured_outputs=StructuredOutputs(regex="[a-z]{6}"))
    for i, text in enumerate(texts):
        params = dataclasses.replace(alone, seed=1 + i)
        assert llm.generate("Hello", params)[0].outputs[0].text == text


def test_a_mixed_batch_gives_each_request_its_own_tokens(llm):
    free = SamplingParams(temperature=0.9, top_p=0.9, max_tokens=30, seed=5, ignore_eos=True)
    requests = [
        free,
        dataclasses.replace(PARAMS, structured_outputs=StructuredOutputs(json=PERSON)),
        dataclasses.replace(free, repetition_penalty=1.3, logprobs=2),
        dataclasses.replace(PARAMS, structured_outputs=StructuredOutputs(choice=["one", "two"])),
        dataclasses.replace(free, temperature=0),
        dataclasses.replace(free, allowed_token_ids=list(range(40, 60)), logprobs=1),
        dataclasses.replace(free, logit_bias={50: 4.0}, min_tokens=3, logprobs=3),
        dataclasses.replace(free, logprobs=3, logprobs_mode="processed", presence_penalty=1.0),
        dataclasses.replace(free, n=3, structured_outputs=StructuredOutputs(regex="[ab]{9}")),
    ]
    prompts = [f"prompt {i}" for i in range(len(requests))]
    alone = [
        llm.generate(prompt, params)[0].outputs
        for prompt, params in zip(prompts, requests, strict=True)
    ]
    assert [r.outputs for r in llm.generate(prompts, requests)] == alone


def test_a_completion_that_is_computed_anew_stays_where_it_was(llm):
    requests = [
        dataclasses.replace(
            PARAMS, seed=9, structured_outputs=StructuredOutputs(regex="[a-z]{90}")
        ),
        SamplingParams(seed=4, max_tokens=90, ignore_eos=True, repetition_penalty=1.2, logprobs=0),
        SamplingParams(seed=5, max_tokens=90, ignore_eos=True, min_tokens=50, stop=["ab"]),
    ] * 2
    prompts = [f"prompt {i}" for i in range(len(requests))]
    expected = [r.outputs for r in llm.generate(prompts, requests)]
    config = llm.config
    token = 2 * config.num_layers * config.layers[0].attention.kv_size * 4
    with LLM(llm.path, dtype="float32", page_size=16, kv_cache_memory=256 * token) as small:
        assert [r.outputs for r in small.generate(prompts, requests)] == expected
        assert small.shared_engine().engine.stats().num_preemptions > 0


def test_with_allowed_tokens_both_must_allow(llm):
    digits = [llm.tokenizer.encode(c)[0] for c in "123"]
    params = dataclasses.replace(
        PARAMS, structured_outputs=StructuredOutputs(regex="[2-9]{4}"), allowed_token_ids=digits
    )
    text = llm.generate("Hello", params)[0].outputs[0].text
    assert re.fullmatch("[23]{4}", text)
    nothing = dataclasses.replace(params, allowed_token_ids=digits[:1])
    first, second = llm.generate(["Hello", "Hello"], [nothing, params])
    assert first.outputs[0].finish_reason == "error"
    assert "masks left none" in first.outputs[0].error
    assert second.outputs[0].text == text


def test_a_tokenizer_that_puts_a_space_in_front(tmp_path):
    """Text that has to come is spelled without the space, and round trips."""
    save(make_backend("zephyr"), "zephyr", tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.strip_leading_space
    wanted = StructuredOutputs(choice=["The quick brown fox", "dog"])
    grammar = compile_grammar(wanted, tokenizer, tokenizer.vocab_size, tokenizer.eos_token_ids)
    import numpy as np

    rng = np.random.default_rng(1)
    mask = np.zeros(-(-tokenizer.vocab_size // 32), dtype=np.int32)
    for _ in range(20):
        completion, data = grammar.fork(), b""
        while not completion.complete:
            assert completion.fill(mask) is None
            ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            token_id = int(rng.choice(ids))
            assert completion.accept(token_id) is None
            if token_id not in tokenizer.special_token_ids:
                data += tokenizer.token_bytes(token_id)
        assert data.decode() in ("The quick brown fox", "dog")


@settings(max_examples=40, deadline=None)
@given(choices=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_any_text_can_be_a_choice(llm, choices):
    (eos,) = llm.eos_token_ids
    grammar = compile_grammar(
        StructuredOutputs(choice=choices), llm.tokenizer, llm.config.vocab_size, llm.eos_token_ids
    )
    for text in choices:
        completion = grammar.fork()
        for byte in text.encode():
            (token_id,) = (
                i for i in range(3, 259) if llm.tokenizer.token_bytes(i) == bytes([byte])
            )
            assert completion.accept(token_id) is None
        assert completion.complete or completion.accept(eos) is None


def accepts(llm, text: str, **wanted: Any) -> bool:
    """Whether a structure allows the text, byte by byte."""
    wanted = StructuredOutputs(**wanted)
    grammar = compile_grammar(wanted, llm.tokenizer, llm.config.vocab_size, llm.eos_token_ids)
    byte_ids = {llm.tokenizer.token_bytes(i): i for i in range(3, 259)}
    return all(grammar.accept(byte_ids[bytes([byte])]) is None for byte in text.encode())


OPEN_PERSON = {name: PERSON[name] for name in ("type", "properties", "required")}


@pytest.mark.parametrize("wanted", [{"json_object": True}, {"json": OPEN_PERSON}])
def test_whitespace_in_json_is_bounded(llm, wanted):
    """One space, or a line break with an indent: spaces until the last token are impossible."""
    for between in ("", " ", "\n", "\n    ", "\n" + " " * 20):
        begin = f'{{{between}"name"{between}:{between}"a"{between}'
        assert accepts(llm, begin, **wanted)
        dense = {**wanted, "disable_any_whitespace": True}
        assert accepts(llm, begin, **dense) == (between == "")
    for ending in ("  ", "\n\n", "\n" + " " * 21, "\t"):
        assert not accepts(llm, "{" + ending, **wanted)


CLOSED = [
    {"$ref": "#/$defs/a", "$defs": {"a": OPEN_PERSON}},
    {"anyOf": [OPEN_PERSON, {"type": "null"}]},
    {"items": OPEN_PERSON},
    {"properties": {"properties": OPEN_PERSON}, "additionalProperties": False},
    OPEN_PERSON,
]
LEFT_OPEN = [
    PERSON,
    {**OPEN_PERSON, "additionalProperties": {"type": "integer"}},
    {**OPEN_PERSON, "patternProperties": {"^x": {}}},
    {**OPEN_PERSON, "required": ["name", "another"]},
    {**OPEN_PERSON, "minProperties": 9},
    {"allOf": [OPEN_PERSON, {"properties": {"size": {"type": "integer"}}}]},
    {"$ref": "#/$defs/a", "properties": {"b": {}}, "$defs": {"a": OPEN_PERSON}},
    {"const": {"properties": {}}},
    {"type": "object"},
]


def test_objects_are_closed():
    for schema in CLOSED:
        text = json.dumps(schema)
        closed = text.replace(json.dumps(OPEN_PERSON), json.dumps(PERSON))
        assert closed_schema(text) == closed != text
    for schema in LEFT_OPEN:
        assert closed_schema(json.dumps(schema)) == json.dumps(schema)
    nested = '{"items":' * 900 + '{"properties": {}}' + "}" * 900
    assert closed_schema(nested).count("additionalProperties") == 1


def test_closed_objects_end(llm):
    whole = '{"name":"a","age":3,"tags":[]'
    assert accepts(llm, whole + "}", json=OPEN_PERSON)
    assert not accepts(llm, whole + ",", json=OPEN_PERSON)
    more = ',"more":1}'
    wanted = {"json": OPEN_PERSON, "disable_additional_properties": False}
    assert accepts(llm, whole + more, **wanted)
    assert StructuredOutputs(json=OPEN_PERSON).json == json.dumps(OPEN_PERSON)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected one of json, regex, grammar, choice, json_object, got none"),
        ({"regex": "a", "choice": ["b"]}, "expected one of .*, got regex and choice"),
        ({"regex": 3}, "regex: expected a string, got 3"),
        ({"regex": ["a" * 70_000]}, r"regex: expected a string, got \['aaa"),
        ({"choice": 10**4000}, "choice: expected a list of strings, got 1000"),
        ({"regex": ""}, r"regex: expected 1 to 65536 bytes, got 0"),
        ({"grammar": "é" * MAX_BYTES}, "grammar: expected 1 to 65536 bytes, got 131072"),
        ({"regex": "a\ud800"}, "regex: has a lone surrogate"),
        ({"regex": "((a{1000}){1000}){1000}"}, "regex: nested repetitions of 1000000 in all"),
        ({"json": {"pattern": "((ab){100}){100}"}}, "json: pattern: nested repetitions of 10000"),
        ({"json": {"patternProperties": {"(a{99}){99}": {}}}}, "json: pattern: nested rep"),
        ({"regex": "a" * 4097}, "regex: expected 1 to 4096 bytes, got 4097"),
        ({"json": {"items": [{"pattern": "é" * 2049}]}}, "json: pattern: expected 1 to 4096 bytes"),
        ({"json": {"multipleOf": 10007}}, "json: multipleOf: a common multiple above 10000"),
        ({"json": {"multipleOf": 1e300}}, "json: multipleOf: a common multiple above 10000"),
        (
            {"json": {"allOf": [{"multipleOf": 0.1}, {"multipleOf": 1009}]}},
            "json: multipleOf: a common multiple above 10000",
        ),
        (
            {"json": {"allOf": [{"pattern": f"a{i}b"} for i in range(14)]}},
            "json: 14 patterns and formats in a schema that combines others, expected at most 8",
        ),
        (
            {
                "json": {
                    "$ref": "#/$defs/d0",
                    "$defs": {
                        f"d{i}": {"pattern": f"a{i}b", "$ref": f"#/$defs/d{i + 1}"}
                        for i in range(14)
                    },
                }
            },
            "json: 14 patterns and formats in a schema that combines others",
        ),
        ({"grammar": "start: /((a{99}){99})/"}, "grammar: regular expression: nested repetitions"),
        ({"grammar": ' {"grammars": [{"lark_grammar": "start: /a/"}]}'}, "expected Lark, got JSON"),
        ({"grammar": "start: %json {}"}, "grammar: %json .*is not supported"),
        ({"grammar": "start: X\nX: " + " & ".join(["/a/"] * 10)}, "at most 8 intersections"),
        (
            {
                "grammar": "start: T0\nT12: /a/\n"
                + "\n".join(f"T{i}: T{i + 1} T{i + 1} T{i + 1}" for i in range(12))
            },
            "grammar: terminal T[34] is too large",
        ),
        ({"grammar": 'start: X\nX: ("ab" Y){99}\nY: (/b/ /c/){99}'}, "terminal X is too large"),
        ({"json": "{"}, "json: not a JSON schema"),
        ({"json": "[" * 9000}, "json: not a JSON schema"),
        ({"json": {"a": {1, 2}}}, "json: not a JSON schema"),
        ({"json": {"minimum": float("nan")}}, "json: not a JSON schema"),
        ({"json": "3"}, "json: expected a JSON object, got int"),
        ({"json": 3}, "json: expected a string, got 3"),
        ({"json": {"title": "x" * MAX_BYTES}}, "json: expected 1 to 65536 bytes"),
        ({"choice": "abc"}, "choice: expected a list of strings, got 'abc'"),
        ({"choice": []}, "choice: expected 1 to 1024 strings, got 0"),
        ({"choice": ["a", ""]}, r"choice\[1\]: expected 1 to 65536 bytes, got 0"),
        ({"choice": ["a", 3]}, r"choice\[1\]: expected a string, got 3"),
        ({"choice": ["a" * 40000] * 2}, "choice: expected 1 to 65536 bytes, got 80000"),
        ({"json_object": 1}, "json_object: expected a bool, got 1"),
        ({"json_object": True, "disable_any_whitespace": "no"}, "disable_any_whitespace: expected"),
        ({"json": {}, "disable_additional_properties": 0}, "disable_additional_properties: exp"),
    ],
)
def test_bad_values(fields, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        StructuredOutputs(**fields)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"multipleOf": 0.00001},
        {"allOf": [{"multipleOf": 0.1}, {"multipleOf": 7}, {"multipleOf": 100}]},
        {"properties": {f"p{i}": {"type": "string", "pattern": "^a+$"} for i in range(50)}},
        {
            "properties": {"a": {"$ref": "#/$defs/a", "description": "an a"}},
            "$defs": {"a": {"anyOf": [{"type": "string", "format": "date"}] * 20}},
        },
    ],
)
def test_ordinary_schemas_are_not_refused_for_their_cost(schema):
    StructuredOutputs(json=schema)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"regex": "("}, "structured_outputs.regex: .* regex parse error: unclosed group"),
        ({"regex": "a" * 999 + "("}, r"structured_outputs.regex: .*aaa\.\.\. unclosed group"),
        ({"regex": "(a)\\1"}, "structured_outputs.regex: .*: backreferences are not supported"),
        ({"regex": "(?=a)b"}, "structured_outputs.regex: .*: look-around"),
        ({"json": {"pattern": "("}}, "structured_outputs.json: .*: unclosed group"),
        ({"grammar": "start: /(/"}, r"structured_outputs.grammar: at 1\(8\).*: unclosed group"),
        ({"grammar": "hello"}, "structured_outputs.grammar: "),
        ({"grammar": "start: other"}, "structured_outputs.grammar: "),
        ({"grammar": "start: start"}, "structured_outputs.grammar: "),
        (
            {"json": {"type": "array", "uniqueItems": True}},
            r'Unimplemented keys: \["uniqueItems"\]',
        ),
        (
            {"json": {"uniqueItems": True, "x-guidance": {"lenient": True}}},
            r'structured_outputs.json: Unimplemented keys: \["uniqueItems"\]',
        ),
        ({"json": {"$ref": "http://example.com/schema"}}, "structured_outputs.json: "),
        ({"json": {"type": "string", "format": "no-such"}}, "structured_outputs.json: "),
        (
            {"json": {"type": "object", "properties": {"a": False}, "required": ["a"]}},
            "structured_outputs.json: Unsatisfiable",
        ),
        ({"json": '{"items":' * 900 + "{}" + "}" * 900}, "structured_outputs.json: recursion"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_the_request(llm, fields, message):
    params = SamplingParams(structured_outputs=StructuredOutputs(**fields))
    with pytest.raises(ValueError, match=message) as caught:
        llm.generate("Hello", params)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        llm.stream("Hello", params)


def test_without_llguidance_the_error_says_what_to_install(llm, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    params = SamplingParams(structured_outputs=StructuredOutputs(json_object=True))
    with pytest.raises(ValueError, match=r"pip install 'lampo\[structured\]'"):
        llm.generate("Hello", params)


def test_a_structure_that_becomes_too_expensive_fails_its_request_alone(llm):
    ambiguous = StructuredOutputs(grammar='start: ((("a" | "b"){1,1000}){1,1000}){1,1000}')
    params = dataclasses.replace(PARAMS, structured_outputs=ambiguous, seed=3)
    free = dataclasses.replace(PARAMS, max_tokens=20, ignore_eos=True)
    begin = time.perf_counter()
    first, second = llm.generate(["Hello", "world"], [params, free])
    assert time.perf_counter() - begin < 60
    assert first.outputs[0].finish_reason in ("error", "stop", "length")
    assert second.outputs == llm.generate("world", free)[0].outputs


@pytest.mark.model
def test_a_chat_model_fills_in_a_form():
    with LLM() as llm:
        params = SamplingParams(
            temperature=0,
            max_tokens=120,
            n=3,
            structured_outputs=StructuredOutputs(json=PERSON, disable_any_whitespace=True),
        )
        messages = [{"role": "user", "content": "Tell me about Ada, 36 years old, tags a and b."}]
        for completion in llm.chat(messages, params)[0].outputs:
            assert completion.finish_reason == "stop"
            assert set(json.loads(completion.text)) == {"name", "age", "tags"}
