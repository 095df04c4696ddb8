"""Tokens: who may use the server, and for what."""

from __future__ import annotations

import hashlib
import json
import stat
import threading
import time
from pathlib import Path

import httpx
import pytest
from server_parts import ServerProcess, coterie, error_of
from typer.testing import CliRunner

from coterie.errors import ConfigError
from coterie.vocabulary import now_ns
from coterie_server.commands.token import token as token_command
from coterie_server.store_api.routes import ROUTES
from coterie_server.tokens import IMPLIED, Scope, TokenFile, Tokens

TRACES = ("POST", "/v1/traces")


def ask(server: ServerProcess, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    return httpx.request(method, server.address + path, headers=headers, timeout=30, trust_env=False)


def test_every_route_asks_for_a_token(server: ServerProcess) -> None:
    known = [(route.method, route.path) for route in ROUTES] + [
        TRACES,
        ("GET", "/metrics"),
        ("GET", "/gateway/v1/models"),
    ]
    for method, path in known:
        for headers in ({}, {"authorization": "Bearer ct_wrong"}, {"authorization": f"Basic {server.admin}"}):
            answer = ask(server, method, path, headers)
            assert answer.status_code == 401, (method, path, headers)
            error_of(answer)


def test_paths_that_do_not_exist_tell_nothing_without_a_token(server: ServerProcess) -> None:
    assert ask(server, "GET", "/v1/secret", {}).status_code == 401


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_what_tells_nothing_of_the_store_is_open(server: ServerProcess, path: str) -> None:
    assert ask(server, "GET", path, {}).status_code == 200


def test_each_scope_may_do_what_it_is_for_and_no_more(server: ServerProcess) -> None:
    tokens = {scope: server.tokens.create([scope])[0] for scope in Scope}
    time.sleep(0.6)
    with server.client() as client:
        for route in ROUTES:
            for scope, token in tokens.items():
                allowed = {"any", scope, *IMPLIED[scope]} & set(route.scopes) or scope is Scope.ADMIN
                answer = client.request(
                    route.method,
                    route.path,
                    headers={"authorization": f"Bearer {token}"},
                    content=None if route.query else b"no json",
                )
                assert (answer.status_code != 403) == bool(allowed), (route.path, scope, answer.text)
                assert answer.status_code < 500, (route.path, scope, answer.text)
                assert answer.status_code != 401


def test_only_administration_is_closed_to_trainers(server: ServerProcess) -> None:
    closed = {route.path for route in ROUTES if not set(route.scopes) & {"any", "trainer", *IMPLIED[Scope.TRAINER]}}
    assert all("prune" in path or "delete" in path or "import" in path or "load" in path for path in closed), closed


def test_readers_may_ask_and_not_change(server: ServerProcess) -> None:
    reader = server.token(Scope.READ)
    with server.client(reader) as client:
        assert client.get("/v1/rollouts").status_code == 200
        assert client.get("/metrics").status_code == 200
        refused = client.post("/v1/tasks", json=[])
        kind, message = error_of(refused)
        assert (refused.status_code, kind) == (403, "ForbiddenError")
        assert "trainer" in message
        assert reader not in refused.text
    with server.client(server.token(Scope.AGENT)) as client:
        assert client.get("/metrics").status_code == 403
        assert client.get("/gateway/v1/models").status_code == 200


def test_revoked_and_expired_tokens_are_refused_by_a_running_server(server: ServerProcess) -> None:
    token = server.token(Scope.READ, name="to be revoked")
    ends_soon = server.token(Scope.READ, expires_ns=now_ns() + 3_000_000_000)
    with server.client() as client:

        def status(of: str) -> int:
            return client.get("/v1/tasks", headers={"authorization": f"Bearer {of}"}).status_code

        assert status(token) == 200
        told = coterie(server.folder, "token", "revoke", "to be revoked")
        assert told.returncode == 0, told.stderr
        give_up_at = time.monotonic() + 5
        while status(token) != 401:
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
        while status(ends_soon) != 401:
            assert time.monotonic() < give_up_at
            time.sleep(0.1)


def test_the_token_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def told(*arguments: str) -> str:
        done = CliRunner().invoke(token_command, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    token = told("create", "--scope", "runner", "--scope", "read", "--name", "host 1", "--expires-days", "1").strip()
    assert token.startswith("ct_")
    assert len(token) >= 3 + 43
    file = tmp_path / "coterie.db.tokens"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token not in file.read_text()
    assert hashlib.sha256(token.encode()).hexdigest() in file.read_text()
    (listed,) = json.loads(told("list", "--json"))
    assert (listed["name"], listed["scopes"], listed["state"]) == ("host 1", ["runner", "read"], "valid")
    caller = Tokens(file).caller(token)
    assert caller is not None
    assert caller.allowed == {"any", "runner", "agent", "read"}
    assert listed["id"] in told("revoke", listed["id"])
    assert "revoked" in told("list")
    assert Tokens(file).caller(token) is None
    with pytest.raises(ConfigError, match="there is no token 'tk-none'"):
        told("revoke", "tk-none")


def test_a_damaged_file_is_told_of_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    for text in ("", "[]", '{"tokens": [{"id": 1}]}', '{"tokens": [{"id":"a","name":"a","scopes":["root"]}]}'):
        file.write_text(text)
        with pytest.raises(ConfigError, match="is no file of tokens"):
            TokenFile(file).create([Scope.READ])
        assert file.read_text() == text


def test_many_writers_at_once_lose_no_token(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens")
    threads = [threading.Thread(target=lambda: [file.create([Scope.READ]) for _ in range(5)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(file.read()) == 40
