"""How a route is declared: one function a request, its types say what comes in and what goes out."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from coterie.store.base import Page
from coterie_server.store_api.requests import Reader

Handler = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """One method of the store over HTTP."""

    method: str
    path: str
    scopes: Sequence[str]
    """A token that allows one of these may do it."""
    handle: Handler
    """Called with the store, and the request if ``reader`` is there; gives what is answered. One that ``answers`` is
    called with a ``Call`` instead of the store."""
    reader: Reader[Any] | None
    answer: Any
    """The type of the answer; None for an empty one."""
    answers: bool
    """It answers by itself."""

    @property
    def query(self) -> bool:
        """True when the request is in the query parameters, False when it is in the body."""
        return self.method == "GET"

    @property
    def paged(self) -> bool:
        """It gives a page, and the whole listing as a stream to who asks for that."""
        return get_origin(self.answer) is Page


ROUTES: list[Route] = []
"""All that are declared, in the order of declaration."""


def get(path: str, *scopes: str, answers: Any = None) -> Callable[[Handler], Handler]:
    """Declare a route that reads; its request comes in query parameters. A handler that sends its answer by itself says
    with ``answers`` of what type that is.
    """
    return _declare("GET", path, scopes, answers)


def post(path: str, *scopes: str, answers: Any = None) -> Callable[[Handler], Handler]:
    """Declare a route that writes, or reads by a list of ids; its request comes in the body."""
    return _declare("POST", path, scopes, answers)


def _declare(method: str, path: str, scopes: Sequence[str], answers: Any) -> Callable[[Handler], Handler]:
    def declare(handle: Handler) -> Handler:
        hints = get_type_hints(handle, include_extras=True)
        names = list(inspect.signature(handle).parameters)
        reader = _reader(hints[names[1]], handle.__name__) if len(names) > 1 else None
        answer = hints["return"] if answers is None else answers
        answer = None if answer is type(None) else answer
        ROUTES.append(Route(method, path, scopes, handle, reader, answer, answers is not None))
        return handle

    return declare


def _reader(kind: Any, name: str) -> Reader[Any]:
    several = (
        frozenset(field for field, hint in get_type_hints(kind).items() if get_origin(hint) is list)
        if isinstance(kind, type)
        else frozenset()
    )
    return Reader(kind, f"{name}_request", several)


def item_of(page: Any) -> Any:
    """The type of the items of a page."""
    return get_args(page)[0]
