"""What is kept of calls that went wrong half-way, when it is kept, and how it joins what the program itself recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gateway_parts import RAW, TOKEN, RawAnswer, RawServer, RunningGateway, client
from server_parts import ServerProcess

import coterie
from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.roles import acting_as
from coterie.scope import AttemptScope, attempt_scope
from coterie.store.base import Store
from coterie.testing import Fault, ListSink, Reply, ScriptedModel
from coterie.vocabulary import AttemptState, Endpoint, Mode, Resource, ResourceKind, Span, SpanStatus
from coterie_server.gateway.spool import SpanWriter
from coterie_server.tokens import Scope, TokenFile

QUESTION = [{"role": "user", "content": "How many?"}]
SLOW = Reply("one two three four five six seven eight", chunk_delay_seconds=0.05)


def said(span: Span) -> str:
    return str(json.loads(span.attributes[names.OUTPUT_MESSAGES])[0]["content"])


# Half-way


def test_a_client_that_goes_away_in_a_stream_is_recorded_with_what_it_got(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: SLOW) as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        rollout, attempt = gateway.begin()
        stream = client(gateway.attempt_url(rollout, attempt)).chat.completions.create(
            model="any", messages=QUESTION, stream=True
        )
        for chunk in stream:
            if chunk.choices[0].delta.content == " three":
                break
        stream.close()
        (span,) = gateway.spans(1)
        assert span.attributes[names.ERROR_TYPE] == "ClientDisconnected"
        assert said(span).startswith("one two three")
        assert "eight" not in said(span)
        assert not gateway.gateway._servers.all()[0].in_flight


def test_a_client_that_goes_away_before_its_answer_is_recorded(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: Fault.HANG) as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        with pytest.raises(openai.APITimeoutError):
            client(gateway.url, timeout=0.3).chat.completions.create(model="any", messages=QUESTION)
        (span,) = gateway.spans(1)
        assert (span.status, span.attributes[names.ERROR_TYPE]) == (SpanStatus.ERROR, "ClientDisconnected")


def test_who_stops_reading_after_the_last_word_has_the_whole_answer(tmp_path: Path) -> None:
    with (
        ScriptedModel(lambda body: Reply("hi", chunk_delay_seconds=0.05)) as model,
        RunningGateway(tmp_path) as gateway,
    ):
        gateway.publish(model)
        stream = client(gateway.url).chat.completions.create(model="any", messages=QUESTION, stream=True)
        for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
        stream.close()
        (span,) = gateway.spans(1)
        assert (span.status, said(span)) == (SpanStatus.UNSET, "hi")
        assert span.attributes[names.RESPONSE_TOKENS]


def test_a_server_that_breaks_off_a_stream_is_seen_by_the_client_and_recorded(tmp_path: Path) -> None:
    cut = Reply("one two three four five six", fault=Fault.CUT)
    with ScriptedModel(lambda body: cut) as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        heard: list[Any] = []
        stream = client(gateway.url).chat.completions.create(model="any", messages=QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            heard.extend(stream)
        (span,) = gateway.spans(1)
        assert span.attributes[names.ERROR_TYPE] == "ClientPayloadError"
        assert "".join(choice.delta.content or "" for chunk in heard for choice in chunk.choices) == said(span) != ""
        with pytest.raises(httpx.RemoteProtocolError):
            RAW.post(f"{gateway.url}/chat/completions", json={"messages": QUESTION, "stream": True})


def test_an_error_inside_a_stream_is_recorded_as_one(tmp_path: Path) -> None:
    events = [
        b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n',
        b'data: {"error": {"message": "oom"}}\n\n',
    ]
    sent = RawAnswer(events, type="text/event-stream")
    with RawServer(lambda *asked: sent) as server, RunningGateway(tmp_path) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team"))
        with pytest.raises(openai.APIError, match="oom"):
            list(client(gateway.url).chat.completions.create(model="any", messages=QUESTION, stream=True))
        (span,) = gateway.spans(1)
        assert (span.status_message, said(span)) == ("oom", "hi")


class HeldOpen(list[bytes]):
    """Pieces of an answer whose end does not come before somebody lets go."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(pieces)
        self.let_go = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield from super().__iter__()
        self.let_go.wait(10)


