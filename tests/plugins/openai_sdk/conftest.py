"""A scripted model behind a real socket, the SDK's traces kept here, and capture switched on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("agents.run")

import agents
from agents.models import openai_provider
from docs_pages import play_page
from scripted_servers import recording, serve

__all__ = ["play_page", "recording", "serve"]


@pytest.fixture(autouse=True)
def _traces_stay_here() -> Iterator[None]:
    """The SDK makes traces, and sends them nowhere."""
    agents.set_trace_processors([])
    agents.set_tracing_disabled(False)
    yield
    agents.set_trace_processors([])
    agents.set_tracing_disabled(False)


@pytest.fixture(autouse=True)
def _no_connections_of_other_loops() -> Iterator[None]:
    """The SDK shares one HTTP client in the process, with connections of the event loop that made them."""
    yield
    openai_provider._http_client = None
