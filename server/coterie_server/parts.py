"""What the server is made of, for whoever answers a request."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, cast

from coterie.store.base import Store
from coterie_server.drain import Drain
from coterie_server.metrics import Metrics
from coterie_server.settings import Settings
from coterie_server.tokens import Tokens

PARTS = "coterie.parts"
"""The key of the ASGI scope under which the edge puts the parts."""


@dataclass(slots=True)
class Parts:
    """One process of the server."""

    store: Store
    settings: Settings
    tokens: Tokens
    metrics: Metrics = field(default_factory=Metrics)
    drain: Drain = field(default_factory=Drain)
    stopping: bool = False
    """It was told to stop and is not ready any more."""


def parts_of(scope: MutableMapping[str, Any]) -> Parts:
    """The parts, from the ASGI scope of a request."""
    return cast("Parts", scope[PARTS])
