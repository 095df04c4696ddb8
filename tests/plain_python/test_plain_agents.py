"""Teams in plain Python: blocks and decorators that say who acts."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import AsyncOpenAI, OpenAI
from opentelemetry import trace

import coterie
from coterie import conventions as names
from coterie import structure
from coterie.assembly import build_episode
from coterie.capture import uninstrument
from coterie.episodes import EdgeKind, Episode
from coterie.roles import current_identity
from coterie.testing import ListSink, ScriptedModel


def episode_of(sink: ListSink) -> Episode:
    return build_episode("t", "at-test", "ro-test", sink.spans, sink.rewards)


def edges_of(sink: ListSink) -> list[tuple[EdgeKind, str, str]]:
    return [(edge.kind, edge.source, edge.target) for edge in episode_of(sink).edges]


def ask(model: ScriptedModel, words: str) -> str:
    with OpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="small", messages=[{"role": "user", "content": words}])
        return str(answer.choices[0].message.content)


async def ask_async(model: ScriptedModel, words: str) -> str:
    async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(model="small", messages=[{"role": "user", "content": words}])
        return str(answer.choices[0].message.content)


def acting() -> str | None:
    identity = current_identity()
    return identity.path_text if identity else None


def test_a_team_of_blocks_is_an_episode(sink: ListSink, model: ScriptedModel) -> None:
    @coterie.tool
    def multiply(a: int, b: int = 7) -> int:
        return a * b

    with coterie.workflow("team"), coterie.agent("Lead"):
        ask(model, "plan")
        with coterie.agent("Coder"):
            ask(model, "code")
            assert multiply(6) == 42
        ask(model, "check")
        coterie.handoff("Writer")
    with coterie.agent("Writer"):
        ask(model, "write")

    episode = episode_of(sink)
    assert [(turn.agent_path, turn.role, turn.index, turn.text) for turn in episode.turns] == [
        ("Lead", "lead", 0, "said: plan"),
        ("Lead/Coder", "coder", 0, "said: code"),
        ("Lead", "lead", 1, "said: check"),
        ("Writer", "writer", 0, "said: write"),
    ]
    assert edges_of(sink) == [(EdgeKind.DELEGATION, "Lead", "Coder"), (EdgeKind.HANDOFF, "Lead", "Writer")]
    (call,) = episode.tool_calls
    assert (call.name, call.agent_path, call.arguments, call.result) == ("multiply", "Lead/Coder", '{"a": 6}', "42")
    by_name = {span.name: span for span in sink.spans}
    assert by_name["invoke_agent Coder"].parent_id == by_name["invoke_agent Lead"].span_id
    assert by_name["invoke_agent Lead"].parent_id == by_name["invoke_workflow team"].span_id
    assert by_name["execute_tool multiply"].parent_id == by_name["invoke_agent Coder"].span_id


def test_an_agent_that_was_handed_over_to_was_not_called_as_well(sink: ListSink) -> None:
    with coterie.agent("Lead"):
        coterie.handoff("Writer")
        with coterie.agent("Coder"):
            pass
        for _ in range(2):
            with coterie.agent("Writer"):
                pass
    assert edges_of(sink) == [
        (EdgeKind.HANDOFF, "Lead", "Writer"),
        (EdgeKind.DELEGATION, "Lead", "Coder"),
        (EdgeKind.DELEGATION, "Lead", "Writer"),
    ]


def test_an_agent_as_a_tool_is_one_delegation(sink: ListSink, model: ScriptedModel) -> None:
    @coterie.tool(name="ask_coder")
    @coterie.agent("Coder")
    def coder(question: str) -> str:
        return ask(model, question)

    with coterie.agent("Lead"):
        assert coder("how?") == "said: how?"
    episode = episode_of(sink)
    assert edges_of(sink) == [(EdgeKind.DELEGATION, "Lead", "Coder")]
    assert [(call.name, call.agent_path, call.carries) for call in episode.tool_calls] == [
        ("ask_coder", "Lead", EdgeKind.DELEGATION)
    ]
    assert [turn.agent_path for turn in episode.turns] == ["Lead/Coder"]


def test_an_agent_inside_itself_is_no_edge(sink: ListSink) -> None:
    @coterie.agent("Coder")
    def work(left: int) -> str | None:
        return work(left - 1) if left else acting()

    assert work(3) == "Coder"
    assert edges_of(sink) == []
    assert len(sink.of(names.INVOKE_AGENT)) == 4


async def test_every_kind_of_function_acts_and_stays_of_its_kind(sink: ListSink, model: ScriptedModel) -> None:
    @coterie.agent("plain")
    def plain(words: str) -> str:
        "What it does."
        return ask(model, words)

    @coterie.agent("coroutine")
    async def coroutine(words: str) -> str:
        return await ask_async(model, words)

    @coterie.agent("generator")
    def generator(words: str) -> Iterator[str]:
        yield ask(model, words)
        yield ask(model, words + " again")

    @coterie.agent("async-generator")
    async def async_generator(words: str) -> AsyncIterator[str]:
        yield await ask_async(model, words)
        yield await ask_async(model, words + " again")

    assert (plain.__name__, plain.__doc__) == ("plain", "What it does.")
    assert asyncio.iscoroutinefunction(coroutine)
    assert plain("a") == "said: a"
    assert await coroutine("b") == "said: b"
    assert list(generator("c")) == ["said: c", "said: c again"]
    assert [one async for one in async_generator("d")] == ["said: d", "said: d again"]
    assert [turn.agent for turn in episode_of(sink).turns] == [
        "plain",
        "coroutine",
        "generator",
        "generator",
        "async-generator",
        "async-generator",
    ]
    assert acting() is None


def test_exceptions_pass_unchanged_and_are_recorded(sink: ListSink) -> None:
    fault = KeyError("no such column")

    @coterie.tool
    def search(query: str) -> str:
        raise fault

    with pytest.raises(KeyError) as raised, coterie.agent("Coder"):
        search("x")
    assert raised.value is fault
    errors = {span.name: span.attributes.get(names.ERROR_TYPE) for span in sink.spans}
    assert errors == {"execute_tool search": "KeyError", "invoke_agent Coder": "KeyError"}

    @coterie.agent("Stopper")
    def stop() -> None:
        raise StopIteration("mine")

    with pytest.raises(StopIteration, match="mine"):
        stop()
    with pytest.raises(TypeError, match="query"):
        search()  # type: ignore[call-arg]


async def test_an_async_tool_and_a_method(sink: ListSink) -> None:
    class Shelf:
        @coterie.tool
        async def find(self, title: str, *more: str, **flags: bool) -> dict[str, object]:
            return {"title": title, "more": list(more), "object": object}

    async with coterie.agent("Librarian"):
        found = await Shelf().find("Emma", "Ulysses", exact=True)
    assert found["object"] is object
    (call,) = episode_of(sink).tool_calls
    assert call.arguments == '{"title": "Emma", "more": ["Ulysses"], "flags": {"exact": true}}'
    assert call.result.startswith('{"title": "Emma", "more": ["Ulysses"], "object": "<class')


def test_content_rules_hold_for_tools(model: ScriptedModel) -> None:
    uninstrument()
    coterie.instrument(mask=lambda text: text.replace("secret", "***"))
    try:
        with coterie.record() as recording, coterie.agent("Coder"):
            coterie.tool(lambda word: word)(word="secret")
        coterie.instrument(capture_content=False)
        with coterie.record() as silent, coterie.agent("Coder"):
            coterie.tool(lambda word: word)(word="secret")
    finally:
        uninstrument()
    (call,) = recording.episode.tool_calls
    assert (call.arguments, call.result) == ('{"word": "***"}', "***")
    (call,) = silent.episode.tool_calls
    assert (call.arguments, call.result) == ("", "")


def test_nothing_happens_when_capture_is_off() -> None:
    uninstrument()
    before = acting()

    @coterie.tool
    def double(x: int) -> int:
        return 2 * x

    @coterie.agent("Coder")
    def steps() -> Iterator[str | None]:
        yield acting()

    with coterie.workflow("team"), coterie.agent("Coder"):
        assert acting() == before
        assert not trace.get_current_span().is_recording()
        coterie.handoff("Writer")
        assert double(21) == 42
    assert list(steps()) == [None]


def test_a_fault_of_ours_is_never_seen(
    sink: ListSink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("our fault")

    @coterie.tool
    def double(x: int) -> int:
        return 2 * x

    for name in ("start_agent", "start_tool", "start_workflow", "add_edge", "end", "end_tool"):
        with monkeypatch.context() as patched:
            patched.setattr(structure, name, broken)
            with coterie.workflow("team"), coterie.agent("Lead"), coterie.agent("Coder"):
                assert double(21) == 42
                coterie.handoff("Writer")
    assert "our fault" in caplog.text
    assert acting() is None


def test_a_handoff_by_nobody_is_said_once(sink: ListSink, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        coterie.handoff("Writer")
    assert caplog.text.count("where no agent acts") == 1
    with coterie.workflow("team"):
        coterie.handoff("Writer", source="Coder")
    assert edges_of(sink) == [(EdgeKind.HANDOFF, "Coder", "Writer")]


def test_masked_names_map_to_roles() -> None:
    uninstrument()
    coterie.instrument(roles={"Senior Analyst": "analyst"})
    try:
        with coterie.record() as recording, coterie.agent("Senior Analyst"):
            coterie.tool(lambda: 1)()
    finally:
        uninstrument()
    assert recording.episode.tool_calls[0].role == "analyst"


async def test_attribution_holds_in_tasks_and_threads(sink: ListSink, model: ScriptedModel) -> None:
    lead_block = coterie.agent("Lead")

    @coterie.agent("Worker")
    async def worker(number: int) -> None:
        await asyncio.sleep(random.random() / 50)
        await ask_async(model, f"worker {number}")

    async def run(number: int) -> None:
        async with lead_block, coterie.agent(f"sub {number}"):
            await asyncio.sleep(random.random() / 50)
            await asyncio.gather(worker(number), ask_async(model, f"sub {number} {number}"))

    def in_thread(number: int) -> None:
        with lead_block:
            ask(model, f"lead {number}")

    with ThreadPoolExecutor(8) as pool:
        threads = [pool.submit(contextvars.copy_context().run, in_thread, number) for number in range(8)]
        await asyncio.gather(*map(run, range(20)))
        for thread in threads:
            thread.result()
    turns = episode_of(sink).turns
    assert len(turns) == 48
    for turn in turns:
        who, number = turn.text.removeprefix("said: ").rsplit(" ", 1)
        path = {"lead": "Lead", "worker": f"Lead/sub {number}/Worker"}.get(who, f"Lead/sub {number}")
        assert turn.agent_path == path
    assert acting() is None
