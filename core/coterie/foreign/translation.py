"""From anybody's spans to spans with our attributes: each alone, then what they say of each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from coterie import conventions as c
from coterie.foreign import autogen, genai, openinference, openllmetry
from coterie.foreign.joined import with_crew_delegations, with_tool_messages, with_transfers
from coterie.foreign.marks import is_ours, without_control_flow
from coterie.foreign.twice import counted_once
from coterie.vocabulary import Span

_log = logging.getLogger("coterie")

_CONVENTIONS = (openinference, openllmetry, autogen, genai)
"""The first that recognises a span translates it."""


def translate(spans: Sequence[Span]) -> Sequence[Span]:
    """The spans of one attempt with our attributes, each LLM and tool call counted once.

    Spans of ours stay as they are, and so does what nobody recognises; if they are all of that kind, the very sequence
    comes back. Never raises: a fault is logged, and the spans stay as they were.
    """
    origins = [_convention(span) for span in spans]
    names = {span.span_id: origin.NAME for span, origin in zip(spans, origins, strict=True) if origin is not None}
    if not names:
        return spans
    done: Sequence[Span] = [_translated(span, origin) for span, origin in zip(spans, origins, strict=True)]
    done = _kept(lambda given: counted_once(given, names), done)
    done = _kept(with_crew_delegations, done)
    done = _kept(with_tool_messages, done)
    return _kept(with_transfers, done)


def _convention(span: Span) -> ModuleType | None:
    if is_ours(span) or _says_nothing(span.attributes):
        return None
    return next((convention for convention in _CONVENTIONS if convention.recognises(span)), None)


def _says_nothing(attributes: Mapping[str, object]) -> bool:
    """True for a run of a whole team, ours or theirs: of no agent, call or tool."""
    return attributes.get(c.OPERATION) == c.INVOKE_WORKFLOW and "traceloop.span.kind" not in attributes


def _translated(span: Span, convention: ModuleType | None) -> Span:
    if convention is None:
        return span
    try:
        translated: Span = without_control_flow(convention.translated(span))
    except Exception:  # noqa: BLE001 - anybody's span: whatever is odd in it must not cost the episode
        _log.exception("Span %r of %s could not be read and is taken as it is.", span.name, convention.NAME)
        return span
    return translated


def _kept(step: Callable[[Sequence[Span]], Sequence[Span]], spans: Sequence[Span]) -> Sequence[Span]:
    try:
        return step(spans)
    except Exception:  # noqa: BLE001 - anybody's span: whatever is odd in it must not cost the episode
        _log.exception("Spans of another tracer could not be related to each other: they are taken one by one.")
        return spans
