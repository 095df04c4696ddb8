"""What leaves the hook: masked texts, no texts at all, never a key."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import openai
import pytest

from coterie import conventions as names
from coterie.capture import instrument, uninstrument
from coterie.capture.content import ContentRules
from coterie.scope import attempt_scope
from coterie.testing import Fault, ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Mode

pytestmark = pytest.mark.usefixtures("captured")

SECRET = "4111-1111"
MESSAGES = [
    {"role": "system", "content": f"The card is {SECRET}."},
    {"role": "user", "content": [{"type": "text", "text": f"Pay with {SECRET}"}]},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "pay", "arguments": f'{{"card":"{SECRET}"}}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": f"paid with {SECRET}"},
]
ANSWER = {"content": f"I used {SECRET}", "tool_calls": [{"name": "pay", "arguments": {"card": SECRET}}]}


def mask_card(text: str) -> str:
    return re.sub(r"\d{4}-\d{4}", "####", text)


def record(mode: Mode = Mode.TEST, *, stream: bool = False, answer: Any = ANSWER) -> tuple[ListSink, str, list[str]]:
    """The sink, what the server got, and the texts that reward code sees."""
    sink = ListSink()
    with ScriptedModel(lambda _: answer) as model:
        scope = scope_for_test(sink, mode=mode, endpoints={"e": Endpoint(model.base_url, "policy", "team")})
        client = openai.OpenAI(api_key="sk-user-secret-key", max_retries=0)
        tools = [{"type": "function", "function": {"name": "pay", "description": f"pays with {SECRET}"}}]
        with attempt_scope(scope):
            created = client.chat.completions.create(model="m", messages=MESSAGES, tools=tools, stream=stream)
            if stream:
                list(created)
        return sink, str(model.requests[0].body), [call.text for call in scope.calls]


@pytest.mark.parametrize("stream", [False, True])
def test_masked(stream: bool) -> None:
    instrument(mask=mask_card)
    sink, sent, texts = record(stream=stream)
    said = sink.spans[0].attributes
    assert SECRET in sent
    assert SECRET not in str(sink.spans)
    assert texts == ["I used ####"]
    messages = json.loads(said[names.INPUT_MESSAGES])
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool"]
    assert messages[0]["content"] == "The card is ####."
    assert "####" in said[names.OUTPUT_MESSAGES]
    assert names.PROMPT_TOKENS not in said
    assert names.RESPONSE_TOKENS not in said


def test_token_ids_are_kept_in_mode_train_whatever_the_rules() -> None:
    instrument(mask=mask_card, capture_content=False)
    sink, _, _ = record(Mode.TRAIN)
    said = sink.spans[0].attributes
    assert said[names.PROMPT_TOKENS]
    assert len(said[names.RESPONSE_TOKENS]) == len(said[names.LOGPROBS])
    assert names.INPUT_MESSAGES not in said


def test_a_mask_that_raises_lets_nothing_through() -> None:
    def broken(text: str) -> str:
        raise ValueError(text)

    instrument(mask=broken)
    sink, _, _ = record()
    assert SECRET not in str(sink.spans)
    assert "[mask failed]" in sink.spans[0].attributes[names.INPUT_MESSAGES]


def test_without_content() -> None:
    instrument(capture_content=False)
    sink, _, _ = record()
    said = sink.spans[0].attributes
    assert SECRET not in str(sink.spans)
    for name in (names.INPUT_MESSAGES, names.OUTPUT_MESSAGES, names.TOOL_DEFINITIONS, names.PROMPT_TOKENS):
        assert name not in said
    assert said[names.OUTPUT_TOKENS] > 0
    assert said[names.FINISH_REASONS] == ["tool_calls"]


def test_rules_only_get_stricter() -> None:
    instrument(mask=mask_card)
    instrument()
    assert SECRET not in str(record()[0].spans)
    uninstrument()
    instrument()
    assert SECRET in str(record()[0].spans)


@pytest.mark.parametrize("stream", [False, True])
def test_no_key_in_a_span_even_if_the_server_repeats_it(stream: bool) -> None:
    def angry(_: object) -> Any:
        raise PermissionError("Incorrect API key provided: sk-user-secret-key, also not coterie-no-key")

    sink = ListSink()
    with ScriptedModel(angry) as model, attempt_scope(scope_for_test(sink)):
        client = openai.OpenAI(base_url=model.base_url, api_key="sk-user-secret-key", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="sk-user-secret-key"):
            client.chat.completions.create(model="m", messages=MESSAGES, stream=stream)
    assert "Incorrect API key" in sink.spans[0].status_message
    assert "sk-user-secret-key" not in str(sink.spans)


def test_an_error_that_the_server_writes_into_a_stream() -> None:
    body = {"error": {"message": f"cannot pay with {SECRET}"}, "choices": []}
    instrument(mask=mask_card)
    sink, _, texts = record(answer=body)
    assert sink.spans[0].attributes[names.ERROR_TYPE] == "APIError"
    assert sink.spans[0].status_message == "cannot pay with ####"
    assert texts == []


def test_an_empty_stream() -> None:
    sink, _, texts = record(answer=Fault.EMPTY, stream=True)
    assert names.OUTPUT_MESSAGES not in sink.spans[0].attributes
    assert texts == [""]


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Opaque:
    text: str

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    "value",
    [
        {"content": "ünï", "n": [1, 2.5, True, None]},
        {1: "a key that is no text"},
        {"half": "\ud800"},
        {"point": Point(1, 2), "pair": (1, 2)},
        {"dataclass": Opaque("a"), "date": datetime(2026, 1, 2), "large": 2**70},
        {"mode": Mode.TRAIN},
    ],
    ids=["plain", "key", "surrogate", "tuple", "objects", "enum"],
)
def test_messages_are_written_as_json_would_write_them(value):
    expected = json.loads(json.dumps(value, default=str))
    rules = ContentRules()

    assert json.loads(rules.json_text([value])) == [expected]
    assert json.loads(rules.arguments_text(value)) == expected
    assert json.loads(ContentRules(mask=lambda text: text).json_text([{"content": "ünï"}])) == [{"content": "ünï"}]
