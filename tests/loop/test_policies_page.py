"""The configuration on the page about policies is one that ``coterie train`` takes, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from coterie_trainers.backends.local.groups import group
from coterie_trainers.config_file import load_config
from coterie_trainers.policy_map import PolicyMap, with_schedule_lengths

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def test_the_example_is_a_configuration(tmp_path: Path):
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "config.yaml").write_text(example)
    config = load_config(tmp_path / "config.yaml", ["training.steps=50"])
    policy_map = PolicyMap(config)
    assert policy_map.trained == ("solver", "coder", "critic")
    assert policy_map.trains("repairer") == "coder"
    assert [policy_map.learns(step) for step in (1, 11, 25, 26)] == [
        {"coder"},
        {"critic"},
        {"solver", "coder", "critic"},
        {"coder"},
    ]
    lengths = {name: policy.schedule.steps for name, policy in with_schedule_lengths(config).items() if policy.trained}
    assert lengths == {"solver": 10, "coder": 30, "critic": 30}

    whole, shared = group(config.policies, tmp_path)
    assert whole.policies == ("solver",)
    assert shared.policies == ("coder", "critic", "guide")
    assert [trainer.policies for trainer in shared.trainers] == [("coder", "critic")]


def test_every_kind_of_the_page_is_grouped_as_it_says(tmp_path: Path):
    """Adapters of another shape on the same model share its server and have a trainer of their own."""
    path = tmp_path / "config.yaml"
    path.write_text(
        """
        name: t
        dataset: {train: a, val: b, test: c}
        policies:
          a: {model: m, roles: [a], adapter: {rank: 4}}
          b: {model: m, roles: [b], adapter: {rank: 8}}
          c: {model: ./m, roles: [c], adapter: {rank: 4}}
          d: {model: n, roles: [d], frozen: true}
          e: {model: m, roles: [e]}
        """
    )
    servers = group(load_config(path).policies, tmp_path)
    assert [server.policies for server in servers] == [("e",), ("a", "b", "c"), ("d",)]
    assert [server.adapters for server in servers] == [(), ("a", "b", "c"), ()]
    assert [[trainer.policies for trainer in server.trainers] for server in servers] == [
        [("e",)],
        [("a", "c"), ("b",)],
        [],
    ]
    assert servers[1].rank == 8
