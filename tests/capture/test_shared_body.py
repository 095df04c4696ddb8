"""An answer's JSON is parsed once, and the user's code never notices."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

import coterie
from coterie.capture import shared_body
from coterie.conventions import CHAT, OUTPUT_MESSAGES
from coterie.scope import attempt_scope
from coterie.testing import Fault, Reply, ScriptedModel
from coterie.testing.sink import ListSink, scope_for_test


@pytest.fixture
def client():
    with ScriptedModel(lambda body: body["messages"][-1]["content"].upper()) as model:
        coterie.instrument()
        with openai.OpenAI(base_url=model.base_url, api_key="k", max_retries=0) as client:
            yield client
        coterie.uninstrument()


def ask(client, **arguments):
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}], **arguments)


@pytest.mark.parametrize("raw", [False, True])
def test_the_sdk_and_we_parse_it_once_together(client, monkeypatch, raw):
    sink, parsed = ListSink(), []
    value_of = shared_body._value_of
    monkeypatch.setattr(shared_body, "_value_of", lambda content: parsed.append(1) or value_of(content))
    monkeypatch.setattr(httpx.Response, "json", lambda *_, **__: parsed.append("by httpx"))
    with attempt_scope(scope_for_test(sink)):
        ask(client)
        parsed.clear()
        if raw:
            response = client.chat.completions.with_raw_response.create(
                model="m", messages=[{"role": "user", "content": "hello"}]
            )
            answer = response.parse()
        else:
            answer = ask(client)
    recorded = json.loads(sink.of(CHAT)[-1].attributes[OUTPUT_MESSAGES])

    assert parsed == [1]
    assert answer.choices[0].message.content == "HELLO" == recorded[0]["content"]


def test_what_the_user_gets_from_the_response_is_their_own(client):
    response = client.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "hello"}]
    ).http_response
    first, second = response.json(), response.json()
    first["choices"].clear()

    assert second["choices"][0]["message"]["content"] == "HELLO"
    assert response.json(parse_int=str)["usage"]["total_tokens"] == str(second["usage"]["total_tokens"])
    assert response.json() == json.loads(response.content)


def test_a_body_that_is_no_json_fails_as_it_does_without_us():
    with ScriptedModel(lambda body: Reply(fault=Fault.RUBBISH)) as model:
        plain, recorded = [], []
        for outcomes, on in ((plain, False), (recorded, True)):
            if on:
                coterie.instrument()
            try:
                with openai.OpenAI(base_url=model.base_url, api_key="k", max_retries=0) as client:
                    with pytest.raises(Exception) as caught:  # noqa: PT011
                        ask(client)
                    outcomes.append((type(caught.value), str(caught.value)))
            finally:
                coterie.uninstrument()

    assert plain == recorded


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": NaN}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "\\ud800"}',
        b'{"a": 1, "a": 2}',
        b"[1.5, 1e400, -0.0, 0.1, 2.2250738585072014e-308]",
        b"[18446744073709551616, -9223372036854775809, 123456789012345678901234567890]",
    ],
)
def test_it_takes_all_that_json_takes(content):
    assert repr(shared_body._value_of(content)) == repr(json.loads(content))
