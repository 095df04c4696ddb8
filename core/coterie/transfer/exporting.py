"""``export_store``: a store, a run, or what was queued in a time, as a folder of files.

It works through the store's interface alone, a page at a time, while others go on using the store. A rollout and its
attempts are written as they were at one moment, so that the folder can be imported whatever went on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from coterie.errors import ConfigError, NotFoundError
from coterie.store.base import Page, Store
from coterie.store.filters import SpanFilter
from coterie.transfer.files import RecordWriter, open_writer
from coterie.transfer.manifest import KINDS, MANIFEST, FileEntry, Format, Manifest, checksum
from coterie.vocabulary import Attempt, AttemptState, Rollout, RolloutState

Item = TypeVar("Item")
Told = Callable[[str, int], None]
"""Called with a kind of records and how many of it are done."""

ROLLOUTS_AT_ONCE = 100
SPANS_AT_ONCE = 200
"""What is in memory at once."""


@dataclass(frozen=True, slots=True)
class Range:
    """What to export; all by default. With any of these, only what the chosen rollouts need comes with them."""

    run_id: str | None = None
    """The rollouts of one run, with its metrics and decisions."""
    from_ns: int | None = None
    """What was queued at this time or later; of spans that belong to no rollout, those that began then."""
    before_ns: int | None = None
    """What was queued before this time."""

    @property
    def everything(self) -> bool:
        """True if nothing is left out."""
        return self == Range()

    def has(self, rollout: Rollout) -> bool:
        """True if a rollout is among it."""
        queued = rollout.created_ns
        return (self.from_ns is None or queued >= self.from_ns) and (self.before_ns is None or queued < self.before_ns)


async def export_store(
    store: Store,
    folder: Path,
    *,
    only: Range | None = None,
    format: Format = Format.JSONL,  # noqa: A002 - it is the word for it
    told: Told | None = None,
) -> Manifest:
    """Write records to a new folder, which is whole or absent.

    Raises:
        ConfigError: the folder exists and is not empty, or cannot be written, or the format needs what is not installed.
        NotFoundError: there is no run of this id.
    """
    chosen = only or Range()
    _raise_if_taken(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"{folder}: it cannot be written: {error}. Name another folder.") from error
    try:
        counts = await _Export(store, work, chosen, format, told or _tell_nobody).write()
        scope = {name: value for name, value in asdict(chosen).items() if value is not None}
        manifest = await asyncio.to_thread(_finished, work, folder, format, counts, scope)
    except OSError as error:
        raise ConfigError(f"{folder}: it could not be written: {error}. Nothing is left there.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


class _Export:
    """One export under way."""

    def __init__(self, store: Store, folder: Path, chosen: Range, format: Format, told: Told) -> None:  # noqa: A002
        self._store = store
        self._chosen = chosen
        self._told = told
        self._writers: dict[str, RecordWriter] = {}
        with ExitStack() as opened:
            for kind in KINDS:
                self._writers[kind] = opened.enter_context(open_writer(folder, kind, format))
            self._held = opened.pop_all()
        self._tasks: set[str] = set()
        self._runs: set[str] = set()
        self._resources: set[str] = set()

    async def write(self) -> dict[str, int]:
        """Write all; gives the number of records by kind."""
        with self._held:
            if self._chosen.run_id is not None:
                await self._store.get_run(self._chosen.run_id)
                self._runs.add(self._chosen.run_id)
            # What others refer to is read after them: so whatever is added meanwhile, nothing refers to what is missing.
            await self._write_spans_of_no_rollout()
            await self._write_rollouts()
            await self._write_runs()
            await self._write_resources()
            await self._write_tasks()
        return {kind: writer.records for kind, writer in self._writers.items()}

    async def _write_rollouts(self) -> None:
        pages = _pages(
            lambda after: self._store.list_rollouts(run_id=self._chosen.run_id, after=after, limit=ROLLOUTS_AT_ONCE)
        )
        async for page in pages:
            rollouts, attempts = await self._at_one_moment([one for one in page if self._chosen.has(one)])
            self._put("rollouts", rollouts)
            self._put("attempts", attempts)
            rewards = await self._store.get_rewards([attempt.id for attempt in attempts])
            self._put("rewards", [reward for attempt in attempts for reward in rewards[attempt.id]])
            for rollout in rollouts:
                self._tasks.add(rollout.task_id)
                self._resources |= rollout.resources.keys()
                if rollout.run_id is not None:
                    self._runs.add(rollout.run_id)
                if not self._chosen.everything:
                    await self._write_spans(rollout.id)

    async def _at_one_moment(self, rollouts: Sequence[Rollout]) -> tuple[Sequence[Rollout], Sequence[Attempt]]:
        """Rollouts and their attempts, read again where one of them changed in between."""
        before = {rollout.id: rollout for rollout in rollouts}
        found: dict[str, tuple[Rollout, Sequence[Attempt]]] = {}
        while before:
            attempts = await self._store.get_attempts(list(before))
            after = await self._still_there(list(before))
            for id_, rollout in after.items():
                if rollout == before[id_] and _fit(rollout, attempts[id_]):
                    found[id_] = rollout, attempts[id_]
            before = {id_: rollout for id_, rollout in after.items() if id_ not in found}
        there = [found[rollout.id] for rollout in rollouts if rollout.id in found]
        return [rollout for rollout, _ in there], [attempt for _, each in there for attempt in each]

    async def _still_there(self, ids: Sequence[str]) -> dict[str, Rollout]:
        """The rollouts of these ids that were not removed meanwhile."""
        try:
            return {rollout.id: rollout for rollout in await self._store.get_rollouts(ids)}
        except NotFoundError:
            if len(ids) == 1:
                return {}
            half = len(ids) // 2
            return await self._still_there(ids[:half]) | await self._still_there(ids[half:])

    async def _write_spans(self, rollout_id: str) -> None:
        async for page in _pages(
            lambda after: self._store.list_spans(rollout_id=rollout_id, after=after, limit=SPANS_AT_ONCE)
        ):
            self._put("spans", page)

    async def _write_spans_of_no_rollout(self) -> None:
        """All spans, if everything is exported; else those of no rollout that began in the time."""
        chosen = self._chosen
        if chosen.run_id is not None:
            return
        where = SpanFilter(started_from_ns=chosen.from_ns, started_before_ns=chosen.before_ns)
        async for page in _pages(
            lambda after: (
                self._store.list_spans(after=after, limit=SPANS_AT_ONCE)
                if chosen.everything
                else self._store.search_spans(where, after=after, limit=SPANS_AT_ONCE)
            )
        ):
            self._put("spans", [span for span in page if chosen.everything or span.rollout_id is None])

    async def _write_runs(self) -> None:
        if self._chosen.everything:
            async for page in _pages(lambda after: self._store.list_runs(after=after)):
                self._put("runs", page)
                self._runs |= {run.id for run in page}
        for run_id in sorted(self._runs):
            if not self._chosen.everything:
                try:
                    self._put("runs", [await self._store.get_run(run_id)])
                except NotFoundError:
                    continue  # Rollouts may name a run that nobody saved.
            self._put("metrics", await self._store.get_metrics(run_id))
            if not self._chosen.everything:
                self._put("decisions", await self._store.get_decisions(run_id))
        if self._chosen.everything:
            async for decisions in _pages(lambda after: self._store.list_decisions(after=after)):
                self._put("decisions", decisions)

    async def _write_resources(self) -> None:
        if self._chosen.everything:
            self._resources = {resource.name for resource in await self._store.list_resources()}
        for name in sorted(self._resources):
            self._put("resources", await self._store.list_resources(name=name))

    async def _write_tasks(self) -> None:
        if self._chosen.everything:
            async for page in _pages(lambda after: self._store.list_tasks(after=after)):
                self._put("tasks", page)
            return
        ids = sorted(self._tasks)
        for start in range(0, len(ids), ROLLOUTS_AT_ONCE):
            self._put("tasks", await self._store.get_tasks(ids[start : start + ROLLOUTS_AT_ONCE]))

    def _put(self, kind: str, records: Sequence[Any]) -> None:
        if records:
            self._writers[kind].write(records)
            self._told(kind, self._writers[kind].records)


async def _pages(get: Callable[[str | None], Awaitable[Page[Item]]]) -> AsyncIterator[Sequence[Item]]:
    after: str | None = None
    while True:
        page = await get(after)
        yield page.items
        after = page.cursor
        if after is None:
            return


def _fit(rollout: Rollout, attempts: Sequence[Attempt]) -> bool:
    running = sum(attempt.state is AttemptState.RUNNING for attempt in attempts)
    return running == int(rollout.state is RolloutState.RUNNING)


def _raise_if_taken(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise ConfigError(f"{folder}: it is there already, and not empty. Name a new folder.")


def _finished(
    work: Path,
    folder: Path,
    format: Format,  # noqa: A002 - as above
    counts: dict[str, int],
    scope: dict[str, Any],
) -> Manifest:
    """Bring everything to disk, then give the folder its name."""
    files = {}
    for kind, count in counts.items():
        file = work / f"{kind}.{format.value}"
        files[kind] = FileEntry(count, *checksum(file))
        _sync(file)
    manifest = Manifest(format, files, scope)
    manifest.write(work)
    _sync(work / MANIFEST)
    _sync(work)
    if folder.exists():
        folder.rmdir()
    work.rename(folder)
    return manifest


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tell_nobody(_kind: str, _count: int) -> None:
    pass
