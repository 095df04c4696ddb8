"""The gateway puts the active prompts of a role into calls that belong to no rollout, if its settings say so, and leaves
those be that the program has placed by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gateway_parts import TOKEN, RunningGateway, client

import coterie
from coterie import conventions as names
from coterie.prompts.versions import PromptVersion
from coterie.roles import acting_as
from coterie.scope import attempt_scope
from coterie.store.base import Store
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Resource, ResourceKind, ResourceStatus

MESSAGES: list[Any] = [{"role": "system", "content": "mine"}, {"role": "user", "content": "How many?"}]


async def published(store: Store) -> None:
    """An active prompt of the coder and one of its examples; a candidate; two that contend for the judge's place."""
    for name, text, role, part, status in (
        ("coder", "Be exact.", "coder", "system", ResourceStatus.ACTIVE),
        ("coder", "Be quick.", "coder", "system", ResourceStatus.CANDIDATE),
        ("coder/examples", "Q, A", "coder", "examples", ResourceStatus.ACTIVE),
        ("judge-a", "A.", "judge", "system", ResourceStatus.ACTIVE),
        ("judge-b", "B.", "judge", "system", ResourceStatus.ACTIVE),
    ):
        content = {"text": text, "role": role, "part": part}
        await store.publish(Resource(name, ResourceKind.PROMPT, content, status=status))


def test_calls_of_no_rollout_get_the_active_prompts_by_role_header(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "4") as model, RunningGateway(tmp_path, {"apply_prompts": True}) as gateway:
        gateway.do(published)
        gateway.publish(model)
        for role in ("coder", "judge", "nobody"):
            headers = {names.HEADER_ROLE: role}
            client(gateway.url).chat.completions.create(model="any", messages=MESSAGES, extra_headers=headers)
        systems = [request.body["messages"][0]["content"] for request in model.requests]
        coder, *others = sorted(gateway.spans(3), key=lambda span: span.start_ns)
    assert systems == ["Be exact.\n\nQ, A", "mine", "mine"]
    assert (coder.attributes[names.PROMPT_NAME], coder.attributes[names.PROMPT_VERSION]) == ("coder", 1)
    assert json.loads(coder.attributes[names.PROMPT_PARTS]) == {"examples": ["coder/examples", 1]}
    assert not any(names.PROMPT_NAME in span.attributes for span in others)


def test_without_the_setting_nothing_is_put_in(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "4") as model, RunningGateway(tmp_path) as gateway:
        gateway.do(published)
        gateway.publish(model)
        headers = {names.HEADER_ROLE: "coder"}
        client(gateway.url).chat.completions.create(model="any", messages=MESSAGES, extra_headers=headers)
    assert model.requests[0].body["messages"] == MESSAGES


def test_what_the_program_has_placed_stays(tmp_path: Path) -> None:
    """A rollout's agent sends its pinned prompt within a longer text; without its word the gateway puts the prompt alone."""
    with ScriptedModel(lambda body: "4") as model, RunningGateway(tmp_path) as gateway:
        gateway.do(published)
        gateway.publish(model)
        rollout, attempt = gateway.begin(pins=("team", "coder"))
        url = gateway.attempt_url(rollout, attempt, "coder")
        scope = scope_for_test(ListSink(), prompts=[PromptVersion("coder", 1, "Be exact.", "coder")])
        coterie.instrument()
        try:
            with attempt_scope(scope), acting_as("Coder"):
                mine = f"{coterie.prompt('coder')} Today is Monday."
                asked: list[Any] = [{"role": "system", "content": mine}, MESSAGES[1]]
                client(url, api_key=TOKEN).chat.completions.create(model="any", messages=asked)
        finally:
            coterie.uninstrument()
        client(url, api_key=TOKEN).chat.completions.create(model="any", messages=asked)
    assert [request.body["messages"][0]["content"] for request in model.requests] == [mine, "Be exact."]
