"""Endpoint, prompt and sampling of an attempt replace the user's on the wire, and nowhere else."""

from __future__ import annotations

import copy
import json
from typing import Any

import openai
import pytest

from coterie import conventions as names
from coterie.prompts.versions import PromptVersion
from coterie.roles import acting_as
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint

pytestmark = pytest.mark.usefixtures("captured")

USER_KEY = "sk-user-secret-key"
QUESTION = [{"role": "user", "content": "How many?"}]


def client(url: str = "http://127.0.0.1:9/v1", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=USER_KEY, **({"max_retries": 0, "timeout": 10} | options))


def ask(model: ScriptedModel, *, scope: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    """The body that the server gets for a chat request made by the agent Coder in an attempt."""
    endpoint = Endpoint(model.base_url, model="policy", policy="team", token_ids=False)
    with attempt_scope(scope_for_test(**({"endpoints": {"e": endpoint}} | (scope or {})))), acting_as("Coder"):
        client(model.base_url).chat.completions.create(**({"model": "m", "messages": QUESTION} | request))
    return dict(model.requests[-1].body)


def test_each_role_goes_to_its_endpoint_with_its_model() -> None:
    with ScriptedModel(lambda _: "from a") as a, ScriptedModel(lambda _: "from b") as b:
        endpoints = {
            "a": Endpoint(a.base_url, model="model-a", policy="pa", roles=("coder",)),
            "b": Endpoint(b.base_url + "/", model="model-b", policy="pb"),
        }
        sink = ListSink()
        with attempt_scope(scope_for_test(sink, endpoints=endpoints)):
            for agent in ("Coder", "Reviewer"):
                with acting_as(agent):
                    client().chat.completions.create(model="m", messages=QUESTION)
        assert [request.body["model"] for request in a.requests] == ["model-a"]
        assert [request.body["model"] for request in b.requests] == ["model-b"]
        assert b.requests[0].path == "/v1/chat/completions"
    assert [span.attributes[names.POLICY_NAME] for span in sink.spans] == ["pa", "pb"]


def test_the_prompt_replaces_the_system_message_and_nothing_of_the_user_changes() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "the user's own prompt"}]},
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
    ]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    before, tools_before = copy.deepcopy(messages), copy.deepcopy(tools)
    prompts = [PromptVersion("coder.prompt", 4, "Be exact.", "coder")]
    with ScriptedModel(lambda _: "4") as model:
        body = ask(model, scope={"prompts": prompts}, messages=messages, tools=tools)
    assert body["messages"] == [{"role": "system", "content": "Be exact."}, before[1]]
    assert (messages, tools) == (before, tools_before)


def test_a_body_that_the_sdk_passes_through_is_not_edited() -> None:
    """``create`` copies its arguments before the hook sees them; ``post`` does not."""
    body = {"model": "m", "messages": [{"role": "system", "content": "old"}, *QUESTION], "include": []}
    before, options = copy.deepcopy(body), {"headers": {"X-Mine": "1"}, "extra_json": {"top_k": 2}}
    options_before = copy.deepcopy(options)
    with ScriptedModel(lambda _: "4") as model:
        scope = scope_for_test(
            endpoints={"e": Endpoint(model.base_url, "policy", "team", sampling={"top_k": 1})},
            prompts=[PromptVersion("agent.prompt", 2, "Be exact.", "agent")],
        )
        with attempt_scope(scope):
            for path in ("/chat/completions", "http://127.0.0.1:9/v1/chat/completions"):
                answer = client().post(path, cast_to=object, body=body, options=options)
                assert answer["choices"][0]["message"]["content"] == "4"
        sent = model.requests[1]
    assert (body, options) == (before, options_before)
    assert (sent.body["messages"][0]["content"], sent.body["top_k"]) == ("Be exact.", 1)
    assert sent.headers["x-mine"] == "1"


def test_the_prompt_is_inserted_where_there_is_none() -> None:
    prompts = [PromptVersion("coder.prompt", 4, "Be exact.", "coder")]
    with ScriptedModel(lambda _: "4") as model:
        body = ask(model, scope={"prompts": prompts, "endpoints": {}})
    assert body["messages"] == [{"role": "system", "content": "Be exact."}, *QUESTION]
    assert body["model"] == "m"


