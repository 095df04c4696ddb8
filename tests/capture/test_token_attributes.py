"""Token ids go into spans past OpenTelemetry's examination of each, and come out as if it had examined them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import INVALID_SPAN

from coterie.conventions import LOGPROBS, PROMPT_TOKENS, RESPONSE_TOKENS
from coterie.spans import set_tokens


def a_span(limits: SpanLimits | None = None):
    return TracerProvider(span_limits=limits, shutdown_on_exit=False).get_tracer("test").start_span("chat")


def test_they_are_what_opentelemetry_would_have_made_of_them():
    ours, theirs = a_span(), a_span()
    set_tokens(ours, [5, 6, 7], [8], [0, -0.5])
    theirs.set_attributes({PROMPT_TOKENS: [5, 6, 7], RESPONSE_TOKENS: [8], LOGPROBS: [0.0, -0.5]})

    assert dict(ours.attributes) == dict(theirs.attributes)
    assert [type(value) for value in ours.attributes[LOGPROBS]] == [float, float]
    assert ours.to_json(indent=None).count("[5, 6, 7]") == 1


def test_what_the_server_did_not_give_is_left_out_and_an_empty_answer_is_not():
    span = a_span()
    set_tokens(span, None, [], None)

    assert dict(span.attributes) == {RESPONSE_TOKENS: ()}


def test_a_full_span_drops_its_oldest_attribute_for_them_as_for_any_other():
    span = a_span(SpanLimits(max_span_attributes=2))
    span.set_attributes({"first": 1, "second": 2})
    set_tokens(span, [5], None, None)

    assert dict(span.attributes) == {"second": 2, PROMPT_TOKENS: (5,)}
    assert span.dropped_attributes == 1


def test_an_ended_span_and_one_that_is_not_recorded_stay_as_they_are():
    span = a_span()
    span.end()
    set_tokens(span, [5], None, None)
    set_tokens(INVALID_SPAN, [5], None, None)

    assert dict(span.attributes) == {}


def test_a_value_that_is_no_number_is_refused():
    with pytest.raises((TypeError, ValueError)):
        set_tokens(a_span(), [5, None], None, None)
