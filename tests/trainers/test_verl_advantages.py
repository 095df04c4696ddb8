"""Our estimators under verl's own ``compute_advantage``: what a plain verl configuration runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coterie.errors import ConfigError
from coterie.interfaces import Sample
from coterie_trainers import advantages
from coterie_trainers.advantages.turn_gae import TurnGae

pytestmark = pytest.mark.train

LENGTH = 5


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")


def team() -> list[Sample]:
    """Two tasks, three rollouts each: a manager, and a worker that ran twice in some, in two states."""
    chance = np.random.default_rng(0)
    samples = []
    for task in "xy":
        for number in range(3):
            rollout, step = f"{task}{number}", 0
            for role, path, runs in (("manager", "manager", 1), ("worker", "manager/worker", 1 + number % 2)):
                for run in range(runs):
                    samples.append(
                        Sample(
                            task,
                            rollout,
                            role,
                            path,
                            run,
                            float(chance.choice([0.0, 0.5, 1.0])),
                            state_key="door" if run else "hall",
                            step=step,
                            invocation=f"{rollout}.{role}.{run}",
                        )
                    )
                    step += 1
    return samples


def as_columns(samples: list[Sample]) -> dict[str, np.ndarray]:
    columns = {
        "uid": [sample.task_id for sample in samples],
        "rollout": [sample.rollout_id for sample in samples],
        "role": [sample.role for sample in samples],
        "agent_path": [sample.agent_path for sample in samples],
        "turn": [sample.turn for sample in samples],
        "step": [sample.step for sample in samples],
        "invocation": [sample.invocation for sample in samples],
        "state": [sample.state_key for sample in samples],
    }
    return {name: np.array(values, dtype=object) for name, values in columns.items()}


def batch_of(samples: list[Sample]) -> Any:
    """verl's batch of these turns: responses of unlike length, the reward at the last token."""
    import torch
    from verl import DataProto

    mask = torch.zeros(len(samples), LENGTH)
    scores = torch.zeros(len(samples), LENGTH)
    for row, sample in enumerate(samples):
        length = 1 + row % LENGTH
        mask[row, :length] = 1
        scores[row, length - 1] = sample.reward
    return DataProto.from_dict(
        tensors={"token_level_rewards": scores, "response_mask": mask}, non_tensors=as_columns(samples)
    )


def config() -> Any:
    from verl.trainer.config import AlgoConfig

    return AlgoConfig(adv_estimator="coterie_role")


@pytest.mark.parametrize(
    "name", ["rollout", "transition", "role", "role_turn", "nested", "loo", "state", "state_history"]
)
def test_verls_compute_advantage_gives_ours_for_every_token(name: str) -> None:
    from verl.trainer.ppo.ray_trainer import compute_advantage

    from coterie_trainers.backends.verl_advantages import pack_columns

    samples = team()
    data = batch_of(samples)
    data.non_tensor_batch["uid"] = pack_columns(data.non_tensor_batch)
    data = compute_advantage(data, adv_estimator=f"coterie_{name}", config=config())
    expected = advantages.estimate(samples, name)[:, None] * data.batch["response_mask"].numpy()
    assert data.batch["advantages"].shape == data.batch["returns"].shape == (len(samples), LENGTH)
    np.testing.assert_allclose(data.batch["advantages"].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0.1


def test_with_plain_uids_it_is_verls_grpo() -> None:
    from verl.trainer.ppo.ray_trainer import compute_advantage

    import coterie_trainers.backends.verl_advantages  # noqa: F401 - registers

    ours = compute_advantage(batch_of(team()), adv_estimator="coterie_role", config=config())
    verls = compute_advantage(batch_of(team()), adv_estimator="grpo", config=config())
    np.testing.assert_allclose(ours.batch["advantages"], verls.batch["advantages"], rtol=1e-3, atol=1e-4)


def test_turn_gae_takes_the_value_at_each_turns_first_token() -> None:
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    from coterie_trainers.backends import verl_advantages

    samples = team()
    data = batch_of(samples)
    values = torch.arange(len(samples) * LENGTH, dtype=torch.float32).reshape(-1, LENGTH) / 10
    given = {
        "token_level_rewards": data.batch["token_level_rewards"],
        "response_mask": data.batch["response_mask"],
        "index": data.non_tensor_batch["uid"],
        "non_tensor_batch": data.non_tensor_batch,
    }
    estimator = get_adv_estimator_fn(f"{verl_advantages.PREFIX}turn_gae")
    with pytest.raises(ConfigError, match="needs a critic's value"):
        estimator(**given, batch={})
    made, returns = estimator(**given, batch={"values": values})
    valued = [
        replace(sample, value=float(values[row, 0]), step_reward=sample.reward) for row, sample in enumerate(samples)
    ]
    np.testing.assert_allclose(made[:, 0], TurnGae()(valued), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns[:, 0], TurnGae().returns(valued), rtol=1e-5, atol=1e-6)


def test_a_wrong_column_and_a_broken_uid_are_errors() -> None:
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    from coterie_trainers.backends.verl_advantages import pack

    with pytest.raises(ConfigError, match=r"no column 'rolle'.*role"):
        pack("t", rolle="coder")
    with pytest.raises(ConfigError, match="not made by pack"):
        get_adv_estimator_fn("coterie_role")(torch.zeros(1, 1), torch.ones(1, 1), index=['{"task": "t'])


@pytest.mark.timeout(300)
def test_the_environment_variable_that_verl_reads_registers_them() -> None:
    """As in a plain verl run: nobody imports us by name. The platform is still the CPU's."""
    program = (
        "import verl; from verl.utils.device import get_device_name; "
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn as get; "
        "print(get('coterie_role').__name__, get_device_name())"
    )
    environment = os.environ | {"VERL_USE_EXTERNAL_MODULES": "coterie_trainers.backends.verl_advantages"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, timeout=240
    )
    assert "coterie_role cpu" in done.stdout, done.stderr[-2000:]
