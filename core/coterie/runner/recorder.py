"""Keeps attempts that a program makes by itself in a store: a thread with an event loop of its own for each store.

The program's own loop may be busy or none, and its threads may be many; lease, heartbeats and flushes go on beside it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import socket
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from coterie.capture.faults import warn_once
from coterie.connecting import connect
from coterie.errors import ConfigError, StoreError
from coterie.prompts.versions import prompt_in, rivals, told_rivals
from coterie.runner.attempts import Attempts
from coterie.runner.playing import Assignment, Interruption, Outcome
from coterie.scope import SpanSink
from coterie.store.base import Store
from coterie.vocabulary import JSON, Mode, Resource, ResourceKind, ResourceStatus, Rollout, Task, new_id

IDLE_SECONDS = 5.0
"""How long a store that Coterie opened stays open after its last recording: a service records one request after another."""
FLUSH_SECONDS = 1.0
"""How often what recordings under way have seen is written."""
PATIENCE_SECONDS = 20.0
"""How long a recording's end holds up its program while the store is away."""
EXIT_SECONDS = 10.0
"""How long the end of the process waits for a store to close."""

Chosen = bool | Collection[str]
"""All resources of a kind, none, or those of these names."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a recording asks for."""

    task: Task
    prompts: Chosen
    endpoints: Chosen
    metadata: Mapping[str, JSON]


class Block:
    """A ``Player`` whose attempt is code that runs elsewhere: it says what the code needs, and waits for its end."""

    def __init__(self) -> None:
        self.begun: Future[tuple[Assignment, SpanSink]] = Future()
        self.ended: Future[Outcome] = Future()
        self.written: asyncio.Task[bool] | None = None

    async def play(
        self,
        assignment: Assignment,
        sink: SpanSink,
        deadline_seconds: float | None,  # noqa: ARG002 - nobody can end the program's own code
        interrupted: asyncio.Future[Interruption],  # noqa: ARG002
    ) -> Outcome:
        """Wait for the block's end, whatever happens to its lease: the store keeps its spans all the same."""
        self.begun.set_result((assignment, sink))
        return await asyncio.wrap_future(self.ended)

    async def close(self) -> None:
        """Nothing is held."""

    def end(self, outcome: Outcome) -> None:
        """Say how the block ended. Only the first time counts."""
        if not self.ended.done():
            self.ended.set_result(outcome)


class Recorder:
    """Begins and ends recordings in one store. Use ``recorder_for``."""

    def __init__(self, store: Store | str) -> None:
        self.users = 0
        """Recordings under way."""
        self.worker = f"{socket.gethostname()}-{os.getpid()}-recording-{new_id('w')[-4:]}"
        self._given = store
        self._store: Store | None = None
        self._attempts: Attempts | None = None
        self._opening = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="coterie-recorder", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine in the recorder's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def begin(self, wanted: Wanted, block: Block) -> tuple[Assignment, SpanSink]:
        """Begin an attempt at a new rollout of mode production.

        Raises:
            ConfigError: a named resource does not exist.
            StoreError: the store cannot be opened or written.
        """
        async with self._opening:
            if self._attempts is None:
                self._store = self._given if isinstance(self._given, Store) else await connect(self._given)
                self._attempts = Attempts(
                    self._store, name="recording", flush_seconds=FLUSH_SECONDS, patience_seconds=PATIENCE_SECONDS
                )
                self._attempts.start()
        assert self._store is not None
        resources = await _pins(self._store, wanted)
        await self._store.add_tasks([wanted.task])
        rollout = Rollout(
            wanted.task.id, mode=Mode.PRODUCTION, resources=resources, metadata=dict(wanted.metadata), max_attempts=1
        )
        lease = await self._store.begin(rollout, self.worker, lease_seconds=self._attempts.lease_seconds)
        block.written = self._attempts.begin(lease, block)
        begun = asyncio.wrap_future(block.begun)
        either: set[asyncio.Future[Any]] = {begun, block.written}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            return begun.result()
        (rollout,) = await self._store.get_rollouts([rollout.id])
        raise StoreError(f"rollout {rollout.id} could not begin: {rollout.reason}")

    async def end(self, block: Block, outcome: Outcome) -> bool:
        """End the attempt; False if the store did not take its end."""
        block.end(outcome)
        return await block.written if block.written is not None else False

    def close(self) -> None:
        """Write what is left, close the store if it is ours, end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self, seconds: float) -> None:
        """Wait for the thread's end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.set_default_executor(_Inline())
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._shut())
        finally:
            self._loop.close()

    async def _shut(self) -> None:
        if self._attempts is not None:
            # Attempts that still run are left to their leases.
            await self._attempts.flush()
            await self._attempts.stop()
        if self._store is not None and not isinstance(self._given, Store):
            await self._store.close()


