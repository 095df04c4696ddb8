"""Where a call goes: from its rollout and role to an endpoint, and from its policy to model servers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coterie.capture.faults import warn_once
from coterie.errors import ConfigError, NotFoundError, StoreError
from coterie.prompts.versions import PromptVersion, RolePrompts, by_role, prompt_in, rivals, told_rivals
from coterie.runner.pins import Pinned, Pins, endpoint_in
from coterie.store.base import Store
from coterie.vocabulary import JSON, Endpoint, Mode, Resource, ResourceKind, ResourceStatus
from coterie_server.gateway.errors import bad_request, unavailable
from coterie_server.gateway.servers import Server, Servers
from coterie_server.gateway.settings import Fallback, GatewaySettings, PolicySettings, Upstream

REMEMBERED_ATTEMPTS = 20_000
"""Attempts whose rollout was looked up. The least recently used is forgotten first."""
FRESH_SECONDS = 1.0
"""For so long the latest endpoints and prompts are taken as read."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a call's attempt says of it."""

    rollout_id: str
    attempt_id: str
    mode: Mode
    pinned: Pinned
    sampling: Mapping[str, JSON]
    metadata: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call goes."""

    endpoint: Endpoint | None
    """None for the default upstream, which gets the call as it is."""
    servers: Sequence[Server]
    how: PolicySettings = field(default_factory=PolicySettings)
    prompts: RolePrompts | None = None
    """Those of the role that calls."""
    fallback: Server | None = None

    @property
    def policy(self) -> str | None:
        """The policy that answers."""
        return self.endpoint.policy if self.endpoint is not None else None


class Routing:
    """Looks up where calls go. What it read of an attempt never changes; the latest resources are read anew each second."""

    def __init__(self, store: Store, settings: GatewaySettings, servers: Servers) -> None:
        self._store = store
        self._settings = settings
        self._servers = servers
        self._pins = Pins(store)
        self._served: dict[tuple[str, tuple[str, ...], str | None], Sequence[Server]] = {}
        self._origins: OrderedDict[str, Origin] = OrderedDict()
        self._latest = Pinned({}, ())
        self._latest_at = float("-inf")
        self._reading = asyncio.Lock()

    async def origin(self, rollout_id: str, attempt_id: str) -> Origin:
        """What is known of an attempt.

        Raises:
            Refusal: 404, there is no such attempt at such a rollout; 400, its pinned resources are no use; 503, the store
                cannot be read.
        """
        known = self._origins.get(attempt_id)
        if known is not None and known.rollout_id == rollout_id:
            self._origins.move_to_end(attempt_id)
            return known
        origin = await self._looked_up(rollout_id, attempt_id)
        self._origins[attempt_id] = origin
        while len(self._origins) > REMEMBERED_ATTEMPTS:
            self._origins.popitem(last=False)
        return origin

    async def target(self, origin: Origin | None, role: str | None, model: str | None) -> Target:
        """Where a call of a role goes. Without a role the model's name may be that of a policy or endpoint.

        Raises:
            Refusal: 404, nothing serves it.
        """
        pinned = origin.pinned if origin is not None else Pinned({}, ())
        endpoints = pinned.endpoints or (await self._newest()).endpoints
        endpoint = _chosen(endpoints, role, model)
        published = pinned.prompts
        if origin is None and self._settings.apply_prompts:
            published = (await self._newest()).prompts
        prompts = by_role(published).get(role) if role is not None and published else None
        if endpoint is not None:
            return self._target_of(endpoint, origin, prompts)
        if self._settings.default is not None:
            return Target(None, self._servers.of((self._settings.default,)), prompts=prompts)
        raise bad_request(_nothing_serves(endpoints, role, model), code="model_not_found", status=404)

    async def models(self) -> Mapping[str, Endpoint]:
        """The latest endpoints, by the names under which clients may ask for them: model, policy and resource."""
        named: dict[str, Endpoint] = {}
        for name, endpoint in (await self._newest()).endpoints.items():
            for one in (endpoint.model, endpoint.policy, name):
                named.setdefault(one, endpoint)
        return named

    def _target_of(self, endpoint: Endpoint, origin: Origin | None, prompts: RolePrompts | None) -> Target:
        how = self._settings.policies.get(endpoint.policy) or _AS_PUBLISHED
        servers = self._servers_of(endpoint, how)
        mode = origin.mode if origin is not None else Mode.PRODUCTION
        fallback = how.fallback
        allowed = fallback is not None and mode in fallback.modes
        return Target(endpoint, servers, how, prompts, self._fallback(fallback) if allowed and fallback else None)

    def _servers_of(self, endpoint: Endpoint, how: PolicySettings) -> Sequence[Server]:
        places = tuple(endpoint.replicas) or (endpoint.base_url,)
        key = (endpoint.policy, places, endpoint.api_key_env)
        if key not in self._served:
            own = [Upstream(base_url=place, api_key_env=endpoint.api_key_env) for place in places]
            self._served[key] = self._servers.of(how.backends or own)
        return self._served[key]

    def _fallback(self, fallback: Fallback) -> Server:
        return self._servers.of((Upstream(**fallback.model_dump(exclude={"modes"})),))[0]

    async def _looked_up(self, rollout_id: str, attempt_id: str) -> Origin:
        try:
            (rollout,) = await self._store.get_rollouts([rollout_id])
            attempts = (await self._store.get_attempts([rollout_id])).get(rollout_id, ())
            pinned = await self._pins.resolve(rollout)
        except NotFoundError as error:
            raise bad_request(str(error), code="rollout_not_found", status=404) from None
        except ConfigError as error:
            raise bad_request(str(error), code="resource_invalid") from None
        except StoreError as error:
            raise unavailable(f"The store cannot be read: {error}", code="store_unavailable", retry_after=2) from None
        if attempt_id not in {attempt.id for attempt in attempts}:
            raise bad_request(
                f"Rollout {rollout_id} has no attempt {attempt_id}; it has {', '.join(one.id for one in attempts) or 'none'}.",
                code="attempt_not_found",
                status=404,
            )
        return Origin(rollout_id, attempt_id, rollout.mode, pinned, rollout.sampling, rollout.metadata)

    async def _newest(self) -> Pinned:
        if time.monotonic() - self._latest_at > FRESH_SECONDS:
            async with self._reading:
                if time.monotonic() - self._latest_at > FRESH_SECONDS:
                    await self._read_newest()
        return self._latest

    async def _read_newest(self) -> None:
        try:
            endpoints = await self._store.list_resources(kind=ResourceKind.ENDPOINT)
            prompts: Sequence[Resource] = ()
            if self._settings.apply_prompts:
                prompts = await self._store.list_resources(kind=ResourceKind.PROMPT, status=ResourceStatus.ACTIVE)
            self._latest = Pinned({one.name: endpoint_in(one) for one in endpoints}, _without_rivals(prompts))
        except ConfigError as error:
            raise bad_request(str(error), code="resource_invalid") from None
        except StoreError as error:
            if self._latest_at == float("-inf"):
                raise unavailable(
                    f"The store cannot be read: {error}", code="store_unavailable", retry_after=2
                ) from None
            # What was read last still holds: resources are replaced seldom, and agents need not stop for it.
        self._latest_at = time.monotonic()


_AS_PUBLISHED = PolicySettings()


def _without_rivals(resources: Sequence[Resource]) -> Sequence[PromptVersion]:
    """The prompts that are the only ones for their place: among others nobody can say which one is meant."""
    prompts = [prompt_in(resource) for resource in resources]
    left_out = rivals(prompts)
    for found in left_out:
        warn_once(f"The gateway takes up neither: {told_rivals(found)}. Retire one of them")
    return [prompt for prompt in prompts if not any(prompt in found for found in left_out)]


def _chosen(endpoints: Mapping[str, Endpoint], role: str | None, model: str | None) -> Endpoint | None:
    """The endpoint of a role: one that names it, else one for all roles; without a role, one that the model names."""
    if role is not None:
        named = next((one for one in endpoints.values() if role in one.roles), None)
        if named is not None:
            return named
    elif model is not None:
        asked = next((one for name, one in endpoints.items() if model in (name, one.policy, one.model)), None)
        if asked is not None:
            return asked
    return next((one for one in endpoints.values() if not one.roles), None)


def _nothing_serves(endpoints: Mapping[str, Endpoint], role: str | None, model: str | None) -> str:
    if not endpoints:
        return (
            "The store has no endpoint, so the gateway does not know where a model is served. Publish one "
            "(a resource of kind endpoint), or set gateway.default in the server's configuration."
        )
    roles = ", ".join(sorted(set(_roles(endpoints))))
    if role is not None:
        return f"No endpoint serves role {role!r}; there are endpoints for the roles {roles}."
    return (
        f"The call names no role and its model {model!r} is none of "
        f"{', '.join(sorted(set(_names(endpoints))))}. Name a role: in the base URL (…/role/NAME/v1) or as "
        f"header x-coterie-role. There are endpoints for the roles {roles}."
    )


def _roles(endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    for endpoint in endpoints.values():
        yield from endpoint.roles


def _names(endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    for name, endpoint in endpoints.items():
        yield from (name, endpoint.policy, endpoint.model)
