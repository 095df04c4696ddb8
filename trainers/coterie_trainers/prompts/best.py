"""``best``: the prompts that a finished run found, in one line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import coterie
from coterie.errors import ConfigError, NotFoundError
from coterie.store.base import Store
from coterie.vocabulary import Run

LATEST = "latest"


def best(store: str | os.PathLike[str], run: str = LATEST) -> Mapping[str, str]:
    """Prompt name → text: the winner's if it was taken, else the texts that the run began with.

    ``await find_best(…)`` does the same within asynchronous code, and takes an open store too.

    Args:
        store: A store's address or file, or the work folder of a run.
        run: The run's id; by default the newest tuning run that the store holds.

    Raises:
        NotFoundError: there is no such run.
        ConfigError: the run is not finished, or tunes no prompts; or the store is an open one, which belongs to the event loop of
            whoever opened it.
    """
    if isinstance(store, Store):
        raise ConfigError("best: give the address of a store, or ask an open one with: await find_best(store).")
    with ThreadPoolExecutor(1) as thread:  # Whoever asks may have a running loop of its own.
        return thread.submit(lambda: asyncio.run(find_best(store, run))).result()


async def find_best(store: Store | str | os.PathLike[str], run: str = LATEST) -> Mapping[str, str]:
    """As ``best``, for asynchronous code."""
    if isinstance(store, Store):
        return await _best_in(store, run)
    async with coterie.connect(_address(str(store))) as opened:
        return await _best_in(opened, run)


def _address(given: str) -> str:
    if "://" in given:
        return given
    path = Path(given)
    path = path / "store.db" if path.is_dir() else path
    if not path.is_file():
        raise NotFoundError(f"There is no store {path}. Name a store's file or address, or the work folder of a run.")
    return str(path)


async def _best_in(store: Store, run_id: str) -> Mapping[str, str]:
    run = await _newest(store) if run_id == LATEST else await store.get_run(run_id)
    found: Mapping[str, Any] | None = run.summary.get("prompts")
    if run.kind != "optimize":
        raise ConfigError(f"Run {run.id} tunes no prompts: its kind is {run.kind!r}.")
    if found is None:
        raise ConfigError(
            f"Run {run.id} is not finished, it is {run.state}. The command that began it goes on with it."
        )
    which = "winner" if run.summary["taken"] else "seed"
    resources = {name: await store.get_resource(name, one[which]) for name, one in found.items()}
    return {name: str(resource.content["text"]) for name, resource in resources.items()}


async def _newest(store: Store) -> Run:
    cursor = None
    while True:
        page = await store.list_runs(after=cursor)
        for run in page.items:
            if run.kind == "optimize":
                return run
        if page.cursor is None:
            raise NotFoundError("The store holds no run that tunes prompts. `coterie optimize APP CONFIG` makes one.")
        cursor = page.cursor
