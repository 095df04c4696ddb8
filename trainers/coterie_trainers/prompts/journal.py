"""The journal of a run: what the reflecting model said, and where the budget ended, so that a run that was killed goes on.

A file of JSON lines in the work folder. A line is on disk before it counts; one that was cut off by a kill is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from coterie.errors import ConfigError


class Journal:
    """One run's journal, open for reading and appending while the ``with`` block lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Mapping[str, Any]] = {}
        """Key → what was written under it last."""
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Read what is there.

        Raises:
            ConfigError: the file cannot be read or written, or a line in its middle is no entry.
        """
        try:
            self._file = self.path.open("a+b")
            self._file.seek(0)
            whole = self._read(self._file.read())
            self._file.truncate(whole)
        except OSError as error:
            raise ConfigError(f"The journal {self.path} cannot be read and written: {error.strerror}.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: str) -> Mapping[str, Any] | None:
        """What was written under a key last."""
        return self.entries.get(key)

    def write(self, key: str, entry: Mapping[str, Any]) -> None:
        """Write an entry; on return it is on disk."""
        if self._file is None:
            raise ConfigError(f"The journal {self.path} is closed.")
        self._file.write(json.dumps({"key": key, **entry}, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.entries[key] = entry

    def _read(self, content: bytes) -> int:
        """Take up the entries; gives the length of what is whole."""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                self.entries[entry.pop("key")] = entry
            except (ValueError, KeyError, AttributeError, TypeError):
                raise ConfigError(
                    f"{self.path}, line {number} is no entry of a journal. Restore the file, or start anew with --fresh."
                ) from None
        return whole
