"""Traces from files: OTLP as JSON, as the Collector and file exporters write it, and the SDK's ``to_json`` form."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie import conventions as c
from coterie.errors import CoterieError
from coterie.foreign.attributes import text_of
from coterie.vocabulary import JSON, Span, SpanEvent, SpanStatus

if TYPE_CHECKING:
    from coterie.episodes import Episode


class TraceFormatError(CoterieError):
    """A file of traces is no OTLP JSON and no list of the SDK's spans."""


def read_traces(source: str | Path | Iterable[str], *, task_id: str = "production") -> list[Episode]:
    """The episodes in a file of exported spans, by the start of each: one a trace, or one an attempt of ours.

    ``source`` is a path, or the lines of such a file. Traces without an agent, an LLM call or a tool call are left out.
    What AutoGen's runtime spreads over several traces of one team is one episode. An episode's rollout and attempt have
    the trace's id where the spans name none.

    Raises:
        TraceFormatError: something in the file is no span.
        OSError: the file cannot be read.
    """
    # Assembly reads foreign spans itself, so it cannot be imported before this package is.
    from coterie.assembly import build_episode

    episodes = []
    for spans in _grouped(read_spans(source)):
        first = min(spans, key=lambda span: span.start_ns)
        named = next((span for span in spans if span.attempt_id), first)
        attempt_id, rollout_id = named.attempt_id or first.trace_id, named.rollout_id or first.trace_id
        episode = build_episode(task_id, attempt_id, rollout_id, spans, ())
        if episode.turns or episode.tool_calls or episode.edges or episode.missing:
            episodes.append((first.start_ns, episode))
    return [episode for _, episode in sorted(episodes, key=lambda pair: pair[0])]


def read_spans(source: str | Path | Iterable[str]) -> list[Span]:
    """The spans in a file of exported spans, in its order.

    Raises:
        TraceFormatError: something in the file is no span.
        OSError: the file cannot be read.
    """
    if isinstance(source, str | Path):
        name, text = str(source), Path(source).read_text(encoding="utf-8", errors="replace")
    else:
        name, text = "the lines given", "\n".join(source)
    return [span for line, document in _documents(text, name) for span in _spans(document, f"{name}, line {line}")]


def _documents(text: str, name: str) -> Iterator[tuple[int, JSON]]:
    """The JSON values that stand one after another, on a line each or spread over many, with the line of their start."""
    decoder, at = json.JSONDecoder(), 0
    while (start := _next_sign(text, at)) < len(text):
        line = text.count("\n", 0, start) + 1
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise TraceFormatError(
                f"{name}, line {line}: this is no JSON ({error}). Expected OTLP JSON (resourceSpans) or the SDK's "
                "span.to_json(), one after another. If the file was still being written, leave out its last line."
            ) from error
        yield line, value


def _next_sign(text: str, at: int) -> int:
    found = re.compile(r"[^\s,]").search(text, at)
    return found.start() if found else len(text)


def _spans(document: JSON, place: str) -> Iterator[Span]:
    if isinstance(document, list):
        for one in document:
            yield from _spans(one, place)
        return
    fields: Mapping[str, Any] = document if isinstance(document, Mapping) else {}
    try:
        if "resourceSpans" in fields:
            yield from _otlp_spans(fields)
            return
        if "context" in fields and "start_time" in fields:
            yield _sdk_span(fields)
            return
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, binascii.Error) as error:
        raise TraceFormatError(
            f"{place}: a span here cannot be read ({type(error).__name__}: {error}). Export the traces again, as OTLP "
            "JSON or with span.to_json()."
        ) from error
    if any(other in fields for other in ("resourceMetrics", "resourceLogs")):
        return  # the Collector writes all its signals into one file
    raise TraceFormatError(
        f"{place}: this is no span. Expected an object with resourceSpans (OTLP JSON) or with context and start_time "
        f"(span.to_json()), found {_shortly(document)}."
    )


def _shortly(document: JSON) -> str:
    if isinstance(document, Mapping):
        return "an object with " + (", ".join(sorted(map(str, document))[:6]) or "nothing in it")
    return f"{type(document).__name__} {str(document)[:40]!r}"


