# SPDX-License-Identifier: Apache-2.0
"""The synchronous interface to a model: text in, text out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceABC
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from lampo.checks import check_integer
from lampo.engine.inspector import Inspector
from lampo.engine.kv_pool import (
    KVPool,
    default_max_model_len,
    num_state_slots,
    page_bytes,
    pages_per_sequence,
    plan_num_pages,
    window_of,
)
from lampo.engine.llm_engine import LLMEngine
from lampo.engine.memory_plan import plan_memory
from lampo.engine.request import Request
from lampo.engine.runner import ModelRunner
from lampo.engine.shared_engine import SharedEngine
from lampo.error_text import shown
from lampo.llm_arguments import KV_CACHE_DTYPES, check_llm_arguments
from lampo.model_files import ModelFiles
from lampo.models.loader import load_model
from lampo.models.step import StepLimits
from lampo.outputs import RequestOutput, StreamOutput
from lampo.progress import track_tokens
from lampo.prompts import Messages, Prompt, message_lists, params_list, prompt_list
from lampo.runtime.device import cuda_info, resolve_device
from lampo.sampling_params import SamplingParams, default_fields
from lampo.text.tokenizer import TooManyTokensError

if TYPE_CHECKING:
    from lampo.explain.explanation import Explanation

logger = logging.getLogger("lampo")


class LLM:
    """A language model, ready to generate; a context manager.

    Args:
        model: a GGUF file, a folder with config.json and safetensors (or one GGUF file), a hub id
            ("org/name"), or None for the default model, SmolLM2-135M-Instruct; or
            :class:`ModelFiles`, opened before, with its max_model_len.
        dtype: "auto" keeps weights as stored, blocks packed; "float32" computes
            exactly, on dequantized weights; "bfloat16" has weights and activations in bfloat16.
        quantize: quantize weights while they are loaded, dense ones and those that would become
            bfloat16: "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k",
            "q8_0", "iq4_nl" or "iq4_xs"; LM head and embedding get q6_k at least, and matrices
            without whole blocks of 256 columns blocks of 32. On the CPU.
        activation_bits: precision of activations that are multiplied by packed weights, on the CPU:
            8, 9 (8, and 16 for the four largest of 32 neighbours) or 16. If absent, 8 or 9, by the
            layer's part in the error. 16 is nearly exact, and slower where products are the limit:
            prompts, batches.
        device: "cpu", "cuda" or "cuda:<index>". A GPU computes in bfloat16, whatever the weights.
        kv_cache_dtype: "auto" (float32 with dtype "float32", else bfloat16), "float32", "float16",
            "bfloat16"; "int8" or "fp8" (also "fp8_e4m3"): half the memory, and a scale of four
            bytes per key and value of a head. Take int8, unless keys have large outliers.
        max_model_len: longest sequence, prompt and output; if absent, the model's context, or the
            tokens that the device's memory could hold, if fewer.
        kv_cache_memory: bytes for the KV cache, at most; if absent, half of the free memory, but no
            more than 4 GiB unless one sequence needs it. A page takes memory once it is used. On
            a GPU: what weights and workspace leave.
        page_size: tokens per page of the cache, a power of two up to 256.
        max_num_seqs: sequences decoded together.
        max_num_batched_tokens: prompt tokens computed in one step, beside the tokens of those that
            decode: smaller steps delay those less.
        enable_prefix_caching: keep the pages of finished requests for prompts with a common prefix.
            The tokens generated are the same with it and without.
        on_progress: called with a line on what is being done while a model is loaded.

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
        model: str | Path | ModelFiles | None = None,
        *,
        dtype: str = "auto",
        quantize: str | None = None,
        activation_bits: int | None = None,
        device: str = "cpu",
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        kv_cache_memory: int | None = None,
        page_size: int = 64,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        enable_prefix_caching: bool = True,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        report = on_progress or (lambda _: None)
        check_llm_arguments(
            dtype=dtype,
            quantize=quantize,
            activation_bits=activation_bits,
            kv_cache_dtype=kv_cache_dtype,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
        )
        where = resolve_device(device)
        if where.type == "cuda" and not cuda_info().devices[where.index].has_machine_code:
            report(f"compiling kernels for {where}, once")
        automatic = "float32" if dtype == "float32" else "bfloat16"
        kv_dtype: torch.dtype = getattr(torch, KV_CACHE_DTYPES[kv_cache_dtype] or automatic)
        files = model if isinstance(model, ModelFiles) else ModelFiles(model, max_model_len)
        begin = time.perf_counter()
        self.config = files.config
        self.path = files.path
        self.tokenizer = files.tokenizer
        self.max_model_len = files.max_model_len
        if not files.length_is_given:
            self.max_model_len = default_max_model_len(self.config, kv_dtype, where)
        self.eos_token_ids = files.eos_token_ids
        self.generation_config = files.generation_config
        with files.checkpoint:
            decoder = load_model(
                files.checkpoint,
                dtype,
                self.max_model_len,
                where,
                quantize=quantize,
                activation_bits=activation_bits,
            )
        self.weight_bytes = decoder.nbytes
        self.max_num_seqs = max_num_seqs
        keeps = decoder.keeps
        limits = StepLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_pages_per_seq=-(-self.max_model_len // page_size),
            page_size=page_size,
            device=where,
        )
        pages_per_seq = pages_per_sequence(
            self.max_model_len, page_size, window_of(keeps), max_num_batched_tokens
        )
        page_nbytes = page_bytes(keeps, page_size, kv_dtype)
        num_slots = num_state_slots(keeps, limits, prefix_caching=enable_prefix_caching)
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
                limits,
                free=torch.cuda.mem_get_info(where)[0],
                page_bytes=page_nbytes,
                pages_per_seq=pages_per_seq,
                num_slots=num_slots,
                kv_cache_memory=kv_cache_memory,
            )
            logger.info(plan.describe())
            num_pages = plan.num_pages
        decoder = decoder.to(where)
        pool = KVPool(keeps, num_pages, page_size, kv_dtype, where, num_slots=num_slots)
        runner = ModelRunner(decoder, pool, limits)
        runner.capture(lambda done, total: report(f"capturing decode steps {done} / {total}"))
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
        self.load_time = files.open_time + time.perf_counter() - begin
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
        use_cache: bool = True,
    ) -> list[RequestOutput]:
        """Continues one or many prompts.

        Args:
            prompts: a text, a list of token ids, or a list of such. Texts are tokenized with
                special tokens as ordinary text; the model's BOS token is added once.
            sampling_params: for all prompts, or one per prompt.
            progress: show a progress bar on stderr; None: if that is a terminal.
            use_cache: False computes every sequence from its beginning for every token, one prompt
                after the other: what the KV cache saves. The tokens are the same.

        Returns:
            one result per prompt, in order.

        Raises:
            ValueError, TypeError: a prompt or parameter that does not fit, by name; nothing has
                been generated then.
        """
        start = time.perf_counter()
        listed = prompt_list(prompts)
        params = params_list(sampling_params, len(listed))
        requests = [
            self.request(prompt, p, name=f"prompts[{i}]", start_time=start)
            for i, (prompt, p) in enumerate(zip(listed, params, strict=True))
        ]
        if not use_cache:
            return [self.inspector().generate_uncached(request) for request in requests]
        return self._generate(requests, progress)

    def chat(
        self,
        messages: Messages | SequenceABC[Messages],
        sampling_params: SamplingParams | SequenceABC[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one or many conversations, by the model's chat template.

        Args:
            messages: a conversation, a list of ``{"role": ..., "content": ...}``, or a list of
                conversations. Special tokens in a message are ordinary text.
            sampling_params, progress: as in :meth:`generate`.
            add_generation_prompt: begin an answer after the last message.
            continue_final_message: continue the last message instead; the result has the new text
                alone. By default that is done with an assistant's message, and all others are
                answered.
            chat_template_kwargs: arguments for the template.

        Returns, raises: as :meth:`generate`.
        """
        start = time.perf_counter()
        conversations = message_lists(messages)
        params = params_list(sampling_params, len(conversations))
        return self._generate(
            [
                self.request(
                    self.encode_chat(
                        conversation,
                        chat_template_kwargs,
                        add_generation_prompt=add_generation_prompt,
                        continue_final_message=continue_final_message,
                    ),
                    p,
                    name=f"messages[{i}]" if len(conversations) > 1 else "messages",
                    start_time=start,
                )
                for i, (conversation, p) in enumerate(zip(conversations, params, strict=True))
            ],
            progress,
        )

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        on_prompt: Callable[[int, int], None] | None = None,
        cache_salt: str | None = None,
    ) -> Iterator[StreamOutput]:
        """Continues one prompt and yields its text as it becomes final.

        The last piece has ``finish_reason`` and the whole result, ``request``. Closing the iterator
        early stops the generation.

        Args:
            prompt, sampling_params: as in :meth:`generate`.
            on_prompt: called until the first token is there, once before the first step and then
                after every step, with the computed tokens of the prompt and their number.
            cache_salt: as in :meth:`request`.

        Raises:
            ValueError, TypeError: as :meth:`generate`, at the call; also for ``n`` other than 1.
        """
        if sampling_params is not None and sampling_params.n != 1:
            raise ValueError(f"n: a stream has one completion, got {sampling_params.n}")
        request = self.request(prompt, sampling_params, cache_salt=cache_salt)
        return self._stream(request, on_prompt)

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
        self,
        messages: Messages,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> list[int]:
        """Token ids of a conversation; the arguments are those of :meth:`chat`."""
        room = self.max_model_len
        try:
            return self.tokenizer.encode_chat(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                template_kwargs=chat_template_kwargs,
                max_tokens=room,
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

    def _stream(
        self, request: Request, on_prompt: Callable[[int, int], None] | None
    ) -> Iterator[StreamOutput]:
        shared = self.shared_engine()
        sequence = request.sequences[0]
        pieces: list[StreamOutput] = []
        shown = 0
        if on_prompt is not None:
            on_prompt(0, sequence.num_prompt_tokens)
        with shared.submitted([request], pieces.append):
            for _ in shared.steps_until(lambda: bool(pieces and pieces[-1].request)):
                if on_prompt is not None and sequence.num_output_tokens == 0:
                    on_prompt(sequence.num_computed, sequence.num_prompt_tokens)
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
            raise TypeError(f"{name}: expected a text or a list of token ids, got {shown(prompt)}")
        if not token_ids:
            raise ValueError(f"{name}: is empty")
        if max_tokens is not None and len(token_ids) > max_tokens:
            raise self._too_long(name, str(len(token_ids)), max_tokens)
        return token_ids

    def _too_long(self, name: str, count: str, room: int | None) -> TooManyTokensError:
        context = f"the context of {self.max_model_len} leaves room for {room}"
        return TooManyTokensError(count, f"{name}: has {count} tokens, but {context}")

    def explain(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        system: str | None = None,
        raw: bool = False,
        attention_layers: SequenceABC[int] | None = None,
        command: str | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> Explanation:
        """Decodes a prompt, records what happens, and returns it as a page that draws it.

        The run is real, and the page's numbers are the library's: candidates and their
        probabilities, the draw, times, the cache, what happens inside of the blocks.

        Args:
            prompt: a text, a user's message to a model with a chat template; or token ids.
            sampling_params: max_tokens (40 if absent), temperature, top_p, top_k, min_p, seed (0 if
                absent) and ignore_eos; no others.
            system: a system message before it.
            raw: continue the text as it is, without a chat template.
            attention_layers: whose weights the page has; as many as 1 MB holds, if absent.
            command: how the page was made, for its last line.
            on_progress: called with a line on what is being done.

        Raises:
            ValueError, TypeError: an argument that does not fit; prompt and answer have more than
                512 tokens together.
        """
        from lampo.explain.explanation import Explanation
        from lampo.explain.record import record

        return Explanation(
            record(
                self,
                prompt if isinstance(prompt, str) else list(prompt),
                sampling_params,
                system=system,
                raw=raw,
                attention_layers=attention_layers,
                command=command,
                on_progress=on_progress,
            )
        )

    def inspector(self) -> Inspector:
        """Looks into the model: hidden states, attention weights, logits, the outline of its
        weights, prefill one token at a time.

        Raises:
            RuntimeError: the model is closed.
        """
        return Inspector(self.shared_engine(), self.request)

    def shared_engine(self) -> SharedEngine:
        """The engine of all requests, for a stack that makes the steps itself.

        Raises:
            RuntimeError: the model is closed.
        """
        if self._shared is None:
            raise RuntimeError("this LLM is closed")
        return self._shared
