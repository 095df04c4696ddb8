"""LLM calls that capture does not see on the wire are recorded from what the SDK tells, once each; seen ones once too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import agents
import pytest
from agents import Agent, Model, ModelResponse, ModelSettings, RunConfig, Usage, function_tool
from openai import AsyncOpenAI
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from reading_spans import scope_of
from sdk_teams import agent, call, episode_of, model_at, outline, results, run

import coterie
from coterie import conventions as names
from coterie.scope import attempt_scope, current_scope
from coterie.testing import ListSink, scope_for_test

pytestmark = pytest.mark.usefixtures("recording")


def said(text: str) -> ResponseOutputMessage:
    content = [ResponseOutputText(type="output_text", text=text, annotations=[])]
    return ResponseOutputMessage(id="m1", type="message", role="assistant", status="completed", content=content)


def wants(tool: str, **arguments: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        type="function_call", name=tool, arguments=json.dumps(arguments), call_id="call_1", id="fc_1"
    )


class OwnModel(Model):
    """A model of the user's own: answers from a list, without any SDK."""

    def __init__(self, *answers: Any) -> None:
        self.model = "own"
        self.answers = list(answers)

    async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        usage = Usage(requests=1, input_tokens=5, output_tokens=2, total_tokens=7)
        return ModelResponse(output=[answer], usage=usage, response_id="r1")

    async def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        answer = await self.get_response()
        fields = {
            "id": "r1",
            "object": "response",
            "created_at": 1,
            "model": "own",
            "output": answer.output,
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
        }
        yield ResponseCompletedEvent(type="response.completed", sequence_number=0, response=Response(**fields))


@function_tool
def look(at: str) -> str:
    """Look at something."""
    return f"a {at}"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_model_of_the_users_own(streamed):
    sink = ListSink()
    model = OwnModel(wants("look", at="duck"), said("It is a duck."))
    solo = agent("solo", model, tools=[look], model_settings=ModelSettings(temperature=0.5))
    with attempt_scope(scope_for_test(sink)):
        result = await run(
            solo, "What is it?", streamed=streamed, run_config=RunConfig(model_settings=ModelSettings(top_p=0.9))
        )
        calls = [(one.role, one.turn, one.text) for one in current_scope().calls]
    assert result.final_output == "It is a duck."
    assert calls == [("solo", 0, ""), ("solo", 1, "It is a duck.")]
    assert outline(sink.spans) == [
        "invoke_workflow Agent workflow",
        "> invoke_agent solo",
        "> > chat solo",
        "> > execute_tool look solo",
        "> > chat solo",
    ]
    first, second = sink.of(names.CHAT)
    assert first.attributes[names.REQUEST_MODEL] == "own"
    assert (first.attributes[names.REQUEST_TEMPERATURE], first.attributes[names.REQUEST_TOP_P]) == (0.5, 0.9)
    assert "look" in first.attributes[names.TOOL_DEFINITIONS]
    turns = episode_of(sink).turns
    assert [message["role"] for message in turns[0].messages] == ["system", "user"]
    assert turns[0].messages[1]["content"] == "What is it?"
    assert turns[0].output[0]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "duck"}'}
    assert [message["role"] for message in turns[1].messages] == ["system", "user", "assistant", "tool"]
    assert turns[1].text == "It is a duck."
    if not streamed:
        assert (second.attributes[names.INPUT_TOKENS], second.attributes[names.OUTPUT_TOKENS]) == (5, 2)
    assert not any(turn.trainable for turn in turns)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_its_errors(streamed):
    sink, fault = ListSink(), OSError("the model is gone")
    with attempt_scope(scope_for_test(sink)), pytest.raises(OSError, match="is gone") as caught:
        await run(agent("solo", OwnModel(fault)), streamed=streamed)
    assert caught.value is fault
    (chat,) = sink.of(names.CHAT)
    assert (chat.status.value, chat.attributes[names.ERROR_TYPE]) == ("error", "OSError")


async def test_a_call_that_is_cut_off_by_a_guardrail():
    class Slow(OwnModel):
        async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
            await asyncio.sleep(20)
            raise AssertionError

    @agents.input_guardrail
    async def trips(*_: Any) -> agents.GuardrailFunctionOutput:
        await asyncio.sleep(0.05)
        return agents.GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    sink = ListSink()
    with attempt_scope(scope_for_test(sink)), pytest.raises(agents.InputGuardrailTripwireTriggered):
        await run(agent("solo", Slow(), input_guardrails=[trips]))
    (turn,) = episode_of(sink).turns
    assert turn.error == "The run ended before the answer came."


