"""OpenTelemetry spans of Coterie: which tracer makes them, and how they reach the attempt that they belong to.

A user who has an OpenTelemetry provider keeps it: our spans go through it, so their exporter sees them too, and a
processor of ours copies every span of an attempt to the attempt's sink. Who has none gets spans of our own
(``own_spans.py``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from threading import Lock
from weakref import WeakKeyDictionary, ref

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as RecordingSpan
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, StaticSampler
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanKind, Tracer
from opentelemetry.trace import Span as AnySpan

from coterie.conventions import ATTEMPT_ID, LOGPROBS, PROMPT_TOKENS, RESPONSE_TOKENS, ROLLOUT_ID
from coterie.own_spans import STATUS, OwnSpan, OwnTracer, as_json
from coterie.scope import AttemptScope, current_scope
from coterie.vocabulary import JSON, Span, SpanEvent

_log = logging.getLogger("coterie")


def start_span(
    name: str,
    attributes: Mapping[str, JSON],
    *,
    parent: AnySpan | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
    start_ns: int | None = None,
) -> AnySpan:
    """Start one of our spans below ``parent``, by default the current one."""
    chosen = tracer()
    if chosen is _own_tracer:
        above = parent if parent is not None else trace.get_current_span()
        return OwnSpan(name, above.get_span_context(), attributes, start_ns)
    context = trace.set_span_in_context(parent) if parent is not None else None
    return chosen.start_span(name, context=context, kind=kind, attributes=attributes, start_time=start_ns)


def tracer() -> Tracer:
    """The tracer for our spans, chosen anew at each call since a user may set a provider at any time.

    It is one of the user's global SDK provider if that keeps whole every span that it is given, else one that makes spans
    of our own: a sampled-out or cut span would be a turn lost to training.
    """
    global _latest
    provider = _provider()
    if provider is not _latest[0]:
        chosen = _own_tracer
        if isinstance(provider, TracerProvider) and _keeps_everything(provider):
            chosen = _tracer_of(provider)
        _latest = (provider, chosen)
    chosen = _latest[1]
    return _own_tracer if chosen is not _own_tracer and _inside_unsampled_trace() else chosen


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
        put(span, {ROLLOUT_ID: scope.rollout_id, ATTEMPT_ID: scope.attempt_id})
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
    numbers: dict[str, JSON] = {}
    if prompt_ids is not None:
        numbers[PROMPT_TOKENS] = _integers(prompt_ids)
    if response_ids is not None:
        numbers[RESPONSE_TOKENS] = _integers(response_ids)
    if logprobs is not None:
        # One type a list: OpenTelemetry drops a list that mixes 0 and -0.5.
        numbers[LOGPROBS] = list(map(float, logprobs))
    put(span, numbers)


def put(span: AnySpan, attributes: Mapping[str, JSON]) -> None:
    """Set attributes, of which each list holds values of one plain type: texts or numbers.

    OpenTelemetry examines each value, and each element of a list, in Python. For the token ids of a call that takes longer
    than all else that is recorded of it, so what needs no examination goes in past it where there is a place for it.
    """
    if not _NEEDS_NO_LOOK.issuperset(map(type, attributes.values())):
        span.set_attributes(attributes)
        return
    if isinstance(span, OwnSpan):
        span.put(attributes)
        return
    held = getattr(span, "_attributes", None)
    lock, kept = getattr(held, "_lock", None), getattr(held, "_dict", None)
    if isinstance(held, BoundedAttributes) and lock is not None and kept is not None and span.is_recording():
        with lock:
            has_room = held.maxlen is None or len(kept) + len(attributes) <= held.maxlen
            if has_room and held.max_value_len is None:
                for name, value in attributes.items():
                    kept[name] = tuple(value) if type(value) is list else value
                return
    span.set_attributes(attributes)


def leave_out_spans_of(tracers: str) -> None:
    """Keep spans of a framework's own tracers, named ``tracers`` or so and more, out of attempts: its plugin tells the
    same in ours, and an agent or tool call would be there twice. Exporters of the user's get them as before.
    """
    _told_by_plugins.add(tracers)


def take_in_spans_of(tracers: str) -> None:
    """Undo ``leave_out_spans_of``. Without one before it is no error."""
    _told_by_plugins.discard(tracers)


def to_span(span: ReadableSpan | OwnSpan) -> Span:
    """A span as the store keeps it, ended or not."""
    if isinstance(span, OwnSpan):
        return span.told()
    context = span.get_span_context() or INVALID_SPAN_CONTEXT
    attributes = as_json(span.attributes)
    return Span(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent is not None else None,
        name=span.name,
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        rollout_id=attributes.get(ROLLOUT_ID),
        attempt_id=attributes.get(ATTEMPT_ID),
        status=STATUS[span.status.status_code],
        status_message=span.status.description or "",
        attributes=attributes,
        events=tuple(SpanEvent(event.name, event.timestamp, as_json(event.attributes)) for event in span.events),
    )


_NEEDS_NO_LOOK = frozenset({str, int, float, bool, list})

_told_by_plugins: set[str] = set()
"""Beginnings of names of tracers."""


def _is_told_by_plugin(span: RecordingSpan) -> bool:
    if not _told_by_plugins or span.instrumentation_scope is None:
        return False
    return span.instrumentation_scope.name.startswith(tuple(_told_by_plugins))


def _provider() -> trace.TracerProvider | None:
    # OpenTelemetry's getter looks into the environment as long as no provider is set, which takes as long as a span of ours.
    if _NAMED_IN_ENVIRONMENT or not hasattr(trace, "_TRACER_PROVIDER"):
        return trace.get_tracer_provider()
    return trace._TRACER_PROVIDER


_NAMED_IN_ENVIRONMENT = OTEL_PYTHON_TRACER_PROVIDER in os.environ

_own_tracer: Tracer = OwnTracer()
_latest: tuple[trace.TracerProvider | None, Tracer] = (None, _own_tracer)
"""The provider met last, None for none, and the tracer that it leads to."""

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


def _integers(values: Iterable[int]) -> list[int]:
    given = list(values)
    # A sum is the quickest way to see that all are plain integers.
    return given if type(sum(given)) is int else list(map(int, given))
