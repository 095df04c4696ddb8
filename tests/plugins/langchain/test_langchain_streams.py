"""Streaming: by graph, by model, sync and async, and streams that nobody reads to the end."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from chat_models import chat_model
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langgraph.graph import START, MessagesState, StateGraph
from reading_spans import outline, scope_of

from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink
from coterie_langchain.runs import open_runs

pytestmark = pytest.mark.usefixtures("recording")

QUESTION = {"messages": [HumanMessage("go")]}
PAIR = [
    "invoke_workflow LangGraph",
    "> invoke_agent coder",
    "> > chat coder",
    "> invoke_agent critic",
    "> > chat critic",
]


def pair(model: Any) -> Any:
    graph = StateGraph(MessagesState)
    for name in ("coder", "critic"):
        graph.add_node(name, create_agent(model, [], name=name))
    graph.add_edge(START, "coder")
    graph.add_edge("coder", "critic")
    return graph.compile()


@pytest.mark.parametrize("mode", ["values", "updates", "messages"])
@pytest.mark.parametrize("settings", [{}, {"streaming": True}])
def test_stream(serve, mode, settings):
    server, sink = serve(lambda body: "a longer answer"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        assert list(pair(chat_model(server, **settings)).stream(QUESTION, stream_mode=mode))

    assert outline(sink.spans) == PAIR
    chats = sink.of(names.CHAT)
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in chats)
    assert [bool(chat.attributes[names.REQUEST_STREAM]) for chat in chats] == [bool(settings) or mode == "messages"] * 2


@pytest.mark.parametrize("settings", [{}, {"streaming": True}])
async def test_astream(serve, settings):
    server, sink = serve(lambda body: "a longer answer"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        graph = pair(chat_model(server, **settings))
        assert [chunk async for chunk in graph.astream(QUESTION, stream_mode="messages")]

    assert outline(sink.spans) == PAIR
    assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in sink.of(names.CHAT))


async def test_astream_events(serve):
    server, sink = serve(lambda body: "a longer answer"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        assert [event async for event in pair(chat_model(server)).astream_events(QUESTION)]

    assert outline(sink.spans) == PAIR


def test_graph_stream_left_early_ends_its_spans_and_leaves_nothing(serve):
    server, sink = serve(lambda body: "a longer answer"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        stream = pair(chat_model(server)).stream(QUESTION, stream_mode="updates")
        next(stream)
        stream.close()
    gc.collect()

    assert len(open_runs) == 0
    assert outline(sink.spans)[:3] == PAIR[:3]
    assert {span.status.value for span in sink.spans} == {"unset"}


def test_model_stream_left_early_is_one_call(serve):
    server, sink = serve(lambda body: "a longer answer"), ListSink()
    with attempt_scope(scope_of(server, sink)):
        stream = chat_model(server).stream("go")
        next(stream)
        stream.close()
        gc.collect()

    assert len(open_runs) == 0
    assert len(sink.of(names.CHAT)) == 1
