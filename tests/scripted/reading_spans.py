"""Attempts against a scripted server, and readers of its requests and of the spans that come of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from coterie import conventions as names
from coterie.scope import AttemptScope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Span


def scope_of(server: ScriptedModel, sink: ListSink, **fields: Any) -> AttemptScope:
    """An attempt whose calls ask the scripted server for token ids."""
    endpoint = Endpoint(base_url=server.base_url, model="scripted", policy="team")
    return scope_for_test(sink, endpoints={"team": endpoint}, **fields)


def outline(spans: list[Span]) -> list[str]:
    """Each span as ``> > operation subject path``, parents before children, siblings by start."""
    known = {span.span_id for span in spans}
    children: dict[str | None, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)

    def lines(parent: str | None, depth: int) -> Iterator[str]:
        for span in sorted(children.get(parent, []), key=lambda span: span.start_ns):
            operation = span.attributes.get(names.OPERATION, span.name)
            subject = span.attributes.get(names.TOOL_NAME) or span.attributes.get(names.WORKFLOW_NAME)
            if operation in (names.CHAT, names.INVOKE_AGENT):
                subject = None
            words = ["> " * depth + operation, subject, span.attributes.get(names.AGENT_PATH)]
            yield " ".join(word for word in words if word)
            yield from lines(span.span_id, depth + 1)

    return list(lines(None, 0))


def edges(spans: list[Span]) -> list[tuple[str, str, str]]:
    """All (kind, source, target) that are written on spans, in order of time."""
    found = [
        (event.time_ns, event.attributes)
        for span in spans
        for event in span.events
        if event.name == names.HANDOFF_EVENT
    ]
    return [
        (about[names.HANDOFF_KIND], about[names.HANDOFF_SOURCE], about[names.HANDOFF_TARGET])
        for _, about in sorted(found, key=lambda pair: pair[0])
    ]


def last_text(body: dict[str, Any]) -> str:
    """The text of a request's last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else json.dumps(content)


def system_text(body: dict[str, Any]) -> str:
    """The text of a request's first message."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else json.dumps(content)
