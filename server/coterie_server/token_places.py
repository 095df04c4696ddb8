"""Where the tokens of a store lie."""

from __future__ import annotations

import os
from pathlib import Path

from coterie_server.settings import Settings

TOKENS_VARIABLE = "COTERIE_TOKENS"
"""The environment variable that names the file of tokens, where none is given."""
DEFAULT_NAME = "coterie"


def tokens_path(settings: Settings) -> Path:
    """The file of tokens: as given, else as the environment says, else beside a SQLite store, else in this folder."""
    given = settings.tokens or os.environ.get(TOKENS_VARIABLE)
    return Path(given) if given else Path(f"{_stem(settings.store)}.tokens")


def first_token_path(tokens: Path) -> Path:
    """Where the first token is written for the clients on this machine: ``coterie.db.tokens`` → ``coterie.db.token``."""
    return tokens.with_suffix(".token") if tokens.suffix == ".tokens" else tokens.with_name(tokens.name + ".token")


def _stem(store: str) -> str:
    if "://" not in store:
        return store
    scheme, _, rest = store.partition("://")
    return rest[1:] if scheme == "sqlite" and len(rest) > 1 else DEFAULT_NAME
