"""The whole API against its own description: whatever fits the schema, or just does not, there is never a 5xx."""

from __future__ import annotations

from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis")

import requests  # noqa: E402
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402
from server_parts import ServerProcess  # noqa: E402

EXAMPLES = 8
"""For each route, of requests that fit and of requests that do not."""


def test_no_request_makes_the_server_fail(server: ServerProcess) -> None:
    with server.client() as client, requests.Session() as session:
        document = client.get("/openapi.json").json()
        # OTLP speaks protobuf and has tests of its own.
        document["paths"] = {
            path: methods
            for path, methods in document["paths"].items()
            if path.startswith("/v1") and path != "/v1/traces"
        }
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) > 40
        statuses: set[int] = set()

        def answer(case: Any) -> None:
            if isinstance(case.body, dict):
                # Waiting is tested elsewhere, and takes its time.
                case.body = {
                    name: 0 if name in ("wait_seconds", "timeout_seconds") else value
                    for name, value in case.body.items()
                } | ({"timeout_seconds": 0} if case.path == "/v1/rollouts/wait" else {})
            answer = case.call(
                base_url=server.address,
                headers={**(case.headers or {}), "authorization": f"Bearer {server.admin}"},
                session=session,
                timeout=20,
            )
            statuses.add(answer.status_code)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            if answer.status_code >= 400:
                error = answer.json()["error"]
                assert error["type"]
                assert error["message"]

        for operation in operations:
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                check = given(case=operation.as_strategy(generation_mode=mode))(answer)
                settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    derandomize=True,
                    database=None,
                    phases=(Phase.generate,),
                    suppress_health_check=list(HealthCheck),
                )(check)()
        assert {200, 204, 400, 404, 422} <= statuses
