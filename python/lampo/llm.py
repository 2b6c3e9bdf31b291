# SPDX-License-Identifier: Apache-2.0
"""The synchronous interface to a model: text in, text out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceABC
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lampo.checks import check_integer
from lampo.engine.kv_pool import KVPool, page_bytes, pages_per_sequence, plan_num_pages, window_of
from lampo.engine.llm_engine import LLMEngine
from lampo.engine.memory_plan import plan_memory
from lampo.engine.request import Request
from lampo.engine.runner import ModelRunner
from lampo.engine.shared_engine import SharedEngine
from lampo.models.checkpoint import Checkpoint, load_checkpoint
from lampo.models.loader import DTYPES, load_model
from lampo.outputs import RequestOutput, StreamOutput
from lampo.progress import track_tokens
from lampo.prompts import Messages, Prompt, params_list, prompt_list
from lampo.runtime.device import resolve_device
from lampo.runtime.program import OpTiming
from lampo.sampling_params import SamplingParams, default_fields
from lampo.text.tokenizer import Tokenizer, TooManyTokensError
from lampo.weights import resolve_model

logger = logging.getLogger("lampo")

_KV_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "int8": torch.int8,
}


class LLM:
    """A language model, ready to generate; a context manager.

    Args:
        model: a GGUF file, a folder with config.json and safetensors (or one GGUF file), a hub id
            ("org/name"), or None for the default model, SmolLM2-135M-Instruct.
        dtype: "auto" keeps weights as stored, 4- and 8-bit blocks packed; "float32" computes
            exactly, on dequantized weights; "bfloat16" has weights and activations in bfloat16.
        device: "cpu", "cuda" or "cuda:<index>". A GPU computes in bfloat16, whatever the weights.
        kv_cache_dtype: "auto" (float32 with dtype "float32", else bfloat16), "float32", "float16",
            "bfloat16"; "int8" or "fp8" (also "fp8_e4m3"): half the memory, and a scale of four
            bytes per key and value of a head. Take int8, unless keys have large outliers.
        max_model_len: longest sequence, prompt and output; the model's context if absent.
        kv_cache_memory: bytes for the KV cache, at most; if absent, half of the free memory, but no
            more than 4 GiB unless one sequence needs it. A page takes memory once it is used. On
            a GPU: what weights and workspace leave.
        page_size: tokens per page of the cache, a power of two up to 256.
        max_num_seqs: sequences decoded together.
        max_num_batched_tokens: prompt tokens computed in one step, beside the tokens of those that
            decode: smaller steps delay those less.
        enable_prefix_caching: keep the pages of finished requests for prompts with a common prefix.
            The tokens generated are the same with it and without.

    Raises:
        ValueError, TypeError: an argument or a model file that does not fit, in one line.

    Example:
        >>> from lampo import LLM, SamplingParams
        >>> with LLM() as llm:
        ...     outputs = llm.generate("The capital of France is", SamplingParams(max_tokens=8))
        ...     print(outputs[0].outputs[0].text)
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        dtype: str = "auto",
        device: str = "cpu",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        kv_cache_memory: int | None = None,
        page_size: int = 64,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        enable_prefix_caching: bool = True,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        if kv_cache_dtype != "auto" and kv_cache_dtype not in _KV_DTYPES:
            names = ", ".join(["auto", *_KV_DTYPES])
            raise ValueError(f"kv_cache_dtype: expected one of {names}, got {kv_cache_dtype!r}")
        if page_size not in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            raise ValueError(f"page_size: expected a power of two up to 256, got {page_size!r}")
        check_integer("max_num_seqs", max_num_seqs, 1, 4096)
        check_integer("max_num_batched_tokens", max_num_batched_tokens, 1, 1 << 20)
        where = resolve_device(device)
        begin = time.perf_counter()
        with load_checkpoint(resolve_model(model)) as checkpoint:
            self.config = checkpoint.config
            self.path = checkpoint.path
            self.tokenizer = _load_tokenizer(checkpoint)
            context = self.config.max_position_embeddings
            self.max_model_len = context if max_model_len is None else max_model_len
            check_integer("max_model_len", self.max_model_len, 1, context)
            self.eos_token_ids = frozenset(checkpoint.eos_token_ids) | self.tokenizer.eos_token_ids
            self.generation_config = checkpoint.generation_config
            decoder = load_model(checkpoint, dtype, self.max_model_len, where)
        self.weight_bytes = decoder.nbytes
        self.max_num_seqs = max_num_seqs
        kv_dtype = torch.float32 if dtype == "float32" else torch.bfloat16
        kv_dtype = _KV_DTYPES.get(kv_cache_dtype, kv_dtype)
        keeps = decoder.keeps
        pages_per_seq = pages_per_sequence(
            self.max_model_len, page_size, window_of(keeps), max_num_batched_tokens
        )
        page_nbytes = page_bytes(keeps, page_size, kv_dtype)
        if where.type == "cpu":
            num_pages = plan_num_pages(
                page_nbytes,
                pages_per_seq=pages_per_seq,
                max_num_seqs=max_num_seqs,
                memory=kv_cache_memory,
            )
        else:
            plan = plan_memory(
                decoder,
                free=torch.cuda.mem_get_info(where)[0],
                page_bytes=page_nbytes,
                page_size=page_size,
                pages_per_seq=pages_per_seq,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                kv_cache_memory=kv_cache_memory,
            )
            logger.info(plan.describe())
            num_pages = plan.num_pages
        decoder = decoder.to(where)
        pool = KVPool(keeps, num_pages, page_size, kv_dtype, where, num_slots=max_num_seqs)
        runner = ModelRunner(
            decoder,
            pool,
            max_num_seqs=max_num_seqs,
            max_pages_per_seq=-(-self.max_model_len // page_size),
        )
        engine = LLMEngine(
            runner,
            pool,
            self.tokenizer.token_to_text,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            prefix_caching=enable_prefix_caching,
            run_ahead=where.type == "cuda",
        )
        self._shared: SharedEngine | None = SharedEngine(engine)
        self.load_time = time.perf_counter() - begin
        defaults = default_fields(self.generation_config)
        if defaults:
            listed = ", ".join(f"{name}={value}" for name, value in defaults.items())
            logger.debug("sampling defaults of the model: %s", listed)

    def generate(
        self,
        prompts: Prompt | SequenceABC[Prompt],
        sampling_params: SamplingParams | SequenceABC[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Continues one or many prompts.

        Args:
            prompts: a text, a list of token ids, or a list of such. Texts are tokenized with
                special tokens as ordinary text; the model's BOS token is added once.
            sampling_params: for all prompts, or one per prompt.
            progress: show a progress bar on stderr; None: if that is a terminal.

        Returns:
            one result per prompt, in order.

        Raises:
            ValueError, TypeError: a prompt or parameter that does not fit, by name; nothing has
                been generated then.
        """
        start = time.perf_counter()
        listed = prompt_list(prompts)
        params = params_list(sampling_params, len(listed))
        return self._generate(
            [
                self.request(prompt, p, name=f"prompts[{i}]", start_time=start)
                for i, (prompt, p) in enumerate(zip(listed, params, strict=True))
            ],
            progress,
        )

    def chat(
        self,
        messages: Messages | SequenceABC[Messages],
        sampling_params: SamplingParams | SequenceABC[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one or many conversations, by the model's chat template.

        Args:
            messages: a conversation, a list of ``{"role": ..., "content": ...}``, or a list of
                conversations. Special tokens in a message are ordinary text.
            sampling_params, progress: as in :meth:`generate`.
            chat_template_kwargs: arguments for the template.

        Returns, raises: as :meth:`generate`.
        """
        start = time.perf_counter()
        conversations: Any = messages
        if len(messages) == 0:
            raise ValueError("messages: expected at least one message")
        if isinstance(messages[0], Mapping):
            conversations = [messages]
        params = params_list(sampling_params, len(conversations))
        return self._generate(
            [
                self.request(
                    self.encode_chat(conversation, chat_template_kwargs),
                    p,
                    name=f"prompts[{i}]",
                    start_time=start,
                )
                for i, (conversation, p) in enumerate(zip(conversations, params, strict=True))
            ],
            progress,
        )

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[StreamOutput]:
        """Continues one prompt and yields its text as it becomes final.

        The last piece has ``finish_reason`` and the whole result, ``request``. Closing the iterator
        early stops the generation.

        Raises:
            ValueError, TypeError: as :meth:`generate`, at the call; also for ``n`` other than 1.
        """
        if sampling_params is not None and sampling_params.n != 1:
            raise ValueError(f"n: a stream has one completion, got {sampling_params.n}")
        return self._stream(self.request(prompt, sampling_params))

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str | None = None,
        name: str = "prompt",
        start_time: float | None = None,
    ) -> Request:
        """A request for :meth:`LLMEngine.add`: one prompt with its completions, checked.

        Args:
            prompt: a text or token ids.
            params: sampling parameters; fields at None take the model's default.
            request_id: a name, unique among the unfinished requests.
            priority: smaller is sooner; a level stands for 10 seconds of waiting.
            timeout: seconds from now until the request is aborted.
            cache_salt: requests share prefixes only with those of the same salt.
            name: the prompt's name in errors.
            start_time: time.perf_counter() from which the time to the first token counts: that of
                this call, if absent.

        Raises:
            ValueError, TypeError: an argument that does not fit, by name: the prompt is too long,
                or an id in `params` is out of range.
        """
        if start_time is None:
            start_time = time.perf_counter()
        page_size = self.shared_engine().engine.pool.page_size
        params = (params or SamplingParams()).resolved(self.generation_config)
        room = self.max_model_len - (1 if params.max_tokens else 0)
        token_ids = self.encode(prompt, name, max_tokens=room)
        return Request(
            token_ids,
            params,
            tokenizer=self.tokenizer,
            vocab_size=self.config.vocab_size,
            eos_token_ids=self.eos_token_ids,
            max_len=self.max_model_len,
            page_size=page_size,
            prompt=prompt if isinstance(prompt, str) else None,
            request_id=request_id,
            priority=priority,
            timeout=timeout,
            cache_salt=cache_salt,
            start_time=start_time,
        )

    def encode_chat(
        self, messages: Messages, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation with the header of the assistant's answer."""
        room = self.max_model_len
        try:
            return self.tokenizer.encode_chat(
                messages, template_kwargs=chat_template_kwargs, max_tokens=room
            )
        except TooManyTokensError as error:
            raise self._too_long("messages", error.count, room) from None

    def close(self) -> None:
        """Frees the weights and the cache; the object cannot be used again."""
        self._shared = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _generate(self, requests: list[Request], progress: bool | None) -> list[RequestOutput]:
        shared = self.shared_engine()
        results: dict[str, RequestOutput] = {}

        def sink(piece: StreamOutput) -> None:
            if piece.request is not None:
                results[piece.request_id] = piece.request

        with shared.submitted(requests, sink):
            steps = shared.steps_until(lambda: len(results) == len(requests))
            for _ in track_tokens(steps, requests, progress):
                pass
        return [results[request.request_id] for request in requests]

    def _stream(self, request: Request) -> Iterator[StreamOutput]:
        shared = self.shared_engine()
        pieces: list[StreamOutput] = []
        shown = 0
        with shared.submitted([request], pieces.append):
            for _ in shared.steps_until(lambda: bool(pieces and pieces[-1].request)):
                new = pieces[shown:]
                shown += len(new)
                yield from new
            yield from pieces[shown:]

    def encode(
        self, prompt: Prompt, name: str = "prompt", *, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of a prompt, checked.

        Args:
            prompt: a text, which gets the model's BOS token, or token ids.
            name: its name in errors.
            max_tokens: the longest that fits.

        Raises:
            ValueError, TypeError: it is empty, or an id is out of range.
            TooManyTokensError: a ValueError: it is too long.
        """
        if isinstance(prompt, str):
            try:
                token_ids = self.tokenizer.encode(prompt, max_tokens=max_tokens)
            except TooManyTokensError as error:
                raise self._too_long(name, error.count, max_tokens) from None
        elif isinstance(prompt, Iterable):
            last = self.config.vocab_size - 1
            token_ids = [check_integer(f"{name}[{i}]", t, 0, last) for i, t in enumerate(prompt)]
        else:
            raise TypeError(f"{name}: expected a text or a list of token ids, got {prompt!r}")
        if not token_ids:
            raise ValueError(f"{name}: is empty")
        if max_tokens is not None and len(token_ids) > max_tokens:
            raise self._too_long(name, str(len(token_ids)), max_tokens)
        return token_ids

    def _too_long(self, name: str, count: str, room: int | None) -> TooManyTokensError:
        context = f"the context of {self.max_model_len} leaves room for {room}"
        return TooManyTokensError(count, f"{name}: has {count} tokens, but {context}")

    def replay_decode(self, batch_size: int, depth: int, repeats: int) -> list[list[OpTiming]]:
        """Replays and times one decode step, for :func:`lampo.profile`.

        Args:
            batch_size: of the step.
            depth: tokens per sequence in the cache: random numbers.
            repeats: replays.

        Returns:
            the ops per replay, in order.

        Raises:
            ValueError: the KV cache has no room for these tokens.
        """
        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        token_ids = [0] * (depth + 1)
        requests = [self.request(token_ids, params, name="depth") for _ in range(batch_size)]
        shared = self.shared_engine()
        with shared.lock:
            return shared.engine.replay_decode([r.sequences[0] for r in requests], repeats)

    def shared_engine(self) -> SharedEngine:
        """The engine of all requests, for a stack that makes the steps itself.

        Raises:
            RuntimeError: the model is closed.
        """
        if self._shared is None:
            raise RuntimeError("this LLM is closed")
        return self._shared


def _load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.gguf_metadata is not None:
        return Tokenizer.from_gguf(checkpoint.gguf_metadata)
    return Tokenizer.from_directory(checkpoint.path)
