"""The store that a command is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.errors import ConfigError

StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="COTERIE_STORE",
        help="The store: https://host:port (its token in COTERIE_TOKEN), postgresql://…, or a path.",
    ),
]


def raise_if_absent(url: str) -> None:
    """Make sure that a SQLite store exists: opening it would create it, which here would only hide a typing error.

    Raises:
        ConfigError: there is no such file.
    """
    place = url.removeprefix("sqlite:///")
    path = Path(place)
    if "://" not in place and not path.exists():
        raise ConfigError(f"store {url!r}: there is no file {path}. Give the store that the rollouts were kept in.")
