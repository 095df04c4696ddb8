"""Given answers through Anthropic's SDK, and calls that no hook sees, which a replay cannot answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.replays import Replay, Replaying, recorded
from coterie.roles import acting_as
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Mode

pytestmark = pytest.mark.usefixtures("captured")

QUESTION = [{"role": "user", "content": "How many?"}]
ANSWER = {"content": "I look", "tool_calls": [{"name": "look", "arguments": {"table": "cats"}}]}


def plain(client: Any) -> Any:
    return client.messages.create(model="m", max_tokens=50, messages=QUESTION)


def streamed(client: Any) -> Any:
    with client.messages.stream(model="m", max_tokens=50, messages=QUESTION) as stream:
        heard = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert heard == message.content[0].text
    return message


def played(way: Callable[[Any], Any], client: Any, **fields: Any) -> tuple[Any, Episode]:
    sink = ListSink()
    with attempt_scope(scope_for_test(sink, **fields)), acting_as("solver"):
        message = way(client)
    said = [getattr(block, "text", None) or (block.id, block.name, block.input) for block in message.content]
    return [*said, message.stop_reason], build_episode("t", "at-test", "ro-test", sink.spans, ())


@pytest.mark.parametrize("way", [plain, streamed])
def test_anthropics_messages_are_given_again_and_masked(way):
    anthropic = pytest.importorskip("anthropic")
    with ScriptedModel(lambda body: ANSWER) as model:
        url = model.base_url.removesuffix("/v1")
        client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=10)
        said, then = played(way, client)
        replay = Replaying(recorded(then, Replay("ro-test", "at-test", 1), Mode.TRAIN))
        again, now = played(way, client, replay=replay)
        wanted = Replay("ro-test", "at-test", 0, masked_role="solver", mask_text="nothing")
        masked, _ = played(way, client, replay=Replaying(recorded(then, wanted, Mode.TRAIN)))
        assert len(model.requests) == 1
    assert again == said
    assert now.turns[0].output == then.turns[0].output
    assert replay.end() is None
    assert masked == ["nothing", "end_turn"]


def test_a_call_past_the_hooked_sdks_makes_a_replay_useless_and_says_so():
    litellm = pytest.importorskip("litellm")

    def other(_: Any) -> Any:
        reply = litellm.completion("anthropic/m", messages=QUESTION, api_key="none", api_base=url, num_retries=0)
        return type("Message", (), {"content": [], "stop_reason": reply.choices[0].finish_reason})

    with ScriptedModel(lambda body: "four") as model:
        url = model.base_url.removesuffix("/v1")
        _, then = played(other, None)
        replay = Replaying(recorded(then, Replay("ro-test", "at-test", 1), Mode.TRAIN))
        played(other, None, replay=replay)
    assert "solver called its model past the SDKs" in str(replay.end())
