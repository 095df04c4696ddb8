"""What the gateway refuses, and how it says so: in the form that the client's SDK reads, before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from gateway_parts import RAW, READER_TOKEN, TOKEN, RawAnswer, RawServer, RunningGateway, client, headers_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coterie.errors import ConfigError
from coterie.testing import ScriptedModel
from coterie.vocabulary import Endpoint, Mode
from coterie_server.gateway import gateway_settings

QUESTION = [{"role": "user", "content": "How many?"}]
BODY = {"model": "any", "messages": QUESTION}


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda body: "hi") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, model: ScriptedModel) -> Iterator[RunningGateway]:
    limits = {"largest_body_bytes": 100_000}
    with RunningGateway(tmp_path_factory.mktemp("gateway"), limits) as running:
        running.publish(model)
        yield running


def post(url: str, *, token: str | None = TOKEN, **request: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}" if token else ""}
    return RAW.post(url, headers=headers | request.pop("headers", {}), **request)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, if it has OpenAI's shape."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert isinstance(error["type"], str)
    return dict(error)


def ask(url: str, **options: Any) -> openai.types.chat.ChatCompletion:
    one = client(url, **{"max_retries": 2} | options)
    return one.chat.completions.create(model="any", messages=QUESTION)


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 401), (READER_TOKEN, 403)])
def test_a_wrong_token_is_refused_in_the_clients_form(
    gateway: RunningGateway, model: ScriptedModel, token: str | None, status: int
) -> None:
    before = len(model.requests)
    response = post(f"{gateway.url}/chat/completions", token=token, json=BODY)
    assert response.status_code == status
    assert error_of(response)["code"] == ("invalid_api_key" if status == 401 else "scope_missing")
    with pytest.raises((openai.AuthenticationError, openai.PermissionDeniedError)):
        ask(gateway.url, api_key=token or "none")
    one = anthropic.Anthropic(base_url=f"{gateway.root}/anthropic", api_key=token or "none", max_retries=0)
    with pytest.raises((anthropic.AuthenticationError, anthropic.PermissionDeniedError)) as raised:
        one.messages.create(model="any", max_tokens=9, messages=QUESTION)
    assert raised.value.body["type"] == "error"
    assert len(model.requests) == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no json", 400),
        (b'{"model": "m", "messages": [', 400),
        (b"[1, 2]", 400),
        (b'"text"', 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b'{"messages": NaN}', 400),
        (b"[" * 5000, 400),
        (b'{"model": 5, "messages": []}', 400),
        (b'{"model": "m", "messages": "hi"}', 400),
        (b'{"model": "m", "messages": ["hi"]}', 400),
        (b'{"model": "m"}', 400),
        (b'{"model": "m", "messages": [{}], "stream": "yes"}', 400),
        (b'{"model": "m", "messages": [{}], "tools": {}}', 400),
        (b'{"model": "m", "messages": [{}], "stop": 5}', 400),
        (b'{"x": "' + b"y" * 200_000 + b'"}', 413),
        (b'{"x": "' + b"y" * 2_000_000 + b'"}', 413),
    ],
)
def test_odd_bodies_are_refused(gateway: RunningGateway, model: ScriptedModel, body: bytes, status: int) -> None:
    before = len(model.requests)
    response = post(f"{gateway.url}/chat/completions", content=body)
    assert response.status_code == status
    assert error_of(response)["type"] == "invalid_request_error"
    assert len(model.requests) == before


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway to a server that answers whatever it is asked."""
    answer = RawAnswer(b'{"id": "x", "choices": [], "output": []}')
    with RawServer(lambda *asked: answer) as server, RunningGateway(tmp_path_factory.mktemp("lenient")) as running:
        running.publish(Endpoint(server.base_url, "tiny", "team"))
        yield running


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["model", "messages", "stream", "stop", "tools", "temperature", "n", "include", "input", "prompt", "system"]
FIELDS += ["max_tokens", "logprobs", "return_token_ids", "stream_options", "instructions", "metadata"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.dictionaries(st.sampled_from(FIELDS), odd, max_size=5),
    path=st.sampled_from(["chat/completions", "responses", "completions"]),
)
def test_whatever_a_body_holds_the_gateway_itself_does_not_fail(
    lenient: RunningGateway, body: dict[str, Any], path: str
) -> None:
    if path == "chat/completions":
        body.setdefault("messages", [{"role": "user", "content": "hi"}])
    response = RAW.post(f"{lenient.url}/{path}", json=body)
    assert response.status_code in (200, 400), response.text
    assert response.status_code == 200 or error_of(response)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/audio/speech", 404),
        ("/v1/chat/completions/", 404),
        ("/v1", 404),
        ("/rollout/x/v1/chat/completions", 404),
        ("/rollout/x/attempt/y/v1/responses/resp_1", 404),
        ("/rollout/ro-none/attempt/at-none/v1/chat/completions", 404),
        ("/rollout/%00/attempt/y/v1/chat/completions", 400),
        ("/role/%F0%9F%90%88/v1/chat/completions", 400),
    ],
)
def test_other_paths_and_unknown_rollouts_are_refused(gateway: RunningGateway, path: str, status: int) -> None:
    response = post(f"{gateway.root}{path}", json=BODY)
    assert (response.status_code, bool(error_of(response))) == (status, True)


