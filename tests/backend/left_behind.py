"""What a backend has left behind: processes, shared memory, folders for sockets."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from pathlib import Path

import pytest


class LeftBehind:
    """Knows what was there before.

    Processes are recognised by a mark in the environment that they inherit, and temporary files lie in a folder of
    their own, so that other programs beside us do not count.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        mark = uuid.uuid4().hex
        # Short, because the paths of sockets are limited to 107 bytes.
        self.temporary = tempfile.mkdtemp(prefix="cb", dir="/tmp")
        patch.setenv("COTERIE_TEST_MARK", mark)
        patch.setenv("TMPDIR", self.temporary)
        patch.setattr(tempfile, "tempdir", self.temporary)
        self.mark = f"COTERIE_TEST_MARK={mark}".encode()
        self.before = _shared()

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
        """What is in the temporary folder, and new shared memory that no living process has mapped."""
        return set(os.listdir(self.temporary)) | {path for path in _shared() - self.before if not _mapped(path)}

    def assert_nothing(self, seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while (self.processes() or self.files()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == {}
        assert self.files() == set()


def _shared() -> set[str]:
    return {str(path) for path in Path("/dev/shm").iterdir()}


def _mapped(path: str) -> bool:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if path in Path(f"/proc/{entry}/maps").read_text():
                    return True
    return False
