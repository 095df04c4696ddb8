"""One sink at work: in a thread of its own, so that a slow or broken one holds up nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future

from coterie_trainers.sinks.sink import Opener, RunFacts

Written = tuple[int, Mapping[str, float]]


class Outlet:
    """Opens a sink and feeds it. The first error ends it; ``failure`` says what it was."""

    def __init__(self, name: str, opener: Opener, facts: RunFacts) -> None:
        self.name = name
        self.failure: BaseException | None = None
        self.opened: Future[None] = Future()
        """Done when the sink is open; holds the error if it cannot be opened."""
        self._waiting: queue.SimpleQueue[Written | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(opener, facts), name=f"metrics to {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Leave figures to the thread. Never blocks."""
        self._waiting.put((step, figures))

    def close(self, seconds: float) -> None:
        """Let it write what waits and close the sink, within so many seconds; ``failure`` says if that was too short."""
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive() and self.failure is None:
            self.failure = TimeoutError(f"it did not take its last figures within {seconds:g} s")

    def _work(self, opener: Opener, facts: RunFacts) -> None:
        try:
            sink = opener(facts)
        except BaseException as error:  # noqa: BLE001 - a library may raise SystemExit when it finds no account
            self.opened.set_exception(error)
            return
        self.opened.set_result(None)
        try:
            while (written := self._waiting.get()) is not None:
                sink.write(*written)
            sink.close()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the run goes on
            self.failure = error
