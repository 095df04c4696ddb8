"""Pinned prompts in requests: each part in its place in each API, the user's objects untouched, what was used in the span.

Real SDKs against a scripted model behind a real socket.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

import coterie
from coterie import conventions as names
from coterie.assembly import build_episode
from coterie.capture import faults, instrument, uninstrument
from coterie.errors import PromptError
from coterie.prompts.asking import GivenPrompts
from coterie.prompts.versions import PromptVersion, prompt_in
from coterie.roles import acting_as
from coterie.scope import AttemptScope, attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Resource, ResourceKind

EXACT = 'Be exact.\nAnswer as {"answer": {"n": 1}}, not as f"{n}" or {{ n }}. "é" 漢🙂'
SYSTEM = PromptVersion("coder", 3, EXACT, "coder")
EXAMPLES = PromptVersion("coder/examples", 2, "Q: 1 + 1\nA: 2", "coder", "examples")
SEARCH = PromptVersion("coder/tool/search", 5, "Looks things up.", "coder", "tool/search")
FILLED = PromptVersion("coder", 4, "Write {{language}}, and only {{language}}.", "coder", "system", ("language",))

USER = {"role": "user", "content": "How many?"}
PARAMETERS = {"type": "object", "properties": {}}


@pytest.fixture(autouse=True)
def _captured() -> Iterator[None]:
    faults._noted.clear()
    instrument()
    yield
    uninstrument()


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda _: "4") as server:
        yield server


def scope_with(*prompts: PromptVersion, role: str = "coder") -> AttemptScope:
    return scope_for_test(ListSink(), prompts=prompts)


def chat(model: ScriptedModel, scope: AttemptScope, messages: list[Any], **request: Any) -> dict[str, Any]:
    """What the server gets of a chat request of the agent Coder."""
    with attempt_scope(scope), acting_as("Coder"), openai.OpenAI(base_url=model.base_url, api_key="k") as client:
        client.chat.completions.create(model="m", messages=messages, **request)
    return dict(model.requests[-1].body)


def used(scope: AttemptScope) -> tuple[Any, Any, Any]:
    """Name, version and parts of the last call's span."""
    attributes = scope.sink.spans[-1].attributes  # type: ignore[attr-defined]
    return tuple(attributes.get(name) for name in (names.PROMPT_NAME, names.PROMPT_VERSION, names.PROMPT_PARTS))


CHAT_TOOLS = [
    {"type": "function", "function": {"name": "search", "description": "old", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "other", "description": "kept", "parameters": PARAMETERS}},
]


def test_all_parts_in_chat_completions(model: ScriptedModel) -> None:
    messages, tools = [{"role": "system", "content": "old"}, USER], copy.deepcopy(CHAT_TOOLS)
    before = copy.deepcopy((messages, tools))
    scope = scope_with(SYSTEM, EXAMPLES, SEARCH)
    body = chat(model, scope, messages, tools=tools)
    assert body["messages"] == [{"role": "system", "content": f"{EXACT}\n\nQ: 1 + 1\nA: 2"}, USER]
    assert [tool["function"]["description"] for tool in body["tools"]] == ["Looks things up.", "kept"]
    assert (messages, tools) == before
    assert used(scope)[:2] == ("coder", 3)
    (turn,) = build_episode("t", "at-test", "ro-test", scope.sink.spans, ()).turns  # type: ignore[attr-defined]
    assert (turn.prompt_name, turn.prompt_version) == ("coder", 3)
    assert turn.prompt_parts == {"examples": ("coder/examples", 2), "tool/search": ("coder/tool/search", 5)}


def test_all_parts_in_the_responses_api(model: ScriptedModel) -> None:
    tools: list[Any] = [{"type": "function", "name": "search", "description": "old", "parameters": PARAMETERS}]
    given = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "old"}, {"type": "input_text", "text": "too"}],
        },
        USER,
    ]
    before = copy.deepcopy((given, tools))
    scope = scope_with(EXAMPLES, SEARCH)
    with attempt_scope(scope), acting_as("Coder"), openai.OpenAI(base_url=model.base_url, api_key="k") as client:
        client.responses.create(model="m", input=given, tools=tools)  # type: ignore[arg-type]
        client.responses.create(model="m", input="How many?", instructions="Mine.", tools=tools)
    first, second = (request.body for request in model.requests)
    assert first["input"][0]["content"] == [*before[0][0]["content"], {"type": "input_text", "text": EXAMPLES.text}]  # type: ignore[index]
    assert (first["tools"][0]["description"], first.get("instructions")) == ("Looks things up.", None)
    assert second["instructions"] == f"Mine.\n\n{EXAMPLES.text}"
    assert (given, tools) == before
    assert json.loads(used(scope)[2]) == {"examples": ["coder/examples", 2], "tool/search": ["coder/tool/search", 5]}
    assert used(scope)[0] is None


