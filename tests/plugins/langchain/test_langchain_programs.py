"""What users really write around their agents: retries, fallbacks, batches, middleware, structured output, pauses, and
models that capture does not know.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import openai
import pytest
from chat_models import chat_model
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, SummarizationMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from reading_spans import edges, last_text, outline, scope_of, system_text

from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import Fault, ListSink, Reply, scope_for_test

pytestmark = pytest.mark.usefixtures("recording")

QUESTION = {"messages": [HumanMessage("go")]}


class Notes(TypedDict, total=False):
    """What was said so far."""

    said: Annotated[list[str], operator.add]


def node_graph(act: Any, name: str = "coder") -> Any:
    graph = StateGraph(Notes)
    graph.add_node(name, act)
    graph.add_edge(START, name)
    return graph.compile()


def fails_first(times: int) -> Any:
    """An answer function whose first answers are errors."""
    seen: list[Any] = []

    def script(body: dict[str, Any]) -> Any:
        seen.append(body)
        return Reply("overloaded", status=500) if len(seen) <= times else "fine"

    return script


def test_every_try_of_with_retry_is_a_call_of_its_own(serve):
    server, sink = serve(fails_first(2)), ListSink()
    model = chat_model(server).with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    with attempt_scope(scope_of(server, sink)):
        node_graph(lambda _: {"said": [model.invoke("go").text]}).invoke({"said": []})

    chats = sorted(sink.of(names.CHAT), key=lambda span: span.start_ns)
    assert len(server.requests) == 3
    assert [chat.status.value for chat in chats] == ["error", "error", "unset"]
    assert [chat.attributes[names.AGENT_NAME] for chat in chats] == ["coder"] * 3
    assert sorted(chat.attributes[names.TURN] for chat in chats) == [0, 1, 2]
    assert len({chat.attributes[names.CALL_ID] for chat in chats}) == 3
    assert names.RESPONSE_TOKENS in chats[2].attributes


def test_a_fallback_is_another_call_of_the_same_agent(serve):
    broken, server, sink = serve(lambda body: Reply("gone", status=500)), serve(lambda body: "fine"), ListSink()
    model = chat_model(broken).with_fallbacks([chat_model(server)])
    with attempt_scope(scope_for_test(sink)):
        node_graph(lambda _: {"said": [model.invoke("go").text]}).invoke({"said": []})

    assert (len(broken.requests), len(server.requests)) == (1, 1)
    chats = sorted(sink.of(names.CHAT), key=lambda span: span.start_ns)
    assert [(chat.status.value, chat.attributes[names.AGENT_NAME]) for chat in chats] == [
        ("error", "coder"),
        ("unset", "coder"),
    ]
    assert {chat.parent_id for chat in chats} == {span.span_id for span in sink.of(names.INVOKE_AGENT)}


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RUBBISH])
def test_a_stream_that_breaks_off_is_an_error_and_the_agents(serve, fault):
    server, sink = serve(lambda body: Reply("a longer answer", fault=fault)), ListSink()
    agent = create_agent(chat_model(server, streaming=True), [], name="coder")
    with attempt_scope(scope_of(server, sink)), pytest.raises(Exception):  # noqa: B017, PT011 - whatever the SDK makes of it
        agent.invoke(QUESTION)
    (chat,) = sink.of(names.CHAT)
    assert (chat.status.value, chat.attributes[names.AGENT_NAME]) == ("error", "coder")


async def test_batches_of_graphs_are_told_apart(serve):
    server, sink = serve(lambda body: last_text(body)), ListSink()
    model = chat_model(server)

    async def act(state: Notes) -> Notes:
        return {"said": [(await model.ainvoke(f"{state['said'][0]}!")).text]}

    graph = node_graph(RunnableLambda(lambda state: {"said": [model.invoke(f"{state['said'][0]}!").text]}, afunc=act))
    with attempt_scope(scope_of(server, sink)):
        graph.batch([{"said": [letter]} for letter in "abc"])
        await graph.abatch([{"said": [letter]} for letter in "def"])

    agents = {span.span_id for span in sink.of(names.INVOKE_AGENT)}
    assert {chat.parent_id for chat in sink.of(names.CHAT)} == agents
    assert len(agents) == 6
    assert sorted(chat.attributes[names.TURN] for chat in sink.of(names.CHAT)) == list(range(6))


def test_bare_sdk_in_a_node_hangs_under_the_node(serve):
    server, sink = serve(lambda body: "ok"), ListSink()
    client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)

    def act(_: Notes) -> Notes:
        answer = client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "go"}])
        return {"said": [answer.choices[0].message.content or ""]}

    with attempt_scope(scope_of(server, sink)):
        node_graph(act).invoke({"said": []})
    assert outline(sink.spans) == ["invoke_workflow LangGraph", "> invoke_agent coder", "> > chat coder"]


async def test_bare_async_sdk_in_a_tool_hangs_under_the_tool_and_belongs_to_the_agent(serve):
    def script(body: dict[str, Any]) -> Any:
        if last_text(body) == "look it up":
            return "42"
        if body["messages"][-1]["role"] == "tool":
            return "done"
        return {"tool_calls": [{"name": "look", "arguments": {}}]}

    server, sink = serve(script), ListSink()

    @tool
    async def look() -> str:
        """Ask another model."""
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
            answer = await client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "look it up"}]
            )
        return answer.choices[0].message.content or ""

    agent = create_agent(chat_model(server), [look], name="coder")
    with attempt_scope(scope_of(server, sink)):
        await agent.ainvoke(QUESTION)
    assert outline(sink.spans) == [
        "invoke_agent coder",
        "> chat coder",
        "> execute_tool look coder",
        "> > chat coder",
        "> chat coder",
    ]


class Verdict(BaseModel):
    """What the judge says."""

    passed: bool


def test_structured_output(serve):
    def script(body: dict[str, Any]) -> Any:
        if body.get("response_format"):
            return '{"passed": true}'
        return {"tool_calls": [{"name": "Verdict", "arguments": {"passed": True}}]}

    server, sink = serve(script), ListSink()
    judge = create_agent(chat_model(server), [], name="judge", response_format=ToolStrategy(Verdict))
    with attempt_scope(scope_of(server, sink)):
        assert judge.invoke(QUESTION)["structured_response"] == Verdict(passed=True)
        answer = chat_model(server).with_structured_output(Verdict, method="json_schema").invoke("judge it")
    assert answer == Verdict(passed=True)
    assert outline(sink.spans)[:2] == ["invoke_agent judge", "> chat judge"]
    assert len(sink.of(names.CHAT)) == len(server.requests) == 2
    assert edges(sink.spans) == []


class Noting(AgentMiddleware):
    """Middleware of the user's own that asks a model before the agent's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def before_model(self, state: Any, runtime: Any) -> None:
        self.model.invoke([SystemMessage("note taker"), HumanMessage("note it")])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_calls_of_middleware_and_memory_are_the_agents(serve):
    def script(body: dict[str, Any]) -> Any:
        return "short" if "summar" in json.dumps(body["messages"]).lower() else "ok"

    server, sink = serve(script), ListSink()
    model = chat_model(server)
    summary = SummarizationMiddleware(model, max_tokens_before_summary=10, messages_to_keep=2)
    agent = create_agent(model, [], name="coder", system_prompt="coder", middleware=[Noting(model), summary])
    messages = [HumanMessage(f"message {n}") for n in range(6)]
    with attempt_scope(scope_of(server, sink)):
        agent.invoke({"messages": messages})

    assert len(server.requests) == 3
    assert outline(sink.spans) == ["invoke_agent coder", *["> chat coder"] * 3]
    assert edges(sink.spans) == []


