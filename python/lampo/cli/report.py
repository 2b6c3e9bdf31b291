# SPDX-License-Identifier: Apache-2.0
"""The sizes and times of a request, as text and as JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from lampo.cli.terminal import note
from lampo.outputs import RequestMetrics

if TYPE_CHECKING:
    from lampo.runtime.machine_load import MachineLoad

_REASONS = {
    "stop": "the answer ended",
    "length": "stopped at the length limit",
    "interrupted": "interrupted",
    "error": "failed",
}


def bytes_text(count: float) -> str:
    """Decimal units: 2.8 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def tokens_per_second(metrics: RequestMetrics) -> float | None:
    """The rate after the first token."""
    each = metrics.time_per_output_token
    return 1.0 / each if each else None


def statistics_line(metrics: RequestMetrics, finish_reason: str | None) -> str:
    """Sizes and times of a request: prompt, first token, output, rate, cache, how it ended."""
    parts = [plural(metrics.num_prompt_tokens, "prompt token")]
    if metrics.time_to_first_token is not None:
        parts.append(f"first token after {metrics.time_to_first_token * 1e3:.0f} ms")
    parts.append(plural(metrics.num_output_tokens, "output token"))
    rate = tokens_per_second(metrics)
    if rate is not None:
        parts.append(f"{rate:.1f} tokens/s")
    if metrics.cache_bytes:
        parts.append(f"{bytes_text(metrics.cache_bytes)} of KV cache")
    if finish_reason is not None:
        parts.append(_REASONS.get(finish_reason, finish_reason))
    return ", ".join(parts)


def note_load(load: MachineLoad | None) -> None:
    """A warning if the machine was busy during a measurement."""
    if load is not None and load.busy:
        note(f"warning: the machine was busy: {load.describe()}")


def metrics_json(metrics: RequestMetrics, load_time: float) -> dict[str, Any]:
    values = dataclasses.asdict(metrics)
    return values | {"tokens_per_second": tokens_per_second(metrics), "load_time": load_time}
