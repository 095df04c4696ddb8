"""A thread that folds SQLite's write-ahead log into the file, so that the writer need not stop for it.

SQLite does it in a commit, when the log has grown to a thousand pages: that commit waits for all of them to be written and
synced, and so does whoever waits for its acknowledgement. Folding goes well beside writing: what is acknowledged is in the
synced log, whether it is in the file yet or not.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event, Thread

EVERY_SECONDS = 0.25
"""What was written meanwhile is folded together: a page that changed a hundred times is written to the file once."""
LOG_PAGES = 8192
"""At so many pages, 64 MB, the writer does fold the log itself, as SQLite does. It bounds the log where this thread cannot
keep up, or fails: then the writer meets the same error, and tells it.
"""


class Checkpoints:
    """Folds the log from time to time while there is something new in it."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], path: Path) -> None:
        self._connect = connect
        self._written = Event()
        self._closing = Event()
        # A daemon for the same reason as the writer's thread.
        self._thread = Thread(target=self._run, name=f"coterie-store-checkpoints {path.name}", daemon=True)
        self._thread.start()

    def written(self) -> None:
        """Something was committed."""
        self._written.set()

    def close(self) -> None:
        """End the thread and its connection. What is left in the log is folded by whoever closes the file last."""
        self._closing.set()
        self._written.set()
        self._thread.join()

    def _run(self) -> None:
        with closing(self._connect()) as driver:
            while self._written.wait() and not self._closing.wait(EVERY_SECONDS):
                self._written.clear()
                try:
                    driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                except sqlite3.Error:
                    continue  # See LOG_PAGES.