def test_a_pause_for_the_user_goes_on_counting_turns(serve):
    server, sink = serve(lambda body: f"{system_text(body)} spoke"), ListSink()
    model = chat_model(server)

    def ask(_: Notes) -> Notes:
        return {"said": [model.invoke("may I?").text, interrupt("may I?")]}

    graph = StateGraph(Notes)
    graph.add_node("planner", lambda _: {"said": [model.invoke("plan").text]})
    graph.add_node("asker", ask)
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "asker")
    compiled = graph.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with attempt_scope(scope_of(server, sink)):
        compiled.invoke({"said": []}, config)
        assert compiled.invoke(Command(resume="yes"), config)["said"][-1] == "yes"

    # LangGraph runs the node again from its start: the call before the pause really is made twice.
    turns = [(chat.attributes[names.ROLE], chat.attributes[names.TURN]) for chat in sink.of(names.CHAT)]
    assert turns == [("planner", 0), ("asker", 0), ("asker", 1)]
    assert edges(sink.spans) == [("handoff", "planner", "asker")]
    assert {span.status.value for span in sink.spans} == {"unset"}


def test_tools_side_by_side_belong_to_who_asked(serve):
    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return "done"
        return {"tool_calls": [{"name": "double", "arguments": {"n": n}} for n in range(5)]}

    server, sink = serve(script), ListSink()

    @tool
    def double(n: int) -> str:
        """Double a number."""
        return str(2 * n)

    graph = StateGraph(MessagesState)
    for name in ("left", "right"):
        graph.add_node(name, create_agent(chat_model(server), [double], name=name))
        graph.add_edge(START, name)
    with attempt_scope(scope_of(server, sink)):
        graph.compile().invoke(QUESTION)

    calls = sink.of(names.EXECUTE_TOOL)
    for name in ("left", "right"):
        (agent,) = [span for span in sink.of(names.INVOKE_AGENT) if span.attributes[names.AGENT_NAME] == name]
        mine = [call for call in calls if call.attributes[names.AGENT_NAME] == name]
        assert {call.parent_id for call in mine} == {agent.span_id}
        results = {
            json.loads(call.attributes[names.TOOL_ARGUMENTS])["n"]: call.attributes[names.TOOL_RESULT] for call in mine
        }
        assert results == {n: str(2 * n) for n in range(5)}
    assert len(calls) == 10


