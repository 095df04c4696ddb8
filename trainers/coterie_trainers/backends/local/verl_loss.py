"""The loss of a policy: verl's policy loss of the chosen mode, its entropy and KL terms, its rollout correction.

For one gradient step over rows r = 1…R with sampled tokens t, and A the advantages:

    loss = agg[ w_r · c_rt · ℓ_mode(log π, log π_proximal, A) ]  −  entropy · agg[ w_r · H ]  +  kl · agg[ w_r · D(π, π_ref) ]

``ℓ_mode``, ``agg``, ``D`` and the correction ``c`` are verl's (``verl.trainer.ppo.core_algos``, ``rollout_corr_helper``). ``w_r`` is
the row's weight, by which a rollout counts once (``coterie_trainers.batches``).

**How a weight enters.** verl multiplies each token's loss by ``rollout_is_weights`` before it aggregates, in every mode; the
weight goes in with them. It could scale the advantages only where the loss is homogeneous in them, which ``dro`` and
``kl_cov`` are not (their penalties do not know the advantage), and in ``clip_cov`` scaled advantages would choose other tokens.
``geo_mean`` takes the geometric mean of a row's weights, and that of equal numbers is the number.

**What a weight means** in each aggregation, where R rows of mean weight 1 are the update's:

    seq-mean-token-mean        (1/R) Σ_r w_r · mean_t ℓ        a rollout counts once
    seq-mean-token-sum         (1/R) Σ_r w_r · Σ_t ℓ           a rollout counts once; long rows are louder, as is meant
    seq-mean-token-sum-norm    the same, divided by ``horizon``
    token-mean                 (1/T) Σ_r w'_r · Σ_t ℓ          w' = w · T / Σ_r w_r T_r, so that the tokens' weights have mean 1:
                                                               a rollout counts by the mean length of its rows, not by their number

What verl leaves to a pass is done for the whole gradient step here: ``geo_mean`` takes the mean over the rows of a pass and is
scaled by their part of the step's. ``clip_cov`` and ``kl_cov`` choose tokens by their rank within a pass, as they do in verl.
Tokens that are rejected add nothing, and stay in what the sums are divided by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from coterie_trainers.backends.local.verl_rows import Row, padded
from coterie_trainers.config import Correction, Loss

_DUAL_CLIPS = {"dppo_tv": 20.0, "dppo_kl": 20.0}
_PREFIX = "rollout_corr/"
_CORRECTION_FIGURES = (
    "chi2_token",
    "chi2_seq",
    "ppl_ratio",
    "log_ppl_abs_diff",
    "rollout_is_mean",
    "rollout_is_min",
    "rollout_is_max",
    "rollout_is_eff_sample_size",
    "rollout_is_ratio_fraction_high",
    "rollout_is_ratio_fraction_low",
    "rollout_rs_masked_fraction",
    "rollout_rs_seq_masked_fraction",
)
"""Of verl's figures, those that ``mismatch`` does not have already."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a pass needs to know of the gradient step that it is a part of."""

    rows: int
    tokens: int
    """Sampled tokens of all its rows."""
    ranks: int = 1
    """Processes that share the step, over which gradients are averaged."""


@dataclass(frozen=True, slots=True)
class PassFigures:
    """What one pass tells; tensors are without gradient, by row and response token."""

    loss: float
    mask: torch.Tensor
    """1 at sampled tokens."""
    actor: torch.Tensor
    """Log-probs under the weights as they are in this pass."""
    rollout: torch.Tensor
    proximal: torch.Tensor
    entropy: torch.Tensor
    reference: torch.Tensor | None
    """Estimated divergence from the reference, if there is one."""
    clipped: torch.Tensor | None
    """1 where the clip takes a token's gradient; None where the mode has no such thing of a token."""
    clip_fraction: float | None
    """As verl counts it; None where the mode clips nothing."""


