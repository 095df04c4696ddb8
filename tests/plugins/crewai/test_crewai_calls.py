"""Each LLM call is recorded once, whichever way it goes: on the wire, through events, or through a class of the user's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from crewai import BaseLLM, Memory
from crewai.events.types.llm_events import LLMCallType
from crewai.llms.base_llm import llm_call_context
from crewai.tools import tool
from crews import agent_of, crew_of, model_at, task_of
from reading_spans import outline, scope_of

from coterie import conventions as names
from coterie.announced import announced_call
from coterie.scope import attempt_scope
from coterie.testing import ListSink, Reply, ScriptedModel, scope_for_test
from coterie_crewai import uncaptured

pytestmark = pytest.mark.usefixtures("recording")


def chats_of(server: ScriptedModel | None, run: Any) -> list[Any]:
    sink = ListSink()
    with attempt_scope(scope_of(server, sink) if server else scope_for_test(sink)):
        run()
    assert uncaptured._open == {}
    assert announced_call() is None
    return sorted(sink.of(names.CHAT), key=lambda span: span.start_ns)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_model_called_by_hand(serve, streamed, asynchronous):
    server = serve(lambda body: "some words")
    model = model_at(server, stream=streamed, temperature=0.5, max_tokens=7)
    (chat,) = chats_of(server, lambda: asyncio.run(model.acall("hi")) if asynchronous else model.call("hi"))
    assert chat.attributes[names.RESPONSE_TOKENS]
    assert chat.attributes[names.REQUEST_STREAM] is streamed
    assert chat.attributes[names.REQUEST_TEMPERATURE] == 0.5
    assert server.requests[0].headers["x-coterie-call-id"] == chat.attributes[names.CALL_ID]


def test_a_failed_call_is_recorded_once_and_so_is_each_try_of_the_agent(serve):
    tries = []

    def script(_: dict[str, Any]) -> Any:
        tries.append(1)
        return "x" if len(tries) == 3 else 500

    server = serve(script)
    chats = chats_of(server, crew_of(task_of(agent_of(model_at(server), "Stubborn"))).kickoff)
    assert [chat.status.value for chat in chats] == ["error", "error", "unset"]
    assert [chat.attributes[names.TURN] for chat in chats] == [0, 1, 2]
    assert {chat.attributes[names.AGENT_PATH] for chat in chats} == {"Stubborn"}
    assert len({chat.parent_id for chat in chats}) == 1


def test_a_retry_of_the_sdk_is_the_same_call(serve):
    tries = []

    def script(_: dict[str, Any]) -> Any:
        tries.append(1)
        return "x" if len(tries) == 2 else 500

    server = serve(script)
    (chat,) = chats_of(server, crew_of(task_of(agent_of(model_at(server, max_retries=2), "Patient"))).kickoff)
    assert chat.attributes[names.CALL_TRIES] == 2


class Eventful(BaseLLM):
    """A provider beside the OpenAI SDK: it says what it does in events, as CrewAI's own providers do."""

    error: bool = False

    def call(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
        about = {"from_task": kwargs.get("from_task"), "from_agent": kwargs.get("from_agent")}
        with llm_call_context():
            self._emit_call_started_event(messages=messages, tools=tools, **about)
            if self.error:
                self._emit_call_failed_event(error="no such model", **about)
                self._emit_call_failed_event(error="no such model", **about)
                raise RuntimeError("no such model")
            if tools and not any(message["role"] == "tool" for message in messages):
                response: Any = [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
                ]
                self._emit_call_completed_event(response=response, call_type=LLMCallType.TOOL_CALL, **about)
                return response
            self._emit_call_completed_event(
                response="three",
                call_type=LLMCallType.LLM_CALL,
                usage={"prompt_tokens": 3, "completion_tokens": 1},
                finish_reason="stop",
                response_id="r-1",
                **about,
            )
        return "three"

    def supports_function_calling(self) -> bool:
        return True


@tool("add")
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def test_a_call_that_only_events_tell_of():
    model = Eventful(model="acme/large", temperature=0.25)
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        crew_of(task_of(agent_of(model, "Adder", tools=[add]))).kickoff()
    assert outline(sink.spans) == [
        "invoke_workflow team",
        "> invoke_agent Adder",
        "> > chat Adder",
        "> > execute_tool add Adder",
        "> > chat Adder",
    ]
    asked, said = sink.of(names.CHAT)
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert json.loads(asked.attributes[names.OUTPUT_MESSAGES])[0]["tool_calls"][0]["id"] == "c1"
    assert call.attributes[names.TOOL_CALL_ID] == "c1"
    assert json.loads(said.attributes[names.OUTPUT_MESSAGES]) == [{"role": "assistant", "content": "three"}]
    assert "[Adder]" in said.attributes[names.INPUT_MESSAGES]
    about = {
        names.PROVIDER: "acme",
        names.REQUEST_MODEL: "large",
        names.REQUEST_TEMPERATURE: 0.25,
        names.RESPONSE_ID: "r-1",
        names.FINISH_REASONS: ["stop"],
        names.INPUT_TOKENS: 3,
        names.OUTPUT_TOKENS: 1,
    }
    assert {name: said.attributes.get(name) for name in about} == about


def test_a_failure_told_twice_is_recorded_once():
    def run() -> None:
        with pytest.raises(RuntimeError, match="no such model"):
            Eventful(model="large", error=True).call([{"role": "user", "content": "hi"}])

    (chat,) = chats_of(None, run)
    assert (chat.status.value, chat.status_message) == ("error", "no such model")


class Silent(BaseLLM):
    """A class as CrewAI's documents show it: it answers and says nothing of it."""

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model == "broken":
            raise KeyError("the user's own")
        return "said silently"

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return self.call(messages)


@pytest.mark.parametrize("way", ["kickoff", "akickoff"])
def test_a_class_that_says_nothing(way):
    def run() -> None:
        result = getattr(crew_of(task_of(agent_of(Silent(model="mine"), "Mute"))), way)()
        if asyncio.iscoroutine(result):
            asyncio.run(result)

    (chat,) = chats_of(None, run)
    assert chat.attributes[names.AGENT_PATH] == "Mute"
    assert json.loads(chat.attributes[names.OUTPUT_MESSAGES])[0]["content"] == "said silently"


def test_an_error_in_a_class_that_says_nothing():
    def run() -> None:
        with pytest.raises(KeyError, match="the user's own"):
            Silent(model="broken").call("hi")

    (chat,) = chats_of(None, run)
    assert chat.attributes[names.ERROR_TYPE] == "KeyError"


def test_a_class_made_while_recording_is_seen_from_its_first_crew(serve):
    server = serve(lambda body: "from the wire")

    class Routing(BaseLLM):
        """Leads to another model, which is recorded in its place."""

        def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            return model_at(server).call(messages)

    class Direct(BaseLLM):
        """Uses the SDK, where capture sees it."""

        def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            client = openai.OpenAI(base_url=server.base_url, api_key="sk-none")
            answer = client.chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": str(messages)}]
            )
            return answer.choices[0].message.content

    for model in (Routing(model="router"), Direct(model="direct")):
        (chat,) = chats_of(server, crew_of(task_of(agent_of(model, "User"))).kickoff)
        assert chat.attributes[names.RESPONSE_TOKENS]
        assert chat.attributes[names.AGENT_PATH] == "User"


