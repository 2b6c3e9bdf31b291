# SPDX-License-Identifier: Apache-2.0
"""Chat templates that would take gigabytes or minutes, each by another operation."""

from __future__ import annotations

BIG = (  # n.x has 2 M characters
    "{% set n = namespace(x='abcdefgh' * 999, l=[]) %}"
    "{% for i in range(8) %}{% set n.x = n.x + n.x %}{% endfor %}"
)
BOMBS = {
    "slices": BIG + "{% for i in range(9999) %}{% set n.l = n.l + [n.x[i:]] %}{% endfor %}",
    "list slices": (
        "{% set r = range(9999) | list %}{% set n = namespace(l=[]) %}"
        "{% for i in range(9999) %}{% set n.l = [n.l, r[1:]] %}{% endfor %}"
    ),
    "floordiv": (
        "{% set n = namespace(x=9) %}{% for i in range(9999) %}"
        "{% set n.x = ('f' * 100000) | int(0, 16) // 3 %}{% endfor %}"
    ),
    "int16": BIG.replace("abcdefgh", "abcdef00") + "{{ n.x | int(0, 16) }}",
    "int10": "{{ ('9' * 9999) | int }}",
    "in": BIG + "{% for i in range(9999) %}{% if ('a' * 1000 + 'b') in n.x %}{% endif %}"
    "{% endfor %}",
    "in list": (
        "{% set r = range(9999) | list %}{% for i in r %}{% for j in r %}{{ -1 in r }}"
        "{% endfor %}{% endfor %}"
    ),
    "in test": (
        "{% set r = range(9999) | list %}{% for i in r %}{% for j in r %}{{ -1 is in(r) }}"
        "{% endfor %}{% endfor %}"
    ),
    "sort": (
        "{% set r = (range(9999) | list) * 99 %}{% for i in range(9999) %}"
        "{% set y = r | sort %}{% endfor %}"
    ),
    "sort prefixes": BIG + "{% set y = ([n.x, n.x ~ 'a'] * 9999) | sort %}",
    "wordcount": BIG + "{% set n.x = n.x.replace('h', ' ') %}{% for i in range(9999) %}"
    "{{ n.x | wordcount }}{% endfor %}",
    "split": BIG + "{% set n.x = n.x.replace('b', ' ') %}{% for i in range(9999) %}"
    "{% set n.l = n.l + [n.x.split()] %}{% endfor %}",
    "split at": BIG
    + "{% for i in range(9999) %}{% set n.l = n.l + [n.x.split('a')] %}{% endfor %}",
    "splitlines": BIG + "{% set n.x = n.x.replace('b', '\\n') %}{% for i in range(9999) %}"
    "{% set n.l = n.l + [n.x.splitlines()] %}{% endfor %}",
    "chars": BIG + "{% for i in range(9999) %}{% set n.l = n.l + [n.x | list] %}{% endfor %}",
    "rfind": "{% set n = namespace(x='a' * 3000000) %}{{ n.x.rfind('b' ~ 'a' * 1000000) }}",
    "strip": "{% set x = 'a' * 3000000 %}{{ x.strip('bcdef' * 100000 ~ 'a') | length }}",
    "rsplit": "{% set x = 'a' * 3000000 %}{{ x.rsplit('b' ~ 'a' * 1000000) | length }}",
    "json indent": (
        "{% set n = namespace(l=(range(9999) | list)) %}{% for i in range(60) %}"
        "{% set n.l = [n.l] %}{% endfor %}{{ n.l | tojson(indent=16) }}"
        "{{ n.l | tojson(indent=16) }}{{ n.l | tojson(indent=16) }}"
    ),
    "batch": "{{ 'abc' | batch(10 ** 9, 'x') | list }}",
    "slice filter": "{{ 'abc' | slice(10 ** 9) | list }}",
    "doubling by batch": (
        "{% set n = namespace(l=['a']) %}{% for i in range(99) %}"
        "{% set n.l = 'a' | batch(3, n.l) | list %}{% endfor %}{{ n.l == n.l }}"
    ),
    "doubling by map": (
        "{% set n = namespace(l=['a']) %}{% for i in range(99) %}"
        "{% set n.l = [{}, {}] | map(attribute='q', default=n.l) | list %}{% endfor %}"
        "{{ n.l }}"
    ),
    "doubling compare": (
        "{% set n = namespace(l=['a'], m=['a']) %}{% for i in range(99) %}"
        "{% set n.l = [{}, {}] | map(attribute='q', default=n.l) | list %}"
        "{% set n.m = [{}, {}] | map(attribute='q', default=n.m) | list %}{% endfor %}"
        "{{ n.l == n.m }}"
    ),
    "changed": (
        "{% set n = namespace(l=['a'], m=['a']) %}{% for i in range(99) %}"
        "{% set n.l = [{}, {}] | map(attribute='q', default=n.l) | list %}"
        "{% set n.m = [{}, {}] | map(attribute='q', default=n.m) | list %}{% endfor %}"
        "{% for i in range(3) %}{{ loop.changed(n.l) }}{{ loop.changed(n.m) }}{% endfor %}"
    ),
    "deep tuples": (
        "{% macro f() %}{% set n.t = varargs %}{% endmacro %}{% set n = namespace(t=()) %}"
        "{% for i in range(9999) %}{% for j in range(99) %}{% set _ = f(n.t) %}"
        "{% set n.t = {'a': n.t}.items() | first %}{% endfor %}{% endfor %}{{ {}[n.t] }}"
    ),
    "sum of lists": "{{ ([[1] * 9999] * 9999) | sum(start=[]) | length }}",
    "paths": (
        "{% set r = ('a' * 9999) | list %}{% for i in r %}"
        "{{ r | map(attribute='0.' * 9999 ~ '0') | list | length }}{% endfor %}"
    ),
    "escape": BIG.replace("abcdefgh", "''''''''")
    + "{% for i in range(9999) %}{% set n.l = n.l + [n.x | escape] %}{% endfor %}",
    "repr": BIG.replace("abcdefgh", "\\x00") + "{{ [n.x, n.x, n.x, n.x] }}",
    "joins": (
        "{% set x = 'a' * 99999 %}{{ [x] | join(x, attribute='0') }}{{ (x | list) | join(x) }}"
    ),
    "format fields": "{% set x = 'a' * 99999 %}{{ ('{0}' * 9999).format(x) }}",
    "format nested": "{{ '{:{}}'.format('x', 10 ** 9) }}",
    "percent key": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "percent in key": "{{ '%%(x%1000000000dx)' % (1,) }}",
    "percent many": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "center": "{{ 'x' | center(10 ** 9) }}",
    "cycler": (
        "{% set n = namespace(l=['a']) %}{% for i in range(99) %}"
        "{% set n.l = cycler(n.l, n.l).items %}{% endfor %}{{ n.l }}"
    ),
    "autoescape": BIG.replace("abcdefgh", "''''''''")
    + "{% autoescape true %}{% for i in range(9999) %}{% set n.l = n.l + [n.x ~ n.x] %}"
    "{% endfor %}{% endautoescape %}",
    "doubling namespaces": (
        "{% set n = namespace(x=1) %}{% for i in range(60) %}"
        "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ '%s' % n.x }}"
    ),
    "doubling namespaces in a list": (
        "{% set n = namespace(x=1) %}{% for i in range(60) %}"
        "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ [n.x] }}"
    ),
    "in by keyword": (
        "{% set r = range(9999) | list %}{% for i in r %}{% for j in r %}"
        "{{ -1 is in(seq=r) }}{% endfor %}{% endfor %}"
    ),
    "doubling namespaces in an error": (
        "{% set n = namespace(x=1) %}{% for i in range(60) %}"
        "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ {}[n.x].y }}"
    ),
    "doubling namespaces in a message": (
        "{% set n = namespace(x=1) %}{% for i in range(60) %}"
        "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ raise_exception(n.x) }}"
    ),
    "doubling namespaces in replace": (
        "{% set n = namespace(x=1) %}{% for i in range(60) %}"
        "{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ 'a' | replace('a', n.x) }}"
    ),
    "doubling lists in an error": (
        "{% set n = namespace(x=['a']) %}{% for i in range(60) %}"
        "{% set n.x = [{}, {}] | map(attribute='q', default=n.x) | list %}{% endfor %}"
        "{{ {}[n.x].y }}"
    ),
    "doubling lists as digits": (
        "{% set n = namespace(x=['a']) %}{% for i in range(60) %}"
        "{% set n.x = [{}, {}] | map(attribute='q', default=n.x) | list %}{% endfor %}"
        "{{ 1.5 | round(n.x) }}"
    ),
    "doubling lists as indent": (
        "{% set n = namespace(x=['a']) %}{% for i in range(60) %}"
        "{% set n.x = [{}, {}] | map(attribute='q', default=n.x) | list %}{% endfor %}"
        "{{ 1 | tojson(indent=n.x) }}"
    ),
    "keys in keys": "{{ ('%(' * 500000 ~ ')' * 500000) % {} }}",
    "percent signs": "{{ ('%' * 2000000) % () }}",
    "brackets": "{{ ('{' * 4000000).format(1) }}",
}
