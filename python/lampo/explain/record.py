# SPDX-License-Identifier: Apache-2.0
"""Decodes a prompt and records what happens: the data of an explanation."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lampo import _C
from lampo.engine.inspector import Inspection, Inspector
from lampo.engine.request import Request
from lampo.engine.shared_engine import SharedEngine
from lampo.explain import PARAMETERS
from lampo.explain.predictions import Prediction
from lampo.explain.shown import shown
from lampo.models.config import AttentionConfig, ModelConfig
from lampo.models.step import PagedCache
from lampo.outputs import RequestOutput, StreamOutput
from lampo.runtime.machine import cpu_name
from lampo.runtime.machine_load import LoadMeter
from lampo.sampling_params import SamplingParams, chat_config
from lampo.text.tokenizer import Tokenizer

MAX_TOKENS = 512  # of a page, prompt and answer
DEFAULT_MAX_TOKENS = 40
NUM_ANSWERS = 4

# What a page holds, so that one of 77 tokens takes less than 3 MB.
_KEPT_IN_ALL = 48_000  # logits of generated tokens
_MOST_KEPT, _LEAST_KEPT, _KEPT_OF_PROMPT = 1024, 128, 64  # logits per token
_ATTENTION_BYTES = 1_100_000
_MOST_COMPONENTS = 1024  # of an embedding
_NUM_NEAREST = 8
_NEIGHBOURS = 3  # ids on each side
_UNCACHED_TOKENS = 64
_EMBEDDING_ROWS = 8192


class Model(Protocol):
    """What an explanation needs of :class:`lampo.LLM`."""

    config: ModelConfig
    tokenizer: Tokenizer
    path: Path
    max_model_len: int

    @property
    def generation_config(self) -> Mapping[str, Any]: ...
    def encode(self, prompt: str | list[int], name: str = ...) -> list[int]: ...
    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]: ...
    def request(self, prompt: list[int], params: SamplingParams) -> Request: ...
    def generate(self, prompts: Any, params: Any = ..., *, progress: bool) -> Any: ...
    def stream(
        self, prompt: list[int], params: SamplingParams, *, cache_salt: str
    ) -> Iterator[StreamOutput]: ...
    def inspector(self) -> Inspector: ...
    def shared_engine(self) -> SharedEngine: ...


def record(
    llm: Model,
    prompt: str | list[int],
    params: SamplingParams | None = None,
    *,
    system: str | None = None,
    raw: bool = False,
    attention_layers: Sequence[int] | None = None,
    command: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Decodes a prompt and records it; the arguments are those of :meth:`lampo.LLM.explain`.

    Returns:
        an object of JSON's types; see :mod:`lampo.explain.page` for its reader.
    """
    report = on_progress or (lambda _: None)
    token_ids, roles, templated = _encode(llm, prompt, system, raw)
    params = explained_params(llm, params or SamplingParams(), templated)
    check_size(len(token_ids), params.max_tokens or 0)
    inspector = llm.inspector()
    meter = LoadMeter()
    report("generating")
    tracks, generated, output = _tracks(llm, inspector, token_ids, params)
    report("generating without a cache")
    cache = _cache(llm, inspector, token_ids, params, generated)
    report("generating other answers")
    answers = _answers(llm, token_ids, params, generated)
    load = meter.load()
    report("looking into the model")
    all_ids = token_ids + generated
    roles += ["generated"] * len(generated)
    num_layers = llm.config.num_layers
    layers = _attention_layers(llm.config, len(all_ids), attention_layers)
    found = inspector.inspect(all_ids, hidden=range(num_layers + 1), attention=layers)
    lens = _lens(inspector, found, num_layers)
    report("comparing embeddings")
    embeddings = _embeddings(llm, inspector, all_ids)
    predictions = _predictions(found.logits, len(token_ids), len(generated))
    mentioned = {*all_ids, *(i for layer in lens for i in layer["ids"])}
    mentioned.update(i for p in predictions for i in p.ids.tolist())
    mentioned.update(near[0] for e in embeddings.values() for near in e["nearest"])
    mentioned.update(i for answer in answers["answers"] for i in answer["ids"])
    tokens = [_token(llm, i, role) for i, role in zip(all_ids, roles, strict=True)]
    mentioned.update(i for token in tokens for i in token["neighbours"])
    data = llm.tokenizer.token_bytes
    ids = sorted(mentioned)
    return {
        "format": 1,
        "prompt": prompt if isinstance(prompt, str) else None,
        "num_prompt_tokens": len(token_ids),
        "tokens": tokens,
        "texts": {"ids": ids, "texts": [shown(data(i)) for i in ids]},
        "output": {"text": output.text, "finish_reason": output.finish_reason},
        "embeddings": embeddings,
        "outline": [
            {**dataclasses.asdict(part), "shape": list(part.shape)} for part in inspector.outline()
        ],
        "lens": lens,
        "attention": _attention(found, layers),
        "predictions": [p.json() for p in predictions],
        "settings": {
            **{name: getattr(params, name) for name in PARAMETERS},
            "seed": str(params.seed),  # beyond the integers of JSON's readers
            "templated": templated,
        },
        "tracks": tracks,
        "cache": cache,
        "answers": answers,
        "model": _model(llm, inspector),
        "made": {
            "command": command or "llm.explain(...)",
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "lampo": _C.__version__,
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": _C.num_threads(),
            "isa": _C.cpu_isa(),
            "device": str(llm.shared_engine().engine.pool.device),
            "load": None
            if load is None
            else {"busy": load.busy, "others": load.others, "waited": load.waited},
        },
    }