def test_all_parts_in_anthropics_messages(model: ScriptedModel) -> None:
    tools: list[Any] = [{"name": "search", "description": "old", "input_schema": PARAMETERS}]
    system: list[Any] = [{"type": "text", "text": "old", "cache_control": {"type": "ephemeral"}}]
    before, scope = copy.deepcopy((system, tools)), scope_with(EXAMPLES, SEARCH)
    client = anthropic.Anthropic(base_url=model.base_url.removesuffix("/v1"), api_key="k")
    ask: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "How many?"}]}
    with attempt_scope(scope), acting_as("Coder"), client:
        client.messages.create(**ask, system=system, tools=tools)
    with attempt_scope(scope_with(SYSTEM)), acting_as("Coder"):
        client = anthropic.Anthropic(base_url=model.base_url.removesuffix("/v1"), api_key="k")
        client.messages.create(**ask)
    first, second = (request.body for request in model.requests)
    assert first["system"] == [*before[0], {"type": "text", "text": EXAMPLES.text}]
    assert first["tools"][0]["description"] == "Looks things up."
    assert second["system"] == EXACT
    assert (system, tools) == before
    assert json.loads(used(scope)[2]).keys() == {"examples", "tool/search"}


def test_another_role_and_a_tool_that_is_not_offered_are_left_alone(model: ScriptedModel) -> None:
    scope = scope_with(PromptVersion("judge", 1, "Judge.", "judge"), SEARCH)
    body = chat(model, scope, [USER])
    assert body == {"model": "m", "messages": [USER]}
    assert used(scope) == (None, None, None)


def test_no_examples_leave_the_request_as_it_is_and_count_as_used(model: ScriptedModel) -> None:
    scope = scope_with(PromptVersion("coder/examples", 3, "", "coder", "examples"))
    assert chat(model, scope, [USER])["messages"] == [USER]
    assert json.loads(used(scope)[2]) == {"examples": ["coder/examples", 3]}


def test_escaped_braces_reach_the_model_as_plain_text(model: ScriptedModel) -> None:
    scope = scope_with(PromptVersion("coder", 1, "Keep \\{{name}} as it is.", "coder"))
    assert chat(model, scope, [USER])["messages"][0]["content"] == "Keep {{name}} as it is."


# What the program sends by itself


def test_a_prompt_that_the_program_asked_for_stays_within_its_longer_text(model: ScriptedModel) -> None:
    scope = scope_with(SYSTEM, EXAMPLES)
    with attempt_scope(scope):
        mine = (
            "Today is Monday.\n"
            + coterie.prompt("coder", "never this")
            + "\n"
            + coterie.prompt("coder", part="examples")
        )
    body = chat(model, scope, [{"role": "system", "content": mine}, USER])
    assert body["messages"] == [{"role": "system", "content": mine}, USER]
    assert used(scope)[:2] == ("coder", 3)
    assert json.loads(used(scope)[2]) == {"examples": ["coder/examples", 2]}


def test_a_prompt_that_nobody_asked_for_replaces_a_longer_text_that_begins_with_it(model: ScriptedModel) -> None:
    """An optimiser may well cut a prompt short; what is tried then is the short one."""
    scope = scope_with(PromptVersion("coder", 2, "Be brief.", "coder"))
    body = chat(model, scope, [{"role": "system", "content": "Be brief. Think step by step."}, USER])
    assert body["messages"][0]["content"] == "Be brief."


def test_a_prompt_in_a_message_of_the_user_counts_and_is_not_sent_twice(model: ScriptedModel) -> None:
    scope = scope_with(SYSTEM)
    with attempt_scope(scope):
        asked = [{"role": "user", "content": f"{coterie.prompt('coder')}\nHow many?"}]
    assert chat(model, scope, asked)["messages"] == asked
    assert used(scope)[:2] == ("coder", 3)


