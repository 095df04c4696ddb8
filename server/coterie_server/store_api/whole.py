"""The store as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from coterie.store.base import Store
from coterie.store.retention import Pruned, Retention
from coterie.store.transfer import Records
from coterie.vocabulary import JSON
from coterie_server.store_api.parameters import Greeting
from coterie_server.store_api.routes import get, post
from coterie_server.tokens import ANY, Scope


@get("/v1", ANY)
async def greet(_store: Store) -> Greeting:
    """Say what answers here, and that the token is known."""
    return Greeting("coterie", _VERSION)


@get("/v1/check", ANY)
async def check(store: Store) -> None:
    """Answer if the store can be read and written now; 503 says why it cannot."""
    await store.check()


@get("/v1/statistics", Scope.READ)
async def statistics(store: Store) -> Mapping[str, JSON]:
    """How many tasks, rollouts (also by state), attempts, spans and so on there are, and bytes on disk."""
    return await store.statistics()


@post("/v1/load", Scope.TRAINER)
async def load(store: Store, records: Records) -> None:
    """Add records as they are, with states and versions, all or none. What exists already is left as it is."""
    await store.load(records)


@post("/v1/prune", Scope.ADMIN)
async def prune(store: Store, retention: Retention) -> Pruned:
    """Remove what a retention no longer keeps. Only what has ended is ever removed."""
    return await store.prune(retention)


_VERSION = version("coterie")
