"""A real store in a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import coterie
from coterie.store.base import Store
from coterie.vocabulary import Task


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with the task t1. The test must leave no task behind."""
    async with coterie.connect(tmp_path / "store.db") as opened:
        await opened.add_tasks([Task("t1", {"question": "how many?"}, reference=7)])
        yield opened
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