def test_another_roles_prompt_is_left_alone() -> None:
    prompts = [PromptVersion("reviewer.prompt", 1, "Be strict.", "reviewer")]
    with ScriptedModel(lambda _: "4") as model:
        assert ask(model, scope={"prompts": prompts})["messages"] == QUESTION


@pytest.mark.parametrize(
    ("request_fields", "expected"),
    [
        ({"input": "How many?"}, {"instructions": "Be exact.", "input": "How many?"}),
        ({"input": "How many?", "instructions": "old"}, {"instructions": "Be exact.", "input": "How many?"}),
        (
            {"input": [{"role": "developer", "content": "old"}, {"role": "user", "content": "How many?"}]},
            {"input": [{"role": "developer", "content": "Be exact."}, {"role": "user", "content": "How many?"}]},
        ),
    ],
)
def test_the_prompt_in_the_responses_api(request_fields: dict[str, Any], expected: dict[str, Any]) -> None:
    before = copy.deepcopy(request_fields)
    sink = ListSink()
    scope = scope_for_test(sink, prompts=[PromptVersion("agent.prompt", 2, "Be exact.", "agent")])
    with ScriptedModel(lambda _: "4") as model, attempt_scope(scope):
        client(model.base_url).responses.create(model="m", **request_fields)
        body = model.requests[0].body
    assert {name: body.get(name) for name in expected} == expected
    assert request_fields == before
    said = sink.spans[0].attributes
    assert (said[names.PROMPT_NAME], said[names.PROMPT_VERSION]) == ("agent.prompt", 2)
    assert json.loads(said[names.INPUT_MESSAGES])[0]["content"] == "Be exact."


@pytest.mark.parametrize(
    ("wanted", "endpoint_sampling", "rollout_sampling", "sent"),
    [
        ({"temperature": 0.2}, {"temperature": 1.0}, {}, {"temperature": 1.0}),
        ({"temperature": 0.2}, {"temperature": 1.0}, {"temperature": 0}, {"temperature": 0}),
        ({"temperature": 0.2}, {"temperature": None}, {}, {}),
        ({"max_tokens": 5}, {"max_tokens": 64}, {}, {"max_tokens": 64}),
        ({"max_completion_tokens": 5}, {"max_tokens": 64}, {}, {"max_completion_tokens": 64}),
        ({"max_tokens": 5}, {"max_completion_tokens": 64}, {}, {"max_completion_tokens": 64}),
        ({}, {"max_tokens": 64}, {"max_completion_tokens": 8}, {"max_completion_tokens": 8}),
        ({}, {"top_k": 3, "seed": 1}, {}, {"top_k": 3, "seed": 1}),
        ({"extra_body": {"top_k": 5, "min_p": 0.1}}, {"top_k": 3}, {}, {"top_k": 3, "min_p": 0.1}),
    ],
)
def test_sampling(
    wanted: dict[str, Any], endpoint_sampling: dict[str, Any], rollout_sampling: dict[str, Any], sent: dict[str, Any]
) -> None:
    with ScriptedModel(lambda _: "4") as model:
        endpoint = Endpoint(model.base_url, "policy", "team", sampling=endpoint_sampling, token_ids=False)
        body = ask(model, scope={"endpoints": {"e": endpoint}, "sampling": rollout_sampling}, **wanted)
    assert {name: value for name, value in body.items() if name not in ("model", "messages")} == sent


def test_the_rollouts_sampling_counts_without_an_endpoint_too() -> None:
    sink, wanted = ListSink(), {"temperature": 0.2, "max_tokens": 5, "stop": "END", "n": 2, "logit_bias": {"5": 1}}
    before = copy.deepcopy(wanted)
    sampling = {"temperature": 0, "seed": 7, "max_completion_tokens": 9, "top_k": 3, "frequency_penalty": 0.5}
    with ScriptedModel(lambda _: "4") as model:
        body = ask(model, scope={"endpoints": {}, "sampling": sampling, "sink": sink}, **wanted)
    sent = wanted | sampling
    del sent["max_tokens"]
    assert body == {"model": "m", "messages": QUESTION, **sent}
    said = sink.spans[0].attributes
    assert {name: said[name] for name in said if name.startswith("gen_ai.request.")} == {
        names.REQUEST_MODEL: "m",
        names.REQUEST_STREAM: False,
        names.REQUEST_TEMPERATURE: 0,
        names.REQUEST_TOP_K: 3,
        names.REQUEST_SEED: 7,
        names.REQUEST_MAX_TOKENS: 9,
        names.REQUEST_FREQUENCY_PENALTY: 0.5,
        names.REQUEST_STOP_SEQUENCES: ["END"],
        names.REQUEST_CHOICE_COUNT: 2,
    }
    assert wanted == before