def _otlp_spans(document: Mapping[str, Any]) -> Iterator[Span]:
    for resource in document["resourceSpans"]:
        for scope in resource.get("scopeSpans") or resource.get("instrumentationLibrarySpans") or ():
            for span in scope.get("spans") or ():
                status = span.get("status") or {}
                yield _span(
                    trace_id=_otlp_id(span["traceId"], 32),
                    span_id=_otlp_id(span["spanId"], 16),
                    parent_id=_otlp_id(span["parentSpanId"], 16) if span.get("parentSpanId") else None,
                    name=str(span.get("name", "")),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span.get("endTimeUnixNano") or span["startTimeUnixNano"]),
                    status=status.get("code"),
                    message=str(status.get("message") or ""),
                    attributes=_otlp_attributes(span.get("attributes")),
                    events=[
                        SpanEvent(
                            str(event.get("name", "")),
                            int(event.get("timeUnixNano") or 0),
                            _otlp_attributes(event.get("attributes")),
                        )
                        for event in span.get("events") or ()
                    ],
                )


def _otlp_id(value: str, digits: int) -> str:
    # By the specification ids are hex; protobuf's own JSON mapping, which some exporters use, makes them base64.
    if len(value) == digits:
        return str(int(value, 16) and value.lower())
    return base64.b64decode(value, validate=True).hex().rjust(digits, "0")


def _otlp_attributes(pairs: Sequence[Mapping[str, Any]] | None) -> dict[str, JSON]:
    return {str(pair["key"]): _otlp_value(pair.get("value") or {}) for pair in pairs or ()}


def _otlp_value(value: Mapping[str, Any]) -> JSON:
    for kind, content in value.items():
        match kind:
            case "intValue":
                return int(content)
            case "arrayValue":
                return [_otlp_value(one) for one in content.get("values") or ()]
            case "kvlistValue":
                return _otlp_attributes(content.get("values"))
            case _:
                return content
    return None


def _sdk_span(span: Mapping[str, Any]) -> Span:
    context, status = span["context"], span.get("status") or {}
    return _span(
        trace_id=_sdk_id(context["trace_id"], 32),
        span_id=_sdk_id(context["span_id"], 16),
        parent_id=_sdk_id(span["parent_id"], 16) if span.get("parent_id") else None,
        name=str(span.get("name", "")),
        start_ns=_sdk_time(span["start_time"]),
        end_ns=_sdk_time(span.get("end_time") or span["start_time"]),
        status=status.get("status_code"),
        message=str(status.get("description") or ""),
        attributes=dict(span.get("attributes") or {}),
        events=[
            SpanEvent(str(event.get("name", "")), _sdk_time(event["timestamp"]), dict(event.get("attributes") or {}))
            for event in span.get("events") or ()
        ],
    )


def _sdk_id(value: str, digits: int) -> str:
    return f"{int(value, 16):0{digits}x}"


def _sdk_time(value: str) -> int:
    since = datetime.fromisoformat(value).astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1) * 1000


def _span(*, status: JSON, message: str, attributes: dict[str, JSON], events: list[SpanEvent], **rest: Any) -> Span:
    return Span(
        **rest,
        rollout_id=text_of(attributes.get(c.ROLLOUT_ID)),
        attempt_id=text_of(attributes.get(c.ATTEMPT_ID)),
        status=_STATUS.get(str(status).removeprefix("STATUS_CODE_"), SpanStatus.UNSET),
        status_message=message,
        attributes=attributes,
        events=tuple(events),
    )


_STATUS = {"1": SpanStatus.OK, "OK": SpanStatus.OK, "2": SpanStatus.ERROR, "ERROR": SpanStatus.ERROR}

_AUTOGEN_TEAM = re.compile(r"_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


def _grouped(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans by attempt, else by trace; traces that name the same AutoGen team go together."""
    groups: dict[str, list[Span]] = {}
    leader: dict[str, str] = {}
    for span in spans:
        mine = _found(leader, span.attempt_id or span.trace_id)
        groups.setdefault(mine, []).append(span)
        team = _autogen_team(span)
        if team is None:
            continue
        other = _found(leader, team)
        if other != mine:
            leader[other] = mine
            groups[mine] = [*groups.pop(other, []), *groups[mine]]
    return list(groups.values())


def _found(leader: dict[str, str], key: str) -> str:
    while key in leader:
        key = leader[key]
    return key


def _autogen_team(span: Span) -> str | None:
    if not span.name.startswith("autogen ") and span.attributes.get("gen_ai.system") != "autogen":
        return None
    given = span.attributes
    named = span.name, given.get("gen_ai.agent.id"), given.get("sender_agent_type"), given.get("recipient_agent_type")
    return next((found[1] for text in named if isinstance(text, str) and (found := _AUTOGEN_TEAM.search(text))), None)
