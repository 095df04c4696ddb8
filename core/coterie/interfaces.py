"""What a trainer is made of: the parts that can be exchanged, as small interfaces.

A training step goes: episodes → ``Sample``s → ``AdvantageEstimator`` → ``TrainingRow``s → ``Backend.update`` →
``Backend.publish``. Everything here is plain Python, so that the process that runs agents needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from coterie.episodes import Episode
from coterie.vocabulary import JSON, Endpoint


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn with the reward that counts for it: what an advantage estimator sees."""

    task_id: str
    rollout_id: str
    """The attempt's rollout: the unit that is sampled, and that weighs one."""
    role: str
    agent_path: str
    turn: int
    """The how-many-eth call of this role in this rollout, from 0."""
    reward: float
    state_key: str | None = None
    """Names the state in which the call was made (``coterie.state.key``), for methods that compare within a state."""
    step: int = 0
    """The how-many-eth call of its rollout, all roles together, from 0."""
    invocation: str | None = None
    """Names the run of its agent that the call belongs to: a worker that was called twice in a rollout has two. None where
    the trace does not tell."""
    step_reward: float | None = None
    """What arrives with this very turn, for methods that add up rewards over turns: the reward of its call; with the last turn
    of its role and agent path in the rollout also what is bound to those and to the rollout. None where nobody said."""
    value: float | None = None
    """A critic's estimate of the return from here on, at the last token of the prompt; None without a critic."""
    audited: float | None = None
    """The credit that replays gave the turn or its role in this step; None where its rollout was not audited."""


@dataclass(frozen=True, slots=True)
class TurnReward:
    """The reward of one turn, as outcome and as step; or what is added to it."""

    outcome: float
    """What counts for the turn, whenever it arrives: ``Sample.reward``."""
    step: float
    """What arrives with it: ``Sample.step_reward``. Over a chain, the turns of one role and agent path, these add up."""


class RewardShaper(Protocol):
    """Adds to the rewards of an episode's turns. One whose additions are discounted has an attribute ``discount``."""

    def __call__(self, episode: Episode) -> Sequence[TurnReward]:
        """What to add to each turn, in order.

        Raises:
            RewardError: the episode lacks what the shaper needs.
        """
        ...


class AdvantageEstimator(Protocol):
    """Turns samples into advantages: ``scale(reward - baseline(key(sample)))``.

    One that needs ``Sample.value`` has an attribute ``needs_values`` that is True: then a critic is asked first.
    """

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        """One advantage a sample, in order. A lone sample of a group gets 0."""
        ...


@runtime_checkable
class RememberingEstimator(Protocol):
    """An estimator that carries something from step to step. A class, made anew for each run; a resumed one goes on."""

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        """One advantage a sample, in order."""
        ...

    def remembered(self) -> Mapping[str, JSON]:
        """What it carries, as JSON."""
        ...

    def recall(self, remembered: Mapping[str, JSON]) -> None:
        """Go on from what ``remembered`` gave."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One sequence to train on: one turn, or several that continue each other exactly."""

    policy: str
    rollout_id: str
    role: str
    call_ids: tuple[str, ...]
    prompt_ids: tuple[int, ...]
    """Token ids of the first prompt."""
    response_ids: tuple[int, ...]
    """All later token ids: sampled ones, and between turns those that tools or other agents wrote."""
    response_mask: tuple[int, ...]
    """1 where the policy sampled the token, 0 elsewhere; as long as ``response_ids``."""
    rollout_logprobs: tuple[float, ...]
    """Log-probability under the policy that sampled; 0.0 where the mask is 0."""
    advantages: tuple[float, ...]
    """One a token of ``response_ids``."""
    weight: float = 1.0
    """The row's weight in the loss, such that a rollout counts once however many rows it has."""
    policy_version: int | None = None
    rewards: tuple[float, ...] | None = None
    """One a token of ``response_ids``, where the critic is to make the advantages of them (``gae``); ``advantages`` are 0 then."""
    returns: tuple[float | None, ...] | None = None
    """What the critic is to learn to say before each token of ``response_ids``; None where that is not known."""


@dataclass(frozen=True, slots=True)
class PolicyUpdate:
    """What one update of one policy did."""

    policy: str
    rows: int
    tokens: int
    """Trained tokens."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """At least ``loss`` and ``grad_norm``; ``entropy``, ``mismatch_max`` (largest absolute difference of rollout and actor
    log-probability before the update) and ``mismatch_kl`` (mean of the k3 estimate) if the policy learned;
    ``value_loss`` if a critic did. ``role/<role>/<name>`` is the figure of one role's tokens."""


class Backend(Protocol):
    """Serves policies for sampling and updates their weights. ``close`` leaves no process or shared memory behind."""

    async def serve(self) -> Mapping[str, Endpoint]:
        """Start servers and trainers; gives policy → endpoint, ready to answer.

        Address and model name of an endpoint go on to answer as long as the backend runs, since with asynchronous
        collection a rollout outlives many versions: a name that stands for one version with that version while it is
        served, and else with the weights published last. Each answer names its version in the header
        ``x-coterie-policy-version``.

        Raises:
            BackendError: a process died or was not ready in time; the message ends with its last log lines.
        """
        ...

    async def update(self, policy: str, rows: Sequence[TrainingRow], *, temperature: float = 1.0) -> PolicyUpdate:
        """One pass of gradient steps on these rows."""
        ...

    async def values(self, policy: str, rows: Sequence[TrainingRow]) -> Sequence[Sequence[float]]:
        """What the policy's critic makes of the state before each response token of each row.

        Raises:
            BackendError: the policy has no critic.
        """
        ...

    async def publish(self, policy: str) -> int:
        """Bring the trainer's weights to the servers; gives the new policy version."""
        ...

    async def save(self, folder: Path) -> Mapping[str, JSON]:
        """Write weights, optimiser and versions so that ``load`` continues identically, atomically: the folder is
        whole or absent. Each trained policy's weights are an ordinary Hugging Face folder ``folder/<policy>/model``, an
        adapter's a PEFT folder.
        """
        ...

    async def load(self, folder: Path) -> Mapping[str, int]:
        """Continue from what ``save`` wrote, and bring it to the servers; gives policy → the version now served."""
        ...

    async def close(self) -> None:
        """Stop everything. Safe to call twice, and after a failure."""
        ...
