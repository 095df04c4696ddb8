"""From the resource versions that a rollout is pinned to, to the endpoints and prompts of its attempt."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from coterie.errors import ConfigError, NotFoundError
from coterie.gateway_address import through_gateway
from coterie.prompts.versions import PromptVersion, prompt_in, rivals, told_rivals
from coterie.roles import RoleMap
from coterie.store.base import Store
from coterie.vocabulary import Endpoint, Resource, ResourceKind, Rollout

CACHED_PINS = 64
"""Sets of pins that are remembered. A training step adds one; versions never change."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The resources of one set of pins."""

    endpoints: Mapping[str, Endpoint]
    """Resource name to endpoint."""
    prompts: Sequence[PromptVersion]
    agents: Mapping[str, str] = field(default_factory=dict)
    """Agent name to role, as the rollout's run has it."""


class Pins:
    """Looks up pinned resources, each version once, and what a rollout's run says of its agents."""

    def __init__(self, store: Store, *, gateway: str | None = None) -> None:
        """With ``gateway``, a server's address, endpoints are given as they are reached through its gateway."""
        self._store = store
        self._gateway = gateway
        self._known: dict[tuple[tuple[str, int], ...], Pinned] = {}
        self._agents: dict[str, Mapping[str, str]] = {}
        """Run to its map of agent names, which never changes."""
        self._lock = asyncio.Lock()

    async def resolve(self, rollout: Rollout) -> Pinned:
        """What a rollout is pinned to.

        Raises:
            ConfigError: a pinned resource does not exist, or its content is not what its kind asks for.
            StoreUnavailableError: the store cannot be read now.
        """
        key = tuple(sorted(rollout.resources.items()))
        async with self._lock:
            if key not in self._known:
                if len(self._known) >= CACHED_PINS:
                    del self._known[next(iter(self._known))]
                self._known[key] = await self._looked_up(key, rollout.id)
            pinned = self._known[key]
            return pinned if rollout.run_id is None else replace(pinned, agents=await self._agents_of(rollout.run_id))

    async def _agents_of(self, run_id: str) -> Mapping[str, str]:
        if run_id not in self._agents:
            try:
                named = (await self._store.get_run(run_id)).config.get("agents")
            except NotFoundError:
                return {}  # Somebody's own label; it may yet become a run.
            self._agents[run_id] = RoleMap(dict(named)).names if isinstance(named, Mapping) else {}
        return self._agents[run_id]

    async def _looked_up(self, key: tuple[tuple[str, int], ...], rollout_id: str) -> Pinned:
        endpoints: dict[str, Endpoint] = {}
        prompts: list[PromptVersion] = []
        for name, version in key:
            try:
                resource = await self._store.get_resource(name, version)
            except NotFoundError as error:
                raise ConfigError(
                    f"Rollout {rollout_id} is pinned to resource {name!r} version {version}, which the store does not "
                    f"have: {error}"
                ) from error
            if resource.kind is ResourceKind.ENDPOINT:
                endpoint = endpoint_in(resource)
                endpoints[name] = endpoint if self._gateway is None else through_gateway(endpoint, self._gateway)
            elif resource.kind is ResourceKind.PROMPT:
                prompts.append(prompt_in(resource))
        for found in rivals(prompts):
            raise ConfigError(f"Rollout {rollout_id}: {told_rivals(found)}. Pin one of them.")
        return Pinned(endpoints, tuple(prompts))


def endpoint_in(resource: Resource) -> Endpoint:
    """The endpoint that a resource of its kind holds.

    Raises:
        ConfigError: its content is no endpoint.
    """
    content: dict[str, Any] = dict(resource.content)
    known = {field.name for field in fields(Endpoint)}
    problems = [f"it lacks {name!r}" for name in ("base_url", "model", "policy") if not content.get(name)]
    problems += [f"it has the unknown key {name!r}" for name in content if name not in known]
    if isinstance(content.get("roles"), str):
        problems.append("'roles' must be a list")
    if problems:
        raise ConfigError(
            f"Resource {resource.name!r} version {resource.version} is no endpoint: {'; '.join(problems)}. "
            f"An endpoint has {', '.join(sorted(known))}."
        )
    return Endpoint(**content)


def at_one_server(endpoint: Endpoint, rollout_id: str) -> Endpoint:
    """The endpoint as one rollout uses it: all its calls go to one of the replicas, whose prefix cache knows their beginning.

    The one that wins the draw by hash of rollout and server (rendezvous hashing), which needs no word between runners.
    """
    if not endpoint.replicas:
        return endpoint

    def draw(base_url: str) -> bytes:
        return hashlib.blake2b(f"{rollout_id}\n{base_url}".encode(), digest_size=8).digest()

    return replace(endpoint, base_url=max(endpoint.replicas, key=draw), replicas=())