def test_the_length_limit_of_the_responses_api_has_its_own_name() -> None:
    with ScriptedModel(lambda _: "4") as model:
        endpoint = Endpoint(model.base_url, "policy", "team", sampling={"max_tokens": 64})
        with attempt_scope(scope_for_test(endpoints={"e": endpoint})):
            client().responses.create(model="m", input="?", max_output_tokens=5)
        body = model.requests[0].body
    assert (body["max_output_tokens"], body.get("max_tokens")) == (64, None)


def test_the_users_key_never_goes_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-private")
    monkeypatch.setenv("TEAM_KEY", "team-key-value")
    private = {"X-Api-Key": USER_KEY, "authorization": f"Basic {USER_KEY}", "X-Harmless": "yes"}
    with ScriptedModel(lambda _: "4") as model:
        for key_variable in (None, "TEAM_KEY"):
            endpoint = Endpoint(model.base_url, "policy", "team", api_key_env=key_variable)
            user = client(default_headers=private, default_query={"key": USER_KEY})
            with attempt_scope(scope_for_test(endpoints={"e": endpoint})):
                user.chat.completions.create(
                    model="m", messages=QUESTION, extra_headers={"Cookie": USER_KEY, "X-Trace": "t"}
                )
        first, second = model.requests
    for request in (first, second):
        assert USER_KEY not in str(request)
        assert "org-private" not in str(request)
        assert (request.headers["x-harmless"], request.headers["x-trace"]) == ("yes", "t")
    assert first.headers["authorization"] == "Bearer coterie-no-key"
    assert second.headers["authorization"] == "Bearer team-key-value"


def test_azures_key_and_path_stay_at_azure() -> None:
    with ScriptedModel(lambda _: "4") as model:
        azure = openai.AzureOpenAI(
            azure_endpoint="http://127.0.0.1:9", api_key=USER_KEY, api_version="2024-06-01", max_retries=0
        )
        sink = ListSink()
        endpoint = Endpoint(model.base_url, "policy", "team")
        with attempt_scope(scope_for_test(sink, endpoints={"e": endpoint})):
            azure.chat.completions.create(model="m", messages=QUESTION)
        (request,) = model.requests
    assert request.path == "/v1/chat/completions"
    assert USER_KEY not in str(request)
    assert sink.spans[0].attributes[names.PROVIDER] == "azure.ai.openai"


def test_an_endpoint_whose_key_is_not_set_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedModel(lambda _: "4") as model:
        endpoint = Endpoint(model.base_url, "policy", "team", api_key_env="NOT_SET_ANYWHERE")
        for _ in range(2):
            ask(model, scope={"endpoints": {"e": endpoint}})
        assert [request.headers["authorization"] for request in model.requests] == ["Bearer coterie-no-key"] * 2
    assert caplog.text.count("NOT_SET_ANYWHERE") == 1


def test_token_ids_are_asked_for_only_where_the_endpoint_gives_them() -> None:
    with ScriptedModel(lambda _: "4") as model:
        assert "return_token_ids" not in ask(model)
        with_ids = Endpoint(model.base_url, "policy", "team")
        body = ask(model, scope={"endpoints": {"e": with_ids}}, logprobs=False, top_logprobs=2)
    assert (body["return_token_ids"], body["logprobs"], body["top_logprobs"]) == (True, True, 2)


def test_the_version_that_answered_counts_before_the_one_that_was_published() -> None:
    sink = ListSink()
    with ScriptedModel(lambda _: "4", policy_version=6) as model:
        endpoint = Endpoint(model.base_url, "policy", "team", version=5)
        with attempt_scope(scope_for_test(sink, endpoints={"e": endpoint})):
            client().chat.completions.create(model="m", messages=QUESTION)
            model.policy_version = None
            client().chat.completions.create(model="m", messages=QUESTION)
    assert [span.attributes[names.POLICY_VERSION] for span in sink.spans] == [6, 5]
