"""Spans of OTLP as the store keeps them.

Span attributes and events come as they are. What OTLP tells beside them is kept as attributes: ``resource.NAME`` for what
the resource says (not about the SDK), ``otel.scope.name``, ``otel.span.kind`` and ``otel.links``. Rollout and attempt are
taken from the span's attributes, else from the resource's.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import ArrayValue

from coterie.conventions import ATTEMPT_ID, ROLLOUT_ID
from coterie.vocabulary import JSON, Span, SpanEvent, SpanStatus
from coterie_server.otlp.schema import Numbers, Request
from coterie_server.redaction import HIDDEN, is_secret, without_password

RESOURCE_PREFIX = "resource."
SCOPE_NAME = "otel.scope.name"
SPAN_KIND = "otel.span.kind"
LINKS = "otel.links"

LATEST_NS = 2**63 - 1
MOST_NAMES = 10_000
"""Names that are remembered: a client may make up ever new ones."""
REASONS_TOLD = 5
"""Rejected spans whose reasons an answer tells."""


@dataclass(slots=True)
class Taken:
    """What came of a request."""

    spans: list[Span] = field(default_factory=list)
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)
    """Of the first rejected ones."""

    def reject(self, reason: str) -> None:
        """Count a span that cannot be kept."""
        self.rejected += 1
        if len(self.reasons) < REASONS_TOLD:
            self.reasons.append(reason)

    @property
    def told(self) -> str:
        """The reasons as one text; empty if nothing was rejected."""
        more = self.rejected - len(self.reasons)
        return "; ".join([*self.reasons, *([f"and {more} more"] if more else [])])


def read_spans(body: bytes) -> Taken:
    """The spans of an ``ExportTraceServiceRequest``. A span that cannot be kept is rejected, the others are taken.

    Raises:
        DecodeError: the body is no such message.
    """
    request = Request.FromString(body)
    taken = Taken()
    for of_resource in request.resource_spans:
        shared, rollout_id, attempt_id = _resource(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            scope = of_scope.scope.name
            more = {**shared, SCOPE_NAME: scope} if scope else shared
            for span in of_scope.spans:
                problem = _problem(span)
                if problem is None:
                    taken.spans.append(_span(span, more, rollout_id, attempt_id))
                else:
                    taken.reject(problem)
    return taken


def _resource(pairs: Any) -> tuple[dict[str, JSON], JSON, JSON]:
    found = _attributes(pairs)
    rollout_id, attempt_id = _text(found.pop(ROLLOUT_ID, None)), _text(found.pop(ATTEMPT_ID, None))
    shared = {RESOURCE_PREFIX + name: value for name, value in found.items() if not name.startswith("telemetry.sdk.")}
    return shared, rollout_id, attempt_id


def _problem(span: Any) -> str | None:
    """Why a span cannot be kept."""
    trace_id, span_id, parent_id = span.trace_id, span.span_id, span.parent_span_id
    if len(trace_id) != 16 or not any(trace_id):
        return f"span {span.name[:80]!r}: trace_id {trace_id[:20].hex()!r} must be 16 bytes, not all zero"
    if len(span_id) != 8 or not any(span_id):
        return f"span {span.name[:80]!r}: span_id {span_id[:20].hex()!r} must be 8 bytes, not all zero"
    if len(parent_id) not in (0, 8):
        return f"span {span.name[:80]!r}: parent_span_id {parent_id[:20].hex()!r} must be 8 bytes, or none"
    if span.start_time_unix_nano > LATEST_NS or span.end_time_unix_nano > LATEST_NS:
        return f"span {span.name[:80]!r}: its times must be before the year 2262"
    return None


def _span(span: Any, more: Mapping[str, JSON], rollout_id: JSON, attempt_id: JSON) -> Span:
    attributes = _attributes(span.attributes)
    own_rollout, own_attempt = _text(attributes.get(ROLLOUT_ID)), _text(attributes.get(ATTEMPT_ID))
    if own_rollout or own_attempt:
        rollout_id, attempt_id = own_rollout, own_attempt
    if more:
        attributes.update(more)
    if span.kind > 1:
        attributes[SPAN_KIND] = _KINDS.get(span.kind, str(span.kind))
    if span.links:
        attributes[LINKS] = [_link(link) for link in span.links]
    status = span.status
    parent_id = span.parent_span_id
    start_ns = span.start_time_unix_nano
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        name=without_password(span.name),
        start_ns=start_ns,
        end_ns=span.end_time_unix_nano or start_ns,
        parent_id=parent_id.hex() if any(parent_id) else None,
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        status=_STATUS.get(status.code, SpanStatus.UNSET),
        status_message=without_password(status.message),
        attributes=attributes,
        events=tuple(map(_event, span.events)) if span.events else (),
    )


def _event(event: Any) -> SpanEvent:
    return SpanEvent(without_password(event.name), min(event.time_unix_nano, LATEST_NS), _attributes(event.attributes))


def _attributes(pairs: Iterable[Any]) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for pair in pairs:
        name, value = pair.key, pair.value
        # Most are texts, and to ask for the kind first takes longer than to look.
        text = value.string_value
        if text and "://" not in text:
            found[name] = text
        else:
            found[name] = without_password(text) if text else _value(value)
    if not _PLAIN_NAMES.issuperset(found):
        _hide_secrets(found)
    return found


def _hide_secrets(attributes: dict[str, JSON]) -> None:
    if len(_PLAIN_NAMES) > MOST_NAMES:
        _PLAIN_NAMES.clear()
    for name in attributes:
        if is_secret(name):
            attributes[name] = HIDDEN
        else:
            _PLAIN_NAMES.add(name)


def _value(value: Any) -> JSON:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    content = getattr(value, kind)
    match kind:
        case "string_value":
            return without_password(content)
        case "array_value":
            return _array(content) if isinstance(content, bytes) else [_value(one) for one in content.values]
        case "kvlist_value":
            return _attributes(content.values)
        case "bytes_value":
            return base64.b64encode(content).decode()
        case _:
            return content


def _array(content: bytes) -> list[JSON]:
    """A list. Numbers of one kind are read at once, if it is certain by the number of bytes that nothing else is there."""
    merged = Numbers.FromString(content).values
    integers: list[JSON] = merged.int_value[:]  # quicker than list()
    doubles: list[JSON] = merged.double_value[:]
    if integers:
        # An element is a tag and a length beside what the integer takes in the merged message.
        if len(content) == merged.ByteSize() + 2 * len(integers):
            return integers
    elif len(content) == _DOUBLE_BYTES * len(doubles):
        return doubles
    return [_value(one) for one in ArrayValue.FromString(content).values]


def _link(link: Any) -> JSON:
    told: dict[str, JSON] = {"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()}
    if link.attributes:
        told["attributes"] = _attributes(link.attributes)
    return told


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) and value else None


_DOUBLE_BYTES = 11
"""Of an element: its tag and length, the tag of the double, and 8 for the number."""
_KINDS = {2: "server", 3: "client", 4: "producer", 5: "consumer"}
_STATUS = {1: SpanStatus.OK, 2: SpanStatus.ERROR}
_PLAIN_NAMES: set[str] = set()
"""Names of attributes that were looked at before and are no secrets."""

__all__ = ["DecodeError", "Taken", "read_spans"]
