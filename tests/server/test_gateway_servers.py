"""Which model server gets a call, and what happens when servers fail, are busy, or change their weights."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gateway_parts import (
    RAW,
    TOKEN,
    TRAINER_TOKEN,
    RawAnswer,
    RawServer,
    RunningGateway,
    client,
    headers_of,
    unused_url,
)

from coterie import conventions as names
from coterie.testing import Fault, Reply, ScriptedModel
from coterie.vocabulary import Endpoint, Mode
from coterie_server.gateway.servers import Server, in_order
from coterie_server.gateway.settings import Upstream

QUESTION = [{"role": "user", "content": "How many?"}]


def ask(url: str, **options: Any) -> str:
    one = client(url, **options)
    return one.chat.completions.create(model="any", messages=QUESTION).choices[0].message.content or ""


def replies(*script: Any) -> Any:
    left = list(script)
    return lambda body: left.pop(0) if left else "at last"


@pytest.mark.parametrize("fault", [429, 503, Fault.CUT, Reply("", status=429, headers={"retry-after": "0.05"})])
def test_a_busy_or_broken_server_is_asked_again_and_the_call_recorded_once(tmp_path: Path, fault: Any) -> None:
    with ScriptedModel(replies(fault, fault)) as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)
        assert ask(gateway.url) == "at last"
        (span,) = gateway.spans(1)
        assert len(model.requests) == span.attributes[names.CALL_TRIES] == 3
        assert [event.attributes["number"] for event in span.events] == [1, 2]
        assert len({request.headers[names.HEADER_CALL_ID] for request in model.requests}) == 1


@pytest.mark.parametrize(("status", "error"), [(400, openai.BadRequestError), (500, openai.InternalServerError)])
def test_other_errors_of_a_server_are_the_clients_unchanged(
    tmp_path: Path, status: int, error: type[openai.APIStatusError]
) -> None:
    body = b'{"error": {"message": "too long", "type": "invalid", "param": "messages", "code": "ctx"},  "more": 1}'
    sent = RawAnswer(body, status, headers={"x-request-id": "up-7"})
    with RawServer(lambda *asked: sent) as server, RunningGateway(tmp_path) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team"))
        with pytest.raises(error) as raised:
            ask(gateway.url)
        assert (raised.value.response.content, raised.value.request_id) == (body, "up-7")
        assert len(server.requests) == 1
        (span,) = gateway.spans(1)
        assert (span.attributes[names.ERROR_TYPE], span.status_message) == (error.__name__, "too long")


def test_a_key_that_a_server_repeats_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream-secret")
    refusal = RawAnswer(b'{"error": {"message": "bad key sk-upstream-secret"}}', 401)
    with RawServer(lambda *asked: refusal) as server, RunningGateway(tmp_path) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team", api_key_env="UPSTREAM_KEY"))
        with pytest.raises(openai.AuthenticationError, match=r"bad key \*\*\*"):
            ask(gateway.url)
        assert server.requests[0][1]["authorization"] == "Bearer sk-upstream-secret"
        (span,) = gateway.spans(1)
        assert "upstream-secret" not in str(span)


def test_a_redirect_is_not_followed_and_not_passed_on(tmp_path: Path) -> None:
    away = RawAnswer(b"", 307, headers={"location": "http://127.0.0.1:9/steal"})
    with RawServer(lambda *asked: away) as server, RunningGateway(tmp_path) as gateway:
        gateway.publish(Endpoint(server.base_url, "tiny", "team"))
        with pytest.raises(openai.InternalServerError, match="Give the right base_url"):
            ask(gateway.url)
        (span,) = gateway.spans(1)
        assert (span.attributes[names.ERROR_TYPE], len(server.requests)) == ("InternalServerError", 1)


def test_what_no_server_answers_is_said_and_recorded(tmp_path: Path) -> None:
    with RunningGateway(tmp_path, {"tries": 2}) as gateway:
        gateway.publish(Endpoint(unused_url(), "tiny", "team"))
        with pytest.raises(openai.InternalServerError) as raised:
            ask(gateway.url)
        assert (raised.value.status_code, raised.value.code) == (503, "model_server_unavailable")
        (span,) = gateway.spans(1)
        assert (span.attributes[names.ERROR_TYPE], span.attributes[names.CALL_TRIES]) == ("APIConnectionError", 2)


def test_calls_of_a_rollout_stay_with_one_server_and_move_when_it_is_down(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "a") as first, ScriptedModel(lambda body: "b") as second:
        backends = [{"base_url": first.base_url}, {"base_url": second.base_url, "model": "other-name"}]
        with RunningGateway(tmp_path, {"policies": {"team": {"backends": backends}}}) as gateway:
            gateway.publish(Endpoint("http://127.0.0.1:9/v1", "tiny", "team"))
            attempts = [gateway.begin() for _ in range(8)]
            places = {ids: {ask(gateway.attempt_url(*ids)) for _ in range(3)} for ids in attempts}
            assert all(len(answers) == 1 for answers in places.values())
            assert {answer for answers in places.values() for answer in answers} == {"a", "b"}
            assert {request.body["model"] for request in second.requests} == {"other-name"}
            gone, left = (first, "b") if len(first.requests) else (second, "a")
            gone.stop()
            assert {ask(gateway.attempt_url(*ids)) for ids in attempts} == {left}
            states = RAW.get(f"{gateway.root}/policies", headers={"authorization": f"Bearer {TRAINER_TOKEN}"}).json()
            assert sorted(one["up"] for one in states["servers"].values()) == [False, True]


def test_an_endpoint_with_several_servers_needs_no_setting(tmp_path: Path) -> None:
    with (
        ScriptedModel(lambda body: "a") as first,
        ScriptedModel(lambda body: "b") as second,
        RunningGateway(tmp_path, {}) as gateway,
    ):
        replicas = (first.base_url, second.base_url)
        gateway.publish(Endpoint(first.base_url, "tiny", "team", replicas=replicas))
        attempts = [gateway.begin() for _ in range(8)]
        places = {ids: {ask(gateway.attempt_url(*ids)) for _ in range(2)} for ids in attempts}
        assert all(len(answers) == 1 for answers in places.values())
        assert {answer for answers in places.values() for answer in answers} == {"a", "b"}


def test_only_the_rollouts_of_a_server_that_goes_move() -> None:
    servers = [Server(Upstream(base_url=f"http://s{number}/v1")) for number in range(4)]
    rollouts = [f"ro-{number}" for number in range(400)]
    before = {rollout: in_order(servers, rollout)[0] for rollout in rollouts}
    assert all(60 < count < 140 for count in Counter(one.name for one in before.values()).values())
    servers[2].failed("gone", at_once=True)
    for rollout in rollouts:
        now = in_order(servers, rollout)[0]
        assert now is before[rollout] or before[rollout] is servers[2]


def test_a_server_that_is_back_is_found_by_looking(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "hi") as model:
        url = model.base_url
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    with RunningGateway(tmp_path, {"tries": 1}) as gateway:
        gateway.publish(Endpoint(url, "tiny", "team"))
        with pytest.raises(openai.InternalServerError):
            ask(gateway.url)
        (server,) = gateway.gateway._servers.all()
        assert not server.up
        server.down_until = time.monotonic() + 1000
        with _on_port(port):
            deadline = time.monotonic() + 10
            while not server.up and time.monotonic() < deadline:
                time.sleep(0.02)
            assert server.up


def _on_port(port: int) -> Any:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    class Served:
        def __enter__(self) -> None: ...

        def __exit__(self, *exc: object) -> None:
            server.shutdown()
            server.server_close()

    return Served()


def test_production_falls_back_to_a_hosted_model_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTED_KEY", "sk-hosted")
    with ScriptedModel(lambda body: "from elsewhere", model="hosted") as hosted:
        fallback = {"base_url": hosted.base_url, "model": "hosted-large", "api_key_env": "HOSTED_KEY"}
        with RunningGateway(tmp_path, {"tries": 2, "policies": {"team": {"fallback": fallback}}}) as gateway:
            gateway.publish(Endpoint(unused_url(), "tiny", "team"))
            production, training = gateway.begin(Mode.PRODUCTION), gateway.begin(Mode.TRAIN)
            assert ask(gateway.attempt_url(*production)) == "from elsewhere"
            with pytest.raises(openai.InternalServerError):
                ask(gateway.attempt_url(*training))
            (span,) = gateway.spans(1, rollout=production[0])
            told = span.attributes
            assert (told[names.REQUEST_MODEL], told.get(names.POLICY_NAME)) == ("hosted-large", None)
            assert names.RESPONSE_TOKENS not in told
            assert any(event.name == "coterie.call.fallback" for event in span.events)
            (request,) = hosted.requests
            assert request.headers["authorization"] == "Bearer sk-hosted"
            assert "return_token_ids" not in request.body
            assert gateway.figure("coterie_gateway_fallbacks_total", policy="team") == 1


def test_an_endpoint_that_names_the_gateway_works_with_backends_and_is_a_loop_without(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "hi") as model:
        settings = {"policies": {"team": {"backends": [{"base_url": model.base_url}]}}}
        with RunningGateway(tmp_path, settings) as gateway:
            gateway.publish(Endpoint(gateway.url, "tiny", "team"))
            assert ask(gateway.url) == "hi"
        with RunningGateway(tmp_path) as gateway:
            gateway.publish(Endpoint(gateway.url, "tiny", "team", api_key_env=None))
            with pytest.raises(openai.APIStatusError) as raised:
                client(gateway.url).chat.completions.create(
                    model="any",
                    messages=QUESTION,
                    extra_headers={"x-coterie-gateway": gateway.gateway._id},
                )
            assert (raised.value.status_code, raised.value.code) == (508, "gateway_loop")


def test_a_paused_policy_lets_calls_end_and_keeps_new_ones_waiting(tmp_path: Path) -> None:
    go_on = threading.Event()

    async def slow(body: dict[str, Any]) -> str:
        await asyncio.to_thread(go_on.wait, 20)
        return "hi"

    trainer = httpx.Client(headers={"authorization": f"Bearer {TRAINER_TOKEN}"}, timeout=20)
    with ScriptedModel(slow) as model, RunningGateway(tmp_path) as gateway, ThreadPoolExecutor(8) as pool, trainer:
        gateway.publish(model)
        first = pool.submit(ask, gateway.url)
        _until(lambda: len(model.requests) == 1)
        policy = f"{gateway.root}/policies/team"
        still = trainer.post(f"{policy}/pause", json={"drain_seconds": 0.05}).json()
        assert (still["drained"], still["in_flight"]) == (False, 1)
        pausing: Future[httpx.Response] = pool.submit(trainer.post, f"{policy}/pause", json={"drain_seconds": 10})
        second = pool.submit(ask, gateway.url)
        _until(lambda: trainer.get(f"{gateway.root}/policies").json()["policies"]["team"]["waiting"] == 1)
        go_on.set()
        assert pausing.result(timeout=10).json()["drained"]
        assert first.result(timeout=10) == "hi"
        time.sleep(0.1)
        assert (len(model.requests), second.done()) == (1, False)
        assert trainer.post(f"{policy}/resume", json={"version": 5}).json()["version"] == 5
        assert second.result(timeout=10) == "hi"
        assert [span.attributes[names.POLICY_VERSION] for span in gateway.spans(2)] == [1, 5]


def test_who_waits_too_long_for_a_paused_policy_is_told(tmp_path: Path) -> None:
    settings = {"pause_seconds": 0.1, "longest_pause_of_policy_seconds": 0.5}
    with ScriptedModel(lambda body: "hi") as model, RunningGateway(tmp_path, settings) as gateway:
        gateway.publish(model)
        headers = {"authorization": f"Bearer {TRAINER_TOKEN}"}
        assert RAW.post(f"{gateway.root}/policies/team/pause", headers=headers, json={}).json()["drained"]
        with pytest.raises(openai.InternalServerError) as raised:
            ask(gateway.url)
        assert raised.value.code == "policy_paused"
        time.sleep(0.5)  # its trainer is gone: it resumes by itself
        assert ask(gateway.url) == "hi"


def test_pausing_needs_the_trainers_token_and_a_policy_that_there_is(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "hi") as model, RunningGateway(tmp_path) as gateway:
        gateway.publish(model)

        def post(policy: str, token: str, **body: Any) -> int:
            headers = {"authorization": f"Bearer {token}"}
            return RAW.post(f"{gateway.root}/policies/{policy}/pause", headers=headers, json=body).status_code

        assert post("team", TOKEN) == 403
        assert post("nobody", TRAINER_TOKEN) == 404
        assert post("team", TRAINER_TOKEN, drain_seconds="long") == 400


def test_one_version_for_a_rollout_if_asked(tmp_path: Path) -> None:
    settings = {"policies": {"team": {"one_version_per_rollout": True}}}
    with ScriptedModel(lambda body: "hi", policy_version=3) as model, RunningGateway(tmp_path, settings) as gateway:
        gateway.publish(model)
        begun, later = gateway.begin(), gateway.begin()
        ask(gateway.attempt_url(*begun))
        model.policy_version = 4
        with pytest.raises(openai.ConflictError, match="began with version 3"):
            ask(gateway.attempt_url(*begun), max_retries=2)
        assert len(model.requests) == 2
        assert ask(gateway.attempt_url(*later)) == "hi"
        spans = gateway.spans(2, rollout=begun[0])
        assert [span.attributes[names.POLICY_VERSION] for span in spans] == [3, 4]
        assert spans[1].attributes[names.ERROR_TYPE] == "ConflictError"


def test_a_role_goes_to_its_endpoint(tmp_path: Path) -> None:
    coder, rest = ScriptedModel(lambda body: "coder"), ScriptedModel(lambda body: "rest")
    with coder, rest, RunningGateway(tmp_path) as gateway:
        gateway.publish(coder, "coders", policy="coders", roles=["coder"])
        gateway.publish(rest, "others", policy="others", model="big")
        rollout, attempt = gateway.begin(pins=("coders", "others"))
        assert ask(f"{gateway.root}/role/coder/v1") == "coder"
        assert ask(f"{gateway.root}/role/judge/v1") == "rest"
        assert ask(gateway.attempt_url(rollout, attempt, "coder")) == "coder"
        told = headers_of("ca-1", rollout, attempt, "coder")
        assert ask(gateway.url, default_headers=told) == "coder"
        by_name = client(gateway.url)
        answer = by_name.chat.completions.create(model="coders", messages=QUESTION)
        assert answer.choices[0].message.content == "coder"


def test_the_default_takes_what_no_endpoint_serves_with_the_callers_model(tmp_path: Path) -> None:
    with ScriptedModel(lambda body: "hi") as model:
        settings = {"default": {"base_url": model.base_url}}
        with RunningGateway(tmp_path, settings) as gateway:
            assert ask(gateway.url) == "hi"
            assert model.requests[0].body == {"model": "any", "messages": QUESTION}


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
