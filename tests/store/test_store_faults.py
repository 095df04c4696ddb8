"""A SQLite file that cannot be used: each time a clear error, nothing changed, nothing half done."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coterie.errors import SchemaVersionError, StoreUnavailableError
from coterie.store import schema
from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import Span, Task


def big_span(number: int, size: int = 100_000) -> Span:
    return Span("a" * 32, f"{number:016x}", "chat", 1, 2, attributes={"text": "x" * size})


async def make_store(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.add_tasks([Task("t", 1)])
    await store.close()


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    await make_store(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError) as caught:
        await SqliteStore.open(path)
    for part in (str(path), "'0999'", repr(schema.HEAD), "pip install -U coterie"):
        assert part in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["newer.db"]


async def test_somebody_elses_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoices (id)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError, match="invoices"):
        await SqliteStore.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"hello, this is text", b"SQLite format 3\x00" + b"garbage" * 1000])
async def test_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(StoreUnavailableError, match=r"notes\.txt"):
        await SqliteStore.open(path)
    assert path.read_bytes() == content


async def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    await make_store(path)
    assert path.stat().st_size > 0


async def test_a_folder_or_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="is a folder"):
        await SqliteStore.open(tmp_path)
    with pytest.raises(StoreUnavailableError, match="does not exist"):
        await SqliteStore.open(tmp_path / "nowhere" / "store.db")
    assert not (tmp_path / "nowhere").exists()


async def test_a_damaged_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    store = await SqliteStore.open(path)
    await store.add_spans([big_span(number, 5000) for number in range(200)])
    await store.close()
    with path.open("r+b") as file:
        file.seek(20 * 8192)
        file.write(b"\xa5" * 8192 * 40)
    store = await SqliteStore.open(path)
    with pytest.raises(StoreUnavailableError, match=r"damaged\.db.*damaged"):
        await store.list_spans()
    await store.close()


async def test_a_locked_database_says_so_and_works_again_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "locked.db"
    await make_store(path)
    store = await SqliteStore.open(path, lock_timeout_seconds=0.2)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writes = [store.add_tasks([Task(f"t{number}", 1)]) for number in range(5)]
    outcomes = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 20)
    assert all(isinstance(outcome, StoreUnavailableError) for outcome in outcomes)
    assert "locked.db" in str(outcomes[0])
    assert "locked" in str(outcomes[0])
    assert [task.id for task in (await store.list_tasks()).items] == ["t"]
    with pytest.raises(StoreUnavailableError, match="locked"):
        await store.check()
    waiting = asyncio.create_task(SqliteStore.open(path))
    await asyncio.sleep(0.2)
    other.execute("ROLLBACK")
    other.close()
    await (await waiting).close()
    await store.check()
    await store.add_tasks([Task("later", 1)])
    assert [task.id for task in (await store.list_tasks()).items] == ["later", "t"]
    await store.close()


async def test_a_database_locked_while_its_tables_are_made_says_so(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked"):
        await asyncio.wait_for(SqliteStore.open(path, lock_timeout_seconds=0.2), 20)
    other.execute("ROLLBACK")
    other.close()
    await make_store(path)


READ_ONLY = """
import asyncio, os, sys
from alembic import command, op  # what a new file needs, imported while it may be read
from coterie.errors import StoreUnavailableError
from coterie.store.sqlite import SqliteStore

if os.getuid() == 0:  # Nothing is read-only for root.
    os.setgid(65534)
    os.setuid(65534)

async def main(path):
    try:
        await SqliteStore.open(path)
    except StoreUnavailableError as error:
        print(error)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_read_only_file_or_folder_says_so(open_folder: Path, what: str) -> None:
    path = open_folder / "frozen.db"
    asyncio.run(make_store(path))
    path.chmod(0o444 if what == "file" else 0o666)
    open_folder.chmod(0o777 if what == "file" else 0o555)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "frozen.db" in done.stdout, done.stderr
    assert "read-only" in done.stdout
    assert path.read_bytes() == before
    assert os.listdir(open_folder) == ["frozen.db"]


FILL_UP = """
import asyncio, resource, sys
from coterie.errors import StoreUnavailableError
from coterie.store.sqlite import SqliteStore
from coterie.vocabulary import Span

async def main(path):
    store = await SqliteStore.open(path)
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
    for number in range(200):
        span = Span("a" * 32, f"{number:016x}", "chat", 1, 2, attributes={"text": "x" * 50_000})
        try:
            await store.add_spans([span])
        except StoreUnavailableError as error:
            print(f"full {error}", flush=True)
            break
        print(f"kept {number}", flush=True)
    kept = await store.list_spans(limit=1000)
    print(f"read {len(kept.items)}", flush=True)
    await store.close()

asyncio.run(main(*sys.argv[1:2]))
"""


async def spans_after_one_more(path: Path) -> int:
    store = await SqliteStore.open(path)
    await store.add_spans([big_span(10_000)])
    count = len((await store.list_spans()).items)
    await store.close()
    return count


@pytest.fixture(params=["limit", "disk"])
def small_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder that soon is full: by a limit on the size of files, or because it is a disk of 2 MB."""
    if request.param == "limit":
        yield "limit", tmp_path
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk cannot be mounted here")
    yield "disk", tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_says_so_and_keeps_what_was_acknowledged(small_folder: tuple[str, Path]) -> None:
    kind, folder = small_folder
    path = folder / "small.db"
    done = subprocess.run(
        [sys.executable, "-c", FILL_UP, str(path), kind], capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    kept = [line for line in lines if line.startswith("kept ")]
    full = [line for line in lines if line.startswith("full ")]
    assert len(kept) > 3, done.stderr
    assert len(full) == 1, done.stderr
    assert "small.db" in full[0]
    assert "full" in full[0].removeprefix("full")
    assert f"read {len(kept)}" in lines
    assert done.returncode == 0, done.stderr
    # With space again, everything is there and the store goes on.
    roomy = folder.parent / "roomy"
    shutil.copytree(folder, roomy)
    assert asyncio.run(spans_after_one_more(roomy / "small.db")) == len(kept) + 1
    shutil.rmtree(roomy)


async def test_a_write_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db")
    driver = store._writer._driver
    pages = driver.execute("PRAGMA page_count").fetchone()[0]
    driver.execute(f"PRAGMA max_page_count = {pages + 30}")
    writes = [store.add_spans([big_span(number, 1000)]) for number in range(4)]
    writes.insert(2, store.add_spans([big_span(99, 10_000_000)]))
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 2 + [StoreUnavailableError] + [type(None)] * 2
    assert "disk is full" in str(outcomes[2])
    assert len((await store.list_spans()).items) == 4
    await store.close()
