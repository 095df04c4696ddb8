"""How much room a store takes in a SQLite file, and giving the room of removed rows back to the disk.

SQLite keeps the pages of removed rows and fills them again. A file that was made to (``auto_vacuum``) can move its
last pages into the free ones, a few at a time, and become shorter. Another file must be written anew as a whole once.
"""

from __future__ import annotations

import sqlite3
import time

PAGES_AT_ONCE = 1000
"""Pages moved in one transaction, for which others wait."""
SMALLEST_SHARE = 0.1
"""A file is written anew only when at least this share of it is free."""
FOLDING_SECONDS = 2.0
"""How long it is tried to fold the write-ahead log while somebody else is at it."""

MADE_FOR_IT = "auto_vacuum = INCREMENTAL"
"""The setting that a new file must be given before its first table."""


def bytes_in_use(driver: sqlite3.Connection) -> int:
    """What is not free."""
    return (_number(driver, "page_count") - _number(driver, "freelist_count")) * _number(driver, "page_size")


def must_be_written_anew(driver: sqlite3.Connection) -> bool:
    """True for a file that can give back its free pages only by being written anew, if there are enough of them."""
    if _number(driver, "auto_vacuum") == _INCREMENTAL:
        return False
    return _number(driver, "freelist_count") > SMALLEST_SHARE * _number(driver, "page_count")


def write_anew(driver: sqlite3.Connection) -> None:
    """Write the whole file anew, without free pages and made to give back later ones. Other writers wait."""
    driver.execute(f"PRAGMA {MADE_FOR_IT}")
    driver.execute("VACUUM")


def give_back(driver: sqlite3.Connection) -> None:
    """Give free pages back, others may write in between. The connection must be in no transaction."""
    if _number(driver, "auto_vacuum") == _INCREMENTAL:
        free = _number(driver, "freelist_count")
        while free:
            # As a script, because as a statement it would stop after the first page.
            driver.executescript(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})")
            before, free = free, _number(driver, "freelist_count")
            if free >= before:
                break
    # The file becomes shorter only when the write-ahead log is folded into it. If somebody reads, the next one does it. But
    # if somebody folds it just now (``checkpoints.py``), SQLite does not wait: then it is tried again.
    give_up_at = time.monotonic() + FOLDING_SECONDS
    while driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] and time.monotonic() < give_up_at:
        time.sleep(0.02)


def _number(driver: sqlite3.Connection, pragma: str) -> int:
    return int(driver.execute(f"PRAGMA {pragma}").fetchone()[0])


_INCREMENTAL = 2
