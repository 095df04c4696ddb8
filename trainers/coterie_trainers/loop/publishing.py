"""The endpoints of the policies, as agents find them: resources in the store, a new version with each new policy version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from coterie.vocabulary import Endpoint, Resource, ResourceKind
from coterie_trainers.loop.job import Job


class Endpoints:
    """Policy → endpoint, served by the backend and published to the store."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.by_policy: dict[str, Endpoint] = {}
        self.pinned: Mapping[str, int] = {}
        """Resource name → version, for the rollouts to come."""

    @property
    def versions(self) -> dict[str, int]:
        """Policy → the version that is served."""
        return {policy: endpoint.version for policy, endpoint in self.by_policy.items()}

    def pin(self, versions: Mapping[str, int]) -> None:
        """Pin the rollouts to come to these resources too: the prompts that were found."""
        self.pinned = {**self.pinned, **versions}

    async def serve(self) -> None:
        """Start the servers. Nothing is published yet."""
        self.by_policy = dict(await self.job.backend.serve())

    async def load(self, step: int) -> None:
        """Bring a checkpoint to the servers. Nothing is published yet."""
        versions = await self.job.backend.load(self.job.workspace.checkpoint(step))
        for policy, version in versions.items():
            self.by_policy[policy] = self.by_policy[policy].at(version)

    async def publish(self, policies: Iterable[str]) -> None:
        """Bring the trained weights of these policies to the servers, and tell."""
        for policy in policies:
            version = await self.job.backend.publish(policy)
            self.by_policy[policy] = self.by_policy[policy].at(version)
            await self._tell(policy)

    async def tell(self) -> None:
        """Publish all endpoints as they are now."""
        for policy in self.by_policy:
            await self._tell(policy)

    async def _tell(self, policy: str) -> None:
        name = f"endpoint/{policy}"
        published = await self.job.store.publish(
            Resource(name, ResourceKind.ENDPOINT, asdict(self.by_policy[policy]), author=self.job.run_id)
        )
        self.pinned = {**self.pinned, name: published.version}
