"""Where the spans and rewards of running attempts wait until they are written: a little in memory, the rest on disk.

An attempt may record faster than the store takes it, or go on while the store is away. Nothing of it is lost and the
memory stays bounded: beyond ``MEMORY_BYTES`` what waits longest goes to a file without a name, which is gone with the
process.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import RLock
from typing import IO

from coterie.runner.prompt_use import PromptUse
from coterie.runner.trainability import CallCount
from coterie.vocabulary import Reward, Span

_log = logging.getLogger("coterie.runner")

MEMORY_BYTES = 32 * 2**20
"""How much may wait in memory, of all attempts of a runner together."""
PORTION_BYTES = 2**22
"""How much is written in one call of the store, unless a single span is larger."""
PORTION_ITEMS = 500
"""How many spans and rewards are written in one call of the store."""

Item = Span | Reward


class Backlog:
    """What all attempts of one runner have waiting. Open its sinks in the event loop that writes them."""

    def __init__(self, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.memory_bytes = memory_bytes
        self.much = asyncio.Event()
        """Set when a full portion waits in memory."""
        self.spilled = 0
        """Spans and rewards that went to disk so far."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sinks: set[AttemptSink] = set()

    @property
    def waiting(self) -> int:
        """Spans and rewards that wait, in memory and on disk."""
        return sum(sink.count for sink in tuple(self._sinks))

    @property
    def behind(self) -> bool:
        """True while the store takes less than the attempts record: then more attempts would only make it worse."""
        return any(sink.on_disk for sink in tuple(self._sinks))

    def open(self) -> AttemptSink:
        """A sink for one more attempt."""
        self._loop = asyncio.get_running_loop()
        sink = AttemptSink(self)
        self._sinks.add(sink)
        return sink

    def close(self, sink: AttemptSink) -> None:
        """Forget a sink and what it still holds."""
        self._sinks.discard(sink)
        sink.close()

    def grew(self, sink: AttemptSink) -> None:
        """Note that a sink took something. Called from any thread, by a sink that holds no lock."""
        # Were all as large as this one, there would still be room: so most spans cost no look at the others.
        if sink.in_memory * len(self._sinks) < min(PORTION_BYTES, self.memory_bytes) and sink.count < PORTION_ITEMS:
            return
        sizes = {each: each.in_memory for each in tuple(self._sinks)}
        total = sum(sizes.values())
        full = total >= PORTION_BYTES or sink.count >= PORTION_ITEMS
        if full and self._loop is not None and not self.much.is_set():
            with suppress(RuntimeError):  # The loop is closed: nobody writes any more.
                self._loop.call_soon_threadsafe(self.much.set)
        if total > self.memory_bytes:
            self._make_room(max(sizes, key=sizes.__getitem__))

    def _make_room(self, largest: AttemptSink) -> None:
        try:
            self.spilled += largest.spill()
        except Exception as error:  # noqa: BLE001 - a full disk, or a value that cannot be pickled
            self.memory_bytes *= 2
            _log.error(
                "Spans wait in memory, which may now take %d MiB, for they could not be put on disk: %s: %s",
                self.memory_bytes >> 20,
                type(error).__name__,
                error,
            )


