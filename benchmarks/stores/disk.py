"""What the disk alone allows: SQLite's own transactions, each waited for, without a line of ours."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path


def transactions(folder: Path, *, rows: int, size: int, seconds: float = 1.5) -> float:
    """Transactions a second of so many rows of so many bytes, in a write-ahead log that is synced at each commit."""
    path = folder / f"raw-{rows}-{size}.db"
    connection = sqlite3.connect(path, isolation_level=None)
    for pragma in ("page_size = 8192", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT)")
    values = [("x" * size,)] * rows
    count = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO t (x) VALUES (?)", values)
        connection.execute("COMMIT")
        count += 1
    rate = count / (time.perf_counter() - start)
    connection.close()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    return round(rate, 1)


def raw(folder: Path) -> dict[str, float]:
    """Transactions a second: small ones, of 16 spans, of 100 spans."""
    return {
        "one small row": transactions(folder, rows=1, size=300),
        "16 rows of 2.8 kB": transactions(folder, rows=16, size=2800),
        "100 rows of 2.8 kB": transactions(folder, rows=100, size=2800),
    }
