"""A scripted model behind a real socket, capture switched on, and a CrewAI that keeps to itself."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("crewai")

from docs_pages import play_page
from scripted_servers import recording, serve

__all__ = ["play_page", "recording", "serve"]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No telemetry, no traces of CrewAI's own, no files at home."""
    monkeypatch.setenv("CREWAI_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("CREWAI_TRACING_ENABLED", "false")
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
