"""The typed configuration of ``coterie train``. ``load_config`` reads it from YAML with errors that name the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from coterie_trainers.prompts.config import PromptTuning
from coterie_trainers.sections import Dataset, Runner, Section

LossMode = Literal[
    "vanilla", "gspo", "cispo", "sapo", "gpg", "dro", "geo_mean", "clip_cov", "kl_cov", "dppo_tv", "dppo_kl"
]
"""verl 0.9.1's policy losses, by the names under which it registers them. Its ``bypass_mode`` is ``loss.correction`` here."""
Aggregation = Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]
KlKind = Literal["k1", "kl", "k1+", "abs", "k2", "mse", "k3", "low_var_kl", "k3+"]
Rejection = Literal[
    "token_k1",
    "token_k2",
    "token_k3",
    "seq_sum_k1",
    "seq_sum_k2",
    "seq_sum_k3",
    "seq_mean_k1",
    "seq_mean_k2",
    "seq_mean_k3",
    "seq_max_k2",
    "seq_max_k3",
]
"""verl's criteria of rejection (``verl.trainer.ppo.rollout_corr_helper``)."""

_CLIPS = {"gspo": (3e-4, 4e-4), "geo_mean": (0.4, 0.4)}
"""Mode → how far its ratio may fall and rise, where that is not 0.2: as in the papers."""
_WITHOUT_RATIO = ("gpg", "dro")
_WITHOUT_CLIP = (*_WITHOUT_RATIO, "sapo", "kl_cov")
_OPTIONS = {
    "sapo": ("tau_pos", "tau_neg"),
    "dro": ("dro_beta",),
    "clip_cov": ("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub"),
    "kl_cov": ("kl_cov_ratio", "ppo_kl_coef"),
}


class Adapter(Section):
    """A LoRA adapter (arXiv 2106.09685): the policy is its model, which stays as it is, and this beside it."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: PositiveInt = 32
    """The adapter's product is scaled by ``alpha / rank``."""
    target_modules: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """The modules that get one: ``all-linear`` (all but the output layer), a pattern, or names such as ``q_proj``."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the adapter's input while it trains. It makes PPO's ratio noisy, and shows as mismatch."""


