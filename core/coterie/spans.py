"""OpenTelemetry spans of Coterie: which tracer makes them, and how they reach the attempt that they belong to.

A user who has an OpenTelemetry provider keeps it: our spans go through it, so their exporter sees them too, and a
processor of ours copies every span of an attempt to the attempt's sink. Who has none gets a private provider that is
never set globally.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Mapping
from functools import cache
from threading import Lock
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary, ref

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as RecordingSpan
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, Sampler, StaticSampler
from opentelemetry.trace import INVALID_SPAN_CONTEXT, StatusCode, Tracer
from opentelemetry.trace import Span as AnySpan

from coterie.conventions import ATTEMPT_ID, LOGPROBS, PROMPT_TOKENS, RESPONSE_TOKENS, ROLLOUT_ID
from coterie.scope import AttemptScope, current_scope
from coterie.vocabulary import JSON, Span, SpanEvent, SpanStatus

_log = logging.getLogger("coterie")


def tracer() -> Tracer:
    """The tracer for our spans, chosen anew at each call since a user may set a provider at any time.

    It is one of the user's global SDK provider if that keeps whole every span that it is given, else one of a private
    provider: a sampled-out or cut span would be a turn lost to training.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider) and _keeps_everything(provider) and not _inside_unsampled_trace():
        return _tracer_of(provider)
    return _tracer_of(_private_provider())


