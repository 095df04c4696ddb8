"""Mismatch: how far the policy that sampled and the policy that is trained are apart on the sampled tokens.

They should be the same model, but a server and a trainer compute it differently (kernels, precision, padding, a stale weight),
and PPO's ratio is only right when their log-probs agree. With d = actor log-prob − rollout log-prob of a sampled token:

    max    largest |d|
    k1     mean of −d                    unbiased for KL(rollout ‖ actor), may be negative
    k3     mean of exp(d) − 1 − d        the same, never negative and with less variance
    ratio  mean of exp(d)                1 in expectation
    ess    (Σ exp(d))² / (n · Σ exp(d)²) effective part of the samples, 1 when all ratios are equal

The same figures as verl's ``rollout_corr`` metrics (``kl``, ``k3_kl``, ``rollout_is_mean``, ``rollout_is_eff_sample_size``). k1 and k3
are the estimators of J. Schulman, "Approximating KL divergence" (2020). As in verl, d is held within ±20 before it is
exponentiated, here in all three figures that do so; ``max`` and ``k1`` see it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coterie.errors import BackendError

SAFE_LOG_RATIO = 20.0
"""The largest |d| that is exponentiated."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What ``mismatch`` measured."""

    tokens: int
    """Sampled tokens that were compared."""
    max: float
    """Largest absolute difference of the log-probs, in nats."""
    k1: float
    """Mean k1 estimate of KL(rollout ‖ actor), in nats a token."""
    k3: float
    """Mean k3 estimate of the same."""
    ratio: float
    """Mean of actor over rollout probability."""
    ess: float
    """Effective sample size as a part of the tokens, above 0 and up to 1."""

    def metrics(self) -> dict[str, float]:
        """The names that ``PolicyUpdate.metrics`` and the health checks use."""
        return {
            "mismatch_max": self.max,
            "mismatch_k1": self.k1,
            "mismatch_kl": self.k3,
            "mismatch_ratio": self.ratio,
            "mismatch_ess": self.ess,
        }


def mismatch(rollout_logprobs: ArrayLike, actor_logprobs: ArrayLike, mask: ArrayLike) -> Mismatch:
    """Compare log-probs of the same tokens under the rollout's and the actor's policy, before the update.

    Args:
        rollout_logprobs: As the server gave them, of any shape, such as (rows, tokens).
        actor_logprobs: As the trainer computed them, of the same shape.
        mask: Non-zero at sampled tokens, of the same shape; what lies elsewhere is not looked at.

    Raises:
        BackendError: the shapes differ, no token is sampled, or a log-prob of a sampled token is not finite.
    """
    sampled = np.asarray(mask).astype(bool)
    rollout = np.asarray(rollout_logprobs, dtype=np.float64)
    actor = np.asarray(actor_logprobs, dtype=np.float64)
    if not rollout.shape == actor.shape == sampled.shape:
        raise BackendError(
            f"Log-probs of rollout and actor cannot be compared: shapes {rollout.shape} and {actor.shape}, "
            f"mask {sampled.shape}. They must be of the same tokens."
        )
    if not sampled.any():
        raise BackendError("Log-probs of rollout and actor cannot be compared: the mask holds no sampled token.")
    _check_finite("rollout", rollout, sampled)
    _check_finite("actor", actor, sampled)

    difference_T = actor[sampled] - rollout[sampled]
    safe_T = np.clip(difference_T, -SAFE_LOG_RATIO, SAFE_LOG_RATIO)
    ratio_T = np.exp(safe_T)
    return Mismatch(
        tokens=len(difference_T),
        max=float(np.abs(difference_T).max()),
        k1=float(-difference_T.mean()),
        # expm1 keeps the digits that exp(d) − 1 loses when d is tiny, which is the case that should be the rule.
        k3=float((np.expm1(safe_T) - safe_T).mean()),
        ratio=float(ratio_T.mean()),
        ess=float(ratio_T.sum() ** 2 / (len(ratio_T) * (ratio_T**2).sum())),
    )


def _check_finite(name: str, logprobs: NDArray[np.float64], sampled: NDArray[np.bool_]) -> None:
    wrong = np.argwhere(sampled & ~np.isfinite(logprobs))
    if len(wrong):
        first = tuple(int(index) for index in wrong[0])
        raise BackendError(
            f"{len(wrong)} of {int(sampled.sum())} sampled tokens have no finite {name} log-prob; the first, at {first}, "
            f"is {logprobs[first]}. The {'server' if name == 'rollout' else 'trainer'}'s weights may be broken."
        )
