# SPDX-License-Identifier: Apache-2.0
"""Metrics for Prometheus: times that the server measured, and the engine's own counts."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lampo.async_llm import AsyncLLM

_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_FIRST_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, *_REQUEST_BUCKETS[1:10])


class Metrics:
    """The registry of one server; names follow vLLM's, with lampo_ in front.

    Times are of requests to the engine: a call with several prompts counts as several.
    """

    def __init__(self, engine: AsyncLLM, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine, model_name))
        ProcessCollector(registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(
                f"lampo_{name}", text, ["model_name"], registry=self.registry, buckets=buckets
            )
            return family.labels(model_name)

        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From the call to the first token.", _FIRST_BUCKETS
        )
        self.inter_token_latency = histogram(
            "inter_token_latency_seconds", "Between tokens of a completion.", _TOKEN_BUCKETS
        )
        self.request_duration = histogram(
            "e2e_request_latency_seconds", "From the call to the last token.", _REQUEST_BUCKETS
        )
        self.http_requests = Counter(
            "lampo_http_requests", "Answered calls.", ["route", "status"], registry=self.registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engine's counts at a scrape, so that counting costs nothing in between."""

    def __init__(self, engine: AsyncLLM, model_name: str) -> None:
        self._engine = engine
        self._model = model_name

    def describe(self) -> Iterator[Metric]:
        """No metrics: registering must not read an engine that may not run yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        s = self._engine.stats()
        gauges = {
            "num_requests_running": (s.num_running, "Requests that are being computed."),
            "num_requests_waiting": (s.num_waiting, "Requests in the queue."),
            "kv_cache_pages": (s.num_pages, "Pages of the KV cache."),
        }
        for name, (value, text) in gauges.items():
            yield self._gauge(name, text, value)
        pages = GaugeMetricFamily(
            "lampo_kv_cache_pages_by_state",
            "Pages in use, free, or cached: unused, kept for their prefix.",
            labels=["model_name", "state"],
        )
        used = s.num_pages - s.num_free_pages - s.num_cached_pages
        counts = {"used": used, "cached": s.num_cached_pages, "free": s.num_free_pages}
        for state, count in counts.items():
            pages.add_metric([self._model, state], count)
        yield pages
        share = used / s.num_pages if s.num_pages else 0.0
        yield self._gauge("kv_cache_usage", "Share of the pages in use.", share)
        counters = {
            "prompt_tokens": (s.num_prompt_tokens, "Prompt tokens."),
            "prefix_cache_hit_tokens": (s.num_cached_prompt_tokens, "Those found in the cache."),
            "generation_tokens": (s.num_output_tokens, "Generated tokens."),
            "num_preemptions": (s.num_preemptions, "Requests set back for want of pages."),
            "engine_steps": (s.num_steps, "Steps of the engine."),
        }
        for name, (value, text) in counters.items():
            counter = CounterMetricFamily(f"lampo_{name}", text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
        finished = CounterMetricFamily(
            "lampo_request_finished", "Completions by reason.", labels=["model_name", "reason"]
        )
        for reason, count in sorted(s.finished.items()):
            finished.add_metric([self._model, reason], count)
        yield finished

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        gauge = GaugeMetricFamily(f"lampo_{name}", text, labels=["model_name"])
        gauge.add_metric([self._model], value)
        return gauge


class CountCalls:
    """Outermost middleware: counts calls by route and status, unknown routes as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.http_requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
