"""Mismatch: the figures by hand, against verl's, and on log-probs that no one should have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coterie.errors import BackendError
from coterie_trainers.mismatch import mismatch

logprobs = arrays(np.float64, (3, 5), elements=st.floats(-30, 0))
masks = arrays(np.int8, (3, 5), elements=st.integers(0, 1)).filter(lambda mask: bool(mask.any()))


def test_by_hand() -> None:
    found = mismatch([[-1.0, -2.0, 0.0]], [[-1.0, -2.0 + math.log(2), -99.0]], [[1, 1, 0]])
    assert found.tokens == 2
    assert found.max == pytest.approx(math.log(2))
    assert found.k1 == pytest.approx(-math.log(2) / 2)
    assert found.k3 == pytest.approx((2 - 1 - math.log(2)) / 2)
    assert found.ratio == pytest.approx(1.5)
    assert found.ess == pytest.approx(3**2 / (2 * 5))
    assert found.metrics() == {
        "mismatch_max": found.max,
        "mismatch_k1": found.k1,
        "mismatch_kl": found.k3,
        "mismatch_ratio": found.ratio,
        "mismatch_ess": found.ess,
    }


def test_equal_policies_have_none() -> None:
    found = mismatch([-1.0, -2.0], [-1.0, -2.0], [1, 1])
    assert (found.max, found.k1, found.k3, found.ratio, found.ess) == (0, 0, 0, 1, 1)


def test_a_tiny_difference_is_not_lost_in_rounding() -> None:
    assert mismatch([-1.0], [-1.0 + 1e-9], [1]).k3 == pytest.approx(5e-19, rel=1e-3, abs=0)


@given(rollout=logprobs, actor=logprobs, mask=masks)
def test_bounds(rollout: np.ndarray, actor: np.ndarray, mask: np.ndarray) -> None:
    found = mismatch(rollout, actor, mask)
    assert found.k3 >= 0
    assert 0 < found.ess <= 1 + 1e-12
    assert found.max >= abs(found.k1) - 1e-12
    assert all(map(math.isfinite, found.metrics().values()))


@given(rollout=logprobs, actor=logprobs, mask=masks)
def test_what_is_masked_is_not_looked_at(rollout: np.ndarray, actor: np.ndarray, mask: np.ndarray) -> None:
    blinded = np.where(mask == 1, actor, math.nan)
    assert mismatch(rollout, blinded, mask) == mismatch(rollout, actor, mask)


def test_the_sampled_distribution_gives_the_true_divergence() -> None:
    """k1 and k3 both estimate KL(rollout ‖ actor): sample from one distribution and compare with its exact value."""
    chance = np.random.default_rng(0)
    rollout, actor = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    drawn = chance.choice(3, size=400_000, p=rollout)
    found = mismatch(np.log(rollout)[drawn], np.log(actor)[drawn], np.ones(len(drawn)))
    exact = float((rollout * np.log(rollout / actor)).sum())
    assert found.k1 == pytest.approx(exact, rel=0.05)
    assert found.k3 == pytest.approx(exact, rel=0.02)
    assert found.ratio == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize(
    ("rollout", "actor", "mask", "message"),
    [
        ([-1.0, -1.0], [-1.0], [1, 1], r"shapes \(2,\) and \(1,\)"),
        ([-1.0], [-1.0], [0], "no sampled token"),
        ([], [], [], "no sampled token"),
        ([[-1.0, -1.0]], [[-1.0, math.nan]], [[1, 1]], r"1 of 2 sampled tokens have no finite actor.*\(0, 1\), is nan"),
        ([-math.inf], [-1.0], [1], r"no finite rollout log-prob.*-inf.*server"),
    ],
)
def test_what_cannot_be_compared_is_an_error(rollout, actor, mask, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        mismatch(rollout, actor, mask)


@pytest.mark.train
def test_it_agrees_with_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    import torch
    from verl.trainer.ppo.rollout_corr_helper import compute_offpolicy_metrics

    chance = np.random.default_rng(0)
    rollout = -chance.exponential(size=(8, 20))
    actor = rollout + chance.normal(scale=0.3, size=rollout.shape)
    mask = chance.random(rollout.shape) < 0.7
    mask[:, 0] = True
    theirs = compute_offpolicy_metrics(torch.tensor(actor), torch.tensor(rollout), torch.tensor(mask.astype(float)))
    ours = mismatch(rollout, actor, mask)
    assert ours.k1 == pytest.approx(theirs["kl"], rel=1e-5)
    assert ours.k3 == pytest.approx(theirs["k3_kl"], rel=1e-5)