class _Inline(ThreadPoolExecutor):
    """Runs what stores give to a thread at once: when the interpreter ends, no other executor takes work any more."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - it goes to whoever waits
            future.set_exception(error)
        return future


def recorder_for(store: Store | str) -> Recorder:
    """The recorder of a store, shared by all recordings in it that are under way; give it back with ``release``."""
    with _lock:
        recorder = _recorders.get(_key(store))
        if recorder is None:
            recorder = _recorders[_key(store)] = Recorder(store)
        recorder.users += 1
        return recorder


def release(store: Store | str) -> None:
    """Say that one recording less uses a store. The last one closes it after a while, unless another one begins."""
    with _lock:
        recorder = _recorders.get(_key(store))
        if recorder is None:
            return
        recorder.users -= 1
    if recorder.users == 0:
        seconds = 0.0 if isinstance(store, Store) else IDLE_SECONDS
        recorder._loop.call_soon_threadsafe(recorder._loop.call_later, seconds, _close_if_idle, store, recorder)


_recorders: dict[tuple[int, str | int], Recorder] = {}
_lock = threading.Lock()


def _key(store: Store | str) -> tuple[int, str | int]:
    # A forked child has no thread of its parent's.
    return os.getpid(), id(store) if isinstance(store, Store) else store


def _close_if_idle(store: Store | str, recorder: Recorder) -> None:
    with _lock:
        if recorder.users or _recorders.get(_key(store)) is not recorder:
            return
        del _recorders[_key(store)]
    recorder.close()


@atexit.register
def close_recorders() -> None:
    """Close all recorders of this process now."""
    with _lock:
        mine = [key for key in _recorders if key[0] == os.getpid()]
        recorders = [_recorders.pop(key) for key in mine]
    for recorder in recorders:
        recorder.close()
    for recorder in recorders:
        recorder.join(EXIT_SECONDS)


async def _pins(store: Store, wanted: Wanted) -> Mapping[str, int]:
    """The active versions of the resources that are wanted."""
    pins: dict[str, int] = {}
    for kind, chosen in ((ResourceKind.PROMPT, wanted.prompts), (ResourceKind.ENDPOINT, wanted.endpoints)):
        if chosen is False:
            continue
        active = await store.list_resources(kind=kind, status=ResourceStatus.ACTIVE)
        published = {resource.name: resource for resource in active}
        if chosen is not True:
            published = _named(published, chosen, kind)
        if kind is ResourceKind.PROMPT:
            published = _without_rivals(published, named=chosen is not True)
        pins |= {name: resource.version for name, resource in published.items()}
    return pins


def _without_rivals(published: Mapping[str, Resource], *, named: bool) -> dict[str, Resource]:
    """The prompts that are the only ones for their place: among others nobody can say which one is meant."""
    left_out = set[str]()
    for found in rivals(map(prompt_in, published.values())):
        said = f"coterie.record: {told_rivals(found)}. Say which one is meant: prompts=[names]"
        if named:
            raise ConfigError(f"{said}.")
        warn_once(f"{said}. Until then none of them is taken up")
        left_out |= {prompt.name for prompt in found}
    return {name: resource for name, resource in published.items() if name not in left_out}


def _named(published: Mapping[str, Resource], names: Collection[str], kind: ResourceKind) -> dict[str, Resource]:
    missing = [name for name in names if name not in published]
    if missing:
        there_are = ", ".join(map(repr, published)) or "none"
        raise ConfigError(
            f"coterie.record: the store has no active {kind} {', '.join(map(repr, missing))}; active are: {there_are}."
        )
    return {name: published[name] for name in names}
