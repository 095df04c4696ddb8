"""Whose call a request is: by its headers, or by the base URL that the client was given."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote

from coterie import conventions as names
from coterie.capture.api import Api
from coterie_server.gateway.errors import Dialect, bad_request


class Resource(StrEnum):
    """What a request is for, beside calls of a model."""

    EMBEDDINGS = "/embeddings"
    """Vectors of texts."""
    MODELS = "/models"
    """The list of models."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a path says."""

    what: Api | Resource
    dialect: Dialect
    rollout_id: str | None = None
    attempt_id: str | None = None
    role: str | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose call it is."""

    call_id: str
    told: bool
    """True when the client made the id: then it records the call as well."""
    rollout_id: str | None
    attempt_id: str | None
    role: str | None
    prompts_placed: bool = False
    """True when the program has put the prompts of its role into the request by itself."""


def read_path(path: str) -> Place:
    """Read a path below ``/gateway``.

    Raises:
        Refusal: 404, there is nothing at that path.
    """
    found = _PATH.fullmatch(path)
    if found is None or found["tail"] not in _TAILS:
        raise bad_request(
            f"The gateway has nothing at {path}. It serves chat/completions, completions, responses, embeddings and "
            "models below /gateway/v1, below /gateway/rollout/ID/attempt/ID[/role/NAME]/v1, and Anthropic's messages below "
            "/gateway/anthropic/v1.",
            code="not_found",
            status=404,
        )
    what = _TAILS[found["tail"]]
    dialect = Dialect.ANTHROPIC if what is Api.MESSAGES else Dialect.OPENAI
    return Place(what, dialect, _text(found["rollout"]), _text(found["attempt"]), _text(found["role"]))


def attribute(place: Place, headers: Mapping[bytes, bytes]) -> Attribution:
    """Whose call it is. What the path says counts more than what the headers say.

    Raises:
        Refusal: 400, an id or role is odd, or only one of rollout and attempt is there.
    """
    rollout_id = place.rollout_id or _header(headers, names.HEADER_ROLLOUT_ID)
    attempt_id = place.attempt_id or _header(headers, names.HEADER_ATTEMPT_ID)
    if (rollout_id is None) != (attempt_id is None):
        missing, header = ("attempt", names.HEADER_ATTEMPT_ID) if rollout_id else ("rollout", names.HEADER_ROLLOUT_ID)
        raise bad_request(f"The call names no {missing}: give both rollout and attempt, {missing} as header {header}.")
    call_id = _header(headers, names.HEADER_CALL_ID)
    return Attribution(
        call_id=call_id or f"ca-{uuid.uuid4().hex[:20]}",
        told=call_id is not None,
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        role=place.role or _header(headers, names.HEADER_ROLE),
        prompts_placed=_header(headers, names.HEADER_PROMPTS) == names.PROMPTS_PLACED,
    )


_PATH = re.compile(
    r"/(?:rollout/(?P<rollout>[^/]+)/attempt/(?P<attempt>[^/]+)/)?(?:role/(?P<role>[^/]+)/)?(?:anthropic/)?v1(?P<tail>/.+)"
)
_TAILS: Mapping[str, Api | Resource] = {str(one): one for one in (*Api, *Resource)}
_ID = re.compile(r"[\w.:@/ -]{1,200}")


def _text(value: str | None) -> str | None:
    return _checked(unquote(value), "the path") if value is not None else None


def _header(headers: Mapping[bytes, bytes], name: str) -> str | None:
    value = headers.get(name.encode())
    return _checked(value.decode("latin-1"), f"header {name}") if value else None


def _checked(value: str, where: str) -> str:
    if not _ID.fullmatch(value):
        raise bad_request(
            f"{value[:80]!r} in {where} is no id or role: at most 200 letters, digits, spaces and ._:@/- are allowed."
        )
    return value