def test_an_error_inside_a_stream_counts_though_the_client_hangs_up_on_it(tmp_path: Path) -> None:
    events = HeldOpen([b'data: {"error": {"message": "oom"}}\n\n'])
    sent = RawAnswer(events, type="text/event-stream")
    with RawServer(lambda *asked: sent) as server, RunningGateway(tmp_path) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team"))
        with (
            pytest.raises(openai.APIError, match="oom"),
            client(gateway.url).chat.completions.create(model="any", messages=QUESTION, stream=True) as stream,
        ):
            list(stream)
        (span,) = gateway.spans(1)
        events.let_go.set()
        assert span.status_message == "oom"


def test_events_of_unforeseen_form_reach_the_client_and_the_call_the_store(tmp_path: Path) -> None:
    events = [b'data: {"choices": 5, "token_ids": [1]}\n\n', b'data: {"choices": [7]}\n\n', b"data: [DONE]\n\n"]
    sent = RawAnswer(events, type="text/event-stream")
    with RawServer(lambda *asked: sent) as server, RunningGateway(tmp_path) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team"))
        answer = RAW.post(f"{gateway.url}/chat/completions", json={"messages": QUESTION, "stream": True})
        assert answer.text == 'data: {"choices":5}\n\ndata: {"choices": [7]}\n\ndata: [DONE]\n\n'
        gateway.spans(1)


def test_an_answer_that_is_no_json_goes_through_and_is_recorded_as_an_error(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: Fault.RUBBISH) as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        with pytest.raises(Exception):  # noqa: B017, PT011 - what the SDK makes of it is its affair
            client(gateway.url).chat.completions.create(model="any", messages=QUESTION).choices  # noqa: B018
        (span,) = gateway.spans(1)
        assert span.attributes[names.ERROR_TYPE] == "JSONDecodeError"


def test_a_gateway_that_stops_ends_calls_and_records_them(tmp_path: Path) -> None:
    forever = Reply(" ".join(["word"] * 400), chunk_delay_seconds=0.05)
    with ScriptedModel(lambda body: forever) as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        heard: list[Any] = []

        def listen() -> None:
            try:
                one = client(gateway.url)
                heard.extend(one.chat.completions.create(model="any", messages=QUESTION, stream=True))
            except Exception as error:
                heard.append(error)

        thread = threading.Thread(target=listen)
        thread.start()
        while len(heard) < 3:
            time.sleep(0.01)
        asyncio.run_coroutine_threadsafe(gateway.gateway.stop(0.1), gateway._loop).result(timeout=10)
        thread.join(timeout=10)
        assert isinstance(heard[-1], openai.APIError)
        (span,) = gateway.spans(1)
        assert (span.attributes[names.ERROR_TYPE], said(span)[:9]) == ("GatewayStopped", "word word")
        with pytest.raises(openai.InternalServerError, match="about to stop"):
            client(gateway.url).chat.completions.create(model="any", messages=QUESTION)


