"""Figures of the server for Prometheus.

With several processes they add up: prometheus-client keeps them in files of a folder that its variable
``PROMETHEUS_MULTIPROC_DIR`` names, which ``workers.py`` sets.
"""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from coterie.store.base import Store
from coterie.vocabulary import RolloutState

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUEUE_SECONDS = 5.0
"""How old the figures of the queue may be: counting costs the store something."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What is counted. Whoever mounts something adds its own figures to ``registry``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "coterie_requests",
            "Requests by route, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "coterie_request_seconds",
            "From the headers of a request to the end of its answer",
            ("route", "method"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._spans = Counter(
            "coterie_otlp_spans", "Spans that came by OTLP, by outcome", ("outcome",), registry=self.registry
        )
        self._rollouts = Gauge(
            "coterie_rollouts",
            "Rollouts in the store by state",
            ("state",),
            registry=self.registry,
            multiprocess_mode="mostrecent",
        )
        self.waiting = Gauge(
            "coterie_requests_waiting",
            "Long polls and streams under way",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._counted_at = -QUEUE_SECONDS
        # Looking a child up by its labels costs more than counting.
        self._request_of: Any = cache(self._requests.labels)
        self._seconds_of: Any = cache(self._seconds.labels)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered; status 0: its client went away."""
        self._request_of(route, method, str(status)).inc()
        self._seconds_of(route, method).observe(seconds)

    def spans(self, taken: int, refused: int) -> None:
        """Spans came by OTLP."""
        self._spans.labels("taken").inc(taken)
        if refused:
            self._spans.labels("refused").inc(refused)

    async def text(self, store: Store) -> bytes:
        """All figures, as Prometheus reads them.

        Raises:
            StoreUnavailableError: the queue cannot be counted.
        """
        now = time.monotonic()
        if now - self._counted_at >= QUEUE_SECONDS:
            self._counted_at = now
            counts = (await store.statistics())["rollouts_by_state"]
            for state in RolloutState:
                self._rollouts.labels(state.value).set(counts.get(state.value, 0))
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)
