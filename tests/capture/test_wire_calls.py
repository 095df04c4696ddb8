"""Every way of calling the OpenAI SDK gives one span that says what really went over the wire."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from coterie import conventions as names
from coterie.roles import acting_as
from coterie.scope import AttemptScope, attempt_scope
from coterie.testing import Fault, ListSink, Reply, ScriptedModel, scope_for_test, toy_text, toy_tokens
from coterie.vocabulary import Endpoint, Span, SpanStatus

pytestmark = pytest.mark.usefixtures("captured")

ANSWER = {"content": "four of them", "tool_calls": [{"name": "look", "arguments": {"table": "cats"}}]}
QUESTION = [{"role": "user", "content": "How many?"}]


def trained(model: ScriptedModel, **fields: Any) -> AttemptScope:
    endpoint = Endpoint(model.base_url, model="policy", policy="team", version=1)
    return scope_for_test(**({"endpoints": {"team": endpoint}} | fields))


def sync_client(url: str = "http://127.0.0.1:9/v1", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="sk-user-secret-key", **({"max_retries": 0, "timeout": 10} | options))


def async_client(url: str = "http://127.0.0.1:9/v1", **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url, api_key="sk-user-secret-key", **({"max_retries": 0, "timeout": 10} | options)
    )


def only_span(scope: AttemptScope) -> Span:
    sink = scope.sink
    assert isinstance(sink, ListSink)
    assert len(sink.spans) == 1
    return sink.spans[0]


def chat(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="m", messages=QUESTION).choices[0].message.content == "four of them"


def chat_streamed(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="m", messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "four of them"


def chat_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="m", messages=QUESTION) as stream:
        assert stream.get_final_completion().choices[0].message.content == "four of them"


def chat_raw(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=QUESTION)
    assert raw.parse().choices[0].message.content == "four of them"


def chat_raw_streamed(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=QUESTION, stream=True)
    assert len(list(raw.parse())) > 3


def chat_streaming_response(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION) as response:
        assert response.parse().choices[0].message.content == "four of them"


def chat_pieces(client: openai.OpenAI) -> None:
    """httpx gives the last piece after it has closed the response."""
    with client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION) as response:
        assert json.loads(b"".join(response.iter_bytes(1000)))["choices"][0]["message"]["content"] == "four of them"


def chat_lines(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION, stream=True) as response:
        assert sum(line.startswith("data:") for line in response.iter_lines()) > 3


def responses(client: openai.OpenAI) -> None:
    assert client.responses.create(model="m", input="How many?").output_text == "four of them"


def responses_streamed(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="m", input="How many?", stream=True))
    assert events[-1].type == "response.completed"


def responses_raw(client: openai.OpenAI) -> None:
    assert client.responses.with_raw_response.create(model="m", input="How many?").parse().output_text


SYNC = [
    chat,
    chat_streamed,
    chat_helper,
    chat_raw,
    chat_raw_streamed,
    chat_streaming_response,
    chat_pieces,
    chat_lines,
    responses,
    responses_streamed,
    responses_raw,
]


async def async_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=QUESTION)
    assert answer.choices[0].message.content == "four of them"


async def async_chat_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "four of them"


async def async_chat_raw(client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="m", messages=QUESTION)
    assert raw.parse().choices[0].message.content == "four of them"


async def async_chat_streaming_response(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION) as response:
        assert (await response.parse()).choices[0].message.content == "four of them"


async def async_chat_lines(client: openai.AsyncOpenAI) -> None:
    create = client.chat.completions.with_streaming_response.create
    async with create(model="m", messages=QUESTION, stream=True) as response:
        assert len([line async for line in response.iter_lines() if line.startswith("data:")]) > 3


async def async_responses(client: openai.AsyncOpenAI) -> None:
    assert (await client.responses.create(model="m", input="How many?")).output_text == "four of them"


async def async_responses_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.responses.create(model="m", input="How many?", stream=True)
    assert [event.type async for event in stream][-1] == "response.completed"


ASYNC = [
    async_chat,
    async_chat_streamed,
    async_chat_raw,
    async_chat_streaming_response,
    async_chat_lines,
    async_responses,
    async_responses_streamed,
]


def check_whole_call(scope: AttemptScope, model: ScriptedModel) -> None:
    span, request = only_span(scope), model.requests[0]
    said = span.attributes
    prompt = "<user>How many?\x03<assistant>"
    sampled = 'four of them<call>look{"table": "cats"}\x03'
    assert span.name == "chat policy"
    assert span.status is SpanStatus.UNSET
    assert (span.rollout_id, span.attempt_id) == ("ro-test", "at-test")
    assert said[names.OPERATION] == "chat"
    assert (said[names.AGENT_NAME], said[names.ROLE], said[names.AGENT_PATH]) == ("Coder", "coder", "Lead/Coder")
    assert said[names.TURN] == 0
    assert said[names.CALL_ID] == request.headers[names.HEADER_CALL_ID] == scope.calls[0].call_id
    assert said[names.REQUEST_MODEL] == "policy" == request.body["model"]
    assert said[names.REQUEST_STREAM] is bool(request.body.get("stream"))
    assert json.loads(said[names.INPUT_MESSAGES]) == QUESTION
    (message,) = json.loads(said[names.OUTPUT_MESSAGES])
    assert message["content"] == scope.calls[0].text == "four of them"
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"table": "cats"}'}
    assert said[names.FINISH_REASONS] == ["tool_calls"]
    assert said[names.RESPONSE_ID].endswith(("1", "2"))
    assert said[names.INPUT_TOKENS] == len(prompt)
    assert said[names.OUTPUT_TOKENS] == len(sampled)
    assert toy_text(said[names.PROMPT_TOKENS]) == prompt
    assert toy_text(said[names.RESPONSE_TOKENS]) == sampled
    assert said[names.LOGPROBS]
    if "messages" in request.body:
        assert len(said[names.LOGPROBS]) == len(sampled)
    assert (said[names.POLICY_NAME], said[names.POLICY_VERSION]) == ("team", 7)
    assert said[names.CALL_TRIES] == 1


@pytest.mark.parametrize("use", SYNC, ids=lambda use: use.__name__)
def test_sync(use: Callable[[openai.OpenAI], None]) -> None:
    with ScriptedModel(lambda _: ANSWER, policy_version=7) as model:
        with attempt_scope(trained(model)) as scope, acting_as("Lead"), acting_as("Coder"):
            use(sync_client())
        check_whole_call(scope, model)


@pytest.mark.parametrize("use", ASYNC, ids=lambda use: use.__name__)
async def test_async(use: Callable[[openai.AsyncOpenAI], Any]) -> None:
    with ScriptedModel(lambda _: ANSWER, policy_version=7) as model:
        with attempt_scope(trained(model)) as scope, acting_as("Lead"), acting_as("Coder"):
            await use(async_client())
        check_whole_call(scope, model)


def test_legacy_completions() -> None:
    with ScriptedModel(lambda _: "4") as model, attempt_scope(trained(model)) as scope:
        assert sync_client().completions.create(model="m", prompt="2+2=").choices[0].text == "4"
        list(sync_client().completions.create(model="m", prompt="2+2=", stream=True))
    whole, streamed = (span.attributes for span in scope.sink.spans)  # type: ignore[attr-defined]
    for said in (whole, streamed):
        assert json.loads(said[names.INPUT_MESSAGES]) == [{"role": "user", "content": "2+2="}]
        assert said[names.RESPONSE_TOKENS] == toy_tokens("4\x03")
        assert len(said[names.LOGPROBS]) == 2
    assert (whole[names.TURN], streamed[names.TURN]) == (0, 1)


def test_outside_an_attempt_the_call_is_sent_as_written_with_an_id() -> None:
    with ScriptedModel(lambda _: "hi") as model:
        sync_client(model.base_url).chat.completions.create(model="m", messages=QUESTION, temperature=0.5)
        (request,) = model.requests
    assert request.body == {"model": "m", "messages": QUESTION, "temperature": 0.5}
    assert request.headers["authorization"] == "Bearer sk-user-secret-key"
    assert request.headers[names.HEADER_CALL_ID].startswith("ca-")
    assert request.headers[names.HEADER_ROLE] == "agent"
    assert names.HEADER_ROLLOUT_ID not in request.headers


def test_other_endpoints_of_the_sdk_are_left_alone() -> None:
    with ScriptedModel(lambda _: "hi") as model, attempt_scope(trained(model)) as scope:
        assert sync_client(model.base_url).models.list().data[0].id == "scripted"
    assert scope.sink.spans == []  # type: ignore[attr-defined]


def test_retries_are_one_call() -> None:
    answers = iter([500, 503, "at last"])
    with ScriptedModel(lambda _: next(answers)) as model, attempt_scope(trained(model)) as scope:
        sync_client(max_retries=2).chat.completions.create(model="m", messages=QUESTION)
        assert len(model.requests) == 3
        assert len({request.headers[names.HEADER_CALL_ID] for request in model.requests}) == 1
    assert only_span(scope).attributes[names.CALL_TRIES] == 3
    assert len(scope.calls) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (400, openai.BadRequestError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (Fault.CUT, openai.APIConnectionError),
        (Fault.HANG, openai.APITimeoutError),
        (Fault.RUBBISH, json.JSONDecodeError),
        (Fault.EMPTY, json.JSONDecodeError),
    ],
)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_errors_reach_the_user_unchanged(answer: Any, error: type[Exception], way: str) -> None:
    with ScriptedModel(lambda _: answer) as model:
        url = model.base_url

        def call() -> Any:
            if way == "sync":
                return sync_client(url, timeout=0.5).chat.completions.create(model="m", messages=QUESTION)

            async def create() -> Any:
                async with async_client(url, timeout=0.5) as client:
                    return await client.chat.completions.create(model="m", messages=QUESTION)

            return asyncio.run(create())

        with attempt_scope(scope_for_test()) as scope, pytest.raises(error) as raised:
            call()
    span = only_span(scope)
    assert type(raised.value) is error
    assert span.status is SpanStatus.ERROR
    assert span.attributes[names.ERROR_TYPE] == error.__name__
    assert span.attributes[names.CALL_TRIES] == 1
    assert scope.calls == []


def test_retries_that_all_fail_are_counted() -> None:
    with (
        ScriptedModel(lambda _: 500) as model,
        attempt_scope(trained(model)) as scope,
        pytest.raises(openai.InternalServerError),
    ):
        sync_client(max_retries=1).chat.completions.create(model="m", messages=QUESTION)
    assert only_span(scope).attributes[names.CALL_TRIES] == 2


async def test_a_cancelled_call_is_recorded_as_such() -> None:
    with (
        ScriptedModel(lambda _: Fault.HANG) as model,
        attempt_scope(trained(model)) as scope,
        pytest.raises(TimeoutError),
    ):
        await asyncio.wait_for(async_client().chat.completions.create(model="m", messages=QUESTION), 0.3)
    assert only_span(scope).attributes[names.ERROR_TYPE] == "CancelledError"


def test_a_stream_that_the_user_leaves_early() -> None:
    with (
        ScriptedModel(lambda _: "one two three four five six") as model,
        attempt_scope(trained(model)) as scope,
        sync_client().chat.completions.create(model="m", messages=QUESTION, stream=True) as stream,
    ):
        for chunk in stream:
            if chunk.choices[0].delta.content == " two":
                break
    span = only_span(scope)
    assert span.status is SpanStatus.UNSET
    assert json.loads(span.attributes[names.OUTPUT_MESSAGES])[0]["content"].startswith("one two")


def test_a_stream_that_the_user_throws_away() -> None:
    with (
        ScriptedModel(lambda _: Reply("a b c d", chunk_delay_seconds=0.02)) as model,
        attempt_scope(trained(model)) as scope,
    ):
        stream = sync_client().chat.completions.create(model="m", messages=QUESTION, stream=True)
        next(stream)
        assert scope.sink.spans == []  # type: ignore[attr-defined]
        del stream
        gc.collect()
    assert names.ERROR_TYPE not in only_span(scope).attributes


async def test_an_async_stream_that_the_user_leaves_early() -> None:
    with (
        ScriptedModel(lambda _: Reply("a b c d", chunk_delay_seconds=0.02)) as model,
        attempt_scope(trained(model)) as scope,
    ):
        stream = await async_client().chat.completions.create(model="m", messages=QUESTION, stream=True)
        async for _ in stream:
            break
        await stream.close()
    assert only_span(scope).status is SpanStatus.UNSET


async def test_an_attempt_that_ends_takes_its_open_calls_along() -> None:
    """A stream left half-read keeps what came; a request without an answer is an error; later ends change nothing."""

    def answer(request: dict[str, Any]) -> Any:
        return Reply("a b c d", chunk_delay_seconds=0.02) if request.get("stream") else Fault.HANG

    with ScriptedModel(answer) as model, attempt_scope(trained(model)) as scope:
        client = async_client()
        stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content == "a":
                break
        hanging = asyncio.create_task(client.chat.completions.create(model="m", messages=QUESTION))
        await asyncio.sleep(0.1)
        scope.end_open_calls()
        scope.end_open_calls()
        half_read, hung = scope.sink.spans  # type: ignore[attr-defined]
        await stream.close()
        hanging.cancel()
        await asyncio.wait([hanging])
        await client.close()
        assert len(scope.sink.spans) == 2  # type: ignore[attr-defined]
    heard = json.loads(half_read.attributes[names.OUTPUT_MESSAGES])[0]["content"]
    assert heard.startswith("a")
    assert toy_text(half_read.attributes[names.RESPONSE_TOKENS]) == heard
    assert hung.attributes[names.ERROR_TYPE] == "Abandoned"
    assert [call.text for call in scope.calls] == [heard]


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RUBBISH])
def test_a_stream_that_breaks_keeps_what_came(fault: Fault) -> None:
    with (
        ScriptedModel(lambda _: Reply("one two three four", fault=fault)) as model,
        attempt_scope(trained(model)) as scope,
        pytest.raises(Exception) as raised,  # noqa: PT011 - openai 2.x and 3.x raise different ones
    ):
        list(sync_client().chat.completions.create(model="m", messages=QUESTION, stream=True))
    assert type(raised.value).__name__ in ("APIConnectionError", "RemoteProtocolError", "JSONDecodeError")
    span = only_span(scope)
    assert span.status is SpanStatus.ERROR
    assert span.attributes[names.ERROR_TYPE] in ("RemoteProtocolError", "JSONDecodeError")
    assert json.loads(span.attributes[names.OUTPUT_MESSAGES])[0]["content"].startswith("one")
    assert scope.calls == []


async def test_a_cancelled_stream_is_recorded_as_such() -> None:
    with (
        ScriptedModel(lambda _: Reply("one two three four", chunk_delay_seconds=0.2)) as model,
        attempt_scope(trained(model)) as scope,
    ):

        async def read() -> None:
            async for _ in await async_client().chat.completions.create(model="m", messages=QUESTION, stream=True):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), 0.5)
    assert only_span(scope).attributes[names.ERROR_TYPE] == "CancelledError"


def test_chunks_reach_the_user_as_they_come() -> None:
    """The third chunk is read while the server still holds back the rest."""
    with (
        ScriptedModel(lambda _: Reply("a b c d e f g h", chunk_delay_seconds=0.1)) as model,
        attempt_scope(trained(model)) as scope,
    ):
        stream = sync_client().chat.completions.create(model="m", messages=QUESTION, stream=True)
        for _ in range(3):
            next(stream)
        assert scope.sink.spans == []  # type: ignore[attr-defined]
        assert len(list(stream)) > 4
    only_span(scope)


def test_every_choice_is_recorded() -> None:
    choice = {"message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    body = {"id": "x", "model": "m", "choices": [{"index": 0, **choice}, {"index": 1, **choice}]}
    with ScriptedModel(lambda _: body) as model, attempt_scope(trained(model)) as scope:
        sync_client().chat.completions.create(model="m", messages=QUESTION, n=2)
    said = only_span(scope).attributes
    assert len(json.loads(said[names.OUTPUT_MESSAGES])) == 2
    assert said[names.FINISH_REASONS] == ["stop", "stop"]
