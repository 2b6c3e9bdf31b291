# SPDX-License-Identifier: Apache-2.0
"""The settings of a server's operator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """Names, keys and limits; times are in seconds.

    Attributes:
        model_name: what clients call the model.
        api_keys: one is required for every call but GET /health; none: no authentication.
        allowed_hosts: accepted names in the Host header; None: any. Prevents DNS rebinding: a web
            page that reaches a server on loopback under its own name.
        max_body_bytes: of a request.
        header_timeout, body_timeout: for a request's head, and for its body, to arrive.
        send_timeout: for a client to take a piece of its answer.
        client_share: part of the engine's sequences, and of the calls in progress, that one client
            may have: an API key if there are several, else an address other than loopback's.
        max_connections: open at once; more are closed unread.
        max_requests: calls in progress; more get 429.
        max_prompts, max_n, max_sequences: prompts per call, completions per prompt, their product.
        max_logprobs: alternatives per token.
        allow_grammars: whether clients may send Lark grammars. Schemas, expressions and choices are
            always allowed: their cost is bounded more tightly.
        max_listed_tokens: of a call to /tokenize or /detokenize, unless the context is longer.
        request_timeout: from the call to the last token; None: no limit.
        drain_timeout: for running requests to end after SIGTERM.
        hung_after: time without a heartbeat after which a busy step loop is reported as hung.
    """

    model_name: str
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] | None = None
    max_body_bytes: int = 4 << 20
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    send_timeout: float = 30.0
    max_connections: int = 1024
    max_requests: int = 256
    max_prompts: int = 64
    max_n: int = 16
    max_sequences: int = 128
    max_logprobs: int = 20
    max_listed_tokens: int = 1 << 17
    client_share: float = 0.75
    allow_grammars: bool = False
    request_timeout: float | None = 3600.0
    drain_timeout: float = 30.0
    hung_after: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.model_name) <= 512:
            raise ValueError("model_name: expected 1 to 512 characters")
        for key in self.api_keys:
            if not (1 <= len(key) <= 1024 and all("!" <= char <= "~" for char in key)):
                raise ValueError("api_key: expected 1 to 1024 printable ASCII characters, no space")
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if self.client_share > 1:
            raise ValueError(f"client_share: expected at most 1, got {self.client_share}")