# When it is kept


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_of_training_is_on_disk_when_its_answer_ends(tmp_path: Path, stream: bool) -> None:
    with ScriptedModel(lambda body: "hi") as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        rollout, attempt = gateway.begin()
        held = threading.Event()
        writer = gateway.gateway._writer
        add_spans = gateway.store.add_spans

        async def slow(spans: Any) -> None:
            await asyncio.to_thread(held.wait, 20)
            await add_spans(spans)

        writer._store = type("Slow", (), {"add_spans": staticmethod(slow)})()
        ended: list[str] = []

        def call() -> None:
            one = client(gateway.attempt_url(rollout, attempt))
            if stream:
                for chunk in one.chat.completions.create(model="any", messages=QUESTION, stream=True):
                    if chunk.choices[0].finish_reason:
                        break
            else:
                one.chat.completions.create(model="any", messages=QUESTION)
            ended.append("train")

        thread = threading.Thread(target=call)
        thread.start()
        time.sleep(0.3)
        assert not ended
        # Production does not wait.
        production = gateway.begin(Mode.PRODUCTION)
        client(gateway.attempt_url(*production)).chat.completions.create(model="any", messages=QUESTION)
        assert not ended
        held.set()
        thread.join(timeout=10)
        assert ended
        gateway.spans(2)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServerProcess]:
    """``coterie serve`` with the store and the tokens that the test writes to."""
    arguments = ["--store", f"sqlite:///{tmp_path / 'runs.db'}", "--tokens", str(tmp_path / "tokens")]
    with ServerProcess(tmp_path, *arguments) as server:
        yield server


