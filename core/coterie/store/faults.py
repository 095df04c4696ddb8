"""What SQLite says when it cannot go on, told as a person needs it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from coterie.errors import StoreError, StoreUnavailableError

_WHAT_TO_DO = {
    "SQLITE_BUSY": "it is locked: another process has been writing for longer than {lock_timeout_seconds:g} s. "
    "Wait for that process or end it (`fuser {path}` names it), then try again.",
    "SQLITE_LOCKED": "it is locked by another connection. End whatever else uses the file, then try again.",
    "SQLITE_FULL": "the disk is full. Free some space, then try again.",
    "SQLITE_READONLY": "it is read-only. Make the file and its folder writable, or choose another path.",
    "SQLITE_CANTOPEN": "it cannot be opened. Check that its folder exists and that you may write there.",
    "SQLITE_PERM": "access was denied. Make the file and its folder writable, or choose another path.",
    "SQLITE_IOERR": "the disk gave an error. Check for a full disk, a quota or a file size limit, and that the file "
    "system works, then try again.",
    "SQLITE_PROTOCOL": "its locks do not work here. Put it on a local disk: network file systems often cannot lock.",
    "SQLITE_NOLFS": "it grew larger than this file system allows. Move it to another file system.",
    "SQLITE_NOTADB": "it is not a SQLite database. Choose another path.",
    "SQLITE_CORRUPT": "it is damaged. Save a copy, then try `sqlite3 {path} .recover`, or choose another path.",
    "SQLITE_AUTH": "access was denied. Make the file and its folder writable, or choose another path.",
    "SQLITE_NOMEM": "there was not enough memory.",
}
"""Primary result code of SQLite to what was wrong and what to do."""


def is_fault(error: sqlite3.Error) -> bool:
    """True when the database as a whole cannot go on; False when only one statement was wrong."""
    return _primary_name(error) in _WHAT_TO_DO


def unavailable(error: sqlite3.Error, path: Path, lock_timeout_seconds: float) -> StoreUnavailableError:
    """The error to raise for a fault of the database at ``path``."""
    name = _primary_name(error)
    advice = _WHAT_TO_DO.get(name, "{error}").format(path=path, lock_timeout_seconds=lock_timeout_seconds, error=error)
    code = getattr(error, "sqlite_errorname", None)
    said = f"{error}, {code}" if code else str(error)
    return StoreUnavailableError(f"store {path}: {advice} Nothing was changed. (SQLite: {said})")


def refused(error: Exception, path: Path) -> StoreError:
    """The error to raise when the database took no offence but a value was wrong, such as a number beyond 64 bits."""
    cause = getattr(error, "orig", None) or error
    return StoreError(
        f"store {path}: a value cannot be stored: {type(cause).__name__}: {cause}. Check the types of the record's "
        "fields against coterie.vocabulary. Nothing was written."
    )


def _primary_name(error: sqlite3.Error) -> str:
    # Extended names such as SQLITE_IOERR_WRITE begin with the primary one.
    name: str = getattr(error, "sqlite_errorname", None) or ""
    return "_".join(name.split("_")[:2])
