# SPDX-License-Identifier: Apache-2.0
"""Random chat templates of operations that could take long or need much memory.

Run as a program it renders some in a process of limited memory, and fails at the first one that
gives neither a text nor a clean error, or takes too long:

    python tests/support/template_bombs.py SEED SECONDS
"""

from __future__ import annotations

import random
import sys
import time

MAX_RENDER_SECONDS = 10.0  # of the processor; the limit is 0.5
MEMORY = 1 << 30  # beside what the process has at its start

# Expressions by the type of their value, the first four without further ones: {s} a string, {l} a
# list, {i} an integer, {d} a dict, {b} a condition, {w} the digits of a width, {any} any of these.
STRINGS = """
n.s|n.t|'a b\\n'|'<&"\\''|'\\U0010ffff'|'%s'|'ab' * {i}|messages[0].content|{s} + {s}|{s} ~ {any}
{any} ~ {any}|{s} * {i}|{s}[{i}:]|{s}[::-1]|{s}[:-{i}]|{s}.upper()|{s}.title()
{s}.replace({s}, {s})|{s}.strip({s})|{s}.rstrip({s})|{s}.join({l})|{s}.removeprefix({s})
{s}.swapcase()|{s} | upper|{s} | title|{s} | trim|{s} | trim({s})|{s} | replace({s}, {s})
{s} | escape|{any} | string|{any} | tojson|{any} | tojson(indent=16)
{any} | tojson(ensure_ascii=true)|{s} | indent({i})|{s} | indent({s})|{l} | join({s})
{d} | join({s})|{s} | center({i})|'%{w}d' % {i}|'%s' % ({any},)|'%s %s' % ({s}, {s})
'%(a){w}s %(b)s' % {d}|'%.{w}f' % {i}|'%s' % {s}|'{{}}'.format({any})|'{{:>{w}}}'.format({i})
'{{:{{}}}}'.format({s}, {i})|{s}.format({any}, {s})|'{{a}}{{a}}'.format_map({d})
'%s' | format({any})|{s} | capitalize|{s} | safe|({s} | safe) + {s}|({s} | safe).join({l})
f({any})|g({any}, w={any})|{l} | first | string|{s}.partition({s})[2]|{s}.rpartition({s})[0]
{s} if {b} else {s}|{i} | string|{s} | lower|{s} | reverse|strftime_now('%A')|caller_of({s})
"""
LISTS = """
n.l|n.m|[]|[2, 1]|[{s}, {s}]|[{any}]|[{any}, {any}]|messages|{l} + {l}|{l} * {i}|{l}[{i}:]
{l}[::-1]|{l}[:{i}]|{s}.split()|{s}.split({s})|{s}.rsplit({s})|{s}.splitlines()|{s} | list
range({i}) | list|{l} | list|{l} | map('string') | sort|{l} | sort(attribute='a')
{l} | map('string') | unique | list|{l} | map('string') | list|{l} | map('upper')
{l} | map('tojson') | list|{l} | map(attribute='a.a.0')|{l} | reverse | list|{l} | select | list
{l} | select('in', {l}) | list|{l} | select('equalto', {any}) | list|{l} | batch({i}) | list
{l} | selectattr('role') | list|{l} | rejectattr('a', 'equalto', {any}) | list
{l} | batch({i}, {any}) | list|{l} | slice({i}, {any}) | list|{l} | groupby('a') | list
{d} | dictsort|{d} | items | list|{d}.items() | list|{d}.values() | list|{l}.copy()
{l} if {b} else {l}|{s} | map('upper') | list|{d}.keys() | list
{l} | map(attribute='none', default={any})
"""
NUMBERS = """
n.i|2|99|9999|0|1|9|999|10 ** 9|{i} + {i}|{i} * {i}|{i} - {i}|2 ** {i}|{i} // 7|{i} % 7|-{i}
{s} | length|{l} | length|{s} | int|{s} | int(0, 16)|'f' * {i} | int(0, 16)|{s} | wordcount
{l} | map('string') | map('length') | sum|{s}.count({s})|{s}.find({s})|{s}.rfind({s})
{l}.count({any})|{i} | abs|{i} | round({i}) | int|({i} / 7) | int|{l} | map('length') | max
"""
DICTS = """
n.d|messages[0]|{{}}|{{'a': 1}}|{{'a': {s}}}|{{'a': {l}, 'b': {d}}}|{{'a': {any}, 'b': {any}}}
dict(a={any}, b={any})|{{{s}: {any}}}|dict({d}, c={any})|{d}.copy()|dict({d}.items())
{d} if {b} else {d}
"""
TESTS = """
n.i|n.s|n.l|true|{s} in {s}|{any} in {l}|{any} not in {l}|{s} in {d}|{any} == {any}|{l} == {l}
{d} == {d}|{s} == {s}|{l} < {l}|{s} < {s} < {s}|{any} is in({l})|{any} is eq({any})
{s} is lower|{s} is upper|{s}.isalpha()|{s}.startswith({s})|{s}.endswith({s})|{i} is even
{i} is divisibleby(7)|{any} is string|{any}|{any} is iterable|not {b}|{b} and {b}|{b} or {b}
({any}, {any}) == ({any}, {any})
"""
WIDTHS = "5|99|999|1000|1000000000|*"
LOOPS = [
    "{{% for i in range({i}) %}}{body}{{% endfor %}}",
    "{{% for i in {l} %}}{body}{{% endfor %}}",
    "{{% for i in {s} %}}{body}{{% endfor %}}",
    "{{% for i in {l} if {b} %}}{body}{{% endfor %}}",
    "{{% for i in {l} recursive %}}{body}{{{{ loop({l}) }}}}{{% endfor %}}",
]
STATEMENTS = [
    "{{% set n.s = {s} %}}",
    "{{% set n.t = {s} %}}",
    "{{% set n.l = {l} %}}",
    "{{% set n.m = {l} %}}",
    "{{% set n.i = {i} %}}",
    "{{% set n.d = {d} %}}",
    "{{% set n.s %}}{{{{ {s} }}}}{{{{ {any} }}}}{{% endset %}}",
    "{{% filter upper %}}{{{{ {any} }}}}{{% endfilter %}}",
    "{{% if {b} %}}{{{{ {any} }}}}{{% endif %}}",
    "{{% call(x) h({any}) %}}{{{{ x }}}}{{% endcall %}}",
    "{{{{ {any} }}}}",
    "some text",
    "{{{{ {l}[{i}] }}}}{{{{ {d}[{s}] }}}}",
    "{{{{ loop.changed({any}) }}}}",
]
HEAD = (
    "{% macro f(v) %}{{ v }}{{ varargs }}{% endmacro %}"
    "{% macro g(v, w) %}{{ v }}{{ w }}{{ kwargs }}{% endmacro %}"
    "{% macro h(v) %}{{ caller(v) }}{% endmacro %}"
    "{% macro caller_of(v) %}{% call(w) h(v) %}{{ w }}{% endcall %}{% endmacro %}"
    "{% set n = namespace(s='x', t='ab', l=[1, 'a'], m=[], i=2, d={'a': 1, 'b': 'c'}) %}"
)