@pytest.mark.parametrize(
    "take",
    [
        lambda given: given["coder"],
        lambda given: given.get("coder", "default"),
        lambda given: {**given}["coder"],
        lambda given: ({"coder": "default"} | given)["coder"],
        lambda given: dict(given)["coder"],
        lambda given: next(iter(given.values())),
    ],
)
def test_injected_prompts_count_once_they_are_taken(model: ScriptedModel, take: Any) -> None:
    judge = PromptVersion("judge", 1, "Judge.", "judge")
    scope = scope_with(SYSTEM, judge)
    given = GivenPrompts(scope)
    assert given == {"coder": EXACT, "judge": "Judge."}
    assert (len(given), "coder" in given, given.get("nobody"), scope.handed_out) == (2, True, None, set())
    mine = take(given) + " And mine."
    assert chat(model, scope, [{"role": "system", "content": mine}, USER])["messages"][0]["content"] == mine
    assert used(scope)[:2] == ("coder", 3)


def test_a_prompt_with_placeholders_is_the_programs_to_send(
    model: ScriptedModel, caplog: pytest.LogCaptureFixture
) -> None:
    scope = scope_with(FILLED)
    with attempt_scope(scope):
        rust = coterie.prompt("coder", "Use {{language}}.", language="Rust {{x}}")
    assert rust == "Write Rust {{x}}, and only Rust {{x}}."
    assert chat(model, scope, [{"role": "system", "content": rust}, USER])["messages"][0]["content"] == rust
    assert used(scope)[:2] == ("coder", 4)
    assert not caplog.records
    for _ in range(2):
        body = chat(model, scope, [{"role": "system", "content": "Use Rust."}, USER])
        assert body["messages"][0]["content"] == "Use Rust."
        assert used(scope)[0] is None
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "prompt 'coder' version 4 of role 'coder' has the placeholders {{language}}" in said
    assert "coterie.prompt('coder', …)" in said


# coterie.prompt


def test_the_default_is_taken_where_nothing_is_pinned() -> None:
    assert coterie.prompt("coder", "Use {{language}}.", language="Rust") == "Use Rust."
    with attempt_scope(scope_with(SYSTEM)):
        assert coterie.prompt("judge", "mine") == coterie.prompt("coder", "mine", part="tool/search") == "mine"


def test_what_is_asked_for_and_is_not_there_is_an_error_that_says_what_is() -> None:
    with pytest.raises(PromptError, match=r"coterie.prompt\('coder'\).*no attempt runs here.*or give a default"):
        coterie.prompt("coder")
    with attempt_scope(scope_with(SYSTEM, EXAMPLES)):
        with pytest.raises(PromptError, match=r"part 'tool/x'.*pinned is 'coder' system \(coder@3\), 'coder' examples"):
            coterie.prompt("coder", part="tool/x")
        with pytest.raises(PromptError, match=r"Prompt 'coder' version 3: the template has no \{\{language\}\}"):
            coterie.prompt("coder", language="Rust")
    with (
        attempt_scope(scope_with(FILLED)),
        pytest.raises(PromptError, match=r"version 4: \{\{language\}\} has no value"),
    ):
        coterie.prompt("coder", "default")
    with pytest.raises(PromptError, match=r"The default system prompt of role 'coder': \{\{x\}\} has no value"):
        coterie.prompt("coder", "{{x}}")
    with pytest.raises(PromptError, match="has the part 'toool'; there are"):
        coterie.prompt("coder", "d", part="toool")


# Resources


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"role": "coder"}, "is no prompt: its content must be"),
        ({"text": "t", "role": 3}, "is no prompt: its content must be"),
        ({"text": "t", "role": "coder", "part": "tools/x"}, "has the part 'tools/x'"),
        ({"text": "t", "role": "coder", "placeholders": "x"}, "'placeholders' must be a list of names"),
        ({"text": "t", "role": "coder", "placeholders": ["x"]}, r"the text lacks \{\{x\}\}"),
        ({"text": "{{y}}", "role": "coder", "placeholders": []}, r"nobody fills \{\{y\}\}"),
    ],
)
def test_a_resource_that_is_no_prompt_says_why(content: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError, match=f"Resource 'p' version 2.*{said}"):
        prompt_in(Resource("p", ResourceKind.PROMPT, content, version=2))


def test_a_resource_says_only_what_is_unusual() -> None:
    assert prompt_in(Resource("coder", ResourceKind.PROMPT, {"text": "{{x}} {{y}}"}, version=2)) == PromptVersion(
        "coder", 2, "{{x}} {{y}}", "coder", "system", ("x", "y")
    )
