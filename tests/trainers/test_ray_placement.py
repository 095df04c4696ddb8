"""Which GPUs the policies of a Ray backend ask for, and what is said when a cluster has too few."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import ConfigError
from coterie_trainers.backends.local.groups import group
from coterie_trainers.backends.ray import RayBackend as Backend
from coterie_trainers.backends.ray.placement import Placement, Room, placements, shortage
from coterie_trainers.config import Adapter, Loss, Policy, RayBackend, Sampling

TWO = {"writer": Placement(2, 1, 2, 1), "critic": Placement(1, 1, 1, 2)}


def rooms(*gpus: float, cpus: float = 64) -> list[Room]:
    return [Room(f"node{number}", count, cpus) for number, count in enumerate(gpus)]


def test_a_number_counts_for_every_policy_and_a_mapping_for_those_it_names():
    policies = {name: Policy(model=name, roles=[name]) for name in ("writer", "critic")}
    policies |= {f"judge{number}": Policy(model="j", roles=[f"j{number}"], frozen=True) for number in (1, 2)}
    settings = RayBackend(ranks={"writer": 4}, replicas={"judge2": 2, "writer": 3}, tensor_parallel={"critic": 2})
    assert placements(settings, group(policies, Path("/models"))) == {
        "writer": Placement(4, 1, 3, 1),
        "critic": Placement(1, 1, 1, 2),
        "judge1, judge2": Placement(0, 1, 2, 1),
    }


def test_what_is_frozen_needs_no_ranks():
    frozen = {"judge": Placement(0, 2, 2, 1)}
    assert shortage(frozen, rooms(1, 1)) is None
    assert "ask for 2 GPUs ('judge': 0 ranks + 2 replicas × 1 = 2)" in str(shortage(frozen, rooms(1)))


def test_too_few_gpus_are_told_with_the_sum():
    told = shortage(TWO, rooms(4, 2))
    assert told is not None
    assert (
        "ask for 7 GPUs ('writer': 2 ranks + 2 replicas × 1 = 4; 'critic': 1 ranks + 1 replicas × 2 = 3), and the cluster "
        "has 6 free (node0 4, node1 2). Lower backend.ranks" in told
    )
    assert shortage(TWO, rooms(4, 3)) is None


def test_too_few_cpus_are_told():
    told = shortage(TWO, rooms(8, cpus=5))
    assert told is not None
    assert "ask for 6 CPUs, one a rank or replica, and the cluster has 5 free." in told


@pytest.mark.parametrize(
    ("asked", "free", "what"),
    [
        (Placement(1, 1, 1, 4), rooms(3, 3), "a replica of policy 'p', which need 4 GPUs on one node"),
        (Placement(4, 1, 1, 1), rooms(3, 3), "4 ranks of policy 'p', which need 4 GPUs on one node"),
        (Placement(4, 2, 1, 1), rooms(1, 1, 1, 1, 1), "2 ranks of policy 'p', which need 2 GPUs on one node"),
    ],
)
def test_what_must_be_on_one_node_is_told(asked: Placement, free: list[Room], what: str):
    told = shortage({"p": asked}, free)
    assert told is not None
    assert what in told


def test_no_node_at_all_is_told():
    assert "0 free (no node)" in str(shortage(TWO, []))


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_one_node_with_enough_is_enough_and_one_gpu_less_is_not(asked: list[tuple[int, int, int]], spare: int):
    policies = {
        str(number): Placement(ranks, 1, replicas, each) for number, (ranks, replicas, each) in enumerate(asked)
    }
    total = sum(one.gpus for one in policies.values())
    assert shortage(policies, rooms(total + spare - 1)) is None
    assert shortage(policies, rooms(total - 1)) is not None


def test_adapters_are_refused(tmp_path: Path):
    policies = {"team": Policy(model="m", adapter=Adapter())}
    with pytest.raises(ConfigError, match=r"policies\.team\.adapter: backend\.kind 'ray' trains policies whole"):
        Backend(policies, RayBackend(), Loss(), Sampling(), folder=tmp_path, seed=0)
