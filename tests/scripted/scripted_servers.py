"""Fixtures of tests that run a framework: a scripted model behind a real socket, and capture switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import coterie
from coterie.testing import ScriptedModel

Script = Callable[[dict[str, Any]], Any]


@pytest.fixture
def recording() -> Iterator[None]:
    coterie.instrument()
    yield
    coterie.uninstrument()


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedModel]]:
    """Start servers with an answer function; they stop with the test."""
    servers: list[ScriptedModel] = []

    def start(script: Script) -> ScriptedModel:
        servers.append(ScriptedModel(script).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
