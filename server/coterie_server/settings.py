"""The settings of the server: what ``coterie serve`` is given, and the file of ``--config``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from coterie.errors import ConfigError

MIB = 2**20


class Section(BaseModel):
    """A part of the settings: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limits(Section):
    """What one client may ask for. Each process of the server counts for itself."""

    body_bytes: PositiveInt = 64 * MIB
    """The largest body, as it comes and unpacked."""
    header_bytes: PositiveInt = 64 * 1024
    """The address and all headers of a request."""
    requests_per_second: PositiveFloat = 5000.0
    """Of one token, on average over a second."""
    requests_at_once: PositiveInt = 2000
    """Requests of one token that are under way, those that wait for work among them."""
    connections: PositiveInt = 10_000
    """Open connections."""
    silence_seconds: PositiveFloat = 30.0
    """A connection is closed when a request on it has begun and nothing more of it comes for so long, or when its client
    takes nothing of an answer for so long.
    """
    idle_seconds: PositiveFloat = 75.0
    """A connection without a request is closed after so long."""


class Settings(Section):
    """All of it."""

    store: str = "sqlite:///coterie.db"
    """Where everything is kept."""
    host: str = "127.0.0.1"
    port: int = Field(4747, ge=0, le=65535)
    """0 takes a free one."""
    workers: PositiveInt = 1
    """Processes that listen on the port. More than one needs PostgreSQL."""
    tls_cert: Path | None = None
    """A PEM file: the server's certificate and those between it and its root."""
    tls_key: Path | None = None
    """The certificate's key, if it is not in the same file."""
    insecure: bool = False
    """Listen beyond this machine without TLS."""
    behind_proxy: bool = False
    """A proxy in front of the server does TLS; what it says about the client (X-Forwarded-*) is believed."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """Where OTLP over gRPC is taken; None for nowhere."""
    tokens: Path | None = None
    """The file of tokens; by default beside the store."""
    metrics_without_token: bool = False
    """Anybody who reaches the server may read its metrics."""
    notice_seconds: NonNegativeFloat = 0.0
    """How long the server goes on, not ready any more, after it was told to stop: until a load balancer has noticed."""
    drain_seconds: PositiveFloat = 30.0
    """How long requests that run may take after that."""
    limits: Limits = Limits()
    gateway: Mapping[str, Any] | None = None
    """The settings of the gateway, which reads them itself."""


def read_settings(file: Path | None, given: Mapping[str, Any]) -> Settings:
    """The settings of a YAML file, with what was given on the command line in place of what the file says.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or wrong; names it.
    """
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            read = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{file}: it cannot be read: {error}.") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{file}: it is no YAML: {error}.") from error
        if read is not None and not isinstance(read, dict):
            raise ConfigError(f"{file}: it must be a mapping of settings to values, such as `port: 4747`.")
        settings = read or {}
    try:
        return Settings(**{**settings, **given})
    except (ValidationError, TypeError) as error:
        raise ConfigError(f"{file or 'coterie serve'}: {_told(error)}") from None


def _told(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return f"a setting's name is no text: {error}."
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        name = ".".join(map(str, problem["loc"]))
        unknown = problem["type"] == "extra_forbidden"
        problems.append(f"there is no setting {name!r}" if unknown else f"{name}: {problem['msg']}")
    return "; ".join(problems) + "."
