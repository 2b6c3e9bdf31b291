# SPDX-License-Identifier: Apache-2.0
"""The shapes of benchmarks as lists: "--seq-len 1k,4k --heads 32/8x128"; a table per op.

Imports nothing heavy: the command line's help is made from it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lampo.error_text import shown

MOST_VALUES = 64  # of an axis
MOST_CASES = 512

_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20}
_COUNT = re.compile(r"(\d{1,9})([km]?)", re.IGNORECASE)
_HEADS = re.compile(r"(\d{1,4})(?:/(\d{1,4}))?x(\d{1,4})")
_SHAPE = re.compile(r"(\d{1,7}k?)x(\d{1,7}k?)", re.IGNORECASE)
_LARGEST = 1 << 30

FORMATS = (
    "q4_0", "q4_1", "q8_0", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
    "iq4_xs", "mxfp4", "nvfp4",
)  # fmt: skip
FLOATS = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class Heads:
    """The heads of an attention: num_qo_heads / num_kv_heads query heads share a KV head."""

    num_qo_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def group_size(self) -> int:
        return self.num_qo_heads // self.num_kv_heads

    def __str__(self) -> str:
        return f"{self.num_qo_heads}/{self.num_kv_heads}x{self.head_dim}"


@dataclass(frozen=True)
class Shape:
    """The shape of a weight."""

    out_features: int
    in_features: int

    def __str__(self) -> str:
        return f"{self.out_features}x{self.in_features}"


def count(text: str) -> int:
    """A number of at least 1: "1536", "4k" (4096), "1m"."""
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError("a number, such as 8 or 4k")
    number = int(match[1]) * _SUFFIXES[match[2].lower()]
    if not 1 <= number <= _LARGEST:
        raise ValueError(f"a number in [1, {_LARGEST}]")
    return number


def count_or_zero(text: str) -> int:
    return 0 if text == "0" else count(text)


def query_len(text: str) -> int | str:
    """New tokens per sequence, or "all": the whole prompt."""
    return text if text == "all" else count(text)


def heads(text: str) -> Heads:
    """ "32/8x128": 32 query heads, 8 heads of keys and values, of 128 elements each."""
    match = _HEADS.fullmatch(text)
    if match is None:
        raise ValueError("QUERY/KVxSIZE, such as 32/8x128")
    found = Heads(int(match[1]), int(match[2] or match[1]), int(match[3]))
    if not found.num_kv_heads or found.num_qo_heads % found.num_kv_heads or not found.head_dim:
        raise ValueError("QUERY/KVxSIZE with KV a divisor of QUERY, such as 32/8x128")
    return found


def shape(text: str) -> Shape:
    """ "4096x14336": rows and columns of a weight, out_features first."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError("OUTxIN, such as 4096x14336")
    return Shape(count(match[1]), count(match[2]))