def test_a_model_called_inside_a_tool_of_a_call(serve):
    """The model's own loop over tools: the call goes on after a call inside the tool."""
    server = serve(
        lambda body: (
            "inner"
            if "inside" in str(body["messages"])
            else {"tool_calls": [{"name": "look", "arguments": {"at": "x"}}]}
        )
    )
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "look", "description": "look", "parameters": schema}}]

    def look(at: str) -> str:
        return str(model_at(server).call("inside"))

    sink = ListSink()
    with attempt_scope(scope_of(server, sink)):
        model_at(server).call("go", tools=tools, available_functions={"look": look})
    assert len(sink.of(names.CHAT)) == len(server.requests) == 2
    (call,) = sink.of(names.EXECUTE_TOOL)
    assert call.attributes[names.AGENT_NAME] == "agent"
    assert call.attributes[names.TOOL_RESULT] == "inner"
    assert announced_call() is None


def test_memory_calls_are_those_of_the_agent_that_remembers(serve, tmp_path):
    facts = json.dumps({"memories": ["a fact"]})
    server = serve(lambda body: facts if "memor" in str(body["messages"]).lower() else "x")
    model = model_at(server)
    embeddings: list[Any] = []

    def embed(texts: list[str]) -> list[list[float]]:
        embeddings.extend(texts)
        return [[0.1] * 8 for _ in texts]

    memory = Memory(llm=model, embedder=embed, storage=str(tmp_path / "memory"))
    chats = chats_of(server, crew_of(task_of(agent_of(model, "Elephant")), memory=memory).kickoff)
    assert embeddings
    assert len(chats) == len(server.requests) > 1
    assert {chat.attributes[names.AGENT_PATH] for chat in chats} == {"Elephant"}


async def test_a_cancelled_run_leaves_nothing_open(serve):
    """CrewAI's agents call their models in threads, which nobody can cancel: the attempt ends such a call."""
    server, sink = serve(lambda body: Reply("late", delay_seconds=1.0)), ListSink()
    crew, scope = crew_of(task_of(agent_of(model_at(server), "Waiting"))), scope_of(server, sink)
    with attempt_scope(scope):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(crew.akickoff(), 0.4)
        assert announced_call() is None
    scope.end_open_calls()
    assert outline(sink.spans) == ["invoke_workflow team", "> invoke_agent Waiting", "> > chat Waiting"]
    assert {span.attributes[names.ERROR_TYPE] for span in sink.spans} == {"CancelledError", "Abandoned"}
    assert uncaptured._open == {}
