"""Records as Parquet: one column a field. What may be any JSON is text; token ids and log-probs have lists of their own."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from coterie import conventions as c
from coterie.errors import ConfigError
from coterie.store import wire
from coterie.store.records import to_json
from coterie.vocabulary import Span

try:
    import pyarrow
    import pyarrow.parquet
except ModuleNotFoundError as missing:
    raise ConfigError(
        'Parquet needs pyarrow, which is not installed. Do: pip install "coterie[parquet]". Or use --format jsonl.'
    ) from missing

Record = TypeVar("Record")

GROUP_BYTES = 8 * 2**20
"""About how much a row group holds, which is what is in memory at once."""
READ_ROWS = 256
"""Rows that are read at once."""

TOKENS: Mapping[str, tuple[str, type]] = {
    "prompt_tokens": (c.PROMPT_TOKENS, int),
    "response_tokens": (c.RESPONSE_TOKENS, int),
    "logprobs": (c.LOGPROBS, float),
}
"""Column of a span to the attribute that it holds in place of ``attributes``, and what it is a list of."""


class ParquetWriter:
    """One Parquet file of one kind of record."""

    def __init__(self, file: Path, kind: type) -> None:
        self.records = 0
        self._schema = _schema(kind)
        self._row = _row_maker(kind)
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write_group()
        self._writer.close()

    def write(self, records: Sequence[Any]) -> None:
        """Append records."""
        for record in records:
            row = self._row(record)
            self._rows.append(row)
            self._bytes += _size(row)
            if self._bytes >= GROUP_BYTES:
                self._write_group()
        self.records += len(records)

    def _write_group(self) -> None:
        if self._rows:
            self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0


def read_parquet(file: Path, kind: type[Record]) -> Iterator[tuple[Record, int]]:
    """The records of a file, each with about how many bytes it takes.

    Raises:
        ConfigError: its columns are not those of this kind, or a value does not fit.
    """
    try:
        opened = pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{file}: it is no Parquet file: {error}.") from error
    with opened:
        if not opened.schema_arrow.equals(_schema(kind)):
            raise ConfigError(f"{file}: its columns are not those of a {kind.__name__.lower()}.")
        fields_of, read = _fields_maker(kind), wire.one(kind)
        number = 0
        for batch in opened.iter_batches(READ_ROWS):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield read(fields_of(row)), _size(row)
                except (TypeError, ValueError, KeyError, AttributeError) as error:
                    raise ConfigError(
                        f"{file}, row {number}: it is no {kind.__name__.lower()}: {type(error).__name__}: {error}."
                    ) from error


def _schema(kind: type) -> Any:
    columns = [(name, _column_type(hint)) for name, hint in get_type_hints(kind).items()]
    if kind is Span:
        columns += [
            (name, pyarrow.list_(pyarrow.int64() if element is int else pyarrow.float64()))
            for name, (_, element) in TOKENS.items()
        ]
    return pyarrow.schema([pyarrow.field(name, kind_) for name, kind_ in columns])


def _column_type(hint: Any) -> Any:
    hint = _without_none(hint)
    if hint is int:
        return pyarrow.int64()
    if hint is float:
        return pyarrow.float64()
    if _is_text_list(hint):
        return pyarrow.list_(pyarrow.string())
    # Names, enums, and JSON as text.
    return pyarrow.string()


def _row_maker(kind: type) -> Callable[[Any], dict[str, Any]]:
    to_columns = {name: _to_column(name, hint) for name, hint in get_type_hints(kind).items()}

    def row(record: Any) -> dict[str, Any]:
        return {name: to_column(getattr(record, name)) for name, to_column in to_columns.items()}

    def span_row(span: Span) -> dict[str, Any]:
        attributes, lists = _without_tokens(span.attributes)
        return row(dataclasses.replace(span, attributes=attributes)) | lists

    return span_row if kind is Span else row


def _without_tokens(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The attributes that stay JSON, and the lists that get columns of their own."""
    rest, lists = dict(attributes), dict[str, Any]()
    for column, (attribute, element) in TOKENS.items():
        values = rest.get(attribute)
        if isinstance(values, list) and all(_fits(value, element) for value in values):
            lists[column] = rest.pop(attribute)
    return rest, lists


def _fits(value: object, element: type) -> bool:
    return type(value) is element and (element is float or -(2**63) <= value < 2**63)  # type: ignore[operator]


def _fields_maker(kind: type) -> Callable[[dict[str, Any]], dict[str, Any]]:
    texts = [name for name, hint in get_type_hints(kind).items() if _is_json(_without_none(hint))]

    def fields(row: dict[str, Any]) -> dict[str, Any]:
        for name in texts:
            row[name] = None if row[name] is None else wire.decode(row[name].encode())
        if kind is Span:
            for column, (attribute, _) in TOKENS.items():
                values = row.pop(column)
                if values is not None:
                    row["attributes"][attribute] = values
        return row

    return fields


def _to_column(name: str, hint: Any) -> Callable[[Any], Any]:
    hint = _without_none(hint)
    if _of_records(hint):
        return lambda value: wire.encode(value).decode()
    if _is_json(hint):
        return lambda value: to_json(value, "record", name)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value: None if value is None else value.value
    if _is_text_list(hint):
        return list
    return lambda value: value


def _is_json(hint: Any) -> bool:
    return hint is Any or _of_records(hint) or (get_origin(hint) is not None and not _is_text_list(hint))


def _of_records(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(dataclasses.is_dataclass(inner) for inner in get_args(hint))


def _is_text_list(hint: Any) -> bool:
    return get_args(hint) == (str,)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else Any
    return hint


def _size(row: Mapping[str, Any]) -> int:
    """About how many bytes a row takes."""
    return sum(
        len(value) if isinstance(value, str) else 8 * len(value) if isinstance(value, list) else 8
        for value in row.values()
    )