def share(text: str) -> float:
    """A number in (0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise ValueError("a number in (0, 1], such as 0.9")
    return number


def one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return text

    return parse


@dataclass(frozen=True)
class Axis:
    """A property of a benchmark's cases, and its values by default.

    Attributes:
        parse: one value; raises ValueError with what is expected.
        default: values, separated by commas.
    """

    parse: Callable[[str], Any]
    default: str

    def values(self, name: str, text: str) -> list[Any]:
        """The values of a list without repetitions. Raises: ValueError naming the axis."""
        words = [word.strip() for word in text.split(",")]
        if len(words) > MOST_VALUES:
            raise ValueError(f"{name}: expected at most {MOST_VALUES} values, got {len(words)}")
        found = []
        for word in words:
            try:
                found.append(self.parse(word))
            except ValueError as error:
                raise ValueError(f"{name}: expected {error}; got {shown(word)}") from None
        return list(dict.fromkeys(found))


HELP = {
    "batch": "Sequences, or rows of logits.",
    "seq_len": "Tokens per sequence in the cache.",
    "query_len": "New tokens per sequence among them; all: the whole prompt.",
    "heads": "Query heads / KV heads x head size.",
    "page": "Tokens per page of the KV cache.",
    "window": "Sliding window in tokens, 0: none.",
    "splits": "Partial results to merge.",
    "rows": "Rows of the input, that is tokens.",
    "shape": "Weight: output x input features.",
    "hidden": "Elements per row.",
    "size": "Elements per row of the output.",
    "vocab": "Logits per row.",
    "logits": "Distribution: flat or peaked (normal with deviation 1 or 4), or zipf.",
    "top_p": "Probability mass of the nucleus.",
    "top_k": "Most candidates, 0: all; with experts, those of a token.",
    "experts": "Experts, each with a weight.",
    "num_top": "Columns of the table of best tokens.",
    "dtype": "Type of the weight, the cache or the elements.",
    "activation_bits": "Bits of the input of packed products: 8, 9 or 16.",
    "depth": "Tokens in the cache before the first step that is timed.",
    "prompt": "Prompt tokens.",
    "tokens": "Steps that are timed, the mean counts.",
    "arrays": "Kind of the arguments: torch, parameter or numpy.",
}

_HEADS_AXIS, _PAGE = Axis(heads, "32/8x128"), Axis(count, "64")
_CACHE = one_of("bf16", "f32", "f16", "fp8", "int8")
_ROWS, _ELEMENTS = Axis(count, "1,64"), Axis(one_of("f32", "bf16"), "bf16")
_BATCH, _VOCAB = Axis(count, "1,8,64"), Axis(count, "128256")
_EXPERTS, _TOP_K = Axis(count, "128"), Axis(count, "8")
_NORM = {"rows": _ROWS, "hidden": Axis(count, "4k"), "dtype": _ELEMENTS}
_GATE = {"rows": _ROWS, "size": Axis(count, "14336"), "dtype": _ELEMENTS}

OPS: dict[str, dict[str, Axis]] = {
    "paged_attention": {
        "batch": Axis(count, "1,8"),
        "seq_len": Axis(count, "1k,4k"),
        "query_len": Axis(query_len, "1"),
        "heads": _HEADS_AXIS,
        "page": _PAGE,
        "window": Axis(count_or_zero, "0"),
        "dtype": Axis(_CACHE, "bf16"),
    },
    "append_kv": {
        "rows": Axis(count, "1,64,512"),
        "heads": _HEADS_AXIS,
        "page": _PAGE,
        "dtype": Axis(_CACHE, "bf16"),
    },
    "merge_states": {
        "rows": _ROWS,
        "splits": Axis(count, "8"),
        "heads": _HEADS_AXIS,
        "dtype": _ELEMENTS,
    },
    "linear": {
        "shape": Axis(shape, "4096x4096"),
        "rows": Axis(count, "1,4,64"),
        "dtype": Axis(one_of(*FORMATS, *FLOATS), "q4_0,q8_0,bf16"),
        "activation_bits": Axis(lambda text: int(one_of("8", "9", "16")(text)), "8"),
    },
    "route_tokens": {"rows": _ROWS, "experts": _EXPERTS, "top_k": _TOP_K},
    "expert_linear": {
        "shape": Axis(shape, "1536x2048"),
        "rows": _ROWS,
        "experts": _EXPERTS,
        "top_k": _TOP_K,
        "dtype": Axis(one_of(*FORMATS, *FLOATS), "q4_k,bf16"),
        "activation_bits": Axis(lambda text: int(one_of("8", "9", "16")(text)), "8"),
    },
    "combine_experts": {
        "rows": _ROWS,
        "size": Axis(count, "2k"),
        "top_k": _TOP_K,
        "dtype": _ELEMENTS,
    },
    "embedding": {
        "shape": Axis(shape, "32kx2048"),
        "rows": _ROWS,
        "dtype": Axis(one_of(*FORMATS, *FLOATS), "q8_0,bf16"),
    },
    "sample": {
        "batch": _BATCH,
        "vocab": _VOCAB,
        "logits": Axis(one_of("flat", "peaked", "zipf"), "flat,peaked,zipf"),
        "top_p": Axis(share, "0.9"),
        "top_k": Axis(count_or_zero, "0"),
        "dtype": Axis(one_of("f32", "bf16"), "f32"),
    },
    "token_logprobs": {
        "batch": _BATCH,
        "vocab": _VOCAB,
        "num_top": Axis(count_or_zero, "0,20"),
        "dtype": Axis(one_of("f32", "bf16"), "f32"),
    },
    "rms_norm": _NORM,
    "layer_norm": _NORM,
    "silu_mul": _GATE,
    "gelu_mul": _GATE,
    "gelu": _GATE,
    "sigmoid_mul": _GATE,
    "causal_conv": {
        "batch": Axis(count, "1,8"),
        "query_len": Axis(count, "1,512"),
        "size": Axis(count, "8k"),
        "dtype": _ELEMENTS,
    },
    "gated_delta": {
        "batch": Axis(count, "1,8"),
        "query_len": Axis(count, "1,512"),
        "heads": Axis(heads, "32/16x128"),
        "dtype": _ELEMENTS,
    },
    "scale": _GATE,
    "scale_by_position": _GATE,
    "call": {"arrays": Axis(one_of("torch", "parameter", "numpy"), "torch,parameter,numpy")},
}
"""The ops that can be timed, and the axes of their cases. "call": a native call that does nothing.

`pack_weight` and `quantize_weight` are missing: they run once, when a model is loaded.
"""

_TOKENS = Axis(count, "32")
MODELS: dict[str, dict[str, Axis]] = {
    "decode": {"depth": Axis(count_or_zero, "0,1k"), "tokens": _TOKENS},
    "prefill": {"prompt": Axis(count, "128,512")},
    "batch": {"batch": Axis(count, "1,4,16"), "prompt": Axis(count, "16"), "tokens": _TOKENS},
}
"""The benchmarks of a whole model, and the axes of their cases."""


def combinations(name: str, given: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """All cases of an op: the product of its axes' values, the last axis varying fastest.

    Args:
        name: of the op.
        given: lists by axis; None or absent: the op's own.

    Raises: ValueError: an unknown op, an axis that it has not, a value or a number of cases.
    """
    if name not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}; got {shown(name)}")
    return product_of(name, OPS[name], given)


def product_of(
    name: str, axes: Mapping[str, Axis], given: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """As :func:`combinations`, for a table of axes."""
    for axis, text in given.items():
        if text is not None and axis not in axes:
            raise ValueError(f"{axis}: {name} has {', '.join(axes)}")
    lists = {
        axis: found.values(axis, given.get(axis) or found.default) for axis, found in axes.items()
    }
    cases = list(itertools.islice(_product(lists), MOST_CASES + 1))
    if len(cases) > MOST_CASES:
        raise ValueError(f"the lists make more than {MOST_CASES} cases")
    return cases


def _product(lists: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))
