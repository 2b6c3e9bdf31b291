# SPDX-License-Identifier: Apache-2.0
"""An explanation as text for a terminal: the numbers of the page, with bars of characters."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, TextIO

import numpy as np

_WIDTH = 40  # of a bar
_BEST = 10
_PARTS = "▏▎▍▌▋▊▉█"


def print_explanation(data: dict[str, Any], stream: TextIO) -> None:
    """Writes an explanation; texts of tokens are escaped in the data."""
    for line in lines_of(data):
        stream.write(line + "\n")


def lines_of(data: dict[str, Any]) -> Iterable[str]:
    texts = dict(zip(data["texts"]["ids"], data["texts"]["texts"], strict=True))
    tokens, first = data["tokens"], data["num_prompt_tokens"]
    model, settings = data["model"], data["settings"]
    yield (
        f"{model['name']}: {first} prompt tokens, {len(tokens) - first} generated tokens; "
        f"temperature {settings['temperature']:g}, top-k {settings['top_k']}, top-p "
        f"{settings['top_p']:g}, min-p {settings['min_p']:g}, seed {settings['seed']}"
    )
    yield from _title("Tokens", f"pieces of a vocabulary of {model['vocab_size']:,}")
    yield "prompt:    " + "|".join(texts[t["id"]] for t in tokens[:first])
    yield "generated: " + "|".join(texts[t["id"]] for t in tokens[first:])
    yield from _head(data, texts)
    yield from _draws(data, texts)
    yield from _lens(data, texts)
    yield from _tracks(data)
    yield from _cache(data)
    yield from _answers(data, texts)
    made = data["made"]
    yield ""
    yield f"{made['command']}; {made['date']}; {made['cpu']}, {made['threads']} threads"
    if made["load"] is not None and made["load"]["busy"]:
        yield "the machine was busy meanwhile: times are longer than its own"


def _title(name: str, meaning: str) -> Iterable[str]:
    return ("", f"{name.upper()}: {meaning}")


def _ranked(data: dict[str, Any], position: int) -> tuple[list[int], list[float]]:
    """Ids of the best tokens after a position, and their probabilities."""
    found = data["predictions"][position]
    ids = np.frombuffer(base64.b64decode(found["ids"]), "<u4")
    logits = np.frombuffer(base64.b64decode(found["logits"]), "<f4").astype(np.float64)
    return ids.tolist(), np.exp(logits - found["log_sum"]).tolist()


def _head(data: dict[str, Any], texts: dict[int, str]) -> Iterable[str]:
    position = data["num_prompt_tokens"] - 1
    ids, probabilities = _ranked(data, position)
    yield from _title("LM head", "probabilities of the first generated token")
    rows = list(zip((texts[i] for i in ids), probabilities, strict=True))[:_BEST]
    rest = max(1.0 - math.fsum(p for _, p in rows), 0.0)
    rows.append((f"{data['model']['vocab_size'] - len(rows):,} others", rest))
    for text, p in rows:
        yield f"{text[:18]:>18} {_percent(p)} {_bar(p)}"
    yield f"{'sum':>18} {_percent(math.fsum(p for _, p in rows))}"


def _draws(data: dict[str, Any], texts: dict[int, str]) -> Iterable[str]:
    yield from _title("Draws", "each generated token, its probability and rank, and the best ones")
    first = data["num_prompt_tokens"]
    for i, token in enumerate(data["tokens"][first:]):
        ids, probabilities = _ranked(data, first + i - 1)
        known = token["id"] in ids
        rank = ids.index(token["id"]) if known else len(ids)
        best = "  ".join(
            f"{texts[other]} {100 * p:.1f} %"
            for other, p in list(zip(ids, probabilities, strict=True))[:4]
        )
        own = _percent(probabilities[rank]) if known else "        -"
        yield f"{texts[token['id']][:18]:>18} {own} {rank + 1:>5}   {best}"


def _lens(data: dict[str, Any], texts: dict[int, str]) -> Iterable[str]:
    yield from _title("Blocks", "what the LM head would say before the first generated token")
    position = data["num_prompt_tokens"] - 1
    for i, layer in enumerate(data["lens"]):
        p = layer["probabilities"][position]
        name = f"block {i}" if i else "embedding"
        yield f"{name:>18} {_percent(p)} {_bar(p)} {texts[layer['ids'][position]]}"


def _tracks(data: dict[str, Any]) -> Iterable[str]:
    tracks = data["tracks"]
    apart = math.fsum(tracks["one_by_one"])
    count = data["num_prompt_tokens"]
    yield from _title("Tracks", "the prompt at once, and one token after the other")
    longest = max(tracks["block"], apart)
    for name, seconds in (("at once", tracks["block"]), ("one by one", apart)):
        per = f"{1e3 * seconds:8.1f} ms, {1e3 * seconds / count:.2f} ms a token"
        yield f"{name:>18} {_bar(seconds / longest):<{_WIDTH}} {per}"
    yield f"{'first token':>18} after {1e3 * tracks['time_to_first_token']:.1f} ms"
    if tracks["time_per_output_token"]:
        yield f"{'then':>18} {1e3 * tracks['time_per_output_token']:.2f} ms a token"


def _cache(data: dict[str, Any]) -> Iterable[str]:
    cache, tokens = data["cache"], len(data["tokens"])
    pages = -(-tokens // cache["page_size"])
    yield from _title("KV cache", f"{tokens} tokens in {pages} pages of {cache['page_size']}")
    layers = cache["layers"]
    per_token = sum(
        2 * layer["kv_heads"] * (layer["head_dim"] * layer["bytes"] + layer["scale_bytes"])
        for layer in layers
    )
    yield f"{len(layers)} layers, keys and values: {per_token:,} bytes a token ({cache['dtype']})"
    uncached = [b - a for a, b in pairwise(cache["uncached"])]
    times = data["tracks"]["tokens"][: len(cache["uncached"])]
    cached = [b - a for a, b in pairwise(times)]
    if uncached:
        same = "the same" if cache["equal"] else "NOT the same"
        yield (
            f"with it {1e3 * math.fsum(cached) / len(cached):.2f} ms a token, without it "
            f"{1e3 * math.fsum(uncached) / len(uncached):.2f} ms; the tokens are {same}"
        )


def _answers(data: dict[str, Any], texts: dict[int, str]) -> Iterable[str]:
    answers = data["answers"]
    yield from _title("Several answers", f"other seeds, at temperature {answers['temperature']:g}")
    for answer in answers["answers"]:
        yield f"seed {answer['seed']}: " + "".join(texts[i] for i in answer["ids"])


def _percent(p: float) -> str:
    return f"{100 * p:7.2f} %"


def _bar(share: float) -> str:
    eighths = round(8 * _WIDTH * min(max(share, 0.0), 1.0))
    whole, part = divmod(eighths, 8)
    return "█" * whole + (_PARTS[part - 1] if part else "")
