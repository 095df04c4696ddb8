"""Figures of the gateway for Prometheus."""

from __future__ import annotations

from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class GatewayMetrics:
    """Counters, and what they are called."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Counter(
            "coterie_gateway_calls", "Calls that ended, by policy and outcome", ("policy", "outcome"), registry=registry
        )
        self._tries = Counter(
            "coterie_gateway_tries_again",
            "Tries that were followed by another, by cause",
            ("cause",),
            registry=registry,
        )
        self._fallbacks = Counter(
            "coterie_gateway_fallbacks", "Calls answered by another model", ("policy",), registry=registry
        )
        self._tokens = Counter(
            "coterie_gateway_tokens", "Tokens, by policy and direction", ("policy", "direction"), registry=registry
        )
        self._seconds = Histogram(
            "coterie_gateway_call_seconds", "Duration of calls", ("policy",), buckets=_SECONDS, registry=registry
        )
        self._up = Gauge(
            "coterie_gateway_server_up",
            "1 if a model server answers",
            ("server",),
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.in_flight = Gauge(
            "coterie_gateway_calls_in_flight", "Calls under way", registry=registry, multiprocess_mode="livesum"
        )
        self.waiting_spans = Gauge(
            "coterie_gateway_spans_waiting",
            "Spans not yet in the store",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Looking a child up by its labels costs more than counting.
        self._calls_of: Any = cache(self._calls.labels)
        self._seconds_of: Any = cache(self._seconds.labels)
        self._tokens_of: Any = cache(self._tokens.labels)

    def ended(
        self, policy: str | None, outcome: str, seconds: float, input_tokens: int | None, output_tokens: int | None
    ) -> None:
        """A call ended: ``ok``, an error's class, or why it broke off."""
        name = policy or "none"
        self._calls_of(name, outcome).inc()
        self._seconds_of(name).observe(seconds)
        if input_tokens:
            self._tokens_of(name, "input").inc(input_tokens)
        if output_tokens:
            self._tokens_of(name, "output").inc(output_tokens)

    def tried(self, cause: str) -> None:
        """A try failed and is followed by another."""
        self._tries.labels(cause).inc()

    def fell_back(self, policy: str | None) -> None:
        """No server of a policy answered."""
        self._fallbacks.labels(policy or "none").inc()

    def server(self, name: str, *, up: bool) -> None:
        """How a server is."""
        self._up.labels(name).set(1 if up else 0)
