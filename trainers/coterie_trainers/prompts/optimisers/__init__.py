"""The optimisers, one a file. Each has ``make``, a function whose keyword arguments are its settings.

pydantic checks the arguments against their annotations, ``Annotated[int, Field(ge=1)]`` included. Another package adds its own
with an entry point of the group ``coterie.optimisers``::

    [project.entry-points."coterie.optimisers"]
    mine = "my_package.search:make"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from pydantic import ValidationError, validate_call

from coterie.errors import ConfigError
from coterie.vocabulary import JSON
from coterie_trainers.offers import Offers
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
    make = validate_call(_OFFERS.get(name))
    try:
        return cast(Optimiser, make(**(settings or {})))
    except ValidationError as error:
        mistakes = "; ".join(_mistake(name, details) for details in error.errors(include_url=False))
        raise ConfigError(mistakes) from None


def names() -> list[str]:
    """The names that ``get`` knows, sorted."""
    return _OFFERS.names()


def _mistake(name: str, details: Mapping[str, JSON]) -> str:
    key = ".".join(["optimiser", name, *map(str, details["loc"])])
    if details["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {key!r}"
    if details["type"] in ("missing_argument", "missing_keyword_only_argument", "missing"):
        return f"the key {key!r} is missing"
    return f"{key} = {details['input']!r} is not allowed. {str(details['msg']).removeprefix('Value error, ')}"