async def test_an_own_model_beside_calls_on_the_wire(serve):
    """The tool's call is seen on the wire and does not stand for the model's, which is not."""
    server, sink = serve(lambda body: "seen"), ListSink()
    helper = agent("helper", model_at(server))
    boss = agent("boss", OwnModel(wants("ask", input="x"), said("told")), tools=[helper.as_tool("ask", "Ask.")])
    with attempt_scope(scope_of(server, sink)):
        await run(boss)
    turns = episode_of(sink).turns
    assert [(turn.agent_path, turn.text) for turn in turns] == [("boss", ""), ("boss/helper", "seen"), ("boss", "told")]
    assert [turn.trainable for turn in turns] == [False, True, False]


async def test_masks_hold_for_told_calls():
    coterie.instrument(mask=lambda text: text.replace("duck", "****"))
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        await run(agent("solo", OwnModel(wants("look", at="duck"), said("A duck.")), tools=[look]), "Is it a duck?")
    assert "duck" not in str(sink.spans)
    assert len(sink.of(names.CHAT)) == 2


async def test_retries_of_the_sdk_are_calls_of_their_own(serve):
    """The runner's own retries send new requests, each with an answer of its own."""
    retry = pytest.importorskip("agents.retry")
    failed: list[int] = []

    def script(body: dict[str, Any]) -> Any:
        if not failed:
            failed.append(1)
            return 500
        return "hi"

    server, sink = serve(script), ListSink()
    again = retry.ModelRetrySettings(
        max_retries=2,
        policy=retry.retry_policies.http_status([500]),
        backoff=retry.ModelRetryBackoffSettings(initial_delay=0.01, max_delay=0.01),
    )
    solo = agent("solo", model_at(server), model_settings=ModelSettings(retry=again))
    with attempt_scope(scope_of(server, sink)):
        assert (await run(solo)).final_output == "hi"
    assert [chat.status.value for chat in sink.of(names.CHAT)] == ["error", "unset"]
    assert [line for line in outline(sink.spans) if "chat" in line] == ["> > chat solo"] * 2


async def test_what_a_request_says_survives(serve):
    """Tools, hand-offs, output types and settings reach the wire as without us."""
    server = serve(lambda body: call("look", at="x") if not results(body) else "x")
    solo = agent("solo", model_at(server), tools=[look], model_settings=ModelSettings(temperature=0.25, store=False))
    await run(solo)
    coterie.uninstrument()
    await run(solo)
    coterie.instrument()
    ours, bare = server.requests[:2], server.requests[2:]
    assert [{**one.body, "input": None} for one in ours] == [{**one.body, "input": None} for one in bare]
    assert Agent(name="other").name == "other"


async def _serve_socket(connection: Any) -> None:
    async for message in connection:
        request = json.loads(message)
        assert request["type"] == "response.create"
        fields = {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": request["model"],
            "status": "completed",
            "output": [said("over the socket").model_dump()],
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
        }
        for kind in ("response.created", "response.completed"):
            await connection.send(json.dumps({"type": kind, "sequence_number": 0, "response": fields}))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_the_websocket_transport(streamed):
    """It does not pass through the SDK's requests: the call is recorded once, from what the SDK tells."""
    from agents.models.openai_responses import OpenAIResponsesWSModel
    from websockets.asyncio.server import serve as serve_sockets

    sink = ListSink()
    async with serve_sockets(_serve_socket, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        model = OpenAIResponsesWSModel("scripted", client)
        with attempt_scope(scope_for_test(sink)):
            result = await run(agent("solo", model), streamed=streamed)
        await model.close()
    assert result.final_output == "over the socket"
    assert [(turn.agent_path, turn.text) for turn in episode_of(sink).turns] == [("solo", "over the socket")]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_litellm(serve, streamed, monkeypatch):
    """LiteLLM goes through the OpenAI SDK for OpenAI-compatible servers: seen on the wire, and once."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    pytest.importorskip("litellm")
    from agents.extensions.models.litellm_model import LitellmModel

    server, sink = serve(lambda body: "hi"), ListSink()
    model = LitellmModel("openai/scripted", base_url=server.base_url, api_key="none")
    with attempt_scope(scope_of(server, sink)):
        assert (await run(agent("solo", model), streamed=streamed)).final_output == "hi"
    assert len(server.requests) == 1
    assert [(turn.agent_path, turn.text) for turn in episode_of(sink).turns] == [("solo", "hi")]
