"""A policy's trainer on real verl, in this process: what each loss does to the weights, and that a resumed one goes on alike.

One trainer serves all tests; each begins with the same weights and optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer_parts import columns, let_verl_be_imported, plan

from coterie_trainers.config import Critic, Loss

pytestmark = [pytest.mark.train, pytest.mark.timeout(240)]

MODES = ["vanilla", "gspo", "cispo", "sapo", "gpg", "dro", "geo_mean", "clip_cov", "kl_cov", "dppo_tv", "dppo_kl"]


class Running:
    """The one trainer, and what its weights make of rows."""

    def __init__(self, model: Path, folder: Path) -> None:
        from coterie_trainers.backends.local.verl_engine import PolicyTrainer

        self.start = folder / "start"
        self.start.mkdir()
        self.trainer = PolicyTrainer(plan(model, Loss(kl={"coefficient": 0.1}), Critic(learning_rate=1e-2)))
        self.trainer.save(str(self.start))

    def again(self, critic: dict[str, Any] | None = None, **loss: Any) -> None:
        """The weights of the start, under another loss."""
        from coterie_trainers.backends.local.verl_loss import PolicyLoss

        self.trainer.load(str(self.start))
        self.trainer.loss = PolicyLoss(Loss.model_validate(loss), horizon=16)
        self.trainer.critic.settings = Critic(learning_rate=1e-2, **(critic or {}))

    def logprobs(self, rows: dict[str, list[Any]]) -> list[list[float]]:
        from coterie_trainers.backends.local.verl_rows import forward, rows_of

        return forward(self.trainer.engine, rows_of(rows), "log_probs", temperature=1.0, limit=4096)

    def sampled(self, rows: dict[str, list[Any]], shift: float = 0.0) -> dict[str, list[Any]]:
        """The rows as if this policy had sampled them; ``shift`` makes it another."""
        return rows | {"rollout_logprobs": [[lp + shift for lp in row] for row in self.logprobs(rows)]}

    def update(self, rows: dict[str, list[Any]]) -> dict[str, float]:
        metrics: dict[str, float] = self.trainer.update(rows, 1.0)["metrics"]
        return metrics


@pytest.fixture(scope="module")
def running(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("trainer")
        let_verl_be_imported(patch, folder)
        import torch

        threads = torch.get_num_threads()
        # As in a trainer's own process: threads that wait for each other are slow where others want the cores.
        torch.set_num_threads(1)
        yield Running(tiny_model, folder)
        torch.set_num_threads(threads)


def mean(logprobs: list[list[float]], places: range) -> float:
    return sum(sum(logprobs[place]) for place in places) / sum(len(logprobs[place]) for place in places)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_with_an_advantage_become_likelier_and_the_others_less(running: Running, mode: str) -> None:
    running.again(mode=mode, options={"dro_beta": 0.01} if mode == "dro" else {})
    rows = running.sampled(columns(advantages=(1.0, -1.0)))
    before = running.logprobs(rows)
    metrics = running.update(rows)
    after = running.logprobs(rows)
    assert mean(after, range(0, 6, 2)) > mean(before, range(0, 6, 2))
    assert mean(after, range(1, 6, 2)) < mean(before, range(1, 6, 2))
    assert metrics["mismatch_max"] < 1e-5
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"aggregation": "token-mean"},
        {"aggregation": "seq-mean-token-sum"},
        {"aggregation": "seq-mean-token-sum-norm"},
        {"mode": "gspo"},
        {"mode": "geo_mean"},
        {"entropy": 0.1, "kl": {"coefficient": 0.1}},
    ],
    ids=str,
)
def test_a_gradient_step_is_the_same_in_one_pass_and_in_many(running: Running, loss: dict[str, Any]) -> None:
    figures = []
    for limit in (4096, 20):
        running.again(**loss)
        running.trainer.limit = limit
        rows = columns(advantages=(1.0, -0.5, 0.3), weight=[0.5, 2.0, 0.5, 1.0, 1.5, 0.5])
        figures.append(running.update(running.sampled(rows, shift=0.02)))
    running.trainer.limit = 4096
    assert figures[0]["grad_norm"] > 0
    for name in ("loss", "grad_norm", "entropy", "ppo_kl"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-4, abs=1e-7), name


def test_a_weight_scales_a_row_in_every_term(running: Running) -> None:
    """Also in the entropy and KL terms, which know no advantage."""
    norms = []
    for weight in (1.0, 3.0):
        running.again(entropy=0.3, kl={"coefficient": 0.2, "kind": "k2"})
        rows = columns(advantages=(1.0, -0.5), weight=[weight] * 6)
        norms.append(running.update(running.sampled(rows))["grad_norm"])
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-4)


def test_the_reference_pulls_back(running: Running) -> None:
    rows = columns(advantages=(1.0,))
    running.again(kl={"coefficient": 1e-6})
    first = running.update(running.sampled(rows))
    for _ in range(3):
        away = running.update(running.sampled(rows))
    assert first["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert away["kl_reference"] > 0.001

    running.trainer.loss = type(running.trainer.loss)(Loss(kl={"coefficient": 1.0, "kind": "k3+"}), horizon=16)
    still = columns(advantages=(0.0,))
    pulled = [running.update(running.sampled(still))["kl_reference"] for _ in range(6)]
    assert pulled[-1] < 0.7 * pulled[0]


def test_the_bonus_raises_the_entropy(running: Running) -> None:
    still = columns(advantages=(0.0,))
    entropies = {}
    for coefficient in (0.0, 1.0):
        running.again(entropy=coefficient)
        entropies[coefficient] = [running.update(running.sampled(still))["entropy"] for _ in range(3)]
    assert entropies[0.0][2] == pytest.approx(entropies[0.0][0], abs=1e-6)
    assert entropies[1.0][2] > entropies[1.0][0] + 1e-3


def test_epochs_and_mini_batches_are_gradient_steps(running: Running) -> None:
    running.again(epochs=3, mini_batches=2)
    metrics = running.update(running.sampled(columns(advantages=(1.0, -1.0))))
    assert metrics["gradient_steps"] == 6
    assert abs(metrics["ppo_kl"]) > 1e-6


def test_a_stale_row_weighs_no_more_than_its_bound(running: Running) -> None:
    """One row was sampled by a policy for which its tokens were e^5 times less likely."""
    rows = columns(advantages=(1.0, -1.0))

    def stale() -> dict[str, list[Any]]:
        fresh = running.sampled(rows)["rollout_logprobs"]
        return rows | {"rollout_logprobs": [[lp - 5.0 for lp in fresh[0]], *fresh[1:]]}

    found = {}
    for name, correction in {
        "none": {},
        "bounded": {"weights": "token", "upper": 2.0},
        "icepop": {"weights": "token", "lower": 0.5, "upper": 2.0},
        "rejected": {"reject": {"token_k1": [0.5, 2.0]}},
        "sequence": {"weights": "sequence", "upper": 2.0},
    }.items():
        running.again(correction={"proximal": "actor", **correction})
        found[name] = running.update(stale())
    for metrics in found.values():
        assert metrics["mismatch_max"] == pytest.approx(5.0, abs=1e-3)
        assert metrics["correction_chi2_token"] > 1
    assert found["bounded"]["correction_is_max"] == pytest.approx(2.0)
    assert found["sequence"]["correction_is_max"] > 2.0
    assert found["icepop"]["correction_is_min"] == 0.0
    share = len(rows["response_ids"][0]) / sum(map(len, rows["response_ids"]))
    assert found["rejected"]["correction_rs_masked_fraction"] == pytest.approx(share)

    running.again()
    alone = running.update(
        running.sampled(rows) | {"advantages": [[0.0] * len(rows["advantages"][0]), *rows["advantages"][1:]]}
    )
    assert found["rejected"]["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert found["icepop"]["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    # Against the rollout's log-probs the ratio of the row is e^5: beyond the clip, so it teaches nothing either.
    running.again()
    assert running.update(stale())["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
    assert found["bounded"]["grad_norm"] != pytest.approx(found["none"]["grad_norm"], rel=1e-2)


def test_without_a_ratio_the_weight_is_that_of_the_policy_as_it_is(running: Running) -> None:
    rows = columns(advantages=(1.0, -1.0))
    running.again(mode="gpg")
    plain = running.update(running.sampled(rows))
    running.again(mode="gpg", correction={"weights": "token", "upper": 1.5})
    corrected = running.update(running.sampled(rows, shift=-1.0))
    assert corrected["grad_norm"] == pytest.approx(1.5 * plain["grad_norm"], rel=1e-4)


def test_figures_of_each_role(running: Running) -> None:
    running.again()
    rows = columns(advantages=(1.0, -1.0))
    fresh = running.sampled(rows)["rollout_logprobs"]
    shifted = [[lp - 0.5 * (number % 2) for lp in row] for number, row in enumerate(fresh)]
    metrics = running.update(rows | {"rollout_logprobs": shifted})
    assert metrics["role/reviewer/mismatch_max"] < 1e-5
    assert metrics["role/coder/mismatch_max"] == pytest.approx(0.5, abs=1e-4)
    # Ratios of e^0.5 are beyond 1.2, but a negative advantage is clipped below only.
    assert metrics["role/coder/clip_fraction"] == metrics["clip_fraction"] == 0.0
    assert metrics["role/coder/entropy"] != metrics["role/reviewer/entropy"]

    running.again()
    clipped = running.update(rows | {"rollout_logprobs": shifted, "advantages": [[1.0] * len(row) for row in fresh]})
    assert clipped["role/coder/clip_fraction"] == 1.0
    share = sum(len(row) for row in fresh[1::2]) / sum(map(len, fresh))
    assert clipped["clip_fraction"] == pytest.approx(share)


def with_rewards(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The reward of each row lies at its last token: 1 for rows of one role, 0 for the other's."""
    rewards = [[0.0] * (len(row) - 1) + [float(number % 2)] for number, row in enumerate(rows["response_ids"])]
    return rows | {"rewards": rewards, "advantages": [[0.0] * len(row) for row in rewards]}


