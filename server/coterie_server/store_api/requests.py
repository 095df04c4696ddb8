"""What comes in: bodies and query parameters, checked at the edge and turned into the words of the vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypeAliasType

from coterie.store.base import Store
from coterie_server.refusals import Refused, does_not_fit

Kind = TypeVar("Kind")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Any]
Send = Callable[[MutableMapping[str, Any]], Any]

MOST_PARAMETERS = 2000
"""Query parameters of a request."""


@dataclass(slots=True)
class Call:
    """One request, on its way through a handler that answers it by itself."""

    store: Store
    scope: Scope
    receive: Receive
    send: Send

    def header(self, name: bytes) -> bytes:
        """A header of the request by its name in lower case; empty when it is not there."""
        return next((value for key, value in self.scope["headers"] if key == name), b"")


@dataclass(frozen=True)
class Reader(Generic[Kind]):
    """Reads one kind of request, of a body or of query parameters."""

    kind: Any
    name: str
    fields: frozenset[str] = field(default_factory=frozenset)
    """Query parameters that may be given several times."""

    @cached_property
    def adapter(self) -> TypeAdapter[Kind]:
        """Checks strictly: no unknown field, no number in quotes, nothing that is not finite."""
        # An alias, because pydantic lets a dataclass itself not be checked by other rules than its own.
        return TypeAdapter(TypeAliasType(self.name, self.kind), config=_STRICT)

    def of_body(self, body: bytes) -> Kind:
        """The request of a JSON body.

        Raises:
            Refused: 422, it is no JSON, or does not fit; names the fields.
        """
        if b"NaN" in body or b"Infinity" in body:
            _raise_for_constants(body)
        try:
            return self.adapter.validate_json(body)
        except ValidationError as error:
            if error.errors(include_url=False, include_input=False)[0]["type"] != "json_invalid":
                raise _refused("body", error) from None
        # Halves of surrogate pairs, and values nested deeper than 200: the slower reader takes them.
        value = _json_of(body)
        try:
            return self.adapter.validate_python(value, strict=False)
        except ValidationError as error:
            raise _refused("body", error) from None

    def of_query(self, query: bytes) -> Kind:
        """The request of query parameters.

        Raises:
            Refused: 422, they do not fit; names them.
        """
        given: dict[str, Any] = {}
        try:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MOST_PARAMETERS)
        except ValueError as error:
            raise does_not_fit(f"query: {error}.") from None
        for name, value in pairs:
            if name in self.fields:
                given.setdefault(name, []).append(value)
            elif name in given:
                raise does_not_fit(f"query: {name} is given twice; give it once.")
            else:
                given[name] = value
        try:
            return self.adapter.validate_python(given, strict=False)
        except ValidationError as error:
            raise _refused("query", error) from None


_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
_FIELDS_NAMED = 5


def _json_of(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise does_not_fit("body: it is nested too deeply.") from None
    except ValueError as error:
        raise does_not_fit(f"body: it is no JSON: {error}.") from None


def _raise_for_constants(body: bytes) -> None:
    """JSON has no NaN and no Infinity, though many readers take them. As text, in quotes, they are fine."""

    def refuse(constant: str) -> None:
        raise does_not_fit(f"body: {constant} is no JSON. Send null, or text in quotes.")

    try:
        json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError):
        return  # It is refused, or read, by what follows.


def _refused(where: str, error: ValidationError) -> Refused:
    problems = error.errors(include_url=False, include_context=False)
    told = "; ".join(f"{_path(where, problem['loc'])}: {_said(problem)}" for problem in problems[:_FIELDS_NAMED])
    more = f"; and {len(problems) - _FIELDS_NAMED} more" if len(problems) > _FIELDS_NAMED else ""
    return does_not_fit(f"The request does not fit: {told}{more}.")


def _path(where: str, location: Sequence[int | str]) -> str:
    return where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _said(problem: Any) -> str:
    if problem["type"] in ("missing", "missing_argument"):
        return "it is required"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return "there is no such field"
    given = repr(problem["input"])
    shown = given if len(given) <= 60 else given[:60] + "…"
    message: str = problem["msg"]
    return f"{message[:1].lower()}{message[1:]}, not {shown}"
