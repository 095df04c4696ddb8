"""A work folder that holds the small run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from small_run import RUN, Fill, fill_store

import coterie
from coterie.vocabulary import RunState


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """Fills ``work/store.db`` and gives the work folder."""

    async def filled(
        *, state: RunState = RunState.SUCCEEDED, evaluations: Sequence[str] = ("before", "after"), run_id: str = RUN
    ) -> Path:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        async with coterie.connect(work / "store.db") as store:
            await fill_store(store, state=state, evaluations=evaluations, run_id=run_id)
        return work

    return filled
