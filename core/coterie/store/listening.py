"""One connection that hears what other processes change in a PostgreSQL database, and wakes who waits here.

A transaction that queues work or ends rollouts sends a notification, which PostgreSQL delivers after the commit. The
listening thread sleeps in the operating system until something arrives. When the server goes away it connects again,
and wakes everybody to look for themselves, since what was sent in between is lost.
"""

from __future__ import annotations

import json
import logging
import os
import select
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from threading import Lock, Thread

import psycopg
from psycopg import sql

from coterie.store.wakeups import Wakeups

logger = logging.getLogger(__name__)

LARGEST_PAYLOAD = 7900
"""Bytes in a notification; PostgreSQL takes less than 8000."""
RETRY_SECONDS = (0.05, 5.0)
"""How long to wait before connecting again: at first, and at most."""
SILENCE_SECONDS = 30.0
"""After so long without a server everybody is woken, to learn from a look of their own what is wrong."""


def payload_of(sender: str, *, queued: bool, ended: Collection[str]) -> str:
    """What to send: who sends it, whether something was queued, and what ended; "something" if that is too long."""
    payload = json.dumps([sender, queued, sorted(ended)], separators=(",", ":"))
    return payload if len(payload) <= LARGEST_PAYLOAD else json.dumps([sender])


class Listener:
    """Listens from the first ``start`` until ``close``."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection], channel: str, sender: str, wakeups: Wakeups, where: str
    ) -> None:
        self._connect = connect
        self._channel = channel
        self._sender = sender
        self._wakeups = wakeups
        self._where = where
        self._lock = Lock()
        self._thread: Thread | None = None
        self._closed = False
        # Writing to it ends the thread's sleep.
        self._bell_out, self._bell_in = os.pipe()

    def start(self) -> None:
        """Begin to listen; once it does, everybody is woken to look again. A second call does nothing."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._closed:
                # A daemon, so that a store that nobody closed does not keep a program from ending.
                self._thread = Thread(target=self._run, name=f"coterie-store-listener {self._where}", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread and its connection. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        os.write(self._bell_in, b"\0")
        if self._thread is not None:
            self._thread.join()
        os.close(self._bell_in)
        os.close(self._bell_out)

    def _run(self) -> None:
        pause, lost_at, told = RETRY_SECONDS[0], None, False
        while not self._closed:
            try:
                with self._connect() as connection:
                    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                    if told:
                        logger.warning("store %s: listening again", self._where)
                    pause, lost_at, told = RETRY_SECONDS[0], None, False
                    # What happened until now nobody has told.
                    self._wakeups.wake_all()
                    self._hear(connection)
            except psycopg.Error as error:
                lost_at = lost_at or time.monotonic()
                if not told:
                    logger.warning(
                        "store %s: the listening connection was lost; connecting again: %s",
                        self._where,
                        str(error).strip().partition("\n")[0],
                    )
                    told = True
                if time.monotonic() - lost_at > SILENCE_SECONDS:
                    self._wakeups.wake_all()
                select.select([self._bell_out], [], [], pause)
                pause = min(2 * pause, RETRY_SECONDS[1])

    def _hear(self, connection: psycopg.Connection) -> None:
        """Pass on notifications until the store is closed. Raises psycopg.Error when the connection is lost."""
        while not self._closed:
            # Some may have come together with an answer.
            while (notice := connection.pgconn.notifies()) is not None:
                self._pass_on(notice.extra)
            readable, _, _ = select.select([connection.fileno(), self._bell_out], [], [])
            if connection.fileno() in readable:
                connection.pgconn.consume_input()

    def _pass_on(self, payload: bytes) -> None:
        sender, queued, ended = None, True, None
        # Whatever else arrives on this channel only wakes everybody.
        with suppress(ValueError):
            sender, queued, ended = json.loads(payload)
        if sender == self._sender:
            return
        if ended is None:
            self._wakeups.wake_all()
        else:
            self._wakeups.announce(queued=bool(queued), ended=ended)
