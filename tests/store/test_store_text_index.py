"""The index of words: it decides how long a search takes, never what it finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores_under_test import STORES, SqliteStores

from coterie import conventions
from coterie.store import text_index, text_search
from coterie.store.base import Store
from coterie.store.filters import SpanFilter
from coterie.store.sql import SqlStore
from coterie.vocabulary import Span, SpanEvent, SpanStatus

WORDS = [
    "select",
    "Sänger",
    "ſtraße",
    "STRASSE",
    "no",
    "123",
    "x" * 150,
    "x" * 149 + "y",
    "日本",
    "i̇",
    "a",
    "null",
    "or",
]
TRACES = [f"{number:032x}" for number in range(3)]
NUMBERS = count()
TEXTS = st.lists(
    st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    max_size=6,
).map(" ".join)


@pytest.fixture(params=sorted(set(STORES) - {"http"}))
async def sql_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlStore]:
    stores = STORES[request.param](tmp_path)
    store = await stores()
    assert isinstance(store, SqlStore)
    yield store
    await stores.close()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.data())
async def test_a_search_finds_what_a_look_at_every_span_finds(sql_store: SqlStore, data: st.DataObject) -> None:
    store = sql_store
    # One store for all examples: what earlier ones left in the index must not be found.
    await store.delete_traces(TRACES)
    spans: list[Span] = []
    for _ in range(data.draw(st.integers(1, 4))):
        for text in data.draw(st.lists(TEXTS, max_size=6)):
            spans.append(span_of(next(NUMBERS), text, data.draw(st.integers(0, 4)), data.draw(st.sampled_from(TRACES))))
            await store.add_spans(spans[-1:])
        if data.draw(st.booleans()):
            await store._write(partial(text_index.index_on, words_of=text_search.words_in, count=3))
        gone = set(data.draw(st.lists(st.sampled_from(TRACES), max_size=2)))
        await store.delete_traces(sorted(gone))
        spans = [span for span in spans if span.trace_id not in gone]
        wanted = data.draw(TEXTS)
        for newest_first in (False, True):
            found = await everything(store, SpanFilter(text=wanted), newest_first)
            expected = [span for span in spans if fits(span, wanted)]
            assert found == (expected[::-1] if newest_first else expected)


def span_of(number: int, text: str, place: int, trace_id: str) -> Span:
    """A span that says the text in one of the places where it may be said."""
    attributes = [
        {},
        {conventions.OUTPUT_MESSAGES: json.dumps([{"content": text}])},
        {conventions.TOOL_RESULT: {"rows": [text]}},
        {},
        {},
    ][place]
    return Span(
        trace_id,
        f"{number:016x}",
        name=text if place == 0 else "n",
        start_ns=number,
        end_ns=number,
        status_message=text if place == 3 else "",
        status=SpanStatus.ERROR,
        attributes=attributes,
        events=(SpanEvent("exception", 1, {"exception.message": text}),) if place == 4 else (),
    )


def fits(span: Span, wanted: str) -> bool:
    return text_search.words_of(wanted) <= text_search.words_of(text_search.said_in(span))


async def everything(store: Store, where: SpanFilter, newest_first: bool = False) -> list[Span]:
    found: list[Span] = []
    after = None
    for _ in range(50):
        page = await store.search_spans(where, newest_first=newest_first, after=after, limit=3)
        found += page.items
        after = page.cursor
        if after is None:
            return found
    raise AssertionError("the pages have no end")


async def said(store: Store, how_many: int, first: int = 0, trace: int = 1) -> None:
    numbers = range(first, first + how_many)
    spans = [
        Span(f"{trace:032x}", f"{n:016x}", f"number {n} of {'even' if n % 2 == 0 else 'odd'}", n, n) for n in numbers
    ]
    await store.add_spans(spans)


async def covered(store: SqlStore) -> int:
    return await store._read(text_index.indexed_until) or 0


async def test_the_first_search_begins_the_index_and_it_is_completed_in_the_background(sql_store: SqlStore) -> None:
    store = sql_store
    await said(store, 450)
    assert await covered(store) == 0
    assert len(await everything(store, SpanFilter(name="x", text="number"))) == 0
    await until_covered(store, 450)
    assert [span.name for span in await everything(store, SpanFilter(text="449"))] == ["number 449 of odd"]
    await said(store, 10, first=1000)
    assert [span.name for span in await everything(store, SpanFilter(text="1003"))] == ["number 1003 of odd"]
    await until_covered(store, 460)


async def until_covered(store: SqlStore, seq: int) -> None:
    for _ in range(400):
        if await covered(store) >= seq:
            return
        await store.search_spans(SpanFilter(text="number"), limit=1)
        await asyncio.sleep(0.01)
    raise AssertionError(f"the index stops at {await covered(store)}")


async def test_only_spans_that_may_fit_are_looked_at(sql_store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store = sql_store
    await said(store, 450)
    await store.search_spans(SpanFilter(text="number"), limit=1)
    await until_covered(store, 450)
    looked_at = []
    words_in = text_search.words_in
    monkeypatch.setattr(text_search, "words_in", lambda row: looked_at.append(row.seq) or words_in(row))
    assert [span.name for span in await everything(store, SpanFilter(text="even 448"))] == ["number 448 of even"]
    assert len(looked_at) == 1


async def test_numbers_that_are_given_out_again_are_indexed_again(tmp_path: object) -> None:
    stores = SqliteStores(tmp_path)  # type: ignore[arg-type]
    store = await stores()
    assert isinstance(store, SqlStore)
    await said(store, 5)
    await store._write(partial(text_index.index_on, words_of=text_search.words_in))
    await store.delete_traces([f"{1:032x}"])
    assert await covered(store) == 0
    await said(store, 5, first=100, trace=2)
    await store._write(partial(text_index.index_on, words_of=text_search.words_in))
    assert await covered(store) == 5
    assert [span.name for span in await everything(store, SpanFilter(text="102"))] == ["number 102 of even"]
    assert await everything(store, SpanFilter(text="2")) == []
    await stores.close()


async def test_an_index_of_mostly_removed_spans_is_made_anew(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_index, "_MOSTLY_REMOVED", text_index.mostly_removed(at_least=10))
    stores = SqliteStores(tmp_path)  # type: ignore[arg-type]
    store = await stores()
    assert isinstance(store, SqlStore)
    await said(store, 30, trace=1)
    await said(store, 20, first=100, trace=2)
    more = partial(text_index.index_on, words_of=text_search.words_in)
    await store._write(more)
    await store.delete_traces([f"{1:032x}"])
    await said(store, 1, first=200, trace=2)
    await store._write(more)
    assert await covered(store) == 51
    state = await store._read(
        lambda connection: connection.exec_driver_sql("SELECT spans, removed FROM text_index").one()
    )
    assert tuple(state) == (21, 0)
    assert len(await everything(store, SpanFilter(text="number"))) == 21
    await stores.close()


async def test_without_full_text_search_every_span_is_looked_at(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_index, "can_be_made", lambda _connection: False)
    stores = SqliteStores(tmp_path)  # type: ignore[arg-type]
    store = await stores()
    await said(store, 5)
    assert [span.name for span in await everything(store, SpanFilter(text="number 3"))] == ["number 3 of odd"]
    await stores.close()
