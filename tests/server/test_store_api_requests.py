"""Requests of the store API that do not fit: each is told why, in a sentence, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_parts import ServerProcess, error_of

from coterie_server.tokens import Scope

TASK = {"id": "t", "input": 1}
SPAN = {"trace_id": "a" * 32, "span_id": "b" * 16, "name": "chat", "start_ns": 1, "end_ns": 2}
FINISH = {"attempt_id": "at-none", "state": "succeeded"}


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def changed(client: httpx.Client) -> Any:
    counts = client.get("/v1/statistics").json()
    return {name: count for name, count in counts.items() if name != "bytes"}


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("tasks", "nonsense", 422, "body"),
        ("tasks", "", 422, "body"),
        ("tasks", {"id": "t"}, 422, "body: input should be a valid array"),
        ("tasks", [TASK, {"id": "t2"}], 422, "body[1].input: it is required"),
        ("tasks", [{**TASK, "imput": 2}], 422, "body[0].imput: there is no such field"),
        ("tasks", [{**TASK, "split": 3}], 422, "body[0].split: input should be a valid string, not 3"),
        ("tasks", '[{"id": "t", "input": NaN}]', 422, "NaN is no JSON"),
        ("tasks", '[{"id": "t", "input": -Infinity}]', 422, "-Infinity is no JSON"),
        ("tasks", '[{"id": "t", "input": ' + "[" * 100_000, 422, "body"),
        ("tasks", b'[{"id": "t", "input": "\xff"}]', 422, "body"),
        ("spans", [{**SPAN, "start_ns": "1"}], 422, "body[0].start_ns: input should be a valid integer, not '1'"),
        ("spans", [{**SPAN, "start_ns": 1.5}], 422, "body[0].start_ns"),
        ("spans", [{**SPAN, "start_ns": 2**70}], 400, "cannot be stored"),
        ("spans", [{**SPAN, "status": "fine"}], 422, "'unset', 'ok' or 'error'"),
        ("spans", [{**SPAN, "attributes": [1]}], 422, "body[0].attributes"),
        ("spans", [{**SPAN, "events": [{"name": "e"}]}], 422, "body[0].events[0].time_ns: it is required"),
        ("rollouts", [{"task_id": "no-such-task"}], 404, "no-such-task"),
        ("rollouts", [{"task_id": "t", "max_attempts": 0}], 400, "max_attempts"),
        ("rollouts", [{"task_id": "t", "mode": "exam"}], 422, "body[0].mode"),
        ("rollouts", [{"task_id": "t", "retry": {"backof": 2}}], 422, "body[0].retry.backof: there is no such field"),
        ("rollouts", '[{"task_id": "t", "deadline_seconds": 1e999}]', 422, "deadline_seconds"),
        ("rollouts/lease", {"worker": "w", "limit": 0}, 400, "limit"),
        ("rollouts/lease", {"worker": "w", "limit": 10**9}, 422, "body.limit"),
        ("rollouts/lease", {"worker": "w", "lease_seconds": -1}, 400, "lease_seconds"),
        ("rollouts/lease", {"worker": "w", "wait_seconds": 31}, 422, "body.wait_seconds"),
        ("rollouts/lease", {"limit": 1}, 422, "body.worker: it is required"),
        ("rollouts/wait", {"ids": ["ro-none"]}, 404, "ro-none"),
        ("rollouts/wait", {"ids": [], "at_least": -1}, 400, "at_least"),
        ("rollouts/cancel", {"ids": ["ro-none"]}, 404, "ro-none"),
        ("rollouts/requeue", {"ids": ["ro-none"]}, 404, "ro-none"),
        ("rollouts/get", {"ids": ["\ud800"]}, 400, "cannot be stored"),
        ("attempts/finish", FINISH, 404, "at-none"),
        ("attempts/finish", {**FINISH, "state": "running"}, 400, "running"),
        ("attempts/finish", {**FINISH, "spans": [{**SPAN, "end_ns": None}]}, 422, "body.spans[0].end_ns"),
        ("attempts/heartbeat", {"attempt_ids": "at-1"}, 422, "body.attempt_ids"),
        ("rewards", [{"rollout_id": "r", "attempt_id": "a", "value": "1"}], 422, "body[0].value"),
        ("rewards", '[{"rollout_id": "r", "attempt_id": "a", "value": 1e999}]', 422, "finite"),
        ("rewards", [{"rollout_id": "r", "attempt_id": "a", "value": 1}], 404, "no attempt 'a'"),
        ("resources", {"name": "p", "kind": "poem", "content": {}}, 422, "body.kind"),
        ("resources", {"name": "p", "kind": "prompt", "content": {}, "version": 7}, 400, "version"),
        ("metrics", [{"run_id": "r", "step": 1, "values": {"a": [1]}}], 422, "body[0].values.a"),
        ("prune", {"max_age_seconds": -1}, 400, "max_age_seconds"),
        ("load", {"rollouts": [{"task_id": "no-such-task"}]}, 404, "no-such-task"),
    ],
)
def test_a_body_that_does_not_fit_is_told_why(
    client: httpx.Client, path: str, body: Any, status: int, told: str
) -> None:
    before = changed(client)
    content = body if isinstance(body, (str, bytes)) else json.dumps(body)
    answer = client.post(f"/v1/{path}", content=content)
    kind, message = error_of(answer)
    assert (answer.status_code, told in message) == (status, True), (answer.status_code, kind, message)
    assert message.endswith((".", "…"))
    assert changed(client) == before


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("tasks?limit=0", 400, "limit"),
        ("tasks?limit=many", 422, "query.limit"),
        ("tasks?limit=10001", 422, "query.limit"),
        ("tasks?limit=1&limit=2", 422, "limit is given twice"),
        ("tasks?dataste=x", 422, "query.dataste: there is no such field"),
        ("rollouts?after=page-two", 400, "no cursor"),
        ("rollouts?after=" + "9" * 30, 400, "too large"),
        ("rollouts?step=" + "9" * 30, 422, "query.step"),
        ("rollouts?state=asleep", 422, "query.state"),
        ("spans/search?newest_first=perhaps", 422, "query.newest_first"),
        ("resources/get", 422, "query.name: it is required"),
        ("resources/get?name=nobody", 404, "'nobody'"),
        ("runs/get?run_id=nobody", 404, "'nobody'"),
        ("rollouts/ended", 422, "give run_id or group_id"),
        ("rollouts/ended?id=ro-none", 404, "ro-none"),
        ("rollouts?" + "&".join(f"a{number}=1" for number in range(2001)), 422, "query"),
    ],
)
def test_a_query_that_does_not_fit_is_told_why(client: httpx.Client, query: str, status: int, told: str) -> None:
    answer = client.get(f"/v1/{query}")
    kind, message = error_of(answer)
    assert (answer.status_code, told in message) == (status, True), (answer.status_code, kind, message)


def test_every_route_refuses_what_is_no_request_for_it(client: httpx.Client) -> None:
    before = changed(client)
    paths = client.get("/openapi.json").json()["paths"]
    posts = [path for path, methods in paths.items() if path.startswith("/v1/") and "post" in methods]
    assert len(posts) > 20
    for path in posts:
        if path == "/v1/traces":  # OTLP: another format.
            continue
        for body in (b"", b"\x00", b"{", b"null", b"7", b'"text"', b"[null]", b'{"no": "such field"}'):
            answer = client.post(path, content=body)
            assert answer.status_code == 422, (path, body, answer.status_code, answer.text)
            error_of(answer)
    assert changed(client) == before


NEEDED = {
    ("POST", "/v1/spans"): Scope.AGENT,
    ("POST", "/v1/rewards"): Scope.AGENT,
    ("GET", "/v1/resources"): Scope.AGENT,
    ("POST", "/v1/rollouts/lease"): Scope.RUNNER,
    ("POST", "/v1/attempts/finish"): Scope.RUNNER,
    ("POST", "/v1/tasks"): Scope.RUNNER,
    ("POST", "/v1/rollouts"): Scope.TRAINER,
    ("POST", "/v1/resources"): Scope.TRAINER,
    ("POST", "/v1/rollouts/delete"): Scope.TRAINER,
    ("POST", "/v1/load"): Scope.TRAINER,
    ("GET", "/v1/spans"): Scope.READ,
    ("GET", "/v1/statistics"): Scope.READ,
    ("POST", "/v1/prune"): Scope.ADMIN,
}


def test_a_token_may_do_what_its_scope_says_and_no_more(server: ServerProcess) -> None:
    tokens = {scope: server.tokens.create([scope])[0] for scope in Scope}
    with server.client(server.token(Scope.ADMIN)) as client:
        for (method, path), needed in NEEDED.items():
            allowed = {needed, Scope.ADMIN}
            if needed is not Scope.ADMIN:
                allowed.add(Scope.TRAINER)
            if needed is Scope.AGENT:
                allowed |= {Scope.RUNNER}
            if path == "/v1/resources" and method == "GET":
                allowed |= {Scope.READ}
            for scope, token in tokens.items():
                # A body that fits nothing: who may do it is told so, the others do not get that far.
                answer = client.request(
                    method, path + "?zz=1", content=b"{", headers={"authorization": f"Bearer {token}"}
                )
                assert (answer.status_code == 403) == (scope not in allowed), (path, scope, answer.text)
                if answer.status_code == 403:
                    assert "scope" in error_of(answer)[1]


def test_without_a_known_token_nothing_is_told(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.address, trust_env=False) as client:
        for headers in ({}, {"authorization": "Bearer ct_wrong"}, {"authorization": "Basic eDp5"}):
            for path in ("/v1", "/v1/tasks", "/v1/rollouts/lease"):
                answer = client.post(path, headers=headers, content=b"{}")
                assert answer.status_code == 401
                error_of(answer)


def test_the_description_tells_of_every_route_and_type(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert client.get("/docs").status_code == 200
    schemas = document["components"]["schemas"]
    assert {"Task", "Rollout", "Attempt", "Span", "Reward", "Resource", "Run", "Metrics", "Decision", "Error"} <= set(
        schemas
    )
    assert schemas["Rollout"]["properties"]["max_attempts"]["description"].startswith("After so many failed")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1") and path != "/v1/traces":
                assert operation["summary"], (path, method)
                assert {"401", "422", "503"} <= set(operation["responses"]), (path, method)
                assert "requestBody" in operation or method == "get", (path, method)
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        found: Any = document
        for step in reference.split("/"):
            found = found[step]
