"""The policies of a run on a Ray cluster: ranks that train and replicas that answer. Lives in the cluster process."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from coterie.errors import BackendError, ConfigError
from coterie_trainers.backends.local.device import Device, settings
from coterie_trainers.backends.local.trainer import TrainerPlan
from coterie_trainers.backends.ray.cluster import ClusterPlan
from coterie_trainers.backends.ray.placement import Room, shortage
from coterie_trainers.backends.ray.replica import CALLS_AT_ONCE, Replica
from coterie_trainers.backends.ray.waiting import results

# Importing verl takes seconds: what is wrong with the cluster is told before.
if TYPE_CHECKING:
    from coterie_trainers.backends.ray.verl_on_ray import Ranks

_CLOSE_SECONDS = 15.0
_CPU_STORE_BYTES = 512 << 20
"""Of a cluster that is started on a CPU: Ray's object store would take a third of the memory otherwise."""


@dataclass(slots=True)
class _Policy:
    ranks: Ranks | None = None
    replicas: list[Any] = field(default_factory=list)
    group: PlacementGroup | None = None


class PlacedPolicies:
    """What the driver may ask for: the public methods, whose arguments and results are JSON."""

    def __init__(self, plan: ClusterPlan) -> None:
        """Check the settings, have a cluster, and see that it has room.

        Raises:
            ConfigError: a setting of verl is unknown, there is no such cluster, or it is too small.
        """
        if plan.verl:
            from coterie_trainers.backends.local.verl_overrides import check_overrides

            check_overrides(plan.verl)
        self._plan = plan
        self._policies = {policy: _Policy() for policy in plan.placements}
        self._one_group_at_a_time = threading.Lock()
        _have_cluster(plan)
        try:
            too_small = shortage(plan.placements, _free())
            if too_small:
                raise ConfigError(f"backend.kind 'ray': {too_small}")
        except BaseException:
            ray.shutdown()
            raise

    def start_ranks(self, policy: str, plan: Mapping[str, Any]) -> None:
        """Start a policy's training processes."""
        from coterie_trainers.backends.ray.verl_on_ray import Ranks

        own = {"GLOO_SOCKET_IFNAME": "lo"} if self._plan.address is None else {}
        with self._one_group_at_a_time:
            self._policies[policy].ranks = Ranks(policy, TrainerPlan(**plan), self._plan.placements[policy], own)

    def ranks_ready(self, policy: str, seconds: float) -> None:
        """Wait until all of them have loaded their part of the model."""
        results(self._ranks(policy).call("ready", {}), seconds)

    def on_ranks(self, policy: str, operation: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """Let all ranks do something; gives what rank 0 answers."""
        return results(self._ranks(policy).call(operation, arguments), seconds)[0]

    def send_weights(self, policy: str, seconds: float) -> None:
        """Send a policy's weights to all its replicas, which take them meanwhile."""
        results(self._ranks(policy).send_weights(self._policies[policy].replicas, seconds), seconds)

    def start_replicas(self, policy: str, plan: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Start a policy's model servers, each on a node that has its GPUs."""
        placement, held = self._plan.placements[policy], self._policies[policy]
        bundles = [{"GPU": float(placement.tensor_parallel), "CPU": 1.0} for _ in range(placement.replicas)]
        held.group = placement_group(bundles, strategy="PACK")
        actor = ray.remote(Replica)
        for number in range(placement.replicas):
            scheduling = PlacementGroupSchedulingStrategy(held.group, placement_group_bundle_index=number)
            options = {"num_gpus": placement.tensor_parallel, "num_cpus": 1, "max_concurrency": CALLS_AT_ONCE}
            own = {**plan, "log": str(plan["log"]).removesuffix(".log") + f"-{number}.log"}
            runtime = f"{plan['runtime']}-{number}" if self._plan.address is None else None
            del own["runtime"]
            held.replicas.append(
                actor.options(scheduling_strategy=scheduling, **options).remote(
                    own, settings, runtime, f"{self._plan.shared_memory}-{secrets.token_hex(2)}"
                )
            )

    def replicas_ready(self, policy: str, seconds: float) -> list[str]:
        """Wait until all of them answer; gives their bases."""
        return self._on_replicas(policy, "wait_ready", seconds, seconds)

    def receive_weights(self, policy: str, version: int, seconds: float) -> list[dict[str, Any]]:
        """Let all replicas take the weights that ``send_weights`` brings meanwhile."""
        return self._on_replicas(policy, "receive_weights", seconds, version, seconds)

    def warm_up(self, policy: str, model: str, seconds: float) -> None:
        """Let each replica answer its first request."""
        self._on_replicas(policy, "warm_up", seconds, model, seconds)

    def tokenize(self, policy: str, model: str, text: str, seconds: float) -> list[int]:
        """The token ids that a replica makes of a text. They all have the same tokenizer."""
        tokens: list[int] = self._on_replicas(policy, "tokenize", seconds, model, text, seconds)[0]
        return tokens

    def close(self) -> None:
        """Stop all servers and processes, and leave the cluster; it ends if it was started here. Bounded, never raises."""
        replicas = [replica for held in self._policies.values() for replica in held.replicas]
        with contextlib.suppress(Exception):
            ray.wait([one.stop.remote() for one in replicas], num_returns=len(replicas), timeout=_CLOSE_SECONDS)
        for held in self._policies.values():
            workers = [*held.replicas, *(held.ranks.workers if held.ranks is not None else ())]
            for worker in workers:
                with contextlib.suppress(Exception):
                    ray.kill(worker)
            groups = [held.group, *(held.ranks.groups if held.ranks is not None else ())]
            for group in groups:
                with contextlib.suppress(Exception):
                    if group is not None:
                        remove_placement_group(group)
        with contextlib.suppress(Exception):
            ray.shutdown()

    def _ranks(self, policy: str) -> Ranks:
        ranks = self._policies[policy].ranks
        if ranks is None:
            raise BackendError(f"the ranks of policy {policy!r} were not started")
        return ranks

    def _on_replicas(self, policy: str, method: str, seconds: float, *arguments: Any) -> list[Any]:
        refs = [getattr(replica, method).remote(*arguments) for replica in self._policies[policy].replicas]
        return results(refs, seconds + 5)


def _have_cluster(plan: ClusterPlan) -> None:
    """Start a cluster here or join one.

    Raises:
        ConfigError: there is none at that address, or it wants a token that this process has not.
    """
    common: dict[str, Any] = {
        "namespace": f"coterie-{secrets.token_hex(4)}",
        "runtime_env": {"env_vars": {**settings(Device(plan.device), plan.threads), "VERL_ENGINE_VENDOR": "coterie"}},
        "log_to_driver": True,
        "logging_level": "WARNING",
    }
    if plan.address is None:
        if Device(plan.device) is Device.CPU:
            asked = plan.placements.values()
            # On a CPU a "GPU" is no more than a place; so is a "CPU".
            common |= {"num_gpus": sum(one.gpus for one in asked), "num_cpus": sum(one.processes for one in asked) + 2}
            common |= {"object_store_memory": _CPU_STORE_BYTES}
        ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **common)
        return
    try:
        ray.init(address=plan.address, **common)
    except AuthenticationError as error:
        raise ConfigError(_needs_token(plan.address, " ".join(error.message.split()))) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        # Ray tells of a wrong token as of any other failure to connect; why stands in what it failed of.
        if "AuthToken" in f"{error}{error.__cause__}":
            raise ConfigError(_needs_token(plan.address, "authentication token is missing or incorrect")) from None
        raise ConfigError(
            f"backend.address = {plan.address!r}: no Ray cluster answers there ({' '.join(str(error).split())}). Start one "
            "with 'ray start --head', or leave the address out."
        ) from None


def _needs_token(address: str, why: str) -> str:
    return (
        f"backend.address = {address!r}: the Ray cluster wants its token ({why}). Set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to that of the cluster ('ray get-auth-token' tells "
        "it on the head node)."
    )


def _free() -> list[Room]:
    """What is free on each node that is alive."""
    by_node = ray._private.state.available_resources_per_node()
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    return [
        Room(names[node], free.get("GPU", 0.0), free.get("CPU", 0.0)) for node, free in by_node.items() if node in names
    ]
