"""Folders that are whole or absent: written beside their place, brought to disk, then put there in one step."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into; at the end of the block it becomes ``target``, replacing what was there.

    If the block raises, or the process is killed, ``target`` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        yield partial
        _to_disk(partial)
        if target.exists():
            _exchange(partial, target)
        else:
            partial.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        # Some file systems cannot exchange: then there is a moment in which the folder is absent.
        aside = other.with_name(f".{other.name}.old-{secrets.token_hex(4)}")
        other.rename(aside)
        one.rename(other)
        shutil.rmtree(aside, ignore_errors=True)