async def test_a_gateway_that_is_killed_loses_no_call_whose_answer_had_ended(
    tmp_path: Path, served: ServerProcess
) -> None:
    token = TokenFile(tmp_path / "tokens").create([Scope.AGENT])[0]
    with ScriptedModel(lambda body: SLOW if body.get("stream") else "hi") as model:
        async with coterie.connect(tmp_path / "runs.db") as store:
            content = {"base_url": model.base_url, "model": "tiny", "policy": "team"}
            await store.publish(Resource("team", ResourceKind.ENDPOINT, content))
        async with openai.AsyncOpenAI(base_url=f"{served.address}/gateway/v1", api_key=token, max_retries=0) as one:
            await asyncio.sleep(1)  # until the new token and endpoint count
            half = await one.chat.completions.create(model="any", messages=QUESTION, stream=True)
            await anext(half)
            # Somebody else writes, so that nothing gets into the store meanwhile.
            with contextlib.closing(sqlite3.connect(tmp_path / "runs.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                answers = await asyncio.gather(
                    *(one.chat.completions.create(model="any", messages=QUESTION) for _ in range(20))
                )
                served.stop(signal.SIGKILL)
                assert not other.execute("SELECT count(*) FROM spans").fetchone()[0]
    (spool,) = (tmp_path / "tokens.spool").iterdir()
    with RunningGateway(tmp_path, {"spool": str(spool)}) as gateway:
        spans = await asyncio.to_thread(gateway.spans, 20)
    assert {answer.id for answer in answers} == {span.attributes[names.RESPONSE_ID] for span in spans}


# Content


@pytest.mark.parametrize("mode", [Mode.PRODUCTION, Mode.TRAIN])
def test_content_is_left_out_or_masked_as_the_settings_say(
    tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "house_mask.py").write_text("def mask(text):\n    return text.replace('4711', '****')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for folder, settings in (("a", {"capture_content": False}), ("b", {"mask": "house_mask:mask"})):
        (tmp_path / folder).mkdir()
        with ScriptedModel(lambda body: "code 4711") as model, RunningGateway(tmp_path / folder, settings) as gateway:
            gateway.publish(model)
            rollout, attempt = gateway.begin(mode)
            one = client(gateway.attempt_url(rollout, attempt))
            ask = [{"role": "user", "content": "is it 4711?"}]
            assert one.chat.completions.create(model="any", messages=ask).choices[0].message.content == "code 4711"
            (span,) = gateway.spans(1)
            assert "4711" not in str(span)
            assert (names.OUTPUT_MESSAGES in span.attributes) == (folder == "b")
            # Token ids reveal the text; only training cannot do without.
            assert (names.RESPONSE_TOKENS in span.attributes) == (mode is Mode.TRAIN)


# Teams


def team(url: str) -> None:
    """A planner and two coders side by side; the second's first request meets a busy server, and its SDK asks again."""
    one = client(url, max_retries=2)

    def say(agent: str, text: str) -> str:
        with acting_as(agent):
            answer = one.chat.completions.create(model="any", messages=[{"role": "user", "content": text}])
        return answer.choices[0].message.content or ""

    with acting_as("planner"):
        say("planner", "plan")
        say("coder", "first")
        say("coder", "busy")


def episode_of(gateway: RunningGateway, rollout: str, attempt: str) -> Episode:
    async def built(store: Store) -> Episode:
        spans = (await store.get_spans([attempt]))[attempt]
        return build_episode("task", attempt, rollout, spans, [])

    return gateway.do(built)


def busy_once() -> Any:
    seen: list[int] = []

    def answer(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["content"] == "busy" and not seen:
            seen.append(1)
            return 500  # which the gateway passes on, and the SDK asks again
        return "done: " + body["messages"][-1]["content"]

    return answer


def test_a_team_with_capture_and_gateway_has_each_call_once_with_exact_tokens(tmp_path: Path) -> None:
    with ScriptedModel(busy_once()) as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        rollout, attempt = gateway.begin()
        sink = ListSink()
        coterie.instrument(roles={"coder": "developer"})
        try:
            with attempt_scope(AttemptScope(rollout, attempt, Mode.TRAIN, sink)):
                team(gateway.url)
        finally:
            coterie.uninstrument()
        assert len(sink.spans) == 3
        assert not any(names.RESPONSE_TOKENS in span.attributes for span in sink.spans)
        gateway.do(lambda store: store.finish(attempt, AttemptState.SUCCEEDED, spans=sink.spans))
        episode = episode_of(gateway, rollout, attempt)
        assert [(turn.role, turn.agent_path, turn.index) for turn in episode.turns] == [
            ("planner", "planner", 0),
            ("developer", "planner/coder", 0),
            ("developer", "planner/coder", 1),
        ]
        for turn in episode.turns:
            assert turn.trainable
            assert turn.error is None
            written = model.written[turn.call_id]
            assert (turn.prompt_ids, turn.response_ids) == (tuple(written.prompt_ids), tuple(written.response_ids))
        # Each request of the SDK is a record of the gateway's: three calls, one of them sent twice.
        assert len(gateway.spans(7, rollout=rollout)) == 7


def test_a_team_without_capture_gives_an_episode_by_its_base_urls(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "done") as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        rollout, attempt = gateway.begin()
        server = gateway.root.removesuffix("/gateway")
        assert coterie.gateway_url(server + "/", "coder") == f"{gateway.root}/role/coder/v1"
        for role, text in (("planner", "plan"), ("coder", "first"), ("coder", "second")):
            with attempt_scope(AttemptScope(rollout, attempt, Mode.TRAIN, ListSink())):
                one = client(coterie.gateway_url(server, role))
            one.chat.completions.create(model="any", messages=[{"role": "user", "content": text}])
        gateway.do(lambda store: store.finish(attempt, AttemptState.SUCCEEDED))
        episode = episode_of(gateway, rollout, attempt)
        assert [(turn.role, turn.index, turn.trainable) for turn in episode.turns] == [
            ("planner", 0, True),
            ("coder", 0, True),
            ("coder", 1, True),
        ]


async def test_a_graph_of_langgraph_goes_through_the_gateway(tmp_path: Path) -> None:
    pytest.importorskip("langgraph")
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, MessagesState, StateGraph

    with ScriptedModel(lambda body: "done") as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        rollout, attempt = gateway.begin()
        sink = ListSink()
        coterie.instrument()
        try:
            llm = ChatOpenAI(model="any", base_url=gateway.url, api_key=TOKEN, max_retries=0)

            async def node(state: MessagesState) -> dict[str, Any]:
                return {"messages": [await llm.ainvoke(state["messages"])]}

            graph = StateGraph(MessagesState)
            graph.add_node("planner", node)
            graph.add_node("coder", node)
            graph.add_edge(START, "planner")
            graph.add_edge("planner", "coder")
            graph.add_edge("coder", END)
            with attempt_scope(AttemptScope(rollout, attempt, Mode.TRAIN, sink)):
                await graph.compile().ainvoke({"messages": [("user", "go")]})
        finally:
            coterie.uninstrument()
        finish = asyncio.to_thread(
            gateway.do, lambda store: store.finish(attempt, AttemptState.SUCCEEDED, spans=sink.spans)
        )
        await finish
        episode = await asyncio.to_thread(episode_of, gateway, rollout, attempt)
        assert [(turn.role, turn.trainable) for turn in episode.turns] == [("planner", True), ("coder", True)]
        for turn in episode.turns:
            assert turn.response_ids == tuple(model.written[turn.call_id].response_ids)


async def test_a_rollout_of_another_store_is_none_here(tmp_path: Path) -> None:
    """What a client says of its rollout is believed only if the store knows it."""
    with ScriptedModel(lambda body: "hi") as model, RunningGateway(tmp_path) as gateway:
        await asyncio.to_thread(gateway.publish, model)
        with pytest.raises(openai.NotFoundError):
            await asyncio.to_thread(
                lambda: client(gateway.attempt_url("ro-x", "at-x")).chat.completions.create(
                    model="any", messages=QUESTION
                )
            )
        assert not model.requests


def test_the_spool_keeps_what_the_store_does_not_take(tmp_path: Path) -> None:
    """The store is away while production goes on, and the gateway ends before it is back."""
    with ScriptedModel(lambda body: "hi") as model:
        with RunningGateway(tmp_path) as gateway:
            gateway.publish(model)

            class Away:
                async def add_spans(self, spans: Any) -> None:
                    raise coterie.errors.StoreUnavailableError("away")

            gateway.gateway._writer._store = Away()  # type: ignore[assignment]
            for _ in range(3):
                client(gateway.url).chat.completions.create(model="any", messages=QUESTION)
        with RunningGateway(tmp_path) as gateway:
            assert [said(span) for span in gateway.spans(3)] == ["hi"] * 3
            deadline = time.monotonic() + 10
            while any(path.stat().st_size for path in (tmp_path / "spool").iterdir()) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not any(path.stat().st_size for path in (tmp_path / "spool").iterdir())


async def test_a_spool_that_is_closed_twice_closes_nothing_else(tmp_path: Path) -> None:
    async with coterie.connect(tmp_path / "runs.db") as store:
        writer = SpanWriter(store, tmp_path / "spool", lambda count: None)
        writer.start()
        await writer.close(1)
        # The system gives the number of the spool's file to the next ones.
        others = [os.open(tmp_path / "runs.db", os.O_RDONLY) for _ in range(20)]
        await writer.close(1)
        writer.add(Span("0" * 32, "0" * 16, "late", 1, 2))
        for other in others:
            os.fstat(other)
            os.close(other)
    assert not list((tmp_path / "spool").iterdir())


def test_new_calls_are_refused_while_too_many_wait_to_be_recorded(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "hi") as model, RunningGateway(tmp_path, {"waiting_spans": 2}) as gateway:
        gateway.publish(model)
        store, held = gateway.gateway._writer._store, threading.Event()

        class Slow:
            async def add_spans(self, spans: Any) -> None:
                await asyncio.to_thread(held.wait, 20)
                await store.add_spans(spans)

        gateway.gateway._writer._store = Slow()  # type: ignore[assignment]
        for _ in range(2):
            client(gateway.url).chat.completions.create(model="any", messages=QUESTION)
        with pytest.raises(openai.InternalServerError) as raised:
            client(gateway.url).chat.completions.create(model="any", messages=QUESTION)
        assert raised.value.code == "store_behind"
        held.set()
        gateway.spans(2)
        assert client(gateway.url).chat.completions.create(model="any", messages=QUESTION).choices
