"""A scripted model behind a real socket, capture switched on, and a CrewAI that keeps to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("crewai")

import coterie
from coterie.testing import ScriptedModel

Script = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No telemetry, no traces of CrewAI's own, no files at home."""
    monkeypatch.setenv("CREWAI_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("CREWAI_TRACING_ENABLED", "false")
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))


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
