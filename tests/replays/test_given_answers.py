"""A call that gets its answer without a server: the program cannot tell, and the span says that no model answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest

from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.replays import Replay, Replaying, recorded
from coterie.roles import acting_as
from coterie.scope import AttemptScope, attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Mode

pytestmark = pytest.mark.usefixtures("captured")

QUESTION = [{"role": "user", "content": "How many?"}]
LOOK = {"name": "look", "arguments": {"table": "cats"}}
ANSWERS = {
    "text": {"content": "four of them"},
    "tool": {"content": "", "tool_calls": [LOOK]},
    "both": {"content": "I look", "tool_calls": [LOOK, {"name": "look", "arguments": {}}]},
}


def said_in_chat(message: Any) -> list[Any]:
    return [
        message.content or "",
        *((call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()),
    ]


def chat(client: openai.OpenAI) -> Any:
    return said_in_chat(client.chat.completions.create(model="m", messages=QUESTION).choices[0].message)


def chat_raw(client: openai.OpenAI) -> Any:
    raw = client.chat.completions.with_raw_response.create(model="m", messages=QUESTION)
    return said_in_chat(raw.parse().choices[0].message)


def chat_unread(client: openai.OpenAI) -> Any:
    with client.chat.completions.with_streaming_response.create(model="m", messages=QUESTION) as response:
        return said_in_chat(response.parse().choices[0].message)


def chat_streamed(client: openai.OpenAI) -> Any:
    with client.chat.completions.stream(model="m", messages=QUESTION, stream_options={"include_usage": True}) as stream:
        whole = stream.get_final_completion()
    assert whole.usage is not None
    return [*said_in_chat(whole.choices[0].message), whole.choices[0].finish_reason]


def said_in_response(response: Any) -> list[Any]:
    calls = [(item.call_id, item.name, item.arguments) for item in response.output if item.type == "function_call"]
    return [response.output_text, *calls, response.status]


def responses(client: openai.OpenAI) -> Any:
    return said_in_response(client.responses.create(model="m", input="How many?", instructions="Count."))


def responses_streamed(client: openai.OpenAI) -> Any:
    with client.responses.stream(model="m", input=QUESTION) as stream:
        heard = [event.delta for event in stream if event.type == "response.output_text.delta"]
        response = stream.get_final_response()
    assert "".join(heard) == response.output_text
    return said_in_response(response)


def completions(client: openai.OpenAI) -> Any:
    choice = client.completions.create(model="m", prompt="How many?").choices[0]
    return [choice.text, choice.finish_reason]


def completions_streamed(client: openai.OpenAI) -> Any:
    chunks = list(client.completions.create(model="m", prompt="How many?", stream=True))
    return ["".join(chunk.choices[0].text for chunk in chunks)]


WAYS = [chat, chat_raw, chat_unread, chat_streamed, responses, responses_streamed, completions, completions_streamed]


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=10)


def episode_of(scope: AttemptScope) -> Episode:
    assert isinstance(scope.sink, ListSink)
    return build_episode("t", "at-test", "ro-test", scope.sink.spans, ())


def played(way: Callable[[openai.OpenAI], Any], url: str, **fields: Any) -> tuple[Any, Episode, AttemptScope]:
    endpoint = Endpoint(url, model="policy", policy="team", version=3)
    scope = scope_for_test(endpoints={"team": endpoint}, **fields)
    with attempt_scope(scope), acting_as("solver"):
        said = way(client("http://127.0.0.1:9/v1"))
    return said, episode_of(scope), scope


CASES = [(way, answer) for way in WAYS for answer in ANSWERS if answer == "text" or "completions" not in way.__name__]
"""Legacy completions know no tools."""


@pytest.mark.parametrize(("way", "answer"), CASES)
def test_the_recorded_answer_is_given_again_without_a_server(way, answer):
    with ScriptedModel(lambda body: ANSWERS[answer], policy_version=7) as model:
        said, episode, _ = played(way, model.base_url)
    (then,) = episode.turns
    assert then.response_ids
    replay = Replaying(recorded(episode, Replay("ro-test", "at-test", frozen=1), Mode.TRAIN))
    again, replayed, scope = played(way, "http://127.0.0.1:9/v1", replay=replay)
    (now,) = replayed.turns
    assert again == said
    for name in (
        "text",
        "output",
        "prompt_ids",
        "response_ids",
        "logprobs",
        "finish_reason",
        "policy",
        "policy_version",
    ):
        assert getattr(now, name) == getattr(then, name), name
    assert (now.answered_by, now.trainable, now.error) == ("recording", False, None)
    assert scope.calls[0].text == then.text
    assert replay.end() is None


@pytest.mark.parametrize("way", WAYS)
def test_a_masked_call_gets_the_text_and_no_token_ids(way):
    with ScriptedModel(lambda body: "four of them") as model:
        _, episode, _ = played(way, model.base_url)
    wanted = Replay("ro-test", "at-test", frozen=0, masked_role="solver", mask_text="nothing")
    replay = Replaying(recorded(episode, wanted, Mode.TRAIN))
    said, replayed, _ = played(way, "http://127.0.0.1:9/v1", replay=replay)
    (turn,) = replayed.turns
    assert "nothing" in said
    assert (turn.text, turn.answered_by, turn.trainable) == ("nothing", "mask", False)
    assert (turn.prompt_ids, turn.policy, turn.policy_version) == (None, None, None)
    assert replay.end() is None


async def test_async_clients_get_given_answers_as_well():
    async def ask(url: str, scope: AttemptScope) -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=10) as client:
            with attempt_scope(scope), acting_as("solver"):
                whole = await client.chat.completions.create(model="m", messages=QUESTION)
                pieces = await client.chat.completions.create(model="m", messages=[*QUESTION, *QUESTION], stream=True)
                streamed = [chunk.choices[0].delta.content or "" async for chunk in pieces]
        return [whole.choices[0].message.content or "", "".join(streamed)]

    with ScriptedModel(lambda body: f"answer {len(body['messages'])}") as model:
        scope = scope_for_test()
        assert await ask(model.base_url, scope) == ["answer 1", "answer 2"]
    replay = Replaying(recorded(episode_of(scope), Replay("ro-test", "at-test", frozen=2), Mode.TRAIN))
    again = scope_for_test(replay=replay)
    assert await asyncio.wait_for(ask("http://127.0.0.1:9/v1", again), 20) == ["answer 1", "answer 2"]
    assert replay.end() is None
    assert {span.attributes[names.ANSWERED_BY] for span in again.sink.of(names.CHAT)} == {"recording"}