def explained_params(llm: Model, params: SamplingParams, templated: bool) -> SamplingParams:
    """The parameters of the draw, resolved, with a seed.

    Raises:
        ValueError: one is set that the page cannot compute.
    """
    default = SamplingParams()
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if field.name not in PARAMETERS and value != getattr(default, field.name):
            raise ValueError(f"{field.name}: an explanation cannot compute it, leave it out")
    if params.max_tokens is None:
        params = dataclasses.replace(params, max_tokens=DEFAULT_MAX_TOKENS)
    if params.seed is None:
        params = dataclasses.replace(params, seed=0)
    config = chat_config(llm.generation_config) if templated else llm.generation_config
    return params.resolved(config)


def check_size(num_prompt_tokens: int, max_tokens: int) -> None:
    """Raises: ValueError: the page would have too many tokens; one without output has nothing."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
    if num_prompt_tokens + max_tokens > MAX_TOKENS:
        raise ValueError(
            f"prompt: has {num_prompt_tokens} tokens, and max_tokens is {max_tokens}: a page shows "
            f"at most {MAX_TOKENS}, prompt and answer"
        )


def _encode(
    llm: Model, prompt: str | list[int], system: str | None, raw: bool
) -> tuple[list[int], list[str], bool]:
    """Token ids, the role of each, and whether a chat template made them."""
    templated = isinstance(prompt, str) and not raw and llm.tokenizer.chat_template is not None
    if system is not None and not templated:
        raise ValueError("system: only a chat template has a place for it")
    if not templated or not isinstance(prompt, str):
        token_ids = llm.encode(prompt, "prompt")
        return token_ids, ["prompt"] * len(token_ids), False
    if not prompt:
        raise ValueError("prompt: is empty")
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    token_ids = llm.encode_chat(messages)
    own = llm.tokenizer.encode(prompt, add_bos=False)
    roles = ["template"] * len(token_ids)
    for first in range(len(token_ids) - len(own), -1, -1):
        if token_ids[first : first + len(own)] == own:
            roles[first : first + len(own)] = ["prompt"] * len(own)
            return token_ids, roles, True
    return token_ids, ["prompt"] * len(token_ids), True  # merged with the template's text


def _tracks(
    llm: Model, inspector: Inspector, token_ids: list[int], params: SamplingParams
) -> tuple[dict[str, Any], list[int], Any]:
    """Times of the prompt in two ways and of the generation, its tokens and its completion."""
    # First without a clock: steps are recorded in their first run.
    for _ in llm.stream(
        token_ids, dataclasses.replace(params, max_tokens=2), cache_salt=secrets.token_hex()
    ):
        pass
    one_by_one = inspector.time_prefill(token_ids, 1)
    block = inspector.time_prefill(token_ids)
    start = time.perf_counter()
    times: list[float] = []
    generated: list[int] = []
    request: RequestOutput | None = None
    for piece in llm.stream(token_ids, params, cache_salt=secrets.token_hex()):
        times += [time.perf_counter() - start] * len(piece.token_ids)
        generated += piece.token_ids
        request = piece.request or request
    assert request is not None
    completion = request.outputs[0]
    if completion.error is not None:
        raise RuntimeError(completion.error)
    tracks = {
        "block": sum(block),
        "one_by_one": one_by_one,
        "tokens": times,
        "time_to_first_token": request.metrics.time_to_first_token,
        "time_per_output_token": request.metrics.time_per_output_token,
    }
    return tracks, generated, completion


def _cache(
    llm: Model,
    inspector: Inspector,
    token_ids: list[int],
    params: SamplingParams,
    generated: list[int],
) -> dict[str, Any]:
    """The cache's size, and the same generation without it."""
    pool = llm.shared_engine().engine.pool
    count = min(len(generated), _UNCACHED_TOKENS)
    request = llm.request(token_ids, dataclasses.replace(params, max_tokens=count))
    start = time.perf_counter()
    times: list[float] = []
    result = inspector.generate_uncached(
        request, on_token=lambda _: times.append(time.perf_counter() - start)
    )
    layers = []
    for layer, cache in zip(llm.config.layers, pool.cache.layers, strict=True):
        if isinstance(cache, PagedCache):
            attention = layer.attention
            layers.append(
                {
                    "kv_heads": attention.num_kv_heads,
                    "head_dim": attention.head_dim,
                    "bytes": cache.k.dtype.itemsize,
                    "scale_bytes": 0 if cache.k_scale is None else cache.k_scale.dtype.itemsize,
                }
            )
    return {
        "page_size": pool.page_size,
        "bytes_per_page": pool.bytes_per_page,
        "dtype": str(next(pool.cache.paged_tensors()).dtype).removeprefix("torch."),
        "layers": layers,
        "uncached": times,
        "equal": result.outputs[0].token_ids == generated[:count],
    }