class AttemptSink:
    """A ``SpanSink`` that holds what one attempt recorded, first in, first out. May be used from any thread."""

    def __init__(self, backlog: Backlog) -> None:
        self.calls = CallCount()
        self.prompts = PromptUse()
        self.in_memory = 0
        """Estimated bytes that wait in memory."""
        self.count = 0
        """Spans and rewards that wait."""
        self.refused = 0
        """Spans and rewards that the store refused."""
        self.refusal = ""
        """What the store said to the first of them."""
        self._backlog = backlog
        self._memory: deque[tuple[Item, int]] = deque()
        self._taken: Portion | None = None
        self._disk: _Spill | None = None
        self._spilling = False
        self._lock = RLock()

    @property
    def on_disk(self) -> bool:
        """True while something waits on disk."""
        return self._disk is not None and bool(self._disk)

    def add_span(self, span: Span) -> None:
        """Take a finished span."""
        with self._lock:
            self.calls.add(span)
            self.prompts.add(span)
            self._add(span)
        self._backlog.grew(self)

    def add_reward(self, reward: Reward) -> None:
        """Take a reward."""
        with self._lock:
            self._add(reward)
        self._backlog.grew(self)

    def take(self) -> Portion:
        """What to write next: the oldest that waits, as much as fits one call; empty when nothing waits. It is given
        again until ``written()`` of it says that it is on disk in the store.
        """
        with self._lock:
            if self._taken is None:
                items = self._disk.read() if self._disk is not None and self._disk else self._from_memory()
                if not items:
                    return Portion(self, ())
                self._taken = Portion(self, tuple(items))
            return self._taken

    def more_than(self, portion: Portion) -> bool:
        """True if something waits besides this portion."""
        return self.count > len(portion.items)

    def forget(self, portion: Portion) -> None:
        """Forget what was taken last."""
        with self._lock:
            if self._taken is portion:
                self._taken = None
                self.count -= len(portion.items)

    def refuse(self, error: Exception) -> None:
        """Note that the store refused one item for good."""
        self.refused += 1
        self.refusal = self.refusal or str(error)

    def spill(self) -> int:
        """Bring what waits in memory to disk, if nobody else is at it; gives how many spans and rewards that were."""
        # Not waiting for the lock: another thread may hold it and wait for one of ours.
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            if self._spilling:
                return 0
            self._spilling = True
            try:
                return self._spilled()
            finally:
                self._spilling = False
        finally:
            self._lock.release()

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if self._disk is not None:
                self._disk.close()
                self._disk = None

    def _add(self, item: Item) -> None:
        size = _size(item)
        self._memory.append((item, size))
        self.in_memory += size
        self.count += 1

    def _spilled(self) -> int:
        if self._disk is None:
            self._disk = _Spill()
        moved = 0
        while items := self._from_memory():
            try:
                self._disk.write(items)
            except BaseException:
                for item in reversed(items):
                    size = _size(item)
                    self._memory.appendleft((item, size))
                    self.in_memory += size
                raise
            moved += len(items)
        return moved

    def _from_memory(self) -> list[Item]:
        items: list[Item] = []
        total = 0
        while self._memory and len(items) < PORTION_ITEMS:
            _, size = self._memory[0]
            if items and total + size > PORTION_BYTES:
                break
            items.append(self._memory.popleft()[0])
            total += size
        self.in_memory -= total
        return items


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """Some of what one attempt recorded, to be written in one call."""

    sink: AttemptSink
    items: Sequence[Item]

    @property
    def spans(self) -> Sequence[Span]:
        """The spans among it."""
        return [item for item in self.items if isinstance(item, Span)]

    @property
    def rewards(self) -> Sequence[Reward]:
        """The rewards among it."""
        return [item for item in self.items if isinstance(item, Reward)]

    def written(self) -> None:
        """Say that it is on disk in the store."""
        self.sink.forget(self)


class _Spill:
    """A queue of portions in a file without a name."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="coterie-spans-")  # noqa: SIM115 - closed with the sink
        self._read_to = 0
        self._written_to = 0

    def __bool__(self) -> bool:
        return self._read_to < self._written_to

    def write(self, items: Sequence[Item]) -> None:
        """Append one portion."""
        frame = pickle.dumps(items, protocol=pickle.HIGHEST_PROTOCOL)
        self._file.seek(self._written_to)
        self._file.write(len(frame).to_bytes(8, "big") + frame)
        self._file.flush()
        self._written_to = self._file.tell()

    def read(self) -> list[Item]:
        """Take the oldest portion away."""
        self._file.seek(self._read_to)
        size = int.from_bytes(self._file.read(8), "big")
        items: list[Item] = pickle.loads(self._file.read(size))  # noqa: S301 - we wrote it, and nobody else can open it
        self._read_to = self._file.tell()
        if not self:
            self._file.truncate(0)
            self._read_to = self._written_to = 0
        return items

    def close(self) -> None:
        self._file.close()


def _size(item: Item) -> int:
    """About how many bytes an item takes as JSON."""
    if isinstance(item, Reward):
        return 300 + len(item.explanation or "")
    size = 300 + len(item.status_message) + sum(_value_sizes(item.attributes.values()))
    for event in item.events:
        size += 60 + sum(_value_sizes(event.attributes.values()))
    return size


def _value_sizes(values: Iterable[object]) -> Iterator[int]:
    for value in values:
        if isinstance(value, str):
            yield 30 + len(value)
        elif isinstance(value, Mapping):
            yield 30 + sum(_value_sizes(value.values()))
        elif isinstance(value, Sequence) and value:
            # Lists are of one kind: token ids and log-probs are long, and not worth a look at each.
            simple = isinstance(value[0], int | float)
            yield 30 + (12 * len(value) if simple else sum(_value_sizes(value)))
        else:
            yield 30
