"""A scripted model behind a real socket, the SDK's traces kept here, and capture switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("agents.run")

import agents

import coterie
from coterie.testing import ScriptedModel

Script = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def _traces_stay_here() -> Iterator[None]:
    """The SDK makes traces, and sends them nowhere."""
    agents.set_trace_processors([])
    agents.set_tracing_disabled(False)
    yield
    agents.set_trace_processors([])
    agents.set_tracing_disabled(False)


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