def _answers(
    llm: Model, token_ids: list[int], params: SamplingParams, generated: list[int]
) -> dict[str, Any]:
    """The completions of other seeds; at temperature 1 if this one is greedy."""
    assert params.seed is not None
    temperature = params.temperature or 1.0
    other = dataclasses.replace(
        params, n=NUM_ANSWERS - 1, seed=params.seed + 1, temperature=temperature
    )
    (result,) = llm.generate([token_ids], other, progress=False)
    answers = [{"seed": str(params.seed), "ids": generated}]
    answers += [
        {"seed": str(params.seed + 1 + o.index), "ids": o.token_ids} for o in result.outputs
    ]
    return {"temperature": temperature, "greedy": params.temperature == 0, "answers": answers}


def _attention_layers(config: ModelConfig, count: int, wanted: Sequence[int] | None) -> list[int]:
    """The layers named, or as many as the page has room for, at even distances."""
    if wanted is not None:
        return sorted(set(wanted))
    heads = max(attention.num_qo_heads for attention in config.attentions)
    room = max(1, _ATTENTION_BYTES // (heads * count * (count + 1) // 2))
    layers = [
        i for i, layer in enumerate(config.layers) if isinstance(layer.mixer, AttentionConfig)
    ]
    places = np.linspace(0, len(layers) - 1, min(room, len(layers)))
    return sorted({layers[round(float(place))] for place in places})


def _lens(inspector: Inspector, found: Inspection, num_layers: int) -> list[dict[str, list[Any]]]:
    """Per number of blocks and position, the LM head's best token there and its probability."""
    lens = []
    for num_blocks in range(num_layers + 1):
        last = num_blocks == num_layers
        logits = found.logits if last else inspector.logits(found.hidden[num_blocks])
        best = logits.max(dim=1)
        probabilities = torch.exp(best.values - logits.logsumexp(dim=1))
        lens.append(
            {
                "ids": best.indices.tolist(),
                "probabilities": [float(f"{p:.4g}") for p in probabilities.tolist()],
            }
        )
    return lens


def _attention(found: Inspection, layers: list[int]) -> dict[str, Any]:
    """Per layer the lower triangles of all heads; a byte is 255 times the root of a weight."""
    triangles = {}
    rows, columns = np.tril_indices(len(found.token_ids))
    for layer in layers:
        weights = found.attention[layer].numpy()[:, rows, columns]
        roots = np.rint(255 * np.sqrt(weights)).astype(np.uint8)
        triangles[str(layer)] = base64.b64encode(roots.tobytes()).decode("ascii")
    heads = [int(found.attention[layer].shape[0]) for layer in layers]
    return {"layers": layers, "heads": heads, "triangles": triangles}


def _embeddings(llm: Model, inspector: Inspector, token_ids: list[int]) -> dict[str, Any]:
    """By id: norm, components and nearest tokens by cosine."""
    ids = sorted(set(token_ids))
    vocab_size = llm.config.vocab_size
    own = inspector.token_embeddings(ids)
    norms = own.norm(dim=1)
    scaled = own / norms.clamp_min(1e-30)[:, None]
    best = torch.full((len(ids), _NUM_NEAREST + 1), -math.inf)
    who = torch.zeros(len(ids), _NUM_NEAREST + 1, dtype=torch.int64)
    for first in range(0, vocab_size, _EMBEDDING_ROWS):
        rows = torch.arange(first, min(first + _EMBEDDING_ROWS, vocab_size))
        part = inspector.token_embeddings(rows.tolist())
        cosines = scaled @ (part / part.norm(dim=1).clamp_min(1e-30)[:, None]).T
        both = torch.cat([best, cosines], dim=1)
        places = torch.cat([who, rows.expand(len(ids), -1)], dim=1)
        best, order = both.topk(_NUM_NEAREST + 1, dim=1)
        who = places.gather(1, order)
    found = {}
    for i, token_id in enumerate(ids):
        vector = own[i, :_MOST_COMPONENTS].numpy()
        scale = float(np.abs(vector).max()) or 1.0
        near = [
            [int(other), float(f"{cosine:.4f}")]
            for other, cosine in zip(who[i].tolist(), best[i].tolist(), strict=True)
            if other != token_id
        ]
        found[str(token_id)] = {
            "norm": float(norms[i]),
            "scale": scale,
            "first": [float(f"{x:.6g}") for x in vector[:8].tolist()],
            "components": base64.b64encode(
                np.rint(127 * vector / scale).astype(np.int8).tobytes()
            ).decode("ascii"),
            "nearest": near[:_NUM_NEAREST],
        }
    return found


def _predictions(logits: torch.Tensor, num_prompt: int, num_generated: int) -> list[Prediction]:
    """One per token: of the token that follows it."""
    kept = min(max(_KEPT_IN_ALL // max(num_generated, 1), _LEAST_KEPT), _MOST_KEPT)
    return [
        Prediction.of(row, kept if i >= num_prompt - 1 else _KEPT_OF_PROMPT)
        for i, row in enumerate(logits.numpy())
    ]


def _token(llm: Model, token_id: int, role: str) -> dict[str, Any]:
    special = token_id in llm.tokenizer.special_token_ids
    last = llm.config.vocab_size - 1
    around = range(max(token_id - _NEIGHBOURS, 0), min(token_id + _NEIGHBOURS, last) + 1)
    return {
        "id": token_id,
        "bytes": llm.tokenizer.token_bytes(token_id).hex(" "),
        "role": role,
        "special": special,
        "neighbours": list(around),
    }


def _model(llm: Model, inspector: Inspector) -> dict[str, Any]:
    config = llm.config
    parts = inspector.outline()
    return {
        "name": llm.path.name,
        "architecture": config.architecture,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_qo_heads": config.attentions[0].num_qo_heads,
        "num_kv_heads": config.attentions[0].num_kv_heads,
        "head_dim": config.attentions[0].head_dim,
        "num_parameters": sum(part.num_parameters for part in parts),
        "weight_bytes": sum(part.nbytes for part in parts),
        "max_model_len": llm.max_model_len,
    }
