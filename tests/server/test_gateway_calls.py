"""Calls through the gateway with the clients that people use: what the client gets, what the server gets, what is kept."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from gateway_parts import RAW, TOKEN, RawAnswer, RawServer, RunningGateway, client

from coterie import conventions as names
from coterie.testing import ScriptedModel, toy_text, toy_tokens
from coterie.testing.wire_format import toy_logprob
from coterie.vocabulary import Endpoint, Mode, Resource, ResourceKind, Span

ANSWER = {"content": "four of them", "tool_calls": [{"name": "look", "arguments": {"table": "cats"}}]}
QUESTION = [{"role": "user", "content": "How many?"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda body: ANSWER if body.get("tools") else "four of them", policy_version=7) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, model: ScriptedModel) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway")) as running:
        running.publish(model, sampling={"temperature": 0.5})
        yield running


def chat(one: openai.OpenAI) -> str:
    answer = one.chat.completions.create(model="any", messages=QUESTION, tools=TOOLS)
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"table": "cats"}'
    assert answer.choices[0].logprobs is None
    assert "token_ids" not in answer.model_dump_json()
    return answer.choices[0].message.content or ""


def chat_streamed(one: openai.OpenAI) -> str:
    chunks = list(one.chat.completions.create(model="any", messages=QUESTION, tools=TOOLS, stream=True))
    assert "token_ids" not in "".join(chunk.model_dump_json() for chunk in chunks)
    assert all(choice.logprobs is None for chunk in chunks for choice in chunk.choices)
    assert len(chunks) > 5
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def responses(one: openai.OpenAI) -> str:
    answer = one.responses.create(model="any", input="How many?", tools=[{"type": "function", "name": "look"}])
    assert not any(part.logprobs for item in answer.output if item.type == "message" for part in item.content)
    return answer.output_text


def responses_streamed(one: openai.OpenAI) -> str:
    with one.responses.stream(model="any", input="How many?", tools=[{"type": "function", "name": "look"}]) as stream:
        return stream.get_final_response().output_text


def completions(one: openai.OpenAI) -> str:
    answer = one.completions.create(model="any", prompt="How many?")
    assert answer.choices[0].logprobs is None
    assert "token_ids" not in answer.model_dump_json()
    return answer.choices[0].text


def completions_streamed(one: openai.OpenAI) -> str:
    chunks = list(one.completions.create(model="any", prompt="How many?", stream=True))
    assert "token_ids" not in "".join(chunk.model_dump_json() for chunk in chunks)
    return "".join(chunk.choices[0].text for chunk in chunks)


@pytest.mark.parametrize(
    "call", [chat, chat_streamed, responses, responses_streamed, completions, completions_streamed]
)
def test_the_openai_sdk_gets_its_answer_and_the_store_the_exact_tokens(
    gateway: RunningGateway, model: ScriptedModel, call: Callable[[openai.OpenAI], str]
) -> None:
    rollout, attempt = gateway.begin()
    assert call(client(gateway.attempt_url(rollout, attempt, "coder"))) == "four of them"
    (span,) = gateway.spans(1, rollout=rollout)
    told = span.attributes
    written = model.written[told[names.CALL_ID]]
    assert (told[names.PROMPT_TOKENS], told[names.RESPONSE_TOKENS]) == (
        list(written.prompt_ids),
        list(written.response_ids),
    )
    assert told[names.LOGPROBS] == list(map(toy_logprob, written.response_ids))
    assert (told[names.ROLE], told[names.POLICY_NAME], told[names.POLICY_VERSION]) == ("coder", "team", 7)
    assert (span.rollout_id, span.attempt_id, told[names.CALL_TRIES]) == (rollout, attempt, 1)
    assert told[names.REQUEST_TEMPERATURE] == 0.5
    assert "How many?" in told[names.INPUT_MESSAGES]
    (message,) = json.loads(told[names.OUTPUT_MESSAGES])
    assert message["content"] == "four of them"
    request = model.requests[-1]
    assert request.body["model"] == "tiny"
    assert TOKEN not in str(request.headers)


async def test_the_asynchronous_client_may_make_many_calls_at_once(
    gateway: RunningGateway, model: ScriptedModel
) -> None:
    rollout, attempt = gateway.begin()
    url = gateway.attempt_url(rollout, attempt)
    async with openai.AsyncOpenAI(base_url=url, api_key=TOKEN, max_retries=0) as one:
        tasks = [
            one.chat.completions.create(model="any", messages=[{"role": "user", "content": f"{n}"}]) for n in range(40)
        ]
        answers = await asyncio.gather(*tasks)
    spans = await asyncio.to_thread(gateway.spans, 40, rollout=rollout)
    assert {answer.id for answer in answers} == {span.attributes[names.RESPONSE_ID] for span in spans}
    for span in spans:
        assert toy_text(span.attributes[names.PROMPT_TOKENS]).startswith(
            f"<user>{json.loads(span.attributes[names.INPUT_MESSAGES])[0]['content']}"
        )


def test_who_asks_for_token_ids_and_log_probs_gets_them(gateway: RunningGateway) -> None:
    answer = client(gateway.url).chat.completions.create(
        model="any", messages=QUESTION, logprobs=True, extra_body={"return_token_ids": True}
    )
    assert answer.choices[0].logprobs
    assert answer.choices[0].logprobs.content
    assert answer.model_extra
    assert answer.model_extra["prompt_token_ids"] == toy_tokens("<user>How many?\x03<assistant>")


def test_an_answer_with_nothing_to_hide_goes_through_byte_for_byte(tmp_path: Path) -> None:
    whole = b'{"id": "x",  "odd":\t"\\u00e9", "choices": [{"index":0,"message":{"role":"assistant","content":"hi"}}]}'
    pieces = [b'data: {"choices":[{"index":0,"delta":{"content":"h', b'i"}}]}\n\n: a comment\n\ndata:  [DONE]\n\n']
    sent: dict[bool, RawAnswer] = {
        False: RawAnswer(whole, headers={"x-request-id": "up-1", "x-ratelimit-remaining-tokens": "9"}),
        True: RawAnswer(pieces, type="text/event-stream"),
    }
    with (
        RawServer(lambda path, headers, body: sent[bool(body.get("stream"))]) as server,
        RunningGateway(tmp_path) as gateway,
        httpx.Client(headers={"x-api-key": TOKEN}) as raw,
    ):
        gateway.publish(Endpoint(server.base_url, "hosted", "hosted", token_ids=False))
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        }
        more = {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}, "unknown": [1, None]}
        answer = raw.post(f"{gateway.url}/chat/completions", json={**body, **more})
        assert (answer.content, answer.headers["x-request-id"]) == (whole, "up-1")
        assert answer.headers["x-ratelimit-remaining-tokens"] == "9"
        assert raw.post(f"{gateway.url}/chat/completions", json={**body, "stream": True}).content == b"".join(pieces)
        assert server.requests[0][2] == {**body, **more, "model": "hosted"}
        first, second = gateway.spans(2)
        assert "image_url" in first.attributes[names.INPUT_MESSAGES]
        assert json.loads(second.attributes[names.OUTPUT_MESSAGES])[0]["content"] == "hi"


def test_embeddings_keep_their_model_and_are_recorded_without_texts(tmp_path: Path) -> None:
    vectors = {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}], "model": "e"}
    body = json.dumps({**vectors, "usage": {"prompt_tokens": 3, "total_tokens": 3}}).encode()
    with RawServer(lambda path, headers, asked: RawAnswer(body)) as server, RunningGateway(tmp_path) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team"))
        answer = client(gateway.url).embeddings.create(model="e5", input="cats", encoding_format="float")
        assert answer.data[0].embedding == [0.5]
        path, _, asked = server.requests[0]
        assert (path, asked["model"], "return_token_ids" in asked) == ("/v1/embeddings", "e5", False)
        (span,) = gateway.spans(1)
        assert (span.attributes[names.OPERATION], span.attributes[names.INPUT_TOKENS]) == (names.EMBEDDINGS, 3)
        assert "cats" not in str(span)


def test_models_are_those_of_the_endpoints(gateway: RunningGateway) -> None:
    assert {"tiny", "team"} <= {one.id for one in client(gateway.url).models.list()}


@pytest.mark.parametrize("stream", [False, True])
def test_sglang_is_asked_in_its_own_way_and_its_ids_are_hidden(tmp_path: Path, stream: bool) -> None:
    logprobs = {"content": [{"token": "h", "logprob": -0.5}, {"token": "i", "logprob": -0.25}]}
    extension = {"input_ids": [5, 6, 7], "output_ids": [[9, 8]], "other": 1}

    def answer(path: str, headers: dict[str, str], body: dict[str, Any]) -> RawAnswer:
        if body.get("return_token_ids"):
            return RawAnswer(b'{"error": {"message": "not for streamed chat"}}', 400)
        assert all(body[name] for name in ("return_input_ids_in_sglext", "return_output_ids_in_sglext", "logprobs"))
        choice = {"index": 0, "finish_reason": "stop", "logprobs": logprobs}
        if not stream:
            choice["message"] = {"role": "assistant", "content": "hi"}
            return RawAnswer(json.dumps({"id": "x", "choices": [choice], "sglext": extension}).encode())
        choice["delta"] = {"role": "assistant", "content": "hi"}
        events = [{"id": "x", "choices": [choice]}, {"id": "x", "choices": [], "sglext": extension}]
        return RawAnswer(
            [*(b"data: %s\n\n" % json.dumps(one).encode() for one in events), b"data: [DONE]\n\n"],
            type="text/event-stream",
        )

    settings = {"policies": {"team": {"engine": "sglang"}}}
    with RawServer(answer) as server, RunningGateway(tmp_path, settings) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team"))
        rollout, attempt = gateway.begin()
        body = {"model": "m", "messages": QUESTION, "stream": stream}
        seen = RAW.post(f"{gateway.attempt_url(rollout, attempt)}/chat/completions", json=body)
        assert seen.status_code == 200
        assert "sglext" not in seen.text
        assert "-0.5" not in seen.text
        assert "hi" in seen.text
        (span,) = gateway.spans(1)
        told = span.attributes
        assert (told[names.PROMPT_TOKENS], told[names.RESPONSE_TOKENS]) == ([5, 6, 7], [9, 8])
        assert told[names.LOGPROBS] == [-0.5, -0.25]


def test_the_pinned_prompt_and_the_rollouts_sampling_reach_the_model(
    gateway: RunningGateway, model: ScriptedModel
) -> None:
    prompt = Resource("how", ResourceKind.PROMPT, {"text": "Be brief.", "role": "coder"})
    gateway.do(lambda store: store.publish(prompt))
    rollout, attempt = gateway.begin(pins=("team", "how"), sampling={"temperature": 0, "max_tokens": 5})
    one = client(gateway.attempt_url(rollout, attempt, "coder"))
    one.chat.completions.create(model="any", messages=[{"role": "system", "content": "Chatter."}, *QUESTION])
    sent = model.requests[-1].body
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent["temperature"], sent["max_tokens"]) == (0, 5)
    (span,) = gateway.spans(1, rollout=rollout)
    assert (span.attributes[names.PROMPT_NAME], span.attributes[names.PROMPT_VERSION]) == ("how", 1)


def test_a_call_of_no_rollout_is_production_and_belongs_to_the_clients_trace(gateway: RunningGateway) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    one = client(gateway.url, default_headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    one.chat.completions.create(model="team", messages=QUESTION)

    async def of_trace(store: Any) -> list[Span]:
        return list((await store.list_spans(trace_id=trace)).items)

    deadline = time.monotonic() + 10
    while not (spans := gateway.do(of_trace)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [(span.parent_id, span.rollout_id) for span in spans] == [("b7ad6b7169203331", None)]


# Anthropic's Messages


def test_messages_for_a_server_that_has_them_go_through(tmp_path: Path, model: ScriptedModel) -> None:
    with RunningGateway(tmp_path, {"policies": {"team": {"messages": "served"}}}) as gateway:
        gateway.publish(model)
        one = anthropic.Anthropic(base_url=f"{gateway.root}/role/coder/anthropic", api_key=TOKEN, max_retries=0)
        answer = one.messages.create(model="any", max_tokens=9, system="Be brief.", messages=QUESTION)
        assert answer.content[0].text == "four of them"
        with one.messages.stream(model="any", max_tokens=9, messages=QUESTION) as stream:
            assert stream.get_final_text() == "four of them"
        assert model.requests[-1].path == "/v1/messages"
        first, second = gateway.spans(2)
        assert json.loads(first.attributes[names.INPUT_MESSAGES])[0] == {"role": "system", "content": "Be brief."}
        for span in (first, second):
            assert span.attributes[names.FINISH_REASONS] == ["stop"]
            assert json.loads(span.attributes[names.OUTPUT_MESSAGES])[0]["content"] == "four of them"


def test_an_anthropic_upstream_gets_its_own_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-ant-upstream-secret")
    body = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "content": [{"type": "text", "text": "hi"}],
    }
    body |= {"stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    settings = {"policies": {"hosted": {"messages": "anthropic"}}}
    answer = RawAnswer(json.dumps(body).encode())
    with RawServer(lambda *asked: answer) as server, RunningGateway(tmp_path, settings) as gateway:
        gateway.publish(Endpoint(server.base_url, "claude", "hosted", api_key_env="UPSTREAM_KEY", token_ids=False))
        one = anthropic.Anthropic(base_url=f"{gateway.root}/anthropic", api_key=TOKEN, max_retries=0)
        assert one.messages.create(model="any", max_tokens=9, messages=QUESTION).content[0].text == "hi"
        _, headers, asked = server.requests[0]
        assert (headers["x-api-key"], asked["model"]) == ("sk-ant-upstream-secret", "claude")
        assert headers["anthropic-version"]
        assert "authorization" not in headers
        assert TOKEN not in str(headers)
        (span,) = gateway.spans(1)
        assert "upstream-secret" not in str(span)


@pytest.mark.skipif(
    not (importlib.util.find_spec("litellm") and importlib.util.find_spec("mcp")), reason="litellm is not installed"
)
def test_messages_are_translated_and_give_token_ids(gateway: RunningGateway, model: ScriptedModel) -> None:
    rollout, attempt = gateway.begin()
    url = gateway.attempt_url(rollout, attempt, "coder").removesuffix("/v1") + "/anthropic"
    one = anthropic.Anthropic(base_url=url, api_key=TOKEN, max_retries=0, timeout=100)
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    answer = one.messages.create(model="any", max_tokens=9, messages=QUESTION, tools=[tool])
    assert [block.type for block in answer.content] == ["text", "tool_use"]
    with one.messages.stream(model="any", max_tokens=9, messages=QUESTION) as stream:
        assert stream.get_final_text() == "four of them"
    spans = gateway.spans(2, rollout=rollout)
    for span in spans:
        written = model.written[span.attributes[names.CALL_ID]]
        assert span.attributes[names.RESPONSE_TOKENS] == list(written.response_ids)
        assert span.attributes[names.ROLE] == "coder"


def test_an_attempt_of_production_is_recorded_too(gateway: RunningGateway) -> None:
    rollout, attempt = gateway.begin(Mode.PRODUCTION)
    client(gateway.attempt_url(rollout, attempt)).chat.completions.create(model="any", messages=QUESTION)
    (span,) = gateway.spans(1, rollout=rollout)
    assert span.attributes[names.RESPONSE_TOKENS] == toy_tokens("four of them\x03")
