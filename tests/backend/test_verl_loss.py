"""The loss on a few tokens, against values computed by hand; and what a row's weight does in every mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from coterie_trainers.config import Loss

pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")


def row(
    rollout: Sequence[float], advantage: float, weight: float = 1.0, mask: Sequence[int] | None = None, **more: Any
) -> Any:
    from coterie_trainers.backends.local.verl_rows import Row

    size = len(rollout)
    return Row("r", [1], [2] * size, list(mask or [1] * size), list(rollout), [advantage] * size, weight, **more)


def loss_of(
    settings: dict[str, Any],
    rows: Sequence[Any],
    actor: Sequence[Sequence[float]],
    entropy: float = 0.0,
    horizon: int = 10,
) -> tuple[float, Any]:
    """The loss of rows whose tokens have these log-probs now, all in one pass; and what the pass tells."""
    import torch

    from coterie_trainers.backends.local.verl_loss import PolicyLoss, Share

    loss = PolicyLoss(Loss.model_validate(settings), horizon=horizon)
    loss.normalise(rows)
    width = max(map(len, actor))
    log_probs_RT = torch.tensor([[*line, *[0.0] * (width - len(line))] for line in actor])
    share = Share(rows=len(rows), tokens=sum(each.tokens for each in rows))
    value, told = loss(rows, log_probs_RT, torch.full_like(log_probs_RT, entropy), share)
    return float(value), told


UP, DOWN = math.log(1.5), math.log(0.5)


@pytest.mark.parametrize(
    ("settings", "advantage", "shift", "expected"),
    [
        ({}, 2.0, UP, -2.0 * 1.2),
        ({"clip_high": 0.28}, 2.0, UP, -2.0 * 1.28),
        ({}, 2.0, DOWN, -2.0 * 0.5),
        ({}, -2.0, DOWN, 2.0 * 0.8),
        ({"clip_low": 0.3, "clip_high": 0.2}, -2.0, DOWN, 2.0 * 0.7),
        ({}, -2.0, UP, 2.0 * 1.5),
        ({}, -2.0, math.log(7.0), 2.0 * 3.0),
        ({"dual_clip": 5.0}, -2.0, math.log(7.0), 2.0 * 5.0),
        ({"mode": "gspo"}, 2.0, UP, -2.0 * 1.0004),
        ({"mode": "gspo"}, -2.0, DOWN, 2.0 * 0.9997),
        ({"mode": "cispo"}, 2.0, UP, -2.0 * 1.2 * (-1.0 + UP)),
        ({"mode": "gpg"}, 2.0, UP, -2.0 * (-1.0 + UP)),
        ({"mode": "dro", "options": {"dro_beta": 0.5}}, 2.0, UP, -(2.0 * (-1.0 + UP) - 0.25 * UP**2)),
        ({"mode": "geo_mean"}, 2.0, 1.0, -2.0 * math.exp(0.4)),
        ({"mode": "sapo"}, 2.0, UP, -2.0 * 4.0 / (1.0 + math.exp(-0.5))),
        ({"mode": "sapo", "options": {"tau_neg": 2.0}}, -2.0, UP, 2.0 * 2.0 / (1.0 + math.exp(-1.0))),
    ],
    ids=str,
)
def test_a_token_in_each_mode(settings: dict[str, Any], advantage: float, shift: float, expected: float) -> None:
    value, _ = loss_of(settings, [row([-1.0] * 2, advantage)], [[-1.0 + shift] * 2])
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # Rows of 1 and 3 tokens, weights 0.5 and 1.5, advantages 1 and 2, on policy: each token's loss is −A.
        ("seq-mean-token-mean", -(0.5 * 1 + 1.5 * 2) / 2),
        ("seq-mean-token-sum", -(0.5 * 1 + 1.5 * 6) / 2),
        ("seq-mean-token-sum-norm", -(0.5 * 1 + 1.5 * 6) / 2 / 10),
        # Weighted tokens: 0.5 · 1 + 1.5 · 3 = 5 in all.
        ("token-mean", -(0.5 * 1 + 1.5 * 6) / 5),
    ],
)
def test_each_aggregation(aggregation: Any, expected: float) -> None:
    rows = [row([-1.0], 1.0, 0.5), row([-1.0] * 3, 2.0, 1.5)]
    value, _ = loss_of({"aggregation": aggregation}, rows, [[-1.0], [-1.0] * 3])
    assert value == pytest.approx(expected)


def test_entropy_and_kl_are_weighted_means_of_their_own() -> None:
    def rows() -> list[Any]:
        return [row([-1.0], 0.0, 0.5, reference_logprobs=[-1.2]), row([-1.0], 0.0, 1.5, reference_logprobs=[-1.6])]

    assert loss_of({"entropy": 0.1}, rows(), [[-1.0]] * 2, entropy=3.0)[0] == pytest.approx(-0.1 * 3.0)
    for kind, estimates in {
        "k1": (0.2, 0.6),
        "k2": (0.02, 0.18),
        "k3": (math.exp(-0.2) - 1 + 0.2, math.exp(-0.6) - 1 + 0.6),
        "abs": (0.2, 0.6),
        "k3+": (math.exp(-0.2) - 1 + 0.2, math.exp(-0.6) - 1 + 0.6),
    }.items():
        value, told = loss_of({"kl": {"coefficient": 0.5, "kind": kind}}, rows(), [[-1.0]] * 2)
        assert value == pytest.approx(0.5 * (0.5 * estimates[0] + 1.5 * estimates[1]) / 2, rel=1e-4), kind
        assert told.reference.flatten().tolist() == pytest.approx(list(estimates), rel=1e-4)


def test_masked_tokens_carry_no_loss_whatever_they_hold() -> None:
    masked = row([-1.0, -9.0], 2.0, mask=[1, 0])
    masked.advantages[1] = 1000.0
    assert loss_of({}, [masked], [[-1.0, -1.0]])[0] == pytest.approx(-2.0)


def test_a_row_of_a_stale_policy_is_bounded_by_the_correction() -> None:
    """π is 5 times as likely as the rollout's policy was, and the proximal policy is π itself."""
    shift = math.log(5.0)

    def value(correction: dict[str, Any]) -> float:
        rows = [row([-1.0 - shift] * 2, 1.0, proximal_logprobs=[-1.0] * 2), row([-1.0], 1.0, proximal_logprobs=[-1.0])]
        return loss_of({"correction": {"proximal": "actor", **correction}}, rows, [[-1.0] * 2, [-1.0]])[0]

    assert value({}) == pytest.approx(-1.0)
    assert value({"weights": "token"}) == pytest.approx(-(2.0 + 1.0) / 2)
    assert value({"weights": "token", "upper": 10.0}) == pytest.approx(-(5.0 + 1.0) / 2)
    assert value({"weights": "sequence", "upper": 30.0}) == pytest.approx(-(25.0 + 1.0) / 2)
    assert value({"weights": "token", "lower": 0.5, "upper": 2.0}) == pytest.approx(-(0.0 + 1.0) / 2)
    assert value({"reject": {"seq_max_k2": 1.0}}) == pytest.approx(-(0.0 + 1.0) / 2)