def test_the_critic_learns_the_returns_and_the_advantages_are_verls_gae(running: Running) -> None:
    running.again(critic={"value_clip": 10.0, "epochs": 4, "gae_lambda": 0.9, "discount": 0.99})
    rows = with_rewards(running.sampled(columns(8)))
    untaught = running.trainer.values(rows)["values"]
    assert [len(row) for row in untaught] == [len(row) for row in rows["response_ids"]]
    told = [running.update(rows) for _ in range(12)]
    assert told[-1]["value_loss"] < 0.1 * told[0]["value_loss"]
    assert told[-1]["value_explained"] > 0.8
    assert told[-1]["return_mean"] == pytest.approx(0.5, abs=0.2)
    taught = running.trainer.values(rows)["values"]
    assert min(row[0] for row in taught[1::2]) > 0.6
    assert max(row[0] for row in taught[0::2]) < 0.4


def test_gae_of_a_row_by_hand(running: Running) -> None:
    from coterie_trainers.backends.local.verl_rows import rows_of

    running.again(critic={"gae_lambda": 0.5, "discount": 0.9})
    rows = rows_of(with_rewards(columns(4)))
    rows[1].response_mask[1] = 0
    running.trainer.critic.judge(rows)
    values, rewards, mask = rows[1].values, rows[1].rewards, rows[1].response_mask
    assert values is not None
    assert rewards is not None
    advantage = ahead = 0.0
    wanted: list[float | None] = []
    for value, reward, sampled in list(zip(values, rewards, mask, strict=True))[::-1]:
        if sampled:
            advantage = reward + 0.9 * ahead - value + 0.9 * 0.5 * advantage
            ahead = value
        wanted.insert(0, advantage + value if sampled else None)
    assert rows[1].returns == [None if one is None else pytest.approx(one, abs=1e-5) for one in wanted]
    assert rows[1].advantages[1] == 0.0
    coder = [a for row in rows[1::2] for a, m in zip(row.advantages, row.response_mask, strict=True) if m]
    assert sum(coder) == pytest.approx(0.0, abs=1e-4)


