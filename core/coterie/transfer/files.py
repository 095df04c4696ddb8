"""Files of one kind of record: written and read a bounded piece at a time, in each format."""

from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, TypeVar

from coterie.errors import ConfigError
from coterie.store import wire
from coterie.transfer.manifest import KINDS, Format

Record = TypeVar("Record")


class RecordWriter(Protocol):
    """Writes the records of one kind."""

    records: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, records: Sequence[Any]) -> None:
        """Append records."""
        ...


def open_writer(folder: Path, kind: str, format: Format) -> RecordWriter:  # noqa: A002 - it is the word for it
    """A writer of a new file.

    Raises:
        ConfigError: the format needs a package that is not installed.
    """
    file = folder / f"{kind}.{format.value}"
    if format is Format.PARQUET:
        from coterie.transfer.parquet import ParquetWriter

        return ParquetWriter(file, KINDS[kind])
    return JsonWriter(file, compressed=format is Format.JSONL_GZ)


def read_records(folder: Path, kind: str, format: Format) -> Iterator[tuple[Any, int]]:  # noqa: A002 - as above
    """The records of a file, each with about how many bytes it takes.

    Raises:
        ConfigError: a record does not fit its kind; names file and place.
    """
    file = folder / f"{kind}.{format.value}"
    if format is Format.PARQUET:
        from coterie.transfer.parquet import read_parquet

        return read_parquet(file, KINDS[kind])
    return _read_json(file, KINDS[kind], compressed=format is Format.JSONL_GZ)


class JsonWriter:
    """One JSON object a line."""

    def __init__(self, file: Path, *, compressed: bool) -> None:
        self.records = 0
        self._held = ExitStack()
        raw = self._held.enter_context(file.open("xb"))
        # Without name and time in it, the same records give the same file.
        packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) if compressed else None
        self._stream: IO[bytes] = raw if packed is None else self._held.enter_context(io.BufferedWriter(packed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def write(self, records: Sequence[Any]) -> None:
        """Append records."""
        for record in records:
            self._stream.write(wire.encode(record) + b"\n")
        self.records += len(records)


def _read_json(file: Path, kind: type[Record], *, compressed: bool) -> Iterator[tuple[Record, int]]:
    read = wire.one(kind)
    with gzip.open(file, "rb") if compressed else file.open("rb") as stream:
        for number, line in zip(itertools.count(1), stream, strict=False):
            try:
                record = read(wire.decode(line))
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise ConfigError(
                    f"{file}, line {number}: it is no {kind.__name__.lower()}: {type(error).__name__}: {error}."
                ) from error
            yield record, len(line)