MODES: list[dict[str, Any]] = [
    {"mode": mode} for mode in ("vanilla", "gspo", "cispo", "gpg", "kl_cov", "dppo_tv", "dppo_kl")
] + [{"mode": "dro", "options": {"dro_beta": 0.3}}]
SUMS = ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


@pytest.mark.parametrize(
    "settings",
    [{**mode, "aggregation": how} for mode in MODES for how in SUMS] + [{"mode": "sapo"}, {"mode": "geo_mean"}],
    ids=str,
)
def test_weights_make_the_loss_a_mean_over_rollouts(settings: dict[str, Any]) -> None:
    """Against the loss of each rollout on its own, with ratios far enough apart that all clips are at work."""
    chance = np.random.default_rng(0)
    sizes = [1 + number % 3 for number in range(5)]
    mean_weight = len(sizes) / sum(sizes)
    rollouts, actors = [], []
    for size in sizes:
        lengths = [int(chance.integers(1, 5)) for _ in range(size)]
        rows = [row([-1.0] * length, float(chance.normal()), 1.0) for length in lengths]
        rollouts.append(rows)
        actors.append([list(chance.normal(-1.0, 0.7, len(each.response_ids))) for each in rows])
    # The rank by which kl_cov chooses its tokens is one over all rows: let it choose none of those that count.
    if settings["mode"] == "kl_cov":
        settings = {**settings, "options": {"ppo_kl_coef": 1e-9}}
    alone = [loss_of(settings, rows, actor)[0] for rows, actor in zip(rollouts, actors, strict=True)]
    together = [each for rows in rollouts for each in rows]
    for rows in rollouts:
        for each in rows:
            each.weight = 1.0 / len(rows) / mean_weight
    value, _ = loss_of(settings, together, [line for actor in actors for line in actor])
    assert value == pytest.approx(float(np.mean(alone)), rel=1e-4)


def test_with_token_mean_the_number_of_a_rollouts_rows_does_not_matter() -> None:
    """One rollout of a single row and one of three alike: both count the same, as their rows are of one length."""
    rows = [row([-1.0] * 2, 1.0, 1.5), *(row([-1.0] * 2, -1.0, 0.5) for _ in range(3))]
    value, _ = loss_of({"aggregation": "token-mean"}, rows, [[-1.0] * 2] * 4)
    assert value == pytest.approx(0.0, abs=1e-6)
