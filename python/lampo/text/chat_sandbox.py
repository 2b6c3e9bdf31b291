# SPDX-License-Identifier: Apache-2.0
"""The Jinja environment of chat templates, which are untrusted programs.

Jinja's immutable sandbox keeps a template from reaching Python, but limits neither time nor memory.
This environment charges an account (`chat_limits`) for every operation, before it is computed, by
the sizes of its operands (`chat_costs`):

- operators, calls, filters, tests and subscripts, by methods of the environment; comparisons,
  slices, `~` and displays of containers, which Jinja compiles to Python's own, by calls inserted in
  the syntax tree;
- every printed value and piece of template text, and the start of every loop iteration and macro;
- filters return lists, not iterators with their work still to come;
- `range` is limited, integers to 1024 bits, widths of formats to 999. All filters and methods of
  strings and containers that are not listed below do not exist.

Constants are not folded at compile time, since that would run outside the account. Otherwise
templates see the same environment as in Hugging Face's libraries.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import update_wrapper, wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer

from lampo.text.chat_costs import (
    charge_comparison,
    charge_filter,
    charge_method,
    charge_operator,
    charge_slice,
    charge_widths,
)
from lampo.text.chat_limits import ITEM_CHARS, MAX_RANGE, LimitError, account

_FILTERS = """
    abs batch capitalize center count d default dictsort e escape first float forceescape format
    groupby indent int items join last length list lower map max min reject rejectattr replace
    reverse round safe select selectattr slice sort string sum title trim unique upper wordcount
"""
_STRING_METHODS = """
    capitalize count endswith find format format_map index isalnum isalpha isdecimal isdigit
    islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix
    removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip
    swapcase title upper
