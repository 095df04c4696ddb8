"""SQLite's write-ahead log is folded into the file while the store is open, beside the writer."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import Span

MIB = 2**20


async def test_what_was_written_comes_into_the_file_while_the_store_is_open(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    store = await SqliteStore.open(file)
    try:
        before = file.stat().st_size
        text = "x" * MIB
        await store.add_spans(
            [Span("1" * 32, f"{number:016x}", "chat", 1, 2, attributes={"a": text}) for number in range(4)]
        )
        give_up_at = time.monotonic() + 20
        while file.stat().st_size < before + 4 * MIB:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)
    finally:
        await store.close()
    assert not file.with_name("store.db-wal").exists()
