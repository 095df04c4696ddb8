"""The spans of programs that have no OpenTelemetry provider of their own: they go to the attempt's sink and nowhere else.

They are spans of OpenTelemetry's API, so the user's code and other instrumentors may hang theirs below them and write on
them. With no exporter to serve they need nothing of its SDK, which takes most of the time of recording a span: attributes
are kept as the store wants them, and no environment setting cuts or drops any.
"""

from __future__ import annotations

import base64
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from coterie.conventions import ATTEMPT_ID, ROLLOUT_ID
from coterie.random_ids import random_id
from coterie.scope import AttemptScope, current_scope
from coterie.vocabulary import JSON, Span, SpanEvent, SpanStatus

if TYPE_CHECKING:
    from opentelemetry.util._decorator import _AgnosticContextManager

_log = logging.getLogger("coterie")


class OwnTracer(trace.Tracer):
    """Makes ``OwnSpan``s."""

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,  # noqa: ARG002 - the store knows operations, not kinds
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[trace.Link] | None = None,  # noqa: ARG002 - nor links
        start_time: int | None = None,
        record_exception: bool = True,  # noqa: ARG002 - these two are for a span that is itself a ``with`` block
        set_status_on_exception: bool = True,  # noqa: ARG002
    ) -> OwnSpan:
        """Start a span below that of ``context``, by default the current one."""
        return OwnSpan(name, trace.get_current_span(context).get_span_context(), attributes, start_time)

    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[trace.Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> _AgnosticContextManager[trace.Span]:
        """Start a span and make it the current one within a block."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        return trace.use_span(span, end_on_exit, record_exception, set_status_on_exception)


class OwnSpan(trace.Span):
    """A span that becomes the store's when it ends. Belongs to the attempt in which it started."""

    def __init__(
        self, name: str, parent: SpanContext, attributes: Mapping[str, Any] | None = None, start_ns: int | None = None
    ) -> None:
        self._name = name
        is_root = not parent.is_valid
        trace_id = random_id(128) if is_root else parent.trace_id
        self._parent_id = None if is_root else parent.span_id
        self._context = SpanContext(trace_id, random_id(64), False, _SAMPLED, parent.trace_state)
        self._start_ns = start_ns if start_ns is not None else time.time_ns()
        self._end_ns: int | None = None
        self._ending = Lock()
        self._attributes: dict[str, JSON] = {}
        self._events: list[SpanEvent] = []
        self._status, self._status_message = SpanStatus.UNSET, ""
        self._scope: AttemptScope | None = current_scope()
        if attributes:
            self.set_attributes(attributes)
        if self._scope is not None:
            self._attributes[ROLLOUT_ID] = self._scope.rollout_id
            self._attributes[ATTEMPT_ID] = self._scope.attempt_id

    def get_span_context(self) -> SpanContext:
        """Its ids."""
        return self._context

    def is_recording(self) -> bool:
        """True until it ends."""
        return self._end_ns is None

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        if self._still_open():
            # What almost all values are needs no look from OpenTelemetry.
            plain = _PLAIN.issuperset(map(type, attributes.values())) and "" not in attributes
            self._attributes |= attributes if plain else as_json(BoundedAttributes(attributes=attributes))

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute."""
        self.set_attributes({key: value})

    def put(self, attributes: Mapping[str, JSON]) -> None:
        """Set attributes whose values are as the store keeps them. Their lists become the span's."""
        if self._still_open():
            self._attributes |= attributes

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event."""
        if self._still_open():
            time_ns = timestamp if timestamp is not None else time.time_ns()
            self._events.append(SpanEvent(name, time_ns, as_json(BoundedAttributes(attributes=attributes))))

    def update_name(self, name: str) -> None:
        """Give it another name."""
        if self._still_open():
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set how it ended. OK is final, and UNSET takes nothing back, as OpenTelemetry wants it."""
        code = status.status_code if isinstance(status, Status) else status
        if self._still_open() and self._status is not SpanStatus.OK and code is not StatusCode.UNSET:
            message = status.description if isinstance(status, Status) else description
            self._status, self._status_message = STATUS[code], message or ""

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add an event that tells of an exception."""
        kind = type(exception)
        told = {
            "exception.type": kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """End it: its attempt gets it. Only the first time counts."""
        if not self._ending.acquire(blocking=False):
            return
        self._end_ns = end_time if end_time is not None else time.time_ns()
        scope = self._scope
        if scope is None:
            return
        try:
            scope.sink.add_span(self.told())
        except Exception:  # noqa: BLE001 - it ends in the midst of the user's code
            _log.exception("A span of attempt %s could not be recorded: %r is lost.", scope.attempt_id, self._name)

    def told(self) -> Span:
        """The span as the store keeps it, also before its end."""
        attributes = self._attributes if self._end_ns is not None else dict(self._attributes)
        return Span(
            f"{self._context.trace_id:032x}",
            f"{self._context.span_id:016x}",
            self._name,
            self._start_ns,
            self._end_ns or 0,
            f"{self._parent_id:016x}" if self._parent_id is not None else None,
            attributes.get(ROLLOUT_ID),
            attributes.get(ATTEMPT_ID),
            self._status,
            self._status_message,
            attributes,
            tuple(self._events),
        )

    def _still_open(self) -> bool:
        if self._end_ns is None:
            return True
        _log.warning("Something was written on the span %r after its end; it is left out.", self._name)
        return False


STATUS = {
    StatusCode.UNSET: SpanStatus.UNSET,
    StatusCode.OK: SpanStatus.OK,
    StatusCode.ERROR: SpanStatus.ERROR,
}
"""OpenTelemetry's word for a status to ours."""


def as_json(attributes: Mapping[str, Any] | None) -> dict[str, JSON]:
    """Attributes as OpenTelemetry has cleaned them, in the store's form: lists for tuples, text for bytes."""
    # OpenTelemetry's own mapping takes a lock and a look-up an item; its copy is a plain dict.
    copied = attributes.copy() if isinstance(attributes, (BoundedAttributes, MappingProxyType)) else attributes or {}
    return {name: value if type(value) in _PLAIN else _json_value(value) for name, value in copied.items()}


def _json_value(value: Any) -> JSON:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        return list(value)
    return value


_PLAIN = frozenset({str, int, float, bool})
"""Types of values that OpenTelemetry and the store keep as they are."""
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