def test_a_lone_token_has_no_advantage_but_a_return(running: Running) -> None:
    from coterie_trainers.backends.local.verl_rows import rows_of

    lone = {name: column[:1] for name, column in columns(1).items()}
    lone |= {
        "response_ids": [[5]],
        "response_mask": [[1]],
        "rollout_logprobs": [[-1.0]],
        "advantages": [[0.0]],
        "rewards": [[1.0]],
    }
    (row,) = rows_of(lone)
    running.trainer.critic.judge([row])
    assert (row.advantages, row.returns) == ([0.0], [1.0])


def test_returns_at_single_tokens_teach_those_alone(running: Running) -> None:
    running.again(critic={"value_clip": 10.0, "epochs": 8})
    rows = running.sampled(columns(6, advantages=(0.0,)))
    returns = [[2.0] + [None] * (len(row) - 1) for row in rows["response_ids"]]
    first = running.update(rows | {"returns": returns})
    for _ in range(6):
        last = running.update(rows | {"returns": returns})
    assert last["value_loss"] < 0.05 * first["value_loss"]
    assert last["return_mean"] == 2.0
    assert "value_loss" not in running.update(rows)


def test_while_the_critic_warms_up_the_policy_stays(running: Running) -> None:
    running.again(critic={"warm_up_steps": 2})
    rows = with_rewards(running.sampled(columns()))
    before = running.logprobs(rows)
    metrics = [running.update(rows) for _ in range(2)]
    assert [told["critic_warm_up"] for told in metrics] == [1.0, 1.0]
    assert running.logprobs(rows) == before
    assert running.update(rows)["critic_warm_up"] == 0.0
    assert running.logprobs(rows) != before


def test_a_loaded_checkpoint_goes_on_bit_by_bit(running: Running, tmp_path: Path) -> None:
    loss = {"entropy": 0.01, "kl": {"coefficient": 0.1}, "epochs": 2, "mini_batches": 2}
    running.again(**loss)
    rows = with_rewards(running.sampled(columns()))
    running.update(rows)
    saved = tmp_path / "saved"
    saved.mkdir()
    running.trainer.save(str(saved))
    went_on = [running.update(rows) for _ in range(2)], running.logprobs(rows), running.trainer.values(rows)
    running.trainer.load(str(saved))
    resumed = [running.update(rows) for _ in range(2)], running.logprobs(rows), running.trainer.values(rows)
    for metrics in (*went_on[0], *resumed[0]):
        del metrics["seconds"]
    assert resumed == went_on
