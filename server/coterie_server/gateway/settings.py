"""The settings of the gateway: the ``gateway`` section of the server's configuration file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import ValidationError as Invalid

from coterie.capture.content import ContentRules
from coterie.errors import ConfigError


class Section(BaseModel):
    """A part of the settings: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Upstream(Section):
    """A model server, or a hosted model."""

    base_url: str = Field(pattern=r"^https?://[^@\s]+$")
    """An OpenAI-compatible base, such as ``http://127.0.0.1:8000/v1``. Never with a key in it."""
    model: str | None = None
    """The model's or adapter's name there, if it differs from the endpoint's."""
    api_key_env: str | None = None
    """The environment variable that holds the key."""


class Fallback(Upstream):
    """What answers when no server of a policy does."""

    modes: frozenset[Literal["production", "val", "test"]] = frozenset({"production"})
    """For which rollouts. Calls of no rollout count as production. Never for train: what another model says is no
    sample of the policy.
    """


class PolicySettings(Section):
    """How one policy is served. Without settings its endpoint resource says all."""

    backends: tuple[Upstream, ...] = ()
    """Its model servers, in place of the endpoint's ``base_url``. So the endpoint may name the gateway itself, and agents
    in other processes find it there.
    """
    engine: Literal["vllm", "sglang"] = "vllm"
    """How its servers are asked for token ids."""
    messages: Literal["translated", "served", "anthropic"] = "translated"
    """Where calls of Anthropic's Messages go: turned into Chat Completions by LiteLLM; to ``/messages`` of an
    OpenAI-compatible server that has it, as vLLM does (without token ids); or to an Anthropic upstream, with its headers.
    """
    fallback: Fallback | None = None
    one_version_per_rollout: bool = False
    """Refuse (409) an answer from another policy version than the rollout's first one."""


class Price(Section):
    """What a model costs, in any one currency, a million tokens."""

    input: NonNegativeFloat = 0.0
    output: NonNegativeFloat = 0.0


class Budget(Section):
    """What one rollout may use. ``Rollout.metadata["budget"]`` overrides it, field by field."""

    calls: NonNegativeInt | None = None
    tokens: NonNegativeInt | None = None
    """Of prompts and answers together."""
    cost: NonNegativeFloat | None = None
    """In the currency of ``prices``."""
    calls_per_minute: PositiveFloat | None = None


class GatewaySettings(Section):
    """All of it."""

    policies: Mapping[str, PolicySettings] = {}
    default: Upstream | None = None
    """Where calls go whose role no endpoint serves, with the model that the caller names. Without it they are refused."""
    embeddings: Upstream | None = None
    """Where embeddings come from; by default from the server that the role's chats go to."""
    prices: Mapping[str, Price] = {}
    """By the name of the model as it is sent to its server."""
    budget: Budget = Budget()
    apply_prompts: bool = False
    """Put the active prompts of a role into calls of no rollout, too. Those of a rollout get what it is pinned to."""

    capture_content: bool = True
    """False leaves texts, tool definitions and error messages out of spans."""
    mask: str | None = Field(None, pattern=r"^[\w.]+:[\w.]+$")
    """``package.module:function``, applied to every text before it is recorded."""
    spool: Path | None = None
    """A folder where spans lie between the end of an answer and their commit, so that answers need not wait for the
    store. By default beside the server's file of tokens; ``null`` for none: then every answer waits.
    """
    waiting_spans: PositiveInt = 10_000
    """With so many spans not yet in the store, new calls are refused (503)."""

    tries: PositiveInt = 4
    """How often a request is sent, if the server cannot be reached or answers 429 or 503."""
    first_pause_seconds: NonNegativeFloat = 0.2
    """Before the second try; doubles with each further one."""
    longest_pause_seconds: NonNegativeFloat = 10.0
    """Also the longest Retry-After that is waited for."""
    connect_seconds: PositiveFloat = 10.0
    silence_seconds: PositiveFloat = 600.0
    """The longest wait for the next byte of an answer."""
    health_seconds: PositiveFloat = 5.0
    """How often servers that are down, and all of a policy with several, are asked for their models."""
    pause_seconds: PositiveFloat = 120.0
    """How long a call waits while its policy is paused."""
    longest_pause_of_policy_seconds: PositiveFloat = 600.0
    """After so long a policy resumes by itself: its trainer is gone."""
    largest_body_bytes: PositiveInt = 64 * 1024 * 1024

    def rules(self) -> ContentRules:
        """What may be recorded.

        Raises:
            ConfigError: the mask cannot be imported.
        """
        if self.mask is None:
            return ContentRules(self.capture_content)
        module, _, name = self.mask.partition(":")
        try:
            found: Any = import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"gateway.mask: {self.mask!r} cannot be imported: {error}") from error
        if not callable(found):
            raise ConfigError(f"gateway.mask: {self.mask!r} is no function from text to text.")
        return ContentRules(self.capture_content, found)


def spool_beside(file: Path, store: str) -> Path:
    """The folder of a store's spool if the settings name none: beside a file that the server keeps anyway, and of this store
    alone, since what one gateway leaves there the next one writes to its own store.
    """
    digest = hashlib.blake2b(store.encode(), digest_size=6).hexdigest()
    return file.with_name(f"{file.name}.spool") / digest


def gateway_settings(
    section: Mapping[str, Any] | None, *, spool: Path | None = None, file: str = "the server's configuration"
) -> GatewaySettings:
    """Read the ``gateway`` section.

    Args:
        section: None for none.
        spool: where spans lie on their way to the store, if the section does not say.
        file: for messages.

    Raises:
        ConfigError: names each key that is wrong; or an environment variable that holds a key is not set.
    """
    try:
        settings = GatewaySettings.model_validate({"spool": spool, **(section or {})})
    except Invalid as error:
        wrong = "; ".join(
            f"gateway.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)
        )
        raise ConfigError(f"{file}: {wrong}") from None
    for name, upstream in _upstreams(settings):
        if upstream.api_key_env is not None and not os.environ.get(upstream.api_key_env):
            raise ConfigError(
                f"{file}: {name}: the key is to come from the environment variable {upstream.api_key_env}, "
                "which is not set."
            )
    return settings


def _upstreams(settings: GatewaySettings) -> list[tuple[str, Upstream]]:
    found = [("gateway.default", settings.default), ("gateway.embeddings", settings.embeddings)]
    for policy, how in settings.policies.items():
        found += [(f"gateway.policies.{policy}.backends.{at}", one) for at, one in enumerate(how.backends)]
        found.append((f"gateway.policies.{policy}.fallback", how.fallback))
    return [(name, upstream) for name, upstream in found if upstream is not None]