class Hosted(Section):
    """A model behind an OpenAI-compatible URL, which is called and never trained."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
    """Such as ``https://models.example.com/v1``."""
    model: Annotated[str, Field(min_length=1)]
    """Its name there."""
    api_key: Annotated[str, Field(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """``env:NAME``: the environment variable that holds the key where the agents run. Never the key itself."""


class Schedule(Section):
    """How a policy's learning rate moves over its updates."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """What it does after the warm-up: it stays, or falls to ``floor`` in a line or along half a cosine."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Updates in which it rises in a line to ``learning_rate``."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Where it ends, as a part of ``learning_rate``."""
    steps: PositiveInt | None = None
    """Updates until it is at ``floor``; by default as many as the policy can get in ``training.steps``."""


class Policy(Section):
    """A model and the roles that it plays: trained whole, trained as an adapter, frozen, or hosted elsewhere."""

    model: str = ""
    """A Hugging Face folder (or what ``prepare`` makes), relative to the work folder unless absolute. Not for ``hosted``."""
    roles: list[str] = Field(default_factory=list)
    """The roles it plays; empty means all."""
    adapter: Adapter | None = None
    """Train this and leave the model as it is. Policies with adapters on the same model share its server."""
    frozen: bool = False
    """Serve the model and never train it."""
    hosted: Hosted | None = None
    learning_rate: PositiveFloat = 1e-6
    schedule: Schedule = Schedule()
    """Or only its kind: ``schedule: cosine``."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_grad: PositiveFloat = 1.0

    @property
    def trained(self) -> bool:
        """False for those that are frozen or hosted."""
        return not self.frozen and self.hosted is None

    @field_validator("schedule", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if not self.trained:
            kind = "hosted" if self.hosted else "frozen"
            for_training = ("adapter", "learning_rate", "schedule", "betas", "weight_decay", "clip_grad")
            given = [name for name in for_training if getattr(self, name) != type(self).model_fields[name].default]
            if given:
                raise ValueError(f"a {kind} policy is never trained, so it takes no {given[0]!r}")
        if self.hosted is not None and (self.model or self.frozen):
            raise ValueError(f"'hosted' says where the model is; leave out {'model' if self.model else 'frozen'!r}")
        if self.hosted is None and not self.model:
            raise ValueError("the key 'model' is missing: a Hugging Face folder, or 'hosted' for a model behind a URL")
        return self


class Stage(Section):
    """A part of an update schedule."""

    policies: Annotated[list[str], Field(min_length=1)]
    """Those that learn in it."""
    steps: PositiveInt = 1


class Updates(Section):
    """Which policies learn in which training step. All of them are sampled in every step."""

    order: Literal["joint", "alternate", "schedule"] = "joint"
    """``joint``: all in each step. ``alternate``: one after the other. ``schedule``: as ``stages`` says."""
    steps_each: PositiveInt = 1
    """For ``alternate``: how many steps a policy learns before it is the next one's turn."""
    stages: list[Stage] = Field(default_factory=list)
    """For ``schedule``: what comes after what; after the last one it begins anew."""

    @model_validator(mode="after")
    def _what_belongs_together(self) -> Self:
        if (self.order == "schedule") != bool(self.stages):
            raise ValueError("'stages' and order 'schedule' go together")
        if self.order != "alternate" and self.steps_each != 1:
            raise ValueError("'steps_each' goes with order 'alternate'")
        return self


class Sampling(Section):
    """How the team samples while it trains, and while it is measured as it runs."""

    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    max_tokens: PositiveInt = 1024
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class Audit(Section):
    """Replays of a share of each step's rollouts, whose credit trains (``counterfactual_mask``, ``counterfactual_replay``)."""

    method: Literal["mask", "replay"]
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Of the rollouts that succeeded; the turns of the others get their credit as by ``loo``."""
    replays: PositiveInt = 1
    """A rollout and role (mask) or call (replay)."""
    mask_texts: dict[str, str] = Field(default_factory=dict)
    """Role → what it says when it is masked, where ``(no answer)`` breaks the program."""


class Credit(Section):
    """How rewards become the reward of a turn, and advantages."""

    advantage: str | dict[str, str] = "role"
    """An estimator's name, or role → name."""
    options: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Estimator's name → its settings, such as ``turn_gae: {trace: 0.9}``."""
    team: float = 1.0
    """Weight of the team's reward in each turn's reward."""
    local: float = 1.0
    """Weight of the reward bound to the turn itself: to its call, else its agent path, else its role."""
    range: tuple[float, float] | None = None
    """The least and the largest that a reward may be: one outside of it ends the run. By default anything finite."""
    shaping: list[str | dict[str, dict[str, Any]]] = Field(default_factory=list)
    """What is added to rewards, in order: shapers' names, or ``name: {setting: value}``."""
    audit: Audit | None = None
    """For the advantages ``counterfactual_mask`` and ``counterfactual_replay``."""

    @model_validator(mode="after")
    def _audits_that_are_used(self) -> Self:
        chosen = {self.advantage} if isinstance(self.advantage, str) else set(self.advantage.values())
        wanted = {name for name in chosen if name.startswith("counterfactual_")}
        given = set() if self.audit is None else {f"counterfactual_{self.audit.method}"}
        if wanted != given:
            needs = " and ".join(map(repr, sorted(wanted))) or "none of the advantages"
            has = f"'audit' has method {self.audit.method!r}" if self.audit else "'audit' is not set"
            raise ValueError(
                f"{needs} needs audits, and {has}; 'counterfactual_mask' goes with 'audit: {{method: mask}}'"
            )
        return self


class Training(Section):
    """The loop."""

    steps: PositiveInt = 100
    tasks_per_step: PositiveInt = 16
    rollouts_per_task: Annotated[int, Field(ge=2)] = 8
    extra_tasks: Annotated[int, Field(ge=0)] = 0
    """DAPO's dynamic sampling: up to so many more tasks a step, drawn until as many as ``tasks_per_step`` have something to
    teach, that is, a role with unequal rewards."""
    balance: str | None = None
    """A key of the tasks' metadata: draw its values equally often."""
    collection: Literal["sync", "async"] = "sync"
    """``async``: the next groups are played while a step trains, and a step trains on those that are whole first."""
    max_staleness: PositiveInt = 2
    """Async: how many steps may train between the enqueueing of a group and its own. The trainer waits for a group whose
    time has come; none is dropped."""
    stale_turns: Literal["corrected", "uncorrected"] = "corrected"
    """Async: ``uncorrected`` allows a ``loss`` that takes turns of older policy versions for fresh ones."""
    max_seconds: PositiveFloat | None = None
    """Stop training after so much time, whatever ``steps`` says."""
    checkpoint_every: PositiveInt = 1
    """Steps between checkpoints; a run that is cut off resumes from the last."""
    stop_after_empty_steps: PositiveInt = 5
    """Stop with an error after so many steps in a row without any usable group, or without a call of some policy."""
    first_mismatch: PositiveFloat = 0.1
    """The largest ``mismatch_kl`` (nats a token) of a policy's first update; more means that its server and its trainer
    do not compute the same thing."""


class Kl(Section):
    """A pull towards the reference: the model that the policy began with, frozen."""

    coefficient: PositiveFloat = 0.001
    kind: KlKind = "k3"
    """How the divergence is estimated on the sampled tokens, by verl's names. ``k1`` (``kl``) is log π − log π_ref, ``k2``
    (``mse``) half its square, ``k3`` (``low_var_kl``) exp(−k1) − 1 + k1, ``abs`` the absolute value of k1. A ``+`` takes the
    value of the kind and the gradient of k2, which is the one that is unbiased for the divergence; without it k1's
    gradient is 0 in expectation and so pulls nowhere."""


class Correction(Section):
    """What is done about rollouts that another policy sampled than the one that is trained: an older one, or the same one
    computed by another engine. How far they are apart is measured in any case (``mismatch_*``, ``correction_*``).
    """

    proximal: Literal["rollout", "actor"] = "rollout"
    """From where the ratio and its clip are measured: ``rollout``, the log-probs that came with the tokens (verl's bypass
    mode: no pass is spent); or ``actor``, those that a forward pass computes before the first gradient step (verl's
    decoupled mode, which leaves the way from the rollout to there to ``weights``)."""
    weights: Literal["token", "sequence"] | None = None
    """Multiply the loss by π_proximal / π_rollout of the token, or of the whole row; in modes without a ratio by π / π_rollout."""
    upper: PositiveFloat | None = None
    """Weights above are cut to it (truncated importance sampling); by default 2."""
    lower: PositiveFloat | None = None
    """If given, weights outside ``lower`` to ``upper`` become 0 (IcePop)."""
    reject: dict[Rejection, PositiveFloat | tuple[PositiveFloat, PositiveFloat]] = Field(default_factory=dict)
    """Take tokens, or rows (``seq_``), out of the loss whose divergence is beyond a bound: verl's criterion → bound. The ``k1``
    criteria take two, the lowest and highest ratio; the others one, in nats."""

    @property
    def highest(self) -> float:
        """``upper``, or its default."""
        return 2.0 if self.upper is None else self.upper

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.weights is None and (self.lower is not None or self.upper is not None):
            raise ValueError("upper and lower bound the weights: set weights to 'token' or 'sequence' too")
        if self.lower is not None and self.lower >= self.highest:
            raise ValueError(f"lower ({self.lower:g}) must be below upper ({self.highest:g})")
        for criterion, bound in self.reject.items():
            if criterion.endswith("k1") and not (isinstance(bound, tuple) and bound[0] < bound[1]):
                raise ValueError(
                    f"reject.{criterion} takes two bounds, the lowest and the highest ratio, such as [0.5, 2.0]"
                )
            if not criterion.endswith("k1") and isinstance(bound, tuple):
                raise ValueError(f"reject.{criterion} takes one bound, the largest divergence in nats")
        return self


class Loss(Section):
    """What a policy's gradient is taken of. ``docs/training.md`` says which settings make which published method."""

    mode: LossMode = "vanilla"
    """verl's policy loss of this name; ``vanilla`` is PPO's clipped ratio."""
    clip_low: PositiveFloat | None = None
    """How far the ratio may fall before its gradient stops. By default 0.2; 3e-4 with ``gspo`` and 0.4 with ``geo_mean``,
    which clip a mean over the row's tokens."""
    clip_high: PositiveFloat | None = None
    """How far the ratio may rise. By default as ``clip_low``; 4e-4 with ``gspo``. DAPO: 0.28."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """With ``vanilla``, the ratio beyond which a token with a negative advantage has no gradient, by default 3; with
    ``dppo_tv`` and ``dppo_kl`` the ratio's largest value, by default 20."""
    options: dict[str, PositiveFloat] = Field(default_factory=dict)
    """What else the mode knows, by verl's names: ``tau_pos``, ``tau_neg`` (``sapo``), ``dro_beta`` (``dro``, needed),
    ``clip_cov_ratio``, ``clip_cov_lb``, ``clip_cov_ub`` (``clip_cov``), ``kl_cov_ratio``, ``ppo_kl_coef`` (``kl_cov``)."""
    aggregation: Aggregation = "seq-mean-token-mean"
    """How the losses of tokens become one: mean over rows of the mean over the row's tokens; mean over all tokens (DAPO); or
    mean over rows of their sum, which ``seq-mean-token-sum-norm`` divides by a constant (Dr. GRPO)."""
    horizon: PositiveInt | None = None
    """That constant, in tokens; ``sampling.max_tokens`` by default."""
    entropy: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the entropy bonus."""
    kl: Kl | None = None
    epochs: PositiveInt = 1
    """How often an update goes over its rows."""
    mini_batches: PositiveInt = 1
    """Gradient steps in each."""
    correction: Correction = Correction()

    @property
    def clip(self) -> tuple[float, float]:
        """``clip_low`` and ``clip_high``, or what the mode has for them."""
        low, high = _CLIPS.get(self.mode, (0.2, 0.2))
        if self.clip_low is not None:
            low = high = self.clip_low
        return low, self.clip_high if self.clip_high is not None else high

    @property
    def corrects_stale_turns(self) -> bool:
        """True where a token counts by how likely it is now, against the policy that sampled it: by a ratio that is measured
        from the rollout, or by weights.
        """
        by_ratio = self.mode not in _WITHOUT_RATIO and self.correction.proximal == "rollout"
        return by_ratio or self.correction.weights is not None

    @model_validator(mode="after")
    def _only_what_the_mode_knows(self) -> Self:
        if self.mode in _WITHOUT_CLIP and (self.clip_low is not None or self.clip_high is not None):
            raise ValueError(f"mode {self.mode!r} clips nothing: leave out clip_low and clip_high")
        if self.dual_clip is not None and self.mode not in ("vanilla", "dppo_tv", "dppo_kl"):
            raise ValueError(f"mode {self.mode!r} knows no dual_clip; 'vanilla', 'dppo_tv' and 'dppo_kl' do")
        known = _OPTIONS.get(self.mode, ())
        if unknown := sorted(set(self.options) - set(known)):
            there = f"it has: {', '.join(known)}" if known else "it has none"
            raise ValueError(f"mode {self.mode!r} has no option {unknown[0]!r}; {there}")
        if self.mode == "dro" and "dro_beta" not in self.options:
            raise ValueError("mode 'dro' needs options: {dro_beta: ...}, the strength of its penalty")
        if self.mode in ("sapo", "geo_mean") and self.aggregation != "seq-mean-token-mean":
            raise ValueError(
                f"mode {self.mode!r} is a mean over rows by itself: it goes with 'seq-mean-token-mean' only"
            )
        if self.horizon is not None and self.aggregation != "seq-mean-token-sum-norm":
            raise ValueError(f"horizon goes with aggregation 'seq-mean-token-sum-norm', not with {self.aggregation!r}")
        return self

    @model_validator(mode="after")
    def _nothing_counts_twice(self) -> Self:
        correction = self.correction
        if correction.weights is not None and correction.proximal == "rollout" and self.mode not in _WITHOUT_RATIO:
            raise ValueError(
                f"correction.weights would count twice: the ratio of mode {self.mode!r} is measured from the rollout "
                "already. Set correction.proximal: actor, or a mode without a ratio (gpg, dro)"
            )
        if self.mode == "gpg" and self.epochs * self.mini_batches > 1 and correction.weights is None:
            raise ValueError(
                "mode 'gpg' has no ratio, so gradient steps after the first are wrong for the tokens that were "
                "sampled. Set epochs and mini_batches to 1, or correction.weights"
            )
        return self


class Critic(Section):
    """A model that learns what a state is worth: for the estimators ``gae`` (PPO) and ``turn_gae``. One a policy."""

    model: str | None = None
    """A Hugging Face folder; the policy's own model by default. Its last layer is made anew, to give one number a token."""
    learning_rate: PositiveFloat = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_grad: PositiveFloat = 1.0
    value_clip: PositiveFloat = 0.5
    """How far a value may move in an update before its gradient stops."""
    warm_up_steps: Annotated[int, Field(ge=0)] = 0
    """Updates in which only the critic learns, at the beginning."""
    epochs: PositiveInt = 1
    mini_batches: PositiveInt = 1
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """γ of ``gae``: what a reward is worth a token earlier."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of ``gae``: 0 trusts the critic, 1 the rewards."""


class Unfinished(Section):
    """What answers that were cut off and rollouts that failed teach. Both are counted at every step in any case."""

    answers: Literal["train", "mask", "penalise"] = "train"
    """Answers that ended at their token limit (finish reason ``length``): trained on as all others; compared with others but
    not trained on (DAPO's over-long filtering); or with ``answer_penalty`` off their reward."""
    answer_penalty: PositiveFloat = 1.0
    rollouts: Literal["drop", "penalise"] = "drop"
    """Rollouts that raised, ran too long or returned no reward: left out; or trained on, with ``rollout_reward`` for each of
    their turns. One whose runner was lost is left out in any case."""
    rollout_reward: float = 0.0

    @model_validator(mode="after")
    def _only_what_counts(self) -> Self:
        if self.answers != "penalise" and self.answer_penalty != 1.0:
            raise ValueError("answer_penalty goes with answers 'penalise'")
        if self.rollouts != "penalise" and self.rollout_reward != 0.0:
            raise ValueError("rollout_reward goes with rollouts 'penalise'")
        return self


class Evaluation(Section):
    """What is measured, and how often."""

    every: PositiveInt = 20
    """Training steps between two looks at the validation split."""
    val_tasks: PositiveInt | None = None
    """How many validation tasks a look; all by default."""
    val_samples: PositiveInt = 1
    test_samples: PositiveInt = 2
    """Sampled rollouts a test task, before and after."""


class ModelServers(Section):
    """What every backend on verl and ``vllm serve`` takes."""

    max_model_len: PositiveInt = 1024
    max_num_seqs: PositiveInt = 64
    max_tokens_per_pass: PositiveInt = 16384
    """Padded tokens of one forward and backward pass."""
    start_seconds: PositiveFloat = 240.0
    """How long servers and trainers may take to start."""
    sync_seconds: PositiveFloat = 60.0
    """How long bringing weights to a server may take."""
    server_args: list[str] = Field(default_factory=list)
    """More arguments for ``vllm serve``."""


class LocalBackend(ModelServers):
    """verl's engine and stock ``vllm serve`` in one process tree, on a CPU or one GPU."""

    kind: Literal["local"] = "local"


class RayBackend(ModelServers):
    """The same on a Ray cluster: several GPUs and nodes, of which each policy has its own."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """A running cluster: ``auto`` for the one of this machine, or ``host:port``. By default one is started on this machine
    and ends with the run."""
    nodes: PositiveInt = 1
    """How many nodes a policy's training processes are spread over, equally many on each."""
    ranks: PositiveInt | dict[str, PositiveInt] = 1
    """Training processes a policy, each with a GPU of its own: a number, or policy → number."""
    replicas: PositiveInt | dict[str, PositiveInt] = 1
    """Model servers a policy: a number, or policy → number."""
    tensor_parallel: PositiveInt | dict[str, PositiveInt] = 1
    """GPUs a model server: a number, or policy → number."""
    update_seconds: PositiveFloat = 3600.0
    """How long an update or a checkpoint may take."""
    start_seconds: PositiveFloat = 600.0
    verl: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """verl's own settings, by its names: ``engine`` (``FSDPEngineConfig``), ``model`` (``HFModelConfig``) and ``optim``
    (``FSDPOptimizerConfig``), such as ``engine: {param_offload: true}``."""

    @field_validator("address")
    @classmethod
    def _that_workers_can_join(cls, address: str | None) -> str | None:
        if address is not None and address.startswith("ray://"):
            raise ValueError(
                "it should be auto or host:port; ray:// is for clients outside: start on a node of the cluster"
            )
        if address is not None and not re.fullmatch(r"auto|[^\s/]+:\d+", address):
            raise ValueError("it should be auto, or the cluster's address as host:port")
        return address

    @model_validator(mode="after")
    def _equally_many_on_each_node(self) -> Self:
        counts = self.ranks.values() if isinstance(self.ranks, dict) else [self.ranks]
        if any(count % self.nodes for count in counts):
            raise ValueError(f"ranks ({', '.join(map(str, counts))}) cannot be spread equally over {self.nodes} nodes")
        return self


def _backend_kind(settings: Any) -> Any:
    """Which section of ``backend`` is meant: without ``kind`` the local one."""
    return settings.get("kind", "local") if isinstance(settings, Mapping) else getattr(settings, "kind", None)


Backend = Annotated[
    Annotated[LocalBackend, Tag("local")] | Annotated[RayBackend, Tag("ray")],
    Discriminator(
        _backend_kind,
        custom_error_type="backend_kind",
        custom_error_message="It should have the kind 'local' or 'ray'",
    ),
]


class Limits(Section):
    """Where a rule of the guard warns and where it stops the run; null switches either off."""

    warn: NonNegativeFloat | None = None
    stop: NonNegativeFloat | None = None
    steps: PositiveInt = 3
    """How many steps in a row it must hold."""

    @model_validator(mode="after")
    def _warn_before_stop(self) -> Self:
        if self.warn is not None and self.stop is not None and self.warn > self.stop:
            raise ValueError(f"warn ({self.warn:g}) must not be above stop ({self.stop:g})")
        return self


class CollapseLimits(Limits):
    """Shares of what a figure began with: below ``warn`` it is said, below ``stop`` the run ends if reward falls with it."""

    warn: NonNegativeFloat | None = 0.3
    stop: NonNegativeFloat | None = 0.5
    solved: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Mean success of the team from which on a policy may be as certain as it likes."""


class GradientLimits(Limits):
    """Multiples of the usual gradient norm."""

    warn: NonNegativeFloat | None = 5.0
    stop: NonNegativeFloat | None = 10.0


class MismatchLimits(Limits):
    """KL of rollout and trainer, in nats a token."""

    warn: NonNegativeFloat | None = 0.02
    stop: NonNegativeFloat | None = 0.1
    steps: PositiveInt = 2


class ClippingLimits(Limits):
    """Shares of trained tokens."""

    warn: NonNegativeFloat | None = 0.3
    stop: NonNegativeFloat | None = 0.6


class LengthLimits(Limits):
    """Multiples of the length that a role's answers began with."""

    warn: NonNegativeFloat | None = 2.0
    stop: NonNegativeFloat | None = 4.0


class StalenessLimits(Limits):
    """Versions of the policy."""

    warn: NonNegativeFloat | None = 4.0
    stop: NonNegativeFloat | None = 8.0


class ErrorLimits(Limits):
    """Shares of rollouts, or of a role's calls."""

    warn: NonNegativeFloat | None = 0.05
    stop: NonNegativeFloat | None = 0.5


class SuccessLimits(Limits):
    """Falls of success below its best, 0.1 being ten percentage points."""

    warn: NonNegativeFloat | None = 0.1
    stop: NonNegativeFloat | None = 0.2


class ValidationLimits(Limits):
    """Falls of success on validation below its best; what is beyond ``warn`` is no good version to go back to."""

    warn: NonNegativeFloat | None = 0.05
    stop: NonNegativeFloat | None = 0.1
    steps: Literal[1] = 1
    """A look is judged by itself."""


class VerifierLimits(Limits):
    """Reward less what the held-out verifier gives, in the unit of the reward."""

    warn: NonNegativeFloat | None = 0.1
    stop: NonNegativeFloat | None = 0.2
    steps: PositiveInt = 2


class Guard(Section):
    """What ends a run before it does harm, by rule; null switches a rule off."""

    entropy: CollapseLimits | None = CollapseLimits()
    diversity: CollapseLimits | None = CollapseLimits()
    gradient: GradientLimits | None = GradientLimits()
    mismatch: MismatchLimits | None = MismatchLimits()
    clipping: ClippingLimits | None = ClippingLimits()
    length: LengthLimits | None = LengthLimits()
    staleness: StalenessLimits | None = StalenessLimits()
    errors: ErrorLimits | None = ErrorLimits()
    success: SuccessLimits | None = SuccessLimits()
    validation: ValidationLimits | None = ValidationLimits()
    verifier_gap: VerifierLimits | None = VerifierLimits()
    verifier: str | None = None
    """``file.py:function``, which scores stored rollouts again. It never trains anything."""
    verified_rollouts: PositiveInt = 64
    """How many of a step's rollouts it scores, at most."""


class TrainConfig(Section):
    """Everything ``coterie train APP CONFIG`` needs."""

    name: str
    seed: int = 0
    store: str | None = None
    """A store's URL; ``store.db`` in the work folder by default."""
    prepare: str | None = None
    """``file.py:function``, run once before training if its marks are missing: makes the model and the data."""
    agents: dict[str, str] = Field(default_factory=dict)
    """Agent name → role, where the name in normal form is not the role."""
    dataset: Dataset
    policies: Annotated[dict[str, Policy], Field(min_length=1)]
    """Policy name → the model behind it."""
    updates: Updates = Updates()
    sampling: Sampling = Sampling()
    credit: Credit = Credit()
    training: Training = Training()
    loss: Loss = Loss()
    critic: Critic | None = None
    unfinished: Unfinished = Unfinished()
    evaluation: Evaluation = Evaluation()
    prompts: PromptTuning | None = None
    """Tune the prompts too, in turn with the weights."""
    runner: Runner = Runner()
    guard: Guard | None = Guard()
    """Watches the health of the roles; null leaves the run alone."""
    metrics: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Where figures go besides the store and the console; each needs the extra of its name."""
    backend: Backend = LocalBackend()

    @model_validator(mode="after")
    def _one_policy_a_role(self) -> Self:
        for_all = [name for name, policy in self.policies.items() if not policy.roles]
        if for_all and len(self.policies) > 1:
            raise ValueError(f"policies: {for_all[0]!r} names no roles and so plays all; give each policy its roles")
        for name in self.policies:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"policies: the name {name!r} is no file name; use letters, digits, '-', '_' and '.'")
        player: dict[str, str] = {}
        for name, policy in self.policies.items():
            for role in policy.roles:
                if player.setdefault(role, name) != name:
                    raise ValueError(f"policies: the role {role!r} is played by {player[role]!r} and by {name!r}")
        return self

    @model_validator(mode="after")
    def _placed_policies(self) -> Self:
        for name in ("ranks", "replicas", "tensor_parallel"):
            given = getattr(self.backend, name, None)
            unknown = sorted(set(given) - set(self.policies)) if isinstance(given, dict) else []
            if unknown:
                there = ", ".join(self.policies)
                raise ValueError(f"backend.{name}: there is no policy {unknown[0]!r}; there are: {there}")
        return self

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        trained = [name for name, policy in self.policies.items() if policy.trained]
        if not trained:
            raise ValueError("policies: all are frozen or hosted, so there is nothing to train")
        named = [name for stage in self.updates.stages for name in stage.policies]
        for name in named:
            if name not in self.policies:
                raise ValueError(f"updates.stages: there is no policy {name!r}; there are: {', '.join(self.policies)}")
            if name not in trained:
                raise ValueError(f"updates.stages: the policy {name!r} is frozen or hosted and never trained")
        never = [name for name in trained if self.updates.order == "schedule" and name not in named]
        if never:
            raise ValueError(f"updates.stages: the policy {never[0]!r} never learns; add it to a stage, or freeze it")
        return self

    @model_validator(mode="after")
    def _stale_turns_as_told(self) -> Self:
        told = self.training.collection == "sync" or self.training.stale_turns == "uncorrected"
        if not told and not self.loss.corrects_stale_turns:
            raise ValueError(
                "training.collection 'async' trains on turns of older policy versions, and this loss takes them for fresh "
                f"ones (mode {self.loss.mode!r}, proximal {self.loss.correction.proximal!r}, no weights). Set "
                "loss.correction.weights: token, or training.stale_turns: uncorrected if this is meant"
            )
        return self

    @model_validator(mode="after")
    def _a_store_that_others_reach(self) -> Self:
        if self.runner.where == "elsewhere" and self.store is None:
            raise ValueError("with runner.where 'elsewhere' the store must be one that runners reach: set store: URL")
        return self
