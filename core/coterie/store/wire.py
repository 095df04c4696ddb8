"""The store's records as JSON between a client and the server: field names as in the vocabulary, times as integers.

Both sides encode the same way and read with the same care. Values keep what a SQL store keeps: integers of any size,
floats to the last bit, and a float that is not finite as the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.
A field that the reader does not know is left out, so that an older client reads a newer server's records.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import orjson
from pydantic_core import from_json

from coterie import errors
from coterie.errors import CoterieError, StoreError
from coterie.store import records
from coterie.store.base import Page
from coterie.store.garbage import no_search_for_garbage
from coterie.vocabulary import (
    JSON,
    Decision,
    Metrics,
    Resource,
    Rollout,
    Run,
    Span,
    SpanEvent,
    Task,
)

Item = TypeVar("Item")

LONGEST_POLL_SECONDS = 30.0
"""How long the server lets one request wait, for work or for the end of rollouts. A client asks again."""
LARGEST_PAGE = 10_000
"""Items of a page, and ids or leases of a request, that the server gives at once."""

STATUS_OF: Mapping[type[CoterieError], int] = {
    errors.NotFoundError: 404,
    errors.LeaseLostError: 409,
    errors.StoreUnavailableError: 503,
    errors.SchemaVersionError: 503,
    errors.StoreError: 400,
    errors.ConfigError: 400,
    errors.RewardError: 400,
}
"""The status with which the server answers an error of the store; the body names its class."""


def encode(value: object) -> bytes:
    """JSON of records, and of lists and mappings of them.

    Raises:
        StoreError: a value cannot be kept as JSON; names the record and the field.
    """
    try:
        return orjson.dumps(value, default=_fields, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except orjson.JSONEncodeError as error:
        if isinstance(error.__cause__, CoterieError):
            raise error.__cause__ from None
    # Halves of surrogate pairs and integers beyond 64 bits: rare, so only now the slower way that takes them.
    try:
        return json.dumps(value, default=_fields_in_full, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"a value cannot be sent: {error}. Check the types of the record's fields against coterie.vocabulary. "
            "Nothing was written."
        ) from error


def decode(body: bytes) -> Any:
    """The value of JSON, integers of any size included.

    Raises:
        ValueError: it is no JSON.
    """
    # Thousands of new lists and mappings, none of them garbage: looking for it would take a third of the time.
    with no_search_for_garbage():
        try:
            return from_json(body, cache_strings="keys")
        except ValueError:
            # Halves of surrogate pairs, and values nested deeper than 200: the slower reader takes them.
            try:
                return json.loads(body)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None


def one(kind: type[Item]) -> Callable[[Any], Item]:
    """A function that makes a record of this kind from its decoded fields, which it uses up; sequences become tuples.

    The function raises ``TypeError``, ``ValueError``, ``KeyError`` or ``AttributeError`` when the fields do not fit.
    """
    read: Callable[[Any], Item] = _reader_of(cast(Any, kind))
    return read


def many(kind: type[Item]) -> Callable[[Any], tuple[Item, ...]]:
    """The same for a list of records."""
    read = one(kind)
    return lambda entries: tuple([read(fields) for fields in entries])


def many_by_key(kind: type[Item]) -> Callable[[Any], dict[str, tuple[Item, ...]]]:
    """The same for a mapping of lists of records."""
    read = many(kind)
    return lambda lists: {key: read(entries) for key, entries in lists.items()}


def page(kind: type[Item]) -> Callable[[Any], Page[Item]]:
    """The same for a page of a listing."""
    read = many(kind)
    return lambda fields: Page(read(fields["items"]), fields["cursor"])


def where_of(record: object) -> str:
    """What to call a record in an error."""
    match record:
        case Span():
            return f"span {record.span_id!r}"
        case SpanEvent():
            return f"event {record.name!r}"
        case Resource():
            return f"resource {record.name!r}"
        case Metrics():
            return f"metrics of run {record.run_id!r}, step {record.step}"
    kind = type(record).__name__.lower()
    return f"{kind} {record.id!r}" if hasattr(record, "id") else kind


# The fields that hold any JSON. orjson would write a NaN in them as null, silently; the store's own writer does not.
_JSON_FIELDS: Mapping[type, frozenset[str]] = {
    Task: frozenset({"input", "reference", "metadata"}),
    Rollout: frozenset({"resources", "sampling", "metadata"}),
    Span: frozenset({"attributes"}),
    SpanEvent: frozenset({"attributes"}),
    Resource: frozenset({"content", "scores"}),
    Run: frozenset({"config", "summary"}),
    Metrics: frozenset({"values"}),
    Decision: frozenset({"evidence"}),
}
_EMPTY: Mapping[str, JSON] = {}


@cache
def _reader_of(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    readers = [(name, reader) for name, hint in hints.items() if (reader := _value_reader(hint)) is not None]

    def read(fields: dict[str, Any]) -> Any:
        for name, reader in readers:
            if name in fields:
                fields[name] = reader(fields[name])
        try:
            return kind(**fields)
        except TypeError:
            return kind(**{name: value for name, value in fields.items() if name in hints})

    return read


@cache
def _layout(kind: type) -> tuple[tuple[str, bool], ...]:
    free = _JSON_FIELDS.get(kind, frozenset())
    return tuple((field.name, field.name in free) for field in dataclasses.fields(kind))


def _fields(value: object, keep: Callable[[str], object] = orjson.Fragment) -> object:
    """What to write for a value that the writer does not know. ``keep`` makes of JSON text what the writer takes."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return _plain(value)
    fields: dict[str, object] = {}
    for name, free in _layout(type(value)):
        entry = getattr(value, name)
        if free:
            entry = _EMPTY if entry == {} else keep(records.to_json(entry, where_of(value), name))
        elif type(entry) is float and not math.isfinite(entry):
            raise StoreError(f"{where_of(value)}: {name} is {entry}; it must be a finite number. Nothing was written.")
        fields[name] = entry
    return fields


def _fields_in_full(value: object) -> object:
    return _fields(value, json.loads)


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray, memoryview)):
        return list(value)
    to_list: Callable[[], object] | None = getattr(value, "tolist", None)
    if to_list is not None:
        return to_list()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _value_reader(hint: Any) -> Callable[[Any], Any] | None:
    """What to do with a decoded value of this type; None to take it as it is."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in inner if kind is not type(None)]
        reader = _value_reader(kinds[0]) if len(kinds) == 1 else None
        return None if reader is None else _or_none(reader)
    if origin is not None and issubclass(origin, Sequence):
        each = _value_reader(inner[0])
        return tuple if each is None else lambda values: tuple([each(value) for value in values])
    if origin is not None and issubclass(origin, Mapping):
        key_reader = _value_reader(inner[0])
        if key_reader is None:
            return None
        return lambda values: {key_reader(key): value for key, value in values.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {member.value: member for member in hint}.__getitem__
    if dataclasses.is_dataclass(hint):
        return _reader_of(cast(Any, hint))
    return None


def _or_none(reader: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else reader(value)
