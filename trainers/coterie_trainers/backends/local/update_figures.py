"""What an update tells of itself: sums over its passes, for all tokens and for each role's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from coterie_trainers.mismatch import mismatch

Compared = tuple[str, NDArray[np.float64], NDArray[np.float64]]
"""Of one row: its role, and the log-probs of its sampled tokens as the rollout and as the trainer has them."""


@dataclass(slots=True)
class TokenSums:
    """Sums over trained tokens, in all gradient steps."""

    tokens: float = 0.0
    entropy: float = 0.0
    """Of the whole distribution, in nats."""
    ppo_kl: float = 0.0
    """Log-prob under the proximal policy minus that under the trained one."""
    kl_reference: float = 0.0
    clipped: float = 0.0
    """Tokens whose gradient the clip took."""

    def add(self, other: TokenSums) -> None:
        """Take in what somebody else summed."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(slots=True)
class UpdateFigures:
    """The figures of one update of one policy. Plain data, so that those of several processes can be put together."""

    loss: float = 0.0
    by_role: dict[str, TokenSums] = field(default_factory=dict)
    clip_fraction: float = 0.0
    """verl's, times the tokens of each pass."""
    compared: list[Compared] = field(default_factory=list)
    """Every row that was seen before the first gradient step."""
    gradient_norms: list[float] = field(default_factory=list)
    has_reference: bool = False
    clips_tokens: bool = False

    def of_role(self, role: str) -> TokenSums:
        """The sums of this role."""
        return self.by_role.setdefault(role, TokenSums())

    def end_step(self, gradient_norm: float) -> None:
        """A gradient step is done; verl skips a step whose gradient is not finite."""
        self.gradient_norms.append(gradient_norm)

    @classmethod
    def of_all(cls, parts: Sequence[UpdateFigures]) -> UpdateFigures:
        """Those of several processes that made the same gradient steps, each with a part of the rows."""
        whole = cls(
            loss=sum(part.loss for part in parts),
            clip_fraction=sum(part.clip_fraction for part in parts),
            compared=[row for part in parts for row in part.compared],
            gradient_norms=parts[0].gradient_norms,
            has_reference=any(part.has_reference for part in parts),
            clips_tokens=any(part.clips_tokens for part in parts),
        )
        for part in parts:
            for role, sums in part.by_role.items():
                whole.of_role(role).add(sums)
        return whole

    def summary(self) -> dict[str, float]:
        """What ``PolicyUpdate.metrics`` holds, but for ``correction_*``; of each role where there are several too."""
        whole = TokenSums()
        for sums in self.by_role.values():
            whole.add(sums)
        steps = max(len(self.gradient_norms), 1)
        figures = {
            "loss": self.loss / steps,
            "grad_norm": sum(self.gradient_norms) / steps,
            "gradient_steps": float(len(self.gradient_norms)),
            **self._means(whole),
            "clip_fraction": self.clip_fraction / max(whole.tokens, 1.0),
            **_mismatch(self.compared),
        }
        for role, sums in sorted(self.by_role.items()):
            own = self._means(sums) | _mismatch([row for row in self.compared if row[0] == role])
            figures |= {f"role/{role}/{name}": value for name, value in own.items()}
        return figures

    def _means(self, sums: TokenSums) -> dict[str, float]:
        tokens = max(sums.tokens, 1.0)
        means = {"entropy": sums.entropy / tokens, "ppo_kl": sums.ppo_kl / tokens}
        if self.has_reference:
            means["kl_reference"] = sums.kl_reference / tokens
        if self.clips_tokens:
            means["clip_fraction"] = sums.clipped / tokens
        return means


def _mismatch(compared: Sequence[Compared]) -> dict[str, float]:
    if not compared:
        return {}
    rollout_T, actor_T = (np.concatenate([row[side] for row in compared]) for side in (1, 2))
    return mismatch(rollout_T, actor_T, np.ones(len(actor_T))).metrics() if len(actor_T) else {}
