"""Spans as nobody should write them: an episode is made all the same, and ours stay as they are."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coterie import conventions as c
from coterie.assembly import build_episode
from coterie.episodes import EdgeKind
from coterie.foreign import translate
from coterie.missing import Lack
from coterie.vocabulary import Span, SpanEvent, SpanStatus

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["", "x", "{", "[]", '["a"]', '{"a": 1}', '[{"parts": 7}]', '[{"role": "tool", "parts": [{}]}]'])
    | st.sampled_from(['{"update": {"messages": [1]}}', '{"graph": "__parent__", "goto": [{"node": 1}, 2]}', "[[[["]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["role", "parts", "goto"]), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = [
    "openinference.span.kind",
    "llm.input_messages.0.message.role",
    "llm.input_messages.0.message.contents.0.message_content.text",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments",
    "llm.output_messages.x",
    "llm.invocation_parameters",
    "llm.finish_reason",
    "metadata",
    "input.value",
    "output.value",
    "tool.name",
    "agent.name",
    "graph.node.id",
    "traceloop.span.kind",
    "traceloop.entity.name",
    "traceloop.association.properties.lc_agent_name",
    "traceloop.association.properties.langgraph_checkpoint_ns",
    "llm.request.type",
    "gen_ai.prompt.0.content",
    "gen_ai.completion.0.tool_calls.0.name",
    "gen_ai.system_instructions",
    "gen_ai.handoff.from_agent",
    "gen_ai.handoff.to_agent",
    "gen_ai.agent.description",
    "recipient_agent_type",
    "recipient_agent_class",
    "message",
    c.OPERATION,
    c.AGENT_NAME,
    c.PROVIDER,
    c.INPUT_MESSAGES,
    c.OUTPUT_MESSAGES,
    c.FINISH_REASONS,
    c.TOOL_NAME,
    c.TOOL_CALL_ID,
    c.TOOL_ARGUMENTS,
    c.TOOL_RESULT,
    c.ERROR_TYPE,
    c.RESPONSE_ID,
    c.ROLE,
]
WORDS = st.sampled_from(
    [
        "LLM",
        "TOOL",
        "AGENT",
        "CHAIN",
        "chat",
        "tool",
        "task",
        "workflow",
        "execute_tool",
        "invoke_agent",
        "crewai",
        "langgraph",
        "delegate_work_to_coworker",
        "transfer_to_x",
        "HandoffMessage",
    ]
)


@st.composite
def odd_spans(draw: st.DrawFn) -> Span:
    ids = st.sampled_from(["a", "b", "c", "d"])
    return Span(
        "0" * 32,
        draw(ids),
        draw(st.sampled_from(["", "x", "handoff to b", "autogen process"])),
        draw(st.integers(0, 3)),
        draw(st.integers(0, 3)),
        parent_id=draw(st.none() | ids),
        status=draw(st.sampled_from(SpanStatus)),
        status_message=draw(st.sampled_from(["", "Command(graph=x)"])),
        attributes=draw(st.dictionaries(st.sampled_from(NAMES), ODD | WORDS, max_size=8)),
        events=[SpanEvent(c.HANDOFF_EVENT, 1, {c.HANDOFF_TARGET: draw(ODD)})],
    )


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(odd_spans(), max_size=5))
def test_odd_foreign_spans_never_raise_nor_fault(spans: list[Span]) -> None:
    with NoFaults():
        made = build_episode("t", "at", "ro", spans, ())
    for turn in made.turns:
        assert isinstance(turn.text, str)
        assert turn.role
    for one in made.missing:
        assert 0 < one.count <= one.of
        assert one.what.advice in str(one)
    recorded = {span.span_id for span in spans}
    assert recorded <= {span.span_id for span in translate(spans)}


class NoFaults:
    """What our code swallows is logged: here that is a failure."""

    def __enter__(self) -> None:
        self.seen: list[str] = []
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.seen.append(record.getMessage() + str(record.exc_info))
        logging.getLogger("coterie").addHandler(self.handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("coterie").removeHandler(self.handler)
        assert not self.seen, self.seen[0]


def span(span_id: str, at: int, parent: str | None = None, end: int | None = None, **attributes: Any) -> Span:
    return Span("0" * 32, span_id, span_id, at, at + 5 if end is None else end, parent_id=parent, attributes=attributes)


def chat(span_id: str, at: int, text: str = "Hi", parent: str | None = None, **more: Any) -> Span:
    said = f'[{{"role": "assistant", "content": "{text}"}}]'
    return span(span_id, at, parent, **{c.OPERATION: c.CHAT, c.OUTPUT_MESSAGES: said} | more)


def test_our_own_spans_come_back_untouched() -> None:
    ours = [
        chat("a", 1, **{c.ROLE: "w"}),
        span("b", 2, **{"http.method": "GET"}),
        span("c", 3, **{c.OPERATION: c.INVOKE_WORKFLOW}),
    ]
    assert translate(ours) is ours
    made = build_episode("t", "at", "ro", ours, ())
    assert {one.what for one in made.missing} == {Lack.MESSAGES, Lack.TOKEN_IDS, Lack.LOGPROBS}


def test_a_call_that_only_the_other_tracer_saw_is_kept_beside_ours() -> None:
    ours = chat("a", 10, "One", **{c.ROLE: "w", c.AGENT_NAME: "w"})
    same, other, later = chat("b", 9, "One"), chat("c", 11, "Two"), chat("d", 30, "One")
    made = build_episode("t", "at", "ro", [ours, same, other, later], ())
    assert [turn.call_id for turn in made.turns] == ["a", "c", "d"]


def test_the_same_answer_twice_at_once_is_two_calls_not_one() -> None:
    ours = chat("a", 10, "One", **{c.ROLE: "w", c.AGENT_NAME: "w"})
    made = build_episode("t", "at", "ro", [ours, chat("b", 9, "One"), chat("c", 11, "One")], ())
    assert len(made.turns) == 2


def test_a_call_without_the_words_beside_its_tool_call_is_still_the_same_one() -> None:
    asked = '"tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]'
    ours = chat("a", 10, **{c.ROLE: "w", c.OUTPUT_MESSAGES: f'[{{"content": "I ask.", {asked}}}]'})
    same = chat("b", 9, **{c.OUTPUT_MESSAGES: f'[{{"content": null, {asked}}}]'})
    other = chat("d", 9, **{c.OUTPUT_MESSAGES: f'[{{"content": null, {asked.replace("c1", "c2")}}}]'})
    made = build_episode("t", "at", "ro", [ours, same, other], ())
    assert {turn.call_id for turn in made.turns} == {"a", "d"}


def test_response_ids_tell_calls_apart_that_say_the_same() -> None:
    ours = chat("a", 10, "One", **{c.ROLE: "w", c.AGENT_NAME: "w", c.RESPONSE_ID: "r1"})
    same, other = chat("b", 9, "One", **{c.RESPONSE_ID: "r1"}), chat("c", 9, "One", **{c.RESPONSE_ID: "r2"})
    made = build_episode("t", "at", "ro", [other, ours, same], ())
    assert {turn.call_id for turn in made.turns} == {"a", "c"}


def test_tries_inside_one_call_of_the_framework_are_one_turn() -> None:
    outer = chat("a", 1, "Hi", end=20)
    first = chat("b", 2, "", "a", **{c.ERROR_TYPE: "RateLimitError"})
    made = build_episode("t", "at", "ro", [outer, first, chat("c", 9, "Hi", "a")], ())
    assert [(turn.call_id, turn.text, turn.error) for turn in made.turns] == [("a", "Hi", None)]


def test_the_older_form_of_openllmetry_is_read() -> None:
    old = span(
        "a",
        1,
        **{
            "llm.request.type": "chat",
            "gen_ai.system": "OpenAI",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": "You are w.",
            "gen_ai.prompt.10.role": "user",
            "gen_ai.prompt.10.content": "Last",
            "gen_ai.prompt.2.role": "assistant",
            "gen_ai.prompt.2.tool_calls.0.id": "c1",
            "gen_ai.prompt.2.tool_calls.0.name": "search",
            "gen_ai.prompt.2.tool_calls.0.arguments": '{"q": 1}',
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": "Done",
            "gen_ai.completion.0.finish_reason": "stop",
            "gen_ai.usage.prompt_tokens": 7,
            "gen_ai.response.model": "m",
        },
    )
    (turn,) = build_episode("t", "at", "ro", [old], ()).turns
    asked = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": 1}'}}
    assert turn.messages == (
        {"role": "system", "content": "You are w."},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "user", "content": "Last"},
    )
    assert (turn.text, turn.finish_reason, turn.model) == ("Done", "stop", "m")


def test_a_hand_off_is_told_once_though_its_tool_and_its_span_both_tell_it() -> None:
    asked = '[{"role": "assistant", "parts": [{"type": "tool_call", "id": "x", "name": "transfer_to_bob", "arguments": {}}]}]'
    agents = [
        span("a", 1, end=20, **{c.OPERATION: c.INVOKE_AGENT, c.AGENT_NAME: "alice"}),
        span("b", 30, **{c.OPERATION: c.INVOKE_AGENT, c.AGENT_NAME: "Bob"}),
    ]
    call = span("c", 2, "a", **{c.OPERATION: c.CHAT, c.OUTPUT_MESSAGES: asked})
    told = span(
        "d", 9, "a", **{c.OPERATION: "handoff", "gen_ai.handoff.from_agent": "alice", "gen_ai.handoff.to_agent": "Bob"}
    )
    for spans in ([*agents, call], [*agents, told], [*agents, call, told]):
        (edge,) = build_episode("t", "at", "ro", spans, ()).edges
        assert (edge.kind, edge.source, edge.target) == (EdgeKind.HANDOFF, "alice", "Bob")
    never_acted = build_episode("t", "at", "ro", [agents[0], call], ())
    assert not never_acted.edges


def test_a_fault_of_ours_is_logged_and_the_span_is_kept(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    def broken(_: Span) -> Span:
        raise RuntimeError("ours")

    monkeypatch.setattr("coterie.foreign.genai.translated", broken)
    (turn,) = build_episode("t", "at", "ro", [chat("a", 1, "Hi")], ()).turns
    assert turn.text == "Hi"
    assert "could not be read" in caplog.text