class PolicyLoss:
    """The loss of one configuration."""

    def __init__(self, settings: Loss, *, horizon: int) -> None:
        """``horizon`` is what ``seq-mean-token-sum-norm`` divides by."""
        self.settings = settings
        low, high = settings.clip
        options = dict(settings.options)
        gates = {name: options.pop(name) for name in ("tau_pos", "tau_neg") if name in options}
        self._config = FSDPActorConfig(
            strategy="fsdp2",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            clip_ratio=low,
            clip_ratio_low=low,
            clip_ratio_high=high,
            clip_ratio_c=settings.dual_clip or _DUAL_CLIPS.get(settings.mode, 3.0),
            loss_agg_mode=settings.aggregation,
            loss_scale_factor=horizon if settings.aggregation == "seq-mean-token-sum-norm" else None,
            policy_loss=PolicyLossConfig(loss_mode=settings.mode, **options),
            **gates,
        )
        self._policy_loss = get_policy_loss_fn(settings.mode)

    def normalise(self, rows: Sequence[Row]) -> None:
        """Scale the weights of an update's rows such that what is averaged has mean weight 1."""
        if self.settings.aggregation != "token-mean":
            return
        weighted = sum(row.weight * row.tokens for row in rows)
        if weighted > 0:
            scale = sum(row.tokens for row in rows) / weighted
            for row in rows:
                row.weight *= scale

    def __call__(
        self, rows: Sequence[Row], log_probs_RT: torch.Tensor, entropy_RT: torch.Tensor, share: Share
    ) -> tuple[torch.Tensor, PassFigures]:
        """The part of the gradient step's loss that lies in one pass, and its figures."""
        settings = self.settings
        actor_RT = log_probs_RT.detach()
        mask_RT, weight_RT, advantage_RT, rollout_RT = (
            padded(rows, column, like=actor_RT)
            for column in (
                lambda row: row.response_mask,
                lambda row: [row.weight] * len(row.response_ids),
                lambda row: row.advantages,
                lambda row: row.rollout_logprobs,
            )
        )
        proximal_RT = rollout_RT
        if settings.correction.proximal == "actor":
            proximal_RT = padded(rows, lambda row: row.proximal_logprobs, like=actor_RT)
        corrected_RT, kept_RT = weight_RT, mask_RT
        if (settings.correction.weights or settings.correction.reject) and bool(mask_RT.any()):
            # Without a proximal policy of its own, the trained one is compared with the rollout's, anew in each step.
            compared_RT = proximal_RT if settings.correction.proximal == "actor" else actor_RT
            factor_RT, kept_RT, _ = _correct(settings.correction, compared_RT, rollout_RT, mask_RT)
            corrected_RT = weight_RT * factor_RT

        self._config.global_batch_info.update(
            dp_size=share.ranks,
            batch_num_tokens=max(share.tokens, 1),
            global_batch_size=share.rows,
            loss_scale_factor=self._config.loss_scale_factor,
        )
        loss, told = self._policy_loss(
            old_log_prob=proximal_RT,
            log_prob=log_probs_RT,
            advantages=advantage_RT,
            response_mask=kept_RT,
            loss_agg_mode=settings.aggregation,
            config=self._config,
            rollout_is_weights=corrected_RT,
        )
        if settings.mode == "geo_mean":
            loss = loss * (len(rows) / share.rows * share.ranks)
        if settings.entropy:
            loss = loss - settings.entropy * self._aggregate(entropy_RT * weight_RT, mask_RT)
        reference_RT = None
        if settings.kl is not None:
            against_RT = padded(rows, lambda row: row.reference_logprobs, like=actor_RT)
            divergence_RT = kl_penalty(log_probs_RT, against_RT, settings.kl.kind)
            loss = loss + settings.kl.coefficient * self._aggregate(divergence_RT * weight_RT, mask_RT)
            reference_RT = divergence_RT.detach()
        return loss, PassFigures(
            loss=float(loss.detach()),
            mask=mask_RT.bool(),
            actor=actor_RT,
            rollout=rollout_RT,
            proximal=proximal_RT,
            entropy=entropy_RT.detach(),
            reference=reference_RT,
            clipped=self._clipped(actor_RT - proximal_RT, advantage_RT),
            clip_fraction=told.get("actor/pg_clipfrac"),
        )

    def correction_figures(
        self, rollout_RT: torch.Tensor, actor_RT: torch.Tensor, mask_RT: torch.Tensor
    ) -> dict[str, float]:
        """Figures that verl has of rollouts against the policy that is trained on them, named ``correction_…``."""
        *_, told = _correct(self.settings.correction, actor_RT, rollout_RT, mask_RT)
        return {
            f"correction_{name.removeprefix('rollout_')}": float(told[_PREFIX + name])
            for name in _CORRECTION_FIGURES
            if _PREFIX + name in told
        }

    def _aggregate(self, loss_RT: torch.Tensor, mask_RT: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = agg_loss(
            loss_mat=loss_RT,
            loss_mask=mask_RT,
            loss_agg_mode=self.settings.aggregation,
            **self._config.global_batch_info,
        )
        return value

    def _clipped(self, log_ratio_RT: torch.Tensor, advantage_RT: torch.Tensor) -> torch.Tensor | None:
        if self.settings.mode not in ("vanilla", "clip_cov"):
            return None
        low, high = self.settings.clip
        ratio_RT = log_ratio_RT.clamp(-20.0, 20.0).exp()
        return ((advantage_RT > 0) & (ratio_RT > 1 + high)) | ((advantage_RT < 0) & (ratio_RT < 1 - low))


def _correct(
    settings: Correction, compared_RT: torch.Tensor, rollout_RT: torch.Tensor, mask_RT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, float]]:
    """Weights, what is left of the mask, and verl's figures."""
    lower = "" if settings.lower is None else f"{settings.lower!r}_"
    weights, kept_RT, told = compute_rollout_correction_and_rejection_mask(
        old_log_prob=compared_RT,
        rollout_log_prob=rollout_RT,
        response_mask=mask_RT,
        rollout_is=settings.weights,
        rollout_is_threshold=f"{lower}{settings.highest!r}",
        rollout_rs=",".join(settings.reject) or None,
        rollout_rs_threshold=",".join(map(_bound, settings.reject.values())) or None,
    )
    factor_RT = torch.ones_like(mask_RT) if weights is None else weights.batch["rollout_is_weights"]
    return factor_RT, kept_RT, told


def _bound(bound: float | Sequence[float]) -> str:
    return "_".join(map(repr, bound)) if isinstance(bound, Sequence) else repr(bound)
