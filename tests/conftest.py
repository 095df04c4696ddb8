"""For all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("coterie", deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure: what hangs is ended by the timeouts of pytest and of nox."""
settings.load_profile("coterie")


@pytest.fixture(autouse=True)
def _own_connections() -> Iterator[None]:
    """Let no test use connections of another one's event loop: langchain-openai shares one client in the process."""
    yield
    module = sys.modules.get("langchain_openai.chat_models._client_utils")
    if module is not None:
        module._cached_async_httpx_client.cache_clear()
        module._cached_sync_httpx_client.cache_clear()
