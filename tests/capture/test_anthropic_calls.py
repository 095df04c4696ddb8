"""Every way of calling the Anthropic SDK gives one span that says what really went over the wire."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.capture import instrument, sdk_hook, uninstrument
from coterie.prompts.versions import PromptVersion
from coterie.roles import acting_as
from coterie.scope import AttemptScope, attempt_scope
from coterie.testing import Fault, ListSink, Reply, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Span, SpanStatus

anthropic = pytest.importorskip("anthropic")
pytestmark = pytest.mark.usefixtures("captured")

ANSWER = {"content": "four of them", "tool_calls": [{"name": "look", "arguments": {"table": "cats"}}]}
QUESTION = [{"role": "user", "content": "How many?"}]
KEY = "sk-ant-user-secret-key"


def root(model: ScriptedModel) -> str:
    return model.base_url.removesuffix("/v1")


def sync_client(url: str = "http://127.0.0.1:9", **options: Any) -> Any:
    return anthropic.Anthropic(base_url=url, api_key=KEY, **({"max_retries": 0, "timeout": 10} | options))


def async_client(url: str = "http://127.0.0.1:9", **options: Any) -> Any:
    return anthropic.AsyncAnthropic(base_url=url, api_key=KEY, **({"max_retries": 0, "timeout": 10} | options))


def only_span(scope: AttemptScope) -> Span:
    sink = scope.sink
    assert isinstance(sink, ListSink)
    assert len(sink.spans) == 1
    return sink.spans[0]


def plain(client: Any) -> None:
    message = client.messages.create(model="m", max_tokens=50, messages=QUESTION, system="Be kind.")
    assert message.content[0].text == "four of them"
    assert message.content[1].input == {"table": "cats"}


def streamed(client: Any) -> None:
    stream = client.messages.create(model="m", max_tokens=50, messages=QUESTION, system="Be kind.", stream=True)
    deltas = [event.delta for event in stream if event.type == "content_block_delta"]
    assert "".join(getattr(delta, "text", "") for delta in deltas) == "four of them"


def helper(client: Any) -> None:
    with client.messages.stream(model="m", max_tokens=50, messages=QUESTION, system="Be kind.") as stream:
        assert "".join(stream.text_stream) == "four of them"
        assert stream.get_final_message().content[1].input == {"table": "cats"}


def raw(client: Any) -> None:
    create = client.messages.with_raw_response.create
    answer = create(model="m", max_tokens=50, messages=QUESTION, system="Be kind.")
    assert answer.parse().content[0].text == "four of them"


def beta(client: Any) -> None:
    message = client.beta.messages.create(model="m", max_tokens=50, messages=QUESTION, system="Be kind.")
    assert message.content[0].text == "four of them"


async def async_plain(client: Any) -> None:
    message = await client.messages.create(model="m", max_tokens=50, messages=QUESTION, system="Be kind.")
    assert message.content[0].text == "four of them"


async def async_streamed(client: Any) -> None:
    stream = await client.messages.create(model="m", max_tokens=50, messages=QUESTION, system="Be kind.", stream=True)
    assert [event.type async for event in stream][-1] == "message_stop"


async def async_helper(client: Any) -> None:
    async with client.messages.stream(model="m", max_tokens=50, messages=QUESTION, system="Be kind.") as stream:
        assert "".join([text async for text in stream.text_stream]) == "four of them"


def check_whole_call(scope: AttemptScope, model: ScriptedModel) -> None:
    span, (request,) = only_span(scope), model.requests
    said = span.attributes
    assert (span.name, span.status, request.path) == ("chat m", SpanStatus.UNSET, "/v1/messages")
    assert (said[names.AGENT_NAME], said[names.ROLE], said[names.TURN]) == ("Coder", "coder", 0)
    assert said[names.PROVIDER] == "anthropic"
    assert said[names.CALL_ID] == request.headers[names.HEADER_CALL_ID] == scope.calls[0].call_id
    assert request.headers[names.HEADER_ROLE] == "coder"
    assert request.headers[names.HEADER_ATTEMPT_ID] == "at-test"
    assert (said[names.REQUEST_MODEL], said[names.REQUEST_MAX_TOKENS]) == ("m", 50)
    assert json.loads(said[names.INPUT_MESSAGES]) == [{"role": "system", "content": "Be kind."}, *QUESTION]
    (message,) = json.loads(said[names.OUTPUT_MESSAGES])
    assert message["content"] == scope.calls[0].text == "four of them"
    (call,) = message["tool_calls"]
    assert (call["type"], call["id"]) == ("function", "call_1_0")
    assert call["function"] == {"name": "look", "arguments": '{"table": "cats"}'}
    assert said[names.FINISH_REASONS] == ["tool_calls"]
    assert said[names.RESPONSE_ID] == "msg_1"
    assert said[names.INPUT_TOKENS] == len("<system>Be kind.\x03<user>How many?\x03<assistant>")
    assert said[names.OUTPUT_TOKENS] == len('four of them<call>look{"table": "cats"}\x03')
    assert said[names.CALL_TRIES] == 1


@pytest.mark.parametrize("use", [plain, streamed, helper, raw, beta])
def test_sync(use: Callable[[Any], None]) -> None:
    with ScriptedModel(lambda _: ANSWER) as model:
        with attempt_scope(scope_for_test()) as scope, acting_as("Coder"):
            use(sync_client(root(model)))
        check_whole_call(scope, model)


@pytest.mark.parametrize("use", [async_plain, async_streamed, async_helper])
async def test_async(use: Callable[[Any], Any]) -> None:
    with ScriptedModel(lambda _: ANSWER) as model:
        with attempt_scope(scope_for_test()) as scope, acting_as("Coder"):
            await use(async_client(root(model)))
        check_whole_call(scope, model)


@pytest.mark.parametrize("use", [plain, streamed])
def test_endpoint_prompt_and_sampling_of_the_role(use: Callable[[Any], None]) -> None:
    with ScriptedModel(lambda _: ANSWER, policy_version=5) as model:
        endpoint = Endpoint(model.base_url, "policy", "team", sampling={"temperature": 0.5, "stop": "END"})
        prompts = [PromptVersion("coder.prompt", 4, "Be exact.", "coder")]
        fields = {"endpoints": {"e": endpoint}, "prompts": prompts, "sampling": {"max_tokens": 9, "top_k": 3}}
        with attempt_scope(scope_for_test(**fields)) as scope, acting_as("Coder"):
            use(sync_client())
        (request,) = model.requests
    sent = {name: value for name, value in request.body.items() if name != "stream"}
    assert sent == {
        "model": "policy",
        "messages": QUESTION,
        "system": "Be exact.",
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "max_tokens": 9,
        "top_k": 3,
    }
    assert request.path == "/v1/messages"
    assert KEY not in json.dumps(dict(request.headers))
    said = only_span(scope).attributes
    assert (said[names.POLICY_NAME], said[names.POLICY_VERSION]) == ("team", 5)
    assert (said[names.PROMPT_NAME], said[names.PROMPT_VERSION]) == ("coder.prompt", 4)
    assert (said[names.REQUEST_STOP_SEQUENCES], said[names.REQUEST_TOP_K]) == (["END"], 3)


def test_a_conversation_with_tools_and_thinking_is_told_as_chat_completions_tell_it() -> None:
    thinking = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": "end_turn",
        "content": [
            {"type": "thinking", "thinking": "let me see", "signature": "s"},
            {"type": "text", "text": "four"},
        ],
        "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 40},
    }
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"table": "cats"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "4"},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    before, sink = copy.deepcopy(messages), ListSink()
    with ScriptedModel(lambda _: Reply(body=thinking)) as model, attempt_scope(scope_for_test(sink)):
        sync_client(root(model)).messages.create(model="m", max_tokens=5, messages=messages)
    assert messages == before
    (turn,) = build_episode("t", "at-test", "ro-test", sink.spans, ()).turns
    assert turn.messages == (
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"table": "cats"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "4"},
        {"role": "user", "content": [{"type": "text", "text": "So?"}]},
    )
    assert turn.output == ({"role": "assistant", "content": "four", "reasoning_content": "let me see"},)
    assert (turn.text, turn.finish_reason) == ("four", "stop")
    assert sink.spans[0].attributes[names.INPUT_TOKENS] == 43


@pytest.mark.parametrize("way", ["create", "stream"])
@pytest.mark.parametrize("answer", [429, Fault.CUT, Fault.RUBBISH])
def test_errors_reach_the_user_unchanged(answer: Any, way: str) -> None:
    def ask(url: str) -> Exception | None:
        try:
            client = sync_client(url)
            if way == "stream":
                list(client.messages.create(model="m", max_tokens=5, messages=QUESTION, stream=True))
            else:
                client.messages.create(model="m", max_tokens=5, messages=QUESTION)
        except Exception as error:  # the SDK's own, whatever it is
            return error
        return None

    with ScriptedModel(lambda _: answer) as model:
        with attempt_scope(scope_for_test()) as scope:
            seen = ask(root(model))
        uninstrument()
        expected = ask(root(model))
    assert (type(seen), str(seen)) == (type(expected), str(expected))
    assert seen is not None or answer is Fault.RUBBISH
    if seen is not None:
        assert only_span(scope).attributes[names.ERROR_TYPE] == type(seen).__name__


def test_retries_are_one_call() -> None:
    replies = iter([500, 529, "four"])
    with ScriptedModel(lambda _: next(replies)) as model, attempt_scope(scope_for_test()) as scope:
        client = sync_client(root(model), max_retries=3)
        client._calculate_retry_timeout = lambda *_, **__: 0.0
        client.messages.create(model="m", max_tokens=5, messages=QUESTION)
    assert len({request.headers[names.HEADER_CALL_ID] for request in model.requests}) == 1
    assert only_span(scope).attributes[names.CALL_TRIES] == 3


def test_other_calls_of_the_sdk_are_left_alone() -> None:
    refused = pytest.raises(anthropic.NotFoundError)
    with ScriptedModel(lambda _: "x") as model, attempt_scope(scope_for_test()) as scope, refused:
        sync_client(root(model)).messages.count_tokens(model="m", messages=QUESTION)
    assert scope.sink.spans == []  # type: ignore[attr-defined]


def test_uninstrument_restores_the_sdk_and_a_fault_of_ours_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from anthropic._base_client import AsyncAPIClient, SyncAPIClient

    hooked = [(client, name) for client in (SyncAPIClient, AsyncAPIClient) for name in ("request", "_process_response")]
    ours = [client.__dict__[name] for client, name in hooked]
    uninstrument()
    assert all(client.__dict__[name] is not our for (client, name), our in zip(hooked, ours, strict=True))
    instrument()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("our fault")

    for part in ("LLMCall", "_outgoing", "tap"):
        with monkeypatch.context() as patched, ScriptedModel(lambda _: ANSWER) as model:
            patched.setattr(sdk_hook, part, broken)
            plain(sync_client(root(model)))
            streamed(sync_client(root(model)))
