"""The optimisers, one a file. Each has ``make``, a function whose keyword arguments are its settings.

pydantic checks the arguments against their annotations, ``Annotated[int, Field(ge=1)]`` included. Another package adds its own
with an entry point of the group ``coterie.optimisers``::

    [project.entry-points."coterie.optimisers"]
    mine = "my_package.search:make"
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import cast

from pydantic import ValidationError, validate_call

from coterie.errors import ConfigError
from coterie.vocabulary import JSON
from coterie_trainers.offers import Offers
from coterie_trainers.prompts.config import Reflection
from coterie_trainers.prompts.reflecting import NO_MODEL
from coterie_trainers.prompts.settings import mistakes
from coterie_trainers.prompts.study import Optimiser

_OFFERS = Offers(
    "optimiser",
    "optimiser",
    "coterie.optimisers",
    {
        name: f"coterie_trainers.prompts.optimisers.{name}:make"
        for name in ("apo", "bootstrap", "contrast", "gepa", "random_edits", "rewrite", "unchanged")
    },
)


def get(name: str, settings: Mapping[str, JSON] | None = None) -> Optimiser:
    """The optimiser of this name, made with these settings: a built-in one, or one that an installed package offers.

    Raises:
        ConfigError: there is none of this name (the message lists what there is), it cannot be imported, or a setting is
            unknown or not allowed.
    """
    make = _OFFERS.get(name)
    try:
        return cast(Optimiser, validate_call(make)(**(settings or {})))
    except ValidationError as error:
        raise ConfigError(mistakes(name, list(inspect.signature(make).parameters), error)) from None


def check_model(optimiser: Optimiser, reflection: Reflection | None) -> None:
    """Refuse an optimiser that asks a model, as its attribute ``asks_model`` says, where none is configured.

    Raises:
        ConfigError: there is no section ``reflection``.
    """
    if reflection is None and getattr(optimiser, "asks_model", False):
        raise ConfigError(NO_MODEL)


def names() -> list[str]:
    """The names that ``get`` knows, sorted."""
    return _OFFERS.names()
