"""Generators act as their agent only while their own code runs, and stay generators in every way."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

import pytest

import coterie
from coterie import conventions as names
from coterie.roles import current_identity
from coterie.testing import ListSink


def acting() -> str | None:
    identity = current_identity()
    return identity.path_text if identity else None


@coterie.agent("Coder")
def talk() -> Generator[str | None, str, str]:
    got = yield acting()
    try:
        while True:
            got = yield f"{acting()} got {got}"
    except ValueError as error:
        yield f"{acting()} caught {error}"
    return f"{acting()} is done"


@coterie.agent("Coder")
async def talk_async() -> AsyncGenerator[str | None, str]:
    got = yield acting()
    try:
        while True:
            await asyncio.sleep(0)
            got = yield f"{acting()} got {got}"
    except ValueError as error:
        yield f"{acting()} caught {error}"


def test_the_reader_acts_as_itself_between_the_steps(sink: ListSink) -> None:
    with coterie.agent("Lead"):
        talking = talk()
        seen = [next(talking), acting(), talking.send("hi"), acting(), talking.throw(ValueError("no")), acting()]
        with pytest.raises(StopIteration) as stopped:
            next(talking)
    assert seen == ["Lead/Coder", "Lead", "Lead/Coder got hi", "Lead", "Lead/Coder caught no", "Lead"]
    assert stopped.value.value == "Lead/Coder is done"
    assert [span.name for span in sink.spans] == ["invoke_agent Coder", "invoke_agent Lead"]


async def test_the_reader_of_an_async_generator_too(sink: ListSink) -> None:
    async with coterie.agent("Lead"):
        talking = talk_async()
        seen = [await anext(talking), acting(), await talking.asend("hi"), acting()]
        seen += [await talking.athrow(ValueError("no")), acting()]
        with pytest.raises(StopAsyncIteration):
            await anext(talking)
    assert seen == ["Lead/Coder", "Lead", "Lead/Coder got hi", "Lead", "Lead/Coder caught no", "Lead"]
    assert [span.name for span in sink.spans] == ["invoke_agent Coder", "invoke_agent Lead"]


async def test_a_reader_that_stops_early_ends_the_agent_without_error(sink: ListSink) -> None:
    cleaned: list[str | None] = []

    @coterie.agent("Coder")
    async def count() -> AsyncIterator[int]:
        try:
            for number in range(9):
                yield number
        finally:
            await asyncio.sleep(0)
            cleaned.append(acting())

    counting = count()
    async for _ in counting:
        break
    await counting.aclose()  # type: ignore[attr-defined]

    @coterie.agent("Thrower")
    def thrown_away() -> Iterator[int]:
        try:
            yield 1
        finally:
            cleaned.append(acting())

    next(thrown_away())
    gc.collect()
    assert cleaned == ["Coder", "Thrower"]
    ends = {span.name: span.attributes.get(names.ERROR_TYPE) for span in sink.spans}
    assert ends == {"invoke_agent Coder": None, "invoke_agent Thrower": None}
    assert acting() is None


async def test_a_generators_own_exception_passes_unchanged(sink: ListSink) -> None:
    fault = LookupError("gone")

    @coterie.agent("Coder")
    async def breaking() -> AsyncIterator[int]:
        yield 1
        raise fault

    with pytest.raises(LookupError) as raised:
        _ = [one async for one in breaking()]
    assert raised.value is fault
    (span,) = sink.spans
    assert span.attributes[names.ERROR_TYPE] == "LookupError"


async def test_steps_in_several_tasks_and_contexts(sink: ListSink, caplog: pytest.LogCaptureFixture) -> None:
    talking = talk_async()
    with caplog.at_level(logging.WARNING):
        first = await asyncio.create_task(anext(talking))  # type: ignore[arg-type]
        second = await asyncio.create_task(talking.asend("hi"))  # type: ignore[arg-type]
        await asyncio.create_task(talking.aclose())  # type: ignore[arg-type]
        steps = talk()
        third = contextvars.copy_context().run(next, steps)
        steps.close()
    assert (first, second, third) == ("Coder", "Coder got hi", "Coder")
    assert [span.name for span in sink.spans] == ["invoke_agent Coder"] * 2
    assert not caplog.records


async def test_a_block_inside_a_generator_that_is_closed_elsewhere(
    sink: ListSink, caplog: pytest.LogCaptureFixture
) -> None:
    async def inside() -> AsyncIterator[str | None]:
        with coterie.agent("Coder"):
            yield acting()

    with caplog.at_level(logging.WARNING):
        running = inside()
        assert await asyncio.create_task(anext(running)) == "Coder"  # type: ignore[arg-type]
        await asyncio.create_task(running.aclose())  # type: ignore[attr-defined]
    assert [span.name for span in sink.spans] == ["invoke_agent Coder"]
    assert acting() is None
    assert not caplog.records
