"""Spans on their way to the store: in a file from the moment that their answer ends, in memory until they are committed.

A file that was written, though not forced to the disk, outlives the process that wrote it. So an answer of production need
not wait for the store's commit, and a gateway that is killed loses no call whose answer had ended; only the machine's own
failure in the moments before the commit would. What a former gateway left is read at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from coterie.errors import ConfigError, StoreError
from coterie.store.base import Store
from coterie.vocabulary import Span, SpanEvent, SpanStatus

_log = logging.getLogger("coterie.gateway")

LARGEST_BATCH = 256
"""Spans in one call of the store."""
LONGEST_PAUSE_SECONDS = 5.0
"""Between tries to write to a store that is away."""


@dataclass(slots=True, eq=False)
class _Written:
    """A span that waits, and who waits for it."""

    span: Span
    committed: asyncio.Future[None] | None


class SpanWriter:
    """Brings spans to the store, in batches: what comes while one batch is written makes the next."""

    def __init__(self, store: Store, folder: Path | None, tell: Callable[[int], None]) -> None:
        """Prepare it.

        Args:
            store: where they go.
            folder: where they lie on their way; None for in memory only.
            tell: is told how many are on their way, whenever that changes.
        """
        self._store = store
        self._tell = tell
        self._file = _File(folder) if folder is not None else None
        self._waiting: list[_Written] = []
        self._in_hand: list[_Written] = []
        self._came = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def __len__(self) -> int:
        """Spans that are not in the store yet."""
        return len(self._waiting) + len(self._in_hand)

    @property
    def outlives_us(self) -> bool:
        """True if what ``add`` took survives the end of this process."""
        return self._file is not None

    def start(self) -> None:
        """Begin, with what a former gateway left.

        Raises:
            ConfigError: the folder cannot be written.
        """
        if self._file is not None:
            self._waiting.extend(_Written(span, None) for span in self._file.open())
            if self._waiting:
                _log.warning("%d spans of a gateway that was cut off are written now.", len(self._waiting))
                self._came.set()
        self._task = asyncio.create_task(self._write_all(), name="gateway spans")

    def add(self, span: Span) -> None:
        """Take a span. Returns at once."""
        self._take(_Written(span, None))

    async def commit(self, span: Span) -> None:
        """Take a span, and wait until it is on the store's disk."""
        committed = asyncio.get_running_loop().create_future()
        self._take(_Written(span, committed))
        await committed

    async def close(self, seconds: float) -> None:
        """Write what is left. What the store does not take in ``seconds`` stays in the folder, or is reported lost. A second
        call does nothing.
        """
        if self._closing:
            return
        self._closing = True
        self._came.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._task)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if len(self):
            where = "they are kept for the next start" if self._file is not None else "they are lost"
            _log.error("%d spans could not be written to the store; %s.", len(self), where)
        if self._file is not None:
            self._file.close()

    def _take(self, written: _Written) -> None:
        if self._file is not None:
            self._file.append(written.span)
        self._waiting.append(written)
        self._came.set()
        self._tell(len(self))

    async def _write_all(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                self._in_hand, self._waiting = self._waiting[:LARGEST_BATCH], self._waiting[LARGEST_BATCH:]
                await self._write(self._in_hand)
                self._in_hand = []
                self._tell(len(self))
                if self._file is not None and not self._waiting:
                    self._file.empty()
            if self._closing:
                return

    async def _write(self, batch: Sequence[_Written]) -> None:
        pause = 0.1
        while True:
            try:
                await self._store.add_spans([one.span for one in batch])
                break
            except StoreError as error:
                if type(error) is StoreError:  # it refuses one of them, and always will
                    if len(batch) == 1:
                        _log.error("The store refuses the span of a call, which is lost: %s", error)
                        break
                    for one in batch:
                        await self._write([one])
                    return
                _log.warning("%d spans cannot be written yet: %s", len(self), error)
            except Exception:  # noqa: BLE001 - whatever it is, the spans are kept and tried again
                _log.exception("%d spans cannot be written yet.", len(self))
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        for one in batch:
            if one.committed is not None and not one.committed.done():
                one.committed.set_result(None)


@dataclass(slots=True)
class _File:
    """One file a process, a span a line; emptied whenever all of it is in the store."""

    folder: Path
    _file: FileIO | None = None
    _path: Path | None = None
    _left: list[Path] = field(default_factory=list)
    """Files of former processes, until their spans are in the store."""
    _size: int = 0

    def open(self) -> list[Span]:
        """Open it, and read what others left."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._left = [path for path in self.folder.glob("*.spans") if not _alive(path)]
            self._path = self.folder / f"{os.getpid()}.spans"
            self._file = FileIO(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
            self._size = os.fstat(self._file.fileno()).st_size
            if self._size:  # left by a former process of the same id, perhaps in the middle of a line
                self._size += self._file.write(b"\n") or 0
        except OSError as error:
            raise ConfigError(f"gateway.spool: {self.folder}: {error.strerror}") from error
        return [span for path in self._left for span in _read(path)]

    def append(self, span: Span) -> None:
        """Write a span."""
        if self._file is None:
            return  # closed: what comes now waits in memory alone
        line = orjson.dumps(span, option=orjson.OPT_APPEND_NEWLINE, default=_plain)
        try:
            self._size += self._file.write(line) or 0
        except OSError as error:
            _log.error("The span of a call could not be kept in %s until it is in the store: %s", self._path, error)

    def empty(self) -> None:
        """Forget all."""
        if self._size and self._file is not None:
            self._file.truncate(0)
            self._size = 0
        while self._left:
            path = self._left.pop()
            if path != self._path:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove it, if nothing waits in it. A second call does nothing."""
        if self._file is None or self._path is None:
            return
        self._file.close()
        self._file = None
        if not self._size:
            self._path.unlink(missing_ok=True)


def _alive(path: Path) -> bool:
    """True for the file of a process that runs, which is not this one."""
    if not path.stem.isdigit() or int(path.stem) == os.getpid():
        return False
    try:
        os.kill(int(path.stem), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _read(path: Path) -> list[Span]:
    spans = []
    for line in path.read_bytes().splitlines():
        try:
            spans.append(_span(orjson.loads(line)))
        except (ValueError, TypeError, KeyError):
            _log.error("A span in %s was cut off while it was written; it is lost.", path)
    return spans


def _span(fields: dict[str, Any]) -> Span:
    fields["status"] = SpanStatus(fields["status"])
    fields["events"] = tuple(SpanEvent(**event) for event in fields["events"])
    return Span(**fields)


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)
