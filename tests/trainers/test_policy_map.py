"""Which policy plays a role, which learn in a step, and what the configuration refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from coterie.errors import ConfigError
from coterie_trainers.config import TrainConfig
from coterie_trainers.config_file import load_config
from coterie_trainers.learning_rate import learning_rate_factor
from coterie_trainers.policy_map import PolicyMap, Silence, with_schedule_lengths

SPLITS = {"train": "a.jsonl", "val": "b.jsonl", "test": "c.jsonl"}
HOSTED = {"base_url": "https://models.example.com/v1", "model": "big", "api_key": "env:MODEL_KEY"}
FOUR = {
    "solver": {"model": "m", "roles": ["solver"]},
    "critic": {"model": "m", "roles": ["critic"], "adapter": {"rank": 4}},
    "guide": {"model": "m", "roles": ["guide"], "frozen": True},
    "judge": {"roles": ["judge"], "hosted": HOSTED},
}


def config(policies: dict[str, Any] = FOUR, **more: Any) -> TrainConfig:
    return TrainConfig.model_validate({"name": "t", "dataset": SPLITS, "policies": policies, **more})


def test_every_kind_plays_its_roles_and_two_are_trained():
    policy_map = PolicyMap(config())
    assert policy_map.trained == ("solver", "critic")
    assert [policy_map.plays(role) for role in FOUR] == list(FOUR)
    assert [policy_map.trains(role) for role in FOUR] == ["solver", "critic", None, None]


def test_what_is_written_is_read():
    settings = config(updates={"order": "alternate", "steps_each": 2})
    assert TrainConfig.model_validate(settings.model_dump(mode="json")) == settings


def test_one_policy_without_roles_plays_all():
    policy_map = PolicyMap(config({"team": {"model": "m"}}))
    assert policy_map.trains("anyone") == "team"


def test_a_role_without_policy_is_named_with_the_ways_out():
    with pytest.raises(ConfigError, match=r"role 'tester' made calls.*'critic', 'guide'.*frozen: true.*hosted"):
        PolicyMap(config()).trains("tester")


@pytest.mark.parametrize(
    ("updates", "wanted"),
    [
        ({}, ["sc"] * 6),
        ({"order": "alternate"}, ["s", "c", "s", "c", "s", "c"]),
        ({"order": "alternate", "steps_each": 2}, ["s", "s", "c", "c", "s", "s"]),
        (
            {
                "order": "schedule",
                "stages": [
                    {"policies": ["critic"], "steps": 2},
                    {"policies": ["solver"]},
                    {"policies": ["solver", "critic"]},
                ],
            },
            ["c", "c", "s", "sc", "c", "c"],
        ),
    ],
)
def test_who_learns_in_a_step(updates: dict[str, Any], wanted: list[str]):
    policy_map = PolicyMap(config(updates=updates))
    names = {"s": "solver", "c": "critic"}
    assert [policy_map.learns(step) for step in range(1, 7)] == [{names[letter] for letter in step} for step in wanted]


def test_a_schedule_lasts_as_long_as_the_policy_learns():
    found = with_schedule_lengths(
        config(
            {**FOUR, "critic": {**FOUR["critic"], "schedule": {"kind": "linear", "steps": 3}}},
            updates={"order": "alternate", "steps_each": 2},
            training={"steps": 5},
        )
    )
    assert found["solver"].schedule.steps == 3
    assert found["critic"].schedule.steps == 3
    assert found["critic"].schedule.kind == "linear"
    assert with_schedule_lengths(config(training={"steps": 5}))["critic"].schedule.steps == 5


def factors(updates: int, **settings: Any) -> list[float]:
    defaults = {"kind": "constant", "warmup": 0, "floor": 0.0, "steps": updates}
    return [learning_rate_factor(number, **{**defaults, **settings}) for number in range(updates)]


def test_learning_rates():
    assert factors(3) == [1, 1, 1]
    assert factors(5, warmup=3) == [0.25, 0.5, 0.75, 1, 1]
    assert factors(5, kind="linear", steps=4) == [1, 0.75, 0.5, 0.25, 0]
    assert factors(6, kind="cosine", floor=0.1, steps=4) == pytest.approx([1, 0.868198, 0.55, 0.231802, 0.1, 0.1])
    assert factors(4, kind="linear", warmup=1, steps=3, floor=0.5) == [0.5, 1, 0.75, 0.5]


def test_a_silent_policy_is_a_warning_and_then_an_error():
    settings = config()
    silence = Silence(PolicyMap(settings), settings.policies, patience=3)
    assert silence.heard([]) == []
    (first, second) = silence.heard({"solver", "judge"})
    assert first.startswith("policies.critic: none of its roles ('critic') made a call")
    assert second.startswith("policies.guide")
    assert silence.heard({"solver"}) == []
    with pytest.raises(ConfigError, match=r"policies\.critic.*since 3 steps"):
        silence.heard({"solver"})


def test_a_frozen_policy_may_stay_silent_and_one_that_spoke_once_too():
    settings = config()
    silence = Silence(PolicyMap(settings), settings.policies, patience=2)
    silence.heard({"solver", "critic"})
    for _ in range(5):
        assert silence.heard({"solver"}) == []
    with pytest.raises(ConfigError, match="role 'tester'"):
        silence.heard({"tester"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judge": {"hosted": {**HOSTED, "api_key": "sk-123"}}}, "env:"),
        ({"judge": {"hosted": {**HOSTED, "base_url": "models.example.com"}}}, "https"),
        ({"judge": {"hosted": HOSTED, "learning_rate": 1e-5}}, "hosted policy is never trained.*'learning_rate'"),
        ({"judge": {"hosted": HOSTED, "adapter": {}}}, "hosted policy is never trained.*'adapter'"),
        ({"judge": {"hosted": HOSTED, "model": "m"}}, "leave out 'model'"),
        ({"guide": {"model": "m", "frozen": True, "schedule": "cosine"}}, "frozen policy is never trained.*'schedule'"),
        ({"guide": {"roles": ["guide"]}}, "'model' is missing"),
        ({"critic": {"model": "m", "adapter": {"rank": 0}}}, "greater than or equal to 1"),
        ({"critic": {"model": "m", "schedule": "exponential"}}, "'cosine'"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], message: str):
    name, fields = next(iter(change.items()))
    with pytest.raises(ValidationError, match=message):
        config({**FOUR, name: {"roles": [name], **fields}})


def test_updates_that_cannot_be_are_refused():
    def refused(message: str, **updates: Any) -> None:
        with pytest.raises(ValidationError, match=message):
            config(updates=updates)

    refused("'steps_each' goes with", steps_each=2)
    refused("go together", order="schedule")
    refused("no policy 'x'", order="schedule", stages=[{"policies": ["x", "solver", "critic"]}])
    refused("'judge' is frozen or hosted", order="schedule", stages=[{"policies": ["judge", "solver", "critic"]}])
    refused("'critic' never learns", order="schedule", stages=[{"policies": ["solver"]}])
    with pytest.raises(ValidationError, match="nothing to train"):
        config({"judge": FOUR["judge"]})


def test_a_mistake_in_a_file_names_its_key(tmp_path: Path):
    path = tmp_path / "c.yaml"

    def message(policies: dict[str, Any]) -> str:
        path.write_text(yaml.safe_dump({"name": "t", "dataset": SPLITS, "policies": policies}))
        with pytest.raises(ConfigError) as raised:
            load_config(path)
        return str(raised.value)

    assert "policies.critic.adapter.rank = 0" in message({"critic": {"model": "m", "adapter": {"rank": 0}}})
    assert "policies.critic.schedule" in message({"critic": {"model": "m", "schedule": "exponential"}})
    assert "unknown key 'policies.critic.adapter.r'" in message({"critic": {"model": "m", "adapter": {"r": 4}}})
    assert "'model' is missing" in message({"critic": {}})