def test_other_methods_are_refused(gateway: RunningGateway) -> None:
    response = RAW.get(f"{gateway.url}/chat/completions")
    assert (response.status_code, response.headers["allow"], bool(error_of(response))) == (405, "POST", True)


def test_half_an_attribution_is_refused(gateway: RunningGateway) -> None:
    for missing in ("x-coterie-rollout-id", "x-coterie-attempt-id"):
        headers = headers_of("ca-1", "ro-1", "at-1", "coder")
        del headers[missing]
        response = post(f"{gateway.url}/chat/completions", headers=headers, json=BODY)
        assert response.status_code == 400
        assert missing in error_of(response)["message"]


def test_an_attempt_of_another_rollout_is_refused(gateway: RunningGateway) -> None:
    (one, _), (_, other) = gateway.begin(), gateway.begin()
    with pytest.raises(openai.NotFoundError, match="has no attempt"):
        ask(gateway.attempt_url(one, other))


def test_a_role_that_nothing_serves_is_told_what_there_is(tmp_path: Path) -> None:
    with RunningGateway(tmp_path) as gateway:
        with pytest.raises(openai.NotFoundError, match="The store has no endpoint"):
            ask(gateway.url)
        gateway.publish(Endpoint("http://127.0.0.1:9/v1", "tiny", "team", roles=["coder"]))
        with pytest.raises(openai.NotFoundError, match="role 'judge'; there are endpoints for the roles coder"):
            ask(f"{gateway.root}/role/judge/v1")
        with pytest.raises(openai.NotFoundError, match="names no role"):
            ask(gateway.url)


# Budgets


@pytest.mark.parametrize(
    ("budget", "calls"), [({"calls": 3}, 3), ({"tokens": 100}, 4), ({"cost": 0.00005}, 3), ({}, 5)]
)
def test_a_rollout_that_has_used_up_its_budget_is_refused(tmp_path: Path, budget: dict[str, Any], calls: int) -> None:
    # A call takes 28 tokens of prompt and 3 of answer.
    more = {"budget": budget, "prices": {"tiny": {"input": 0.5, "output": 1.5}}}
    with ScriptedModel(lambda body: "hi") as model, RunningGateway(tmp_path, more) as gateway:
        gateway.publish(model)
        rollout, attempt = gateway.begin()
        url = gateway.attempt_url(rollout, attempt)
        for _ in range(calls):
            ask(url)
        if budget:
            with pytest.raises(openai.RateLimitError) as raised:
                ask(url)
            assert raised.value.code == "budget_exhausted"
            assert rollout in raised.value.message
        assert len(model.requests) == calls
        ask(gateway.attempt_url(*gateway.begin()))  # each rollout has its own


def test_a_budget_counts_what_was_used_before_the_gateway_began(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "hi") as model:
        with RunningGateway(tmp_path) as gateway:
            gateway.publish(model)
            ids = gateway.begin(metadata={"budget": {"calls": 3}})
            for _ in range(2):
                ask(gateway.attempt_url(*ids))
        with RunningGateway(tmp_path) as gateway:
            ask(gateway.attempt_url(*ids))
            with pytest.raises(openai.RateLimitError):
                ask(gateway.attempt_url(*ids))


def test_a_budget_that_is_none_is_refused(gateway: RunningGateway) -> None:
    with pytest.raises(openai.BadRequestError, match="budget"):
        ask(gateway.attempt_url(*gateway.begin(metadata={"budget": {"calls": "many"}})))


def test_too_many_calls_a_minute_are_told_when_to_come_back(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "hi") as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        url = gateway.attempt_url(*gateway.begin(Mode.PRODUCTION, metadata={"budget": {"calls_per_minute": 6}}))
        url_of_others = gateway.attempt_url(*gateway.begin(Mode.PRODUCTION))
        answers = [RAW.post(f"{url}/chat/completions", json=BODY) for _ in range(9)]
        refused = [one for one in answers if one.status_code == 429]
        assert 0 < len(refused) <= 3
        assert error_of(refused[0])["code"] == "rate_limit_exceeded"
        assert int(refused[0].headers["retry-after"]) >= 1
        ask(url_of_others)


# Settings


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"polices": {}}, "polices"),
        ({"policies": {"team": {"engine": "other"}}}, "policies.team.engine"),
        ({"default": {"base_url": "http://user:secret@host/v1"}}, "default.base_url"),
        ({"default": {"base_url": "http://h/v1", "api_key_env": "COTERIE_NO_SUCH_KEY"}}, "COTERIE_NO_SUCH_KEY"),
        ({"policies": {"t": {"fallback": {"base_url": "http://h/v1", "modes": ["train"]}}}}, "fallback.modes"),
        ({"tries": 0}, "tries"),
    ],
)
def test_wrong_settings_are_named(section: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")) as raised:
        gateway_settings(section)
    assert "secret" not in str(raised.value)


def test_a_mask_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gateway\.mask"):
        gateway_settings({"mask": "no_such_module:mask"}).rules()


def test_errors_are_json_even_for_names_that_are_hard_to_write(gateway: RunningGateway) -> None:
    response = post(f"{gateway.root}/v1/ünïcode", json=BODY)
    assert response.status_code == 404
    assert json.loads(response.content)