def _forms(text: str) -> list[str]:
    """The alternatives of a table: split at bars without spaces around, which are not filters."""
    marked = text.strip().replace(" | ", "\x00").replace("\n", "|")
    return [form.replace("\x00", " | ") for form in marked.split("|")]


FORMS = {
    "s": _forms(STRINGS),
    "l": _forms(LISTS),
    "i": _forms(NUMBERS),
    "d": _forms(DICTS),
    "b": _forms(TESTS),
    "w": _forms(WIDTHS),
}


def _filled(rng: random.Random, form: str, depth: int) -> str:
    """The form with further expressions in place of its fields."""

    class Fields(dict[str, str]):
        def __missing__(self, kind: str) -> str:
            forms = FORMS[rng.choice("sslid") if kind == "any" else kind]
            text = _filled(rng, rng.choice(forms if depth > 0 else forms[:4]), depth - 1)
            return f"({text})" if any(c in text for c in " |+-~") else text

    return form.format_map(Fields())


def bomb(rng: random.Random) -> str:
    """A template: assignments that grow values, inside of loops, and their values printed."""

    def statements(depth: int) -> str:
        parts = []
        for _ in range(rng.randint(1, 4)):
            if depth and rng.random() < 0.5:
                loop = _filled(rng, rng.choice(LOOPS).replace("{body}", "\x00"), 1)
                parts.append(loop.replace("\x00", statements(depth - 1)))
            else:
                parts.append(_filled(rng, rng.choice(STATEMENTS), 3))
        return "".join(parts)

    again = "{% for again in range(9999) %}" + statements(1) + "{% endfor %}"
    return HEAD + again + statements(2) + "{{ n.s }}{{ n.l }}{{ n.d }}"


def explode(source: str) -> float:
    """Renders a template. Returns: the seconds; raises if the outcome is no text or clean error."""
    from lampo.text.chat_template import ChatTemplate

    messages = [{"role": "user", "content": "a 'b' <c>\n" * 100, "a": [1, 2]}] * 3
    start, error = time.process_time(), ""
    try:
        text = ChatTemplate(source).render({"messages": messages}, 3000)
        assert len(text) < 2 << 20
    except ValueError as raised:
        error = str(raised)
    assert not error or (error.startswith("chat template: ") and len(error) < 400), error
    assert "MemoryError" not in error
    return time.process_time() - start


def main(seed: int, seconds: float) -> None:
    import resource

    from lampo.text import chat_limits
    from lampo.text.chat_template import ChatTemplate

    ChatTemplate("")  # loads what is needed
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    chat_limits.MAX_SECONDS = 0.5
    begin, count, slowest = time.monotonic(), 0, 0.0
    while time.monotonic() < begin + seconds:
        source = bomb(random.Random(f"{seed} {count}"))
        try:
            taken = explode(source)
            assert taken < MAX_RENDER_SECONDS, f"took {taken:.1f} s"
        except BaseException:
            print(f"seed {seed}, number {count}:\n{source}", flush=True)
            raise
        slowest = max(slowest, taken)
        count += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{count} templates, the slowest {slowest:.1f} s, {peak} MB in all")


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
