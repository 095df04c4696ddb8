"""Fixtures: a store of each kind under test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stores_under_test import STORES, Clock, OpenStore

from coterie.store.base import Store


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs PostgreSQL, so that it can be chosen or left out."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is not None and "postgresql" in [
            value for value in parameters.params.values() if isinstance(value, str)
        ]:
            item.add_marker(pytest.mark.postgres)


@pytest.fixture(params=sorted(STORES))
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStore]:
    stores = STORES[request.param](tmp_path)
    yield stores
    await stores.close()


@pytest.fixture
async def store(open_store: OpenStore) -> Store:
    return await open_store()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def timed_store(open_store: OpenStore, clock: Clock) -> Store:
    """A store whose time is ``clock``."""
    return await open_store(clock=clock)
