"""The typed configuration of ``coterie train``. ``load_config`` reads it from YAML with errors that name the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        # No setting is a truth value, and pydantic would take true for 1.
        if isinstance(value, bool):
            raise ValueError("true and false are no values for it")
        return value


class Source(Section):
    """Where the tasks of one split come from: exactly one of the two."""

    jsonl: str | None = None
    """A JSONL file, a task a line: ``input``, and if wanted ``id``, ``reference``, ``metadata``."""
    datasets: str | None = None
    """A Hugging Face dataset: a name or a folder, for ``datasets.load_dataset``."""
    name: str | None = None
    """The dataset's configuration name."""
    split: str | None = None
    """The dataset's split."""
    limit: PositiveInt | None = None
    """Take only the first so many."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.jsonl is None) == (self.datasets is None):
            raise ValueError("give exactly one of 'jsonl' and 'datasets'")
        if self.jsonl is not None and (self.name or self.split):
            raise ValueError("'name' and 'split' go with 'datasets', not with 'jsonl'")
        return self


class Dataset(Section):
    """The three splits, apart from each other."""

    train: Source | str
    """A path to a JSONL file, or a source."""
    val: Source | str
    test: Source | str


class Policy(Section):
    """A trainable model and the roles that it plays."""

    model: str
    """A Hugging Face folder (or what ``prepare`` makes), relative to the work folder unless absolute."""
    roles: list[str] = Field(default_factory=list)
    """The roles it plays; empty means all."""
    learning_rate: PositiveFloat = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_grad: PositiveFloat = 1.0


class Sampling(Section):
    """How the team samples while it trains, and while it is measured as it runs."""

    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    max_tokens: PositiveInt = 1024
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


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


class Training(Section):
    """The loop."""

    steps: PositiveInt = 100
    tasks_per_step: PositiveInt = 16
    rollouts_per_task: Annotated[int, Field(ge=2)] = 8
    mini_batches: PositiveInt = 1
    """Gradient steps a training step."""
    clip_ratio: PositiveFloat = 0.2
    loss_aggregation: Literal["seq-mean-token-mean", "token-mean", "seq-mean-token-sum"] = "seq-mean-token-mean"
    balance: str | None = None
    """A key of the tasks' metadata: draw its values equally often."""
    max_seconds: PositiveFloat | None = None
    """Stop training after so much time, whatever ``steps`` says."""
    checkpoint_every: PositiveInt = 1
    """Steps between checkpoints; a run that is cut off resumes from the last."""
    stop_after_empty_steps: PositiveInt = 5
    """Stop with an error after so many steps in a row without any usable group."""


class Evaluation(Section):
    """What is measured, and how often."""

    every: PositiveInt = 20
    """Training steps between two looks at the validation split."""
    val_tasks: PositiveInt | None = None
    """How many validation tasks a look; all by default."""
    val_samples: PositiveInt = 1
    test_samples: PositiveInt = 2
    """Sampled rollouts a test task, before and after."""


class Runner(Section):
    """How the team runs."""

    where: Literal["here", "elsewhere"] = "here"
    """``elsewhere`` leaves the rollouts to ``coterie run`` on any machine that reaches the store."""
    concurrency: PositiveInt = 32
    """Attempts at once, here."""
    deadline_seconds: PositiveFloat = 60.0
    max_attempts: PositiveInt = 1
    lost_attempts: PositiveInt = 3
    """Elsewhere: how many attempts of a rollout may be lost with their runner; these do not count as its own failures."""
    patience_seconds: PositiveFloat = 30.0
    """Elsewhere: how long rollouts may wait without a runner before a warning."""


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
    sampling: Sampling = Sampling()
    credit: Credit = Credit()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    runner: Runner = Runner()
    backend: Backend = LocalBackend()

    @model_validator(mode="after")
    def _one_policy_a_role(self) -> Self:
        for_all = [name for name, policy in self.policies.items() if not policy.roles]
        if for_all and len(self.policies) > 1:
            raise ValueError(f"policies: {for_all[0]!r} names no roles and so plays all; give each policy its roles")
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
    def _a_store_that_others_reach(self) -> Self:
        if self.runner.where == "elsewhere" and self.store is None:
            raise ValueError("with runner.where 'elsewhere' the store must be one that runners reach: set store: URL")
        return self
