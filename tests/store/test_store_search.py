"""Searching spans: by what they are, when they were, and by the words that were said."""

from __future__ import annotations

import json

import pytest

from coterie import conventions
from coterie.errors import StoreError
from coterie.store.base import Store
from coterie.store.filters import SpanFilter
from coterie.vocabulary import Rollout, Span, SpanEvent, SpanStatus, Task


def a_span(number: int, **fields: object) -> Span:
    values: dict[str, object] = {"name": "chat coder", "start_ns": number * 10, "end_ns": number * 10 + 5, **fields}
    return Span(f"{number % 3:032x}", f"{number:016x}", **values)  # type: ignore[arg-type]


def said(number: int, text: str, **fields: object) -> Span:
    messages = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": text}]}])
    return a_span(number, attributes={conventions.OUTPUT_MESSAGES: messages}, **fields)


async def found(store: Store, **where: object) -> list[int]:
    page = await store.search_spans(SpanFilter(**where))  # type: ignore[arg-type]
    return [int(span.span_id, 16) for span in page.items]


async def test_each_condition_counts_and_all_together(store: Store) -> None:
    await store.add_tasks([Task("t", 1)])
    mine, other = Rollout("t", run_id="mine"), Rollout("t", run_id="other")
    await store.enqueue([mine, other])
    coder = {conventions.ROLE: "coder", conventions.AGENT_PATH: "manager/coder", conventions.OPERATION: "chat"}
    tool = {conventions.ROLE: "coder", conventions.OPERATION: "execute_tool"}
    spans = [
        a_span(1, attributes=coder, rollout_id=mine.id, attempt_id="at-1"),
        a_span(2, attributes=tool, rollout_id=mine.id, attempt_id="at-1", name="run_sql"),
        a_span(3, attributes={conventions.ROLE: "judge"}, rollout_id=other.id, status=SpanStatus.ERROR),
        a_span(4, attributes={conventions.ROLE: 7}),
    ]
    await store.add_spans(spans)
    assert await found(store) == [1, 2, 3, 4]
    assert await found(store, run_id="mine") == [1, 2]
    assert await found(store, rollout_id=other.id) == [3]
    assert await found(store, attempt_id="at-1") == [1, 2]
    assert await found(store, trace_id=f"{1:032x}") == [1, 4]
    assert await found(store, name="run_sql") == [2]
    assert await found(store, role="coder") == [1, 2]
    assert await found(store, role="7") == []
    assert await found(store, agent_path="manager/coder") == [1]
    assert await found(store, operation="execute_tool") == [2]
    assert await found(store, status=SpanStatus.ERROR) == [3]
    assert await found(store, started_from_ns=20, started_before_ns=40) == [2, 3]
    assert await found(store, run_id="mine", role="coder", operation="chat", started_before_ns=20) == [1]
    assert await found(store, run_id="mine", role="judge") == []
    assert list((await store.search_spans(SpanFilter(role="judge"))).items) == [spans[2]]


async def test_words_are_found_wherever_they_were_said(store: Store) -> None:
    await store.add_spans(
        [
            said(1, 'Wie viele Sänger? "SELECT count(*)"\n<b>done</b>'),
            a_span(2, name="execute_tool run_sql", attributes={conventions.TOOL_ARGUMENTS: '{"query": "SELECT 1"}'}),
            a_span(3, status=SpanStatus.ERROR, status_message="OperationalError: no such table: sänger"),
            a_span(4, attributes={conventions.TOOL_RESULT: "plain Text", "coterie.tokens.prompt": [1, 2]}),
            a_span(
                5,
                attributes={conventions.INPUT_MESSAGES: json.dumps([{"content": "unübersehbar"}], ensure_ascii=False)},
            ),
            a_span(6, events=(SpanEvent("exception", 1, {"exception.message": "Division by zero"}),)),
        ]
    )
    assert await found(store, text="select") == [1, 2]
    assert await found(store, text="SÄNGER") == [1, 3]
    assert await found(store, text="table sänger") == [3]
    assert await found(store, text="viele count done") == [1]
    assert await found(store, text="run_sql") == [2]
    assert await found(store, text="plain") == [4]
    assert await found(store, text="unübersehbar") == [5]
    assert await found(store, text="zero division") == [6]
    assert await found(store, text="sel") == []
    assert await found(store, text="select nothing") == []
    assert await found(store, text="select", name="execute_tool run_sql") == [2]


@pytest.mark.parametrize(
    "text", ['"', "a AND", "NEAR(", "it's", "co*", "-x", "col:x", "' OR 1=1 --", "(((", "\\", "%", "_"]
)
async def test_no_word_has_a_meaning_of_its_own(store: Store, text: str) -> None:
    await store.add_spans([said(1, "nothing like that")])
    assert await found(store, text=f"{text} unheard") == []


async def test_text_without_a_word_asks_for_nothing(store: Store) -> None:
    await store.add_spans([said(1, "x")])
    assert await found(store, text=" - ") == [1]
    assert await found(store, text="") == [1]


async def test_a_span_that_is_removed_is_not_found(store: Store) -> None:
    await store.add_spans([said(1, "needle"), said(2, "needle")])
    await store.delete_traces([f"{1:032x}"])
    assert await found(store, text="needle") == [2]


async def test_a_span_that_comes_twice_is_found_once(store: Store) -> None:
    await store.add_spans([said(1, "needle"), said(1, "needle")])
    await store.add_spans([said(1, "thread")])
    assert await found(store, text="needle") == [1]
    assert await found(store, text="thread") == []


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("text", [None, "needle"])
async def test_pages_give_everything_once(store: Store, text: str | None, newest_first: bool) -> None:
    await store.add_spans([said(number, "needle" if number % 2 else "hay", name="n") for number in range(40)])
    where = SpanFilter(text=text, name="n")
    expected = [number for number in range(40) if text is None or number % 2]
    seen: list[int] = []
    after: str | None = None
    for _ in range(20):
        page = await store.search_spans(where, newest_first=newest_first, after=after, limit=6)
        assert len(page.items) <= 6
        seen += [int(span.span_id, 16) for span in page.items]
        after = page.cursor
        if after is None:
            break
    assert seen == (expected[::-1] if newest_first else expected)


async def test_a_search_refuses_nonsense(store: Store) -> None:
    with pytest.raises(StoreError, match="limit"):
        await store.search_spans(SpanFilter(), limit=0)
    with pytest.raises(StoreError, match="no cursor"):
        await store.search_spans(SpanFilter(text="x"), after="page-two")
