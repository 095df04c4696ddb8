"""What a backend has left behind: processes, shared memory, folders for sockets."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path


class LeftBehind:
    """Knows what was there before; processes are recognised by a mark in the environment that they inherit."""

    def __init__(self, mark: str) -> None:
        self.mark = f"COTERIE_TEST_MARK={mark}".encode()
        self.before = _files()

    def processes(self) -> dict[int, str]:
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    if self.mark in Path(f"/proc/{entry}/environ").read_bytes():
                        command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                        state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                        if state != "Z":
                            found[int(entry)] = command
        return found

    def files(self) -> set[str]:
        """New ones that no living process has mapped: those of other programs beside us do not count."""
        return {path for path in _files() - self.before if not _mapped(path)}

    def assert_nothing(self, seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while (self.processes() or self.files()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == {}
        assert self.files() == set()


def _files() -> set[str]:
    shared = {str(path) for path in Path("/dev/shm").iterdir()}
    folders = {str(path) for path in Path(tempfile.gettempdir()).glob("coterie-*")}
    return shared | folders


def _mapped(path: str) -> bool:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if (
                    path in Path(f"/proc/{entry}/maps").read_text()
                    or path.encode() in Path(f"/proc/{entry}/environ").read_bytes()
                ):
                    return True
    return False
