"""``import_store``: what ``export_store`` wrote, into a store.

The folder is verified before anything is written. Records that the store has already are left as they are, so an import
that was cut off goes on when it is run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.store.transfer import Records
from coterie.transfer.exporting import Told
from coterie.transfer.files import read_records
from coterie.transfer.manifest import Manifest
from coterie.vocabulary import Attempt

PORTION_BYTES = 2**22
PORTION_RECORDS = 500
"""How much is loaded in one transaction."""


async def import_store(folder: Path, store: Store, *, told: Told | None = None) -> Manifest:
    """Add the records of an exported folder to a store, states, versions and ids included.

    Rollouts that had not ended when they were exported are there as they were: queued ones will be played.

    Raises:
        ConfigError: the folder is no export, is not whole, or was changed; nothing was written.
        NotFoundError, StoreError: a record contradicts what the store has; what came before it stays.
    """
    manifest = Manifest.read(folder)
    await asyncio.to_thread(manifest.verify, folder)
    attempts = _Attempts(folder, manifest)
    for kind in manifest.files:
        if kind == "attempts":
            continue
        done = 0
        for portion in _portions(folder, kind, manifest):
            records = Records(**{kind: portion})
            if kind == "rollouts":
                # A running rollout is taken together with its attempt only.
                records = Records(rollouts=portion, attempts=attempts.of({rollout.id for rollout in portion}))
            await store.load(records)
            done += len(portion)
            if told is not None:
                told(kind, done)
    attempts.raise_if_left()
    return manifest


class _Attempts:
    """The attempts of a folder, which lie in the order of their rollouts."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._file = manifest.file_of(folder, "attempts")
        self._left = read_records(folder, "attempts", manifest.format)
        self._next: Attempt | None = self._read()

    def of(self, rollout_ids: set[str]) -> Sequence[Attempt]:
        """The attempts at the next rollouts."""
        found = []
        while self._next is not None and self._next.rollout_id in rollout_ids:
            found.append(self._next)
            self._next = self._read()
        return found

    def raise_if_left(self) -> None:
        """Every attempt must have had its rollout."""
        if self._next is not None:
            raise ConfigError(f"{self._file}: attempt {self._next.id!r} is not where its rollout is.")

    def _read(self) -> Attempt | None:
        record, _ = next(self._left, (None, 0))
        return record


def _portions(folder: Path, kind: str, manifest: Manifest) -> Iterator[Sequence[Any]]:
    portion: list[Any] = []
    total = 0
    for record, size in read_records(folder, kind, manifest.format):
        if portion and (total + size > PORTION_BYTES or len(portion) >= PORTION_RECORDS):
            yield portion
            portion, total = [], 0
        portion.append(record)
        total += size
    if portion:
        yield portion