"""
_SEARCHES = frozenset(
    {"count", "endswith", "find", "index", "partition", "removeprefix", "removesuffix", "replace"}
    | {"rfind", "rindex", "rpartition", "rsplit", "split", "startswith"}
)
_MAX_SEARCHED = 256  # characters of a special token with its surroundings
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STRING_METHODS.split()),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    int: frozenset(),
    float: frozenset({"is_integer"}),
}


# Comparisons of the syntax tree, and the names of tests that compare.
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}
_COMPARING_TESTS = frozenset(
    {"==", "!=", "<", "<=", ">", ">=", "eq", "ne", "lt", "le", "gt", "ge", "in"}
    | {"equalto", "greaterthan", "lessthan"}
)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "**", "%"})

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
        self.tests = {name: _charged_test(name, test) for name, test in TESTS.items()}
        self.globals = {
            "range": _range,
            "dict": dict,
            "namespace": _Namespace,
            "joiner": Joiner,
            "cycler": Cycler,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def lampo_charge(self, chars: int) -> None:
        account.get().charge(chars)

    def lampo_display(self, value: object) -> object:
        account.get().charge_value(value)
        return value

    def lampo_concat(self, *parts: object) -> str:
        for part in parts:
            account.get().charge_text_of(part)
        return "".join(map(str, parts))

    def lampo_compare(self, names: str, left: Any, *others: Any) -> Any:
        """`left < a <= b`: the names are "lt lteq"."""
        result: Any = True
        for name, right in zip(names.split(), others, strict=True):
            if name in ("in", "notin"):
                left = _as_in(right, left)
            charge_comparison(account.get(), name, left, right)
            result = _COMPARISONS[name](left, right)
            if not result:
                break
            left = right
        return result

    def lampo_slice(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        piece = slice(start, stop, step)
        charge_slice(account.get(), value, piece)
        return value[piece]

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, (str, int)):
            account.get().charge_text_of(argument)  # it is shown if it is not there
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        charge_operator(account.get(), operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:  # a charge
            return __obj(*args)
        funds = account.get()
        funds.charge(1)
        if isinstance(owner, (str, list, tuple, dict)):
            name = getattr(__obj, "__name__", "")
            if name in _SEARCHES and args:
                args = (_as_in(owner, args[0]), *args[1:])
            charge_method(funds, name, owner, args)
        elif not isinstance(__obj, Macro) or __obj.catch_varargs or __obj.catch_kwargs:
            funds.charge_value(args)
            for name, value in kwargs.items():
                if name not in ("_loop_vars", "_block_vars"):  # Jinja's own
                    funds.charge_value(value)
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(owner, dict):  # dict.get makes nothing
            funds.charge_result(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """str.format and format_map with limited widths."""
        owner, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
        if name not in ("format", "format_map") or not (isinstance(owner, str) or owner is str):
            return None
        if type(owner) is not str:
            raise SecurityError(f"{name} of a {type(owner).__name__} is not available")
        template: str = owner

        def formatted(*args: Any, **kwargs: Any) -> str:
            funds = account.get()
            funds.charge(len(template))
            funds.charge_items(template.count("{"))
            if name == "format_map":
                (kwargs,), args = args, ()
            return _Formatter(self).vformat(template, args, kwargs)

        return update_wrapper(formatted, value)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, allowed in _METHODS.items():
            if isinstance(obj, kind):
                return attr in allowed
        return super().is_safe_attribute(obj, attr, value)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        charge_widths(account.get(), format_spec)
        account.get().charge_text_of(value)
        text: str = super().format_field(value, format_spec)
        return text

    def convert_field(self, value: Any, conversion: Any) -> Any:
        account.get().charge_text_of([value])
        return super().convert_field(value, conversion)


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

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        names = nodes.Const(" ".join(operand.op for operand in node.ops))
        values = [node.expr, *(operand.expr for operand in node.ops)]
        return _call("lampo_compare", [names, *values], node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        piece = node.arg
        if not isinstance(piece, nodes.Slice):
            return node
        bounds = [bound or nodes.Const(None) for bound in (piece.start, piece.stop, piece.step)]
        return _call("lampo_slice", [node.node, *bounds], node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return _call("lampo_display", [self.generic_visit(node)], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return _call("lampo_display", [self.generic_visit(node)], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("lampo_display", [node], node.lineno) if node.ctx == "load" else node


def instrument(tree: nodes.Template) -> nodes.Template:
    """The syntax tree with charges, changed in place."""
    charged: nodes.Template = _Instrument().visit(tree)
    return charged


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
    account.get().charge_text_of(value)
    return value


def _as_in(text: object, searched: Any) -> Any:
    """A searched text as it is spelled in user text, where special tokens are masked."""
    hidden = account.get().hidden
    if hidden is None or not isinstance(text, str) or not isinstance(searched, str):
        return searched
    if len(searched) > _MAX_SEARCHED or searched in text:
        return searched
    spelled = hidden(searched)
    return spelled if spelled in text else searched


def _wanted(function: Callable[..., Any], context: Context) -> tuple[Any, ...]:
    """The context or environment that one of Jinja's functions requires as its first argument."""
    name = getattr(getattr(function, "jinja_pass_arg", None), "name", None)
    return {
        "context": (context,),
        "eval_context": (context.eval_ctx,),
        "environment": (context.environment,),
    }.get(name or "", ())


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Jinja's filter with charges; its result is no iterator."""

    @wraps(function)
    def charged(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        funds = account.get()
        if name == "replace" and args:
            args = (_as_in(value, args[0]), *args[1:])
        charge_filter(funds, name, value, args, kwargs)
        result = function(*_wanted(function, context), value, *args, **kwargs)
        if isinstance(result, Iterator):
            items = []
            for item in result:
                funds.charge(ITEM_CHARS)
                items.append(item)
            return items
        if name not in ("d", "default", "first", "last"):
            funds.charge_result(result)
        return result

    return pass_context(charged)


def _charged_test(name: str, test: Any) -> Callable[..., Any]:
    @wraps(test)
    def charged(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        funds = account.get()
        if name in _COMPARING_TESTS:
            for other in (*args, *kwargs.values()):
                value = _as_in(other, value) if name == "in" else value
                charge_comparison(funds, "in" if name == "in" else "eq", value, other)
        elif name in ("lower", "upper"):
            funds.charge_text_of(value)
        else:
            funds.charge(1)
        return test(*_wanted(test, context), value, *args, **kwargs)

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
    funds = account.get()
    funds.charge_value(value, 2)
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise LimitError("indents JSON by more than 16 spaces")
    if separators is not None and (len(separators) != 2 or sum(map(len, separators)) > 16):
        raise LimitError("separates JSON by more than 16 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        text = encoder.encode(value)
        funds.charge(len(text))
    else:
        parts = []
        for part in encoder.iterencode(value):
            funds.charge(1 + len(part))
            parts.append(part)
        text = "".join(parts)
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

    def __repr__(self) -> str:
        return "<Namespace>"  # its values may contain it


def _check_attribute(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace may not have an attribute {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 64 or re.search(r"\d", form):  # the C library takes a digit for a width
        raise LimitError(f"formats the time as {form[:64]!r}")
    return datetime.now().strftime(form)
