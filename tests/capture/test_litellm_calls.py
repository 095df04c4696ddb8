"""LiteLLM: a role's endpoint is used, others learn whose call it is, and what nobody sees on the wire is recorded."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from coterie import conventions as names
from coterie.announced import AnnouncedCall, announce
from coterie.capture import faults, instrument, uninstrument
from coterie.prompts.versions import PromptVersion
from coterie.roles import acting_as, child_identity
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Span

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks the internet
litellm = pytest.importorskip("litellm")
from litellm import acompletion, completion  # noqa: E402 - bound before capture is switched on

ANSWER = {"content": "four of them", "tool_calls": [{"name": "look", "arguments": {"table": "cats"}}]}
MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How many?"}]
OTHER = "anthropic/claude-3-5-sonnet-20240620"
"""A model that LiteLLM reaches without the OpenAI SDK."""


@pytest.fixture(autouse=True)
def _captured() -> Iterator[None]:
    faults._noted.clear()
    instrument()
    yield
    uninstrument()


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda _: ANSWER, policy_version=7) as server:
        yield server


def asked(model: ScriptedModel, name: str = OTHER, **more: Any) -> dict[str, Any]:
    place = model.base_url + ("/messages" if name == OTHER else "")
    return {"model": name, "messages": MESSAGES, "api_base": place, "api_key": "sk-user-secret-key", **more}


def only(sink: ListSink) -> Span:
    (span,) = sink.spans
    return span


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def call(way: str, arguments: dict[str, Any]) -> str:
    """The text that the user gets."""
    if way == "sync":
        return str(completion(**arguments).choices[0].message.content)
    if way == "sync streamed":
        return text_of(list(completion(**arguments, stream=True)))
    if way == "async":
        return str((await acompletion(**arguments)).choices[0].message.content)
    return text_of([chunk async for chunk in await acompletion(**arguments, stream=True)])


WAYS = pytest.mark.parametrize("way", ["sync", "sync streamed", "async", "async streamed"])


@WAYS
async def test_a_call_that_capture_does_not_see_is_recorded(model: ScriptedModel, way: str) -> None:
    sink, arguments = ListSink(), asked(model, temperature=0.5, max_tokens=9)
    before = copy.deepcopy(arguments)
    with attempt_scope(scope_for_test(sink)) as scope, acting_as("Coder"):
        assert await call(way, arguments) == "four of them"
    assert arguments == before
    (request,) = model.requests
    assert request.path == "/v1/messages"
    said = only(sink).attributes
    assert (said[names.ROLE], said[names.TURN], said[names.REQUEST_MODEL]) == ("coder", 0, OTHER)
    assert said[names.CALL_ID] == request.headers[names.HEADER_CALL_ID] == scope.calls[0].call_id
    assert request.headers[names.HEADER_ROLE] == "coder"
    assert request.headers[names.HEADER_ATTEMPT_ID] == "at-test"
    assert json.loads(said[names.INPUT_MESSAGES]) == MESSAGES
    (message,) = json.loads(said[names.OUTPUT_MESSAGES])
    assert message["content"] == "four of them"
    assert message["tool_calls"][0]["function"]["name"] == "look"
    assert said[names.FINISH_REASONS] == ["tool_calls"]
    assert (said[names.REQUEST_TEMPERATURE], said[names.REQUEST_MAX_TOKENS]) == (0.5, 9)
    assert said[names.PROVIDER] == "anthropic"


@WAYS
@pytest.mark.parametrize("name", [OTHER, "openai/gpt-x"])
async def test_a_role_with_an_endpoint_goes_there_and_gives_tokens(model: ScriptedModel, way: str, name: str) -> None:
    sink = ListSink()
    fields = {
        "endpoints": {"team": Endpoint(model.base_url, "small", "team", sampling={"temperature": 1.0})},
        "prompts": [PromptVersion("coder.prompt", 4, "Be exact.", "coder")],
        "sampling": {"max_tokens": 3},
    }
    arguments = asked(model, name, temperature=0.5)
    arguments["api_base"] = "http://127.0.0.1:9/v1"
    before = copy.deepcopy(arguments)
    with attempt_scope(scope_for_test(sink, **fields)), acting_as("Coder"):
        assert await call(way, arguments) == "four of them"
    assert arguments == before
    (request,) = model.requests
    assert request.path == "/v1/chat/completions"
    assert "sk-user-secret-key" not in json.dumps(dict(request.headers))
    body = request.body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("small", 1.0, 3)
    assert body["messages"][0] == {"role": "system", "content": "Be exact."}
    said = only(sink).attributes
    assert (said[names.POLICY_NAME], said[names.POLICY_VERSION], said[names.PROMPT_VERSION]) == ("team", 7, 4)
    assert said[names.PROMPT_TOKENS]
    assert len(said[names.RESPONSE_TOKENS]) == len(said[names.LOGPROBS])


async def test_what_the_openai_sdk_sends_is_recorded_once(model: ScriptedModel) -> None:
    for way in ("sync", "sync streamed", "async", "async streamed"):
        sink = ListSink()
        with attempt_scope(scope_for_test(sink)) as scope, acting_as("Coder"):
            await call(way, asked(model, "openai/gpt-x"))
        assert only(sink).attributes[names.CALL_ID] == model.requests[-1].headers[names.HEADER_CALL_ID]
        assert len(scope.calls) == 1


def test_prompt_and_sampling_without_an_endpoint(model: ScriptedModel) -> None:
    sink = ListSink()
    fields = {"prompts": [PromptVersion("coder.prompt", 4, "Be exact.", "coder")], "sampling": {"temperature": 0.0}}
    with attempt_scope(scope_for_test(sink, **fields)), acting_as("Coder"):
        completion(**asked(model, extra_headers={"x-mine": "1"}))
    (request,) = model.requests
    assert (request.body["temperature"], request.body["system"][0]["text"]) == (0.0, "Be exact.")
    assert request.headers["x-mine"] == "1"
    said = only(sink).attributes
    assert (said[names.PROMPT_NAME], said[names.PROMPT_VERSION]) == ("coder.prompt", 4)
    assert said[names.REQUEST_TEMPERATURE] == 0.0
    assert json.loads(said[names.INPUT_MESSAGES])[0]["content"] == "Be exact."


def test_a_call_that_a_plugin_announced_is_the_plugins_to_record(model: ScriptedModel) -> None:
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        told = AnnouncedCall(child_identity("Reviewer"))
        announce(told)
        completion(**asked(model))
        told.ended = True
    assert sink.spans == []
    assert model.requests[0].headers[names.HEADER_ROLE] == "reviewer"


@WAYS
async def test_errors_pass_unchanged_and_are_recorded(way: str) -> None:
    with ScriptedModel(lambda _: 401) as model:
        sink = ListSink()
        with attempt_scope(scope_for_test(sink)), pytest.raises(litellm.AuthenticationError) as seen:
            await call(way, asked(model, num_retries=0))
        uninstrument()
        with pytest.raises(litellm.AuthenticationError) as expected:
            await call(way, asked(model, num_retries=0))
    assert str(seen.value) == str(expected.value)
    assert only(sink).attributes[names.ERROR_TYPE] in ("AuthenticationError", "AnthropicError")


def test_a_stream_that_is_left_behind_is_recorded(model: ScriptedModel) -> None:
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        stream = completion(**asked(model), stream=True)
        assert isinstance(stream, litellm.CustomStreamWrapper)
        next(stream)
        del stream
        gc.collect()
        half = completion(**asked(model), stream=True)
        next(half)
    with attempt_scope(scope := scope_for_test(sink)):
        open_stream = completion(**asked(model), stream=True)
        scope.end_open_calls()
        list(open_stream)
    assert len(sink.spans) == 2


async def test_identity_holds_in_parallel(model: ScriptedModel) -> None:
    sink = ListSink()

    async def run(number: int) -> None:
        with acting_as(f"agent {number}"):
            words = [{"role": "user", "content": f"agent_{number}"}]
            await acompletion(**asked(model) | {"messages": words})

    with attempt_scope(scope_for_test(sink)):
        await asyncio.gather(*map(run, range(12)))
    assert len(sink.spans) == 12
    for span in sink.spans:
        (message,) = json.loads(span.attributes[names.INPUT_MESSAGES])
        assert message["content"] == span.attributes[names.ROLE]
    for request in model.requests:
        assert request.headers[names.HEADER_ROLE] in json.dumps(request.body)


def test_uninstrument_restores_it_and_a_fault_of_ours_is_not_seen(
    model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.capture import litellm_sdk

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("our fault")

    for part in ("_Call", "read_answer", "identity_headers", "ChoicesAssembler", "record_told_answer"):
        with monkeypatch.context() as patched:
            patched.setattr(litellm_sdk, part, broken)
            assert completion(**asked(model)).choices[0].message.content == "four of them"
            assert text_of(list(completion(**asked(model), stream=True))) == "four of them"
    uninstrument()
    cell = litellm_sdk._cell_of_original(sys.modules["litellm.main"].completion)
    assert cell.cell_contents.__module__ == "litellm.main"
    assert not hasattr(cell.cell_contents, "off")
    model.requests.clear()
    completion(**asked(model))
    assert names.HEADER_CALL_ID not in model.requests[0].headers


def test_capture_alone_imports_no_sdk() -> None:
    program = (
        "import sys, coterie; coterie.instrument(); "
        "assert not {'litellm', 'anthropic', 'openai'} & set(sys.modules), 'imported'; coterie.uninstrument()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
