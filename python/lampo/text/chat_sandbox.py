# SPDX-License-Identifier: Apache-2.0
"""The Jinja environment of chat templates, which are untrusted programs.

Jinja's immutable sandbox keeps a template from reaching Python, but limits neither time nor memory.
This environment charges an account (`chat_limits`) wherever work or memory can grow:

- the start of every loop iteration and macro body, and every piece of template text written, by
  calls inserted in the syntax tree;
- every call, filter and printed value, and the results of `+ * ** % ~` and of list and dict
  displays; in advance, if one result could be large: `'a' * 10**10`, `replace`, `indent`;
- `range` is limited, integers to 1024 bits, `%` to formats without widths; `str.format`, and all
  filters and methods of strings and containers that are not listed below, do not exist.

Constants are not folded at compile time, since that would run outside the account. Otherwise
templates see the same environment as in Hugging Face's libraries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lampo.text.chat_limits import MAX_RANGE, LimitError, account, check_printable

_FILTERS = """
    abs capitalize count d default dictsort e escape first float forceescape groupby indent int
    items join last length list lower map max min reject rejectattr replace reverse round safe
    select selectattr sort string title trim unique upper wordcount
"""
_STRING_METHODS = """
    capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace
    istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex
    rpartition rsplit rstrip split splitlines startswith strip swapcase title upper
"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STRING_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset(),
    float: frozenset({"is_integer"}),
}


class ChatEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_finalize,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.filters = {name: _charged(name, FILTERS[name]) for name in _FILTERS.split()}
        self.filters["tojson"] = _to_json
        self.globals = {
            "range": _range,
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def parse_plain(self, source: str) -> nodes.Template:
        """The syntax tree without charges."""
        return super()._parse(source, None, None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Instrument().visit(tree)
        return tree

    def lampo_charge(self, chars: int) -> None:
        account.get().charge(chars)

    def lampo_display(self, value: object) -> object:
        account.get().charge_value(value)
        return value

    def lampo_concat(self, *parts: object) -> str:
        for part in parts:
            check_printable(part)
            account.get().charge_value(part)
        return "".join(map(str, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        account.get().charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        funds = account.get()
        funds.charge(1)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            funds.charge_filter(getattr(__obj, "__name__", ""), owner, args, kwargs)
        return _charge_result(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> None:
        if getattr(value, "__name__", "") in ("format", "format_map"):
            owner = getattr(value, "__self__", None)
            if isinstance(owner, str) or owner is str:
                raise SecurityError("str.format is not available")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return super().is_safe_attribute(obj, attr, value)


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's text for training; here only a scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Instrument(NodeTransformer):
    """Inserts charges for constructs that call no method of the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return _charge_body(self.generic_visit(node))

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return _charge_body(self.generic_visit(node))

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return _charge_body(self.generic_visit(node))

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        chars = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [_charge(chars, node.lineno), self.generic_visit(node)]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("lampo_concat", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _call("lampo_display", [self.generic_visit(node)], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _call("lampo_display", [self.generic_visit(node)], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("lampo_display", [node], node.lineno) if node.ctx == "load" else node


def _call(method: str, arguments: list[Any], line: int) -> nodes.Node:
    function = nodes.EnvironmentAttribute(method)
    return nodes.Call(function, arguments, [], None, None).set_lineno(line)


def _charge(chars: int, line: int) -> nodes.Node:
    return nodes.ExprStmt(_call("lampo_charge", [nodes.Const(chars)], line)).set_lineno(line)


def _charge_body(node: Any) -> nodes.Node:
    node.body.insert(0, _charge(1, node.lineno))
    checked: nodes.Node = node
    return checked


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    """Charges a printed value. The context argument keeps Jinja from calling it at compile time."""
    check_printable(value)
    account.get().charge_value(value)
    return value


def _charge_result(result: Any) -> Any:
    if isinstance(result, (str, list, tuple, dict)):
        account.get().charge_value(result)
    return result


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja's filter with charges; passes the context or environment that it requires."""
    wanted = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @wraps(function)
    def charged(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        account.get().charge_filter(name, value, args, kwargs)
        first = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
        }.get(wanted or "", ())
        return _charge_result(function(*first, value, *args, **kwargs))

    return pass_context(charged)


@pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps, without the HTML escapes of Jinja's own filter."""
    account.get().charge_value(value)
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise LimitError(f"indents JSON by {indent!r}")
    if separators is not None and (len(separators) != 2 or sum(map(len, separators)) > 16):
        raise LimitError(f"separates JSON by {separators!r}")
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    account.get().charge(len(text))
    return _escape_non_ascii(text) if ensure_ascii else text


def _escape_non_ascii(text: str) -> str:
    """As ensure_ascii does, save for private-use characters, which may be masks (chat_messages)."""

    def escaped(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be").hex()
        return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))

    return re.sub(r"[^\x00-\x7f\U000f0000-\U000fffff]", escaped, text)


def _range(*args: int) -> range:
    values = range(*args)
    if len(values) > MAX_RANGE:
        raise LimitError(f"uses a range of {len(values)} numbers, at most {MAX_RANGE} are allowed")
    return values


class _Namespace(Namespace):
    """A namespace without names with a leading underscore, which are special in Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace may not have an attribute {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 64 or re.search(r"\d", form):  # the C library takes a digit for a width
        raise LimitError(f"formats the time as {form[:64]!r}")
    return datetime.now().strftime(form)