def test_a_failed_tool_whose_error_the_model_reads_is_an_error_of_the_tool_alone(serve):
    def script(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return "sorry"
        return {"tool_calls": [{"name": "double", "arguments": {"n": "many"}}]}

    server, sink = serve(script), ListSink()

    @tool
    def double(n: int) -> str:
        """Double a number."""
        return str(2 * n)

    with attempt_scope(scope_of(server, sink)):
        create_agent(chat_model(server), [double], name="coder").invoke(QUESTION)
    assert {span.name for span in sink.spans if span.status.value == "error"} == {"execute_tool double"}


class OtherVendor(BaseChatModel):
    """A chat model of a vendor whose SDK capture does not know, in the way of langchain-anthropic."""

    model: str = "claude-like"
    max_tokens: int = 100

    @property
    def _llm_type(self) -> str:
        return "other-vendor"

    def _get_ls_params(self, **_: Any) -> Any:
        return {"ls_provider": "other", "ls_model_name": self.model, "ls_model_type": "chat", "ls_max_tokens": 100}

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        message = AIMessage(
            [{"type": "text", "text": "I look."}, {"type": "tool_use", "id": "t1", "name": "look", "input": {}}],
            tool_calls=[{"name": "look", "args": {}, "id": "t1"}],
            usage_metadata={"input_tokens": 11, "output_tokens": 7, "total_tokens": 18},
            response_metadata={"id": "msg_1", "model": "claude-like-1", "stop_reason": "tool_use"},
        )
        if any(message.type == "tool" for message in messages):
            message = AIMessage("done", response_metadata={"stop_reason": "end_turn"})
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> Iterator[Any]:
        for piece in ("do", "ne"):
            yield ChatGenerationChunk(message=AIMessageChunk(piece))
        usage: Any = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=usage))

    def bind_tools(self, tools: Any, **settings: Any) -> Any:
        return self.bind(tools=[{"name": one.name} for one in tools], **settings)


def test_a_model_of_another_vendor_is_recorded_as_langchain_tells_it():
    sink = ListSink()

    @tool
    def look() -> str:
        """Look."""
        return "seen"

    with attempt_scope(scope_for_test(sink)):
        create_agent(OtherVendor(), [look], name="coder").invoke(QUESTION)
    assert outline(sink.spans) == ["invoke_agent coder", "> chat coder", "> execute_tool look coder", "> chat coder"]
    about = sink.of(names.CHAT)[0].attributes
    assert {
        name: about[name]
        for name in (
            names.PROVIDER,
            names.REQUEST_MODEL,
            names.REQUEST_MAX_TOKENS,
            names.RESPONSE_ID,
            names.RESPONSE_MODEL,
            names.FINISH_REASONS,
            names.INPUT_TOKENS,
            names.OUTPUT_TOKENS,
            names.TURN,
        )
    } == {
        names.PROVIDER: "other",
        names.REQUEST_MODEL: "claude-like",
        names.REQUEST_MAX_TOKENS: 100,
        names.RESPONSE_ID: "msg_1",
        names.RESPONSE_MODEL: "claude-like-1",
        names.FINISH_REASONS: ["tool_use"],
        names.INPUT_TOKENS: 11,
        names.OUTPUT_TOKENS: 7,
        names.TURN: 0,
    }
    assert json.loads(about[names.TOOL_DEFINITIONS]) == [{"name": "look"}]
    (said,) = json.loads(about[names.OUTPUT_MESSAGES])
    assert said["tool_calls"][0]["function"]["name"] == "look"
    assert names.RESPONSE_TOKENS not in about


def test_a_stream_of_another_vendor_is_one_call():
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        assert "".join(chunk.text for chunk in OtherVendor().stream("go")) == "done"
    (chat,) = sink.of(names.CHAT)
    assert json.loads(chat.attributes[names.OUTPUT_MESSAGES]) == [{"role": "assistant", "content": "done"}]
    assert chat.attributes[names.OUTPUT_TOKENS] == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_anthropics_models_are_seen_on_the_wire_once(serve, streaming):
    anthropic = pytest.importorskip("langchain_anthropic")

    def script(body: dict[str, Any]) -> Any:
        asked = json.dumps(body["messages"])
        return "done" if "tool_result" in asked else {"tool_calls": [{"name": "look", "arguments": {}}]}

    server, sink = serve(script), ListSink()
    model = anthropic.ChatAnthropic(
        model="claude-like",
        base_url=server.base_url.removesuffix("/v1"),
        api_key="none",
        max_retries=0,
        streaming=streaming,
    )

    @tool
    def look() -> str:
        """Look."""
        return "seen"

    with attempt_scope(scope_for_test(sink)):
        create_agent(model, [look], name="coder", system_prompt="coder").invoke(QUESTION)
    assert outline(sink.spans) == ["invoke_agent coder", "> chat coder", "> execute_tool look coder", "> chat coder"]
    assert [request.headers[names.HEADER_ROLE] for request in server.requests] == ["coder", "coder"]
    calls = {request.headers[names.HEADER_CALL_ID] for request in server.requests}
    assert calls == {chat.attributes[names.CALL_ID] for chat in sink.of(names.CHAT)}