class AttemptSpanProcessor(SpanProcessor):
    """Stamps spans that start inside an attempt with its ids, and gives them to the attempt's sink when they end.

    The attempt is the one that was current when the span *started*: spans often end in another context or thread.
    Spans outside any attempt pass by untouched.
    """

    def __init__(self) -> None:
        self._scopes: dict[int, tuple[AttemptScope, ref[RecordingSpan]]] = {}
        """Span id to its attempt. The reference forgets a span that is thrown away without having been ended."""

    def on_start(self, span: RecordingSpan, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """Remember the current attempt for this span."""
        scope = current_scope()
        if scope is None or _is_told_by_plugin(span):
            return
        span.set_attribute(ROLLOUT_ID, scope.rollout_id)
        span.set_attribute(ATTEMPT_ID, scope.attempt_id)
        scopes, span_id = self._scopes, span.get_span_context().span_id
        scopes[span_id] = (scope, ref(span, lambda _: scopes.pop(span_id, None)))

    def on_end(self, span: ReadableSpan) -> None:
        """Give a span of an attempt to the attempt's sink."""
        context = span.get_span_context()
        found = self._scopes.pop(context.span_id, None) if context else None
        if found is None:
            return
        scope, _ = found
        try:
            scope.sink.add_span(to_span(span))
        except Exception:  # noqa: BLE001 - the span that ends here may be the user's own: it must not fail for us
            _log.exception("A span of attempt %s could not be recorded: %r is lost.", scope.attempt_id, span.name)

    def shutdown(self) -> None:
        """Nothing is held back, so there is nothing to end."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002
        """Nothing is held back, so there is nothing to flush."""
        return True


def set_tokens(
    span: AnySpan,
    prompt_ids: Iterable[int] | None,
    response_ids: Iterable[int] | None,
    logprobs: Iterable[float] | None,
) -> None:
    """Write the token ids and log-probs of an LLM call on its span. What is None is left out.

    Raises:
        TypeError, ValueError: one of them is no number.
    """
    if prompt_ids is not None:
        _set_numbers(span, PROMPT_TOKENS, _integers(prompt_ids))
    if response_ids is not None:
        _set_numbers(span, RESPONSE_TOKENS, _integers(response_ids))
    if logprobs is not None:
        # One type a list: OpenTelemetry drops a list that mixes 0 and -0.5.
        _set_numbers(span, LOGPROBS, tuple(map(float, logprobs)))


def leave_out_spans_of(tracers: str) -> None:
    """Keep spans of a framework's own tracers, named ``tracers`` or so and more, out of attempts: its plugin tells the
    same in ours, and an agent or tool call would be there twice. Exporters of the user's get them as before.
    """
    _told_by_plugins.add(tracers)


def take_in_spans_of(tracers: str) -> None:
    """Undo ``leave_out_spans_of``. Without one before it is no error."""
    _told_by_plugins.discard(tracers)


def to_span(span: ReadableSpan) -> Span:
    """An ended OpenTelemetry span as the store keeps it."""
    context = span.get_span_context() or INVALID_SPAN_CONTEXT
    attributes = _as_json(span.attributes)
    return Span(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent is not None else None,
        name=span.name,
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        rollout_id=attributes.get(ROLLOUT_ID),
        attempt_id=attributes.get(ATTEMPT_ID),
        status=_STATUS[span.status.status_code],
        status_message=span.status.description or "",
        attributes=attributes,
        events=tuple(SpanEvent(event.name, event.timestamp, _as_json(event.attributes)) for event in span.events),
    )


_STATUS = {
    StatusCode.UNSET: SpanStatus.UNSET,
    StatusCode.OK: SpanStatus.OK,
    StatusCode.ERROR: SpanStatus.ERROR,
}

_told_by_plugins: set[str] = set()
"""Beginnings of names of tracers."""


def _is_told_by_plugin(span: RecordingSpan) -> bool:
    if not _told_by_plugins or span.instrumentation_scope is None:
        return False
    return span.instrumentation_scope.name.startswith(tuple(_told_by_plugins))


_tracers: WeakKeyDictionary[TracerProvider, Tracer] = WeakKeyDictionary()
"""Our tracer of each provider that our processor was added to."""
_tracers_lock = Lock()


def _tracer_of(provider: TracerProvider) -> Tracer:
    known = _tracers.get(provider)
    if known is not None:
        return known
    with _tracers_lock:
        if provider not in _tracers:
            provider.add_span_processor(AttemptSpanProcessor())
            _tracers[provider] = provider.get_tracer("coterie")
        return _tracers[provider]


@cache
def _private_provider() -> TracerProvider:
    provider = TracerProvider(
        sampler=ALWAYS_ON,
        resource=Resource.get_empty(),
        shutdown_on_exit=False,
        # The environment's OTEL_*_LIMIT settings are meant for exporters: here a cut attribute is a broken turn.
        span_limits=SpanLimits(
            max_span_attributes=SpanLimits.UNSET,
            max_event_attributes=SpanLimits.UNSET,
            max_events=SpanLimits.UNSET,
            max_attribute_length=SpanLimits.UNSET,
            max_span_attribute_length=SpanLimits.UNSET,
        ),
    )
    # OTEL_SDK_DISABLED turns off what leaves the process; nothing leaves through this provider.
    provider._disabled = False
    return provider


def _keeps_everything(provider: TracerProvider) -> bool:
    if getattr(provider, "_disabled", False) or not _samples_everything(provider.sampler):
        return False
    limits = getattr(provider, "_span_limits", None)
    return (
        getattr(limits, "max_attribute_length", None) is None
        and getattr(limits, "max_span_attribute_length", None) is None
    )


def _samples_everything(sampler: Sampler) -> bool:
    if isinstance(sampler, ParentBased):
        sampler = sampler._root
    return isinstance(sampler, StaticSampler) and sampler._decision is Decision.RECORD_AND_SAMPLE


def _inside_unsampled_trace() -> bool:
    # A parent-based sampler drops children of such a trace whatever its root sampler says.
    context = trace.get_current_span().get_span_context()
    return context.is_valid and not context.trace_flags.sampled


def _integers(values: Iterable[int]) -> tuple[int, ...]:
    given = tuple(values)
    # A sum is the quickest way to see that all are plain integers.
    return given if type(sum(given)) is int else tuple(map(int, given))


def _set_numbers(span: AnySpan, name: str, numbers: tuple[int, ...] | tuple[float, ...]) -> None:
    """Set an attribute that is a list of numbers of one kind.

    OpenTelemetry examines each element of a list in Python, which for a few thousand token ids takes longer than all else
    that is recorded of a call. Numbers need no examination, so they go in past it where there is a place for them.
    """
    attributes = getattr(span, "_attributes", None)
    lock, kept = getattr(attributes, "_lock", None), getattr(attributes, "_dict", None)
    if isinstance(attributes, BoundedAttributes) and lock is not None and kept is not None and span.is_recording():
        with lock:
            if attributes.maxlen is None or len(kept) < attributes.maxlen:
                kept[name] = numbers
                return
    span.set_attribute(name, numbers)


def _as_json(attributes: Mapping[str, Any] | None) -> dict[str, JSON]:
    # OpenTelemetry's own mapping takes a lock and a look-up an item; its copy is a plain dict.
    plain = attributes.copy() if isinstance(attributes, MappingProxyType) else attributes or {}
    return {name: _json_value(value) for name, value in plain.items()}


def _json_value(value: Any) -> JSON:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return list(value)
    return value
