"""The typed configuration of ``coterie optimize``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from coterie.errors import PromptError
from coterie.prompts import SYSTEM, check_part
from coterie_trainers.sections import Dataset, Runner, Section


class PromptSetting(Section):
    """A prompt to tune. Without ``text`` and ``file`` it begins as the store's active version, else as what the role sends;
    examples, else as none.
    """

    role: Annotated[str, Field(min_length=1)] | None = None
    """Whose it is; by default what its name begins with, up to the first ``/``."""
    part: str | None = None
    """``system``, ``tool/<tool name>`` or ``examples``; by default what follows the first ``/`` of its name, else ``system``."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """What it begins as."""
    file: str | None = None
    """A text file with what it begins as, beside the configuration."""
    placeholders: list[str] | None = None
    """The ``{{name}}`` that every text must hold; by default those of the text that it begins as."""

    @field_validator("part")
    @classmethod
    def _a_part_that_there_is(cls, part: str | None) -> str | None:
        try:
            return part if part is None else check_part(part)
        except PromptError as error:
            raise ValueError(str(error).removesuffix(".")) from None

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        if self.text is not None and self.file is not None:
            raise ValueError("give 'text' or 'file', not both")
        return self

    def role_of(self, name: str) -> str:
        """The role of a prompt of this name."""
        return self.role or name.partition("/")[0]

    def part_of(self, name: str) -> str:
        """The part of a prompt of this name."""
        return self.part or name.partition("/")[2] or SYSTEM


class Price(Section):
    """What a model costs, a million tokens. The currency is yours: ``budget.money`` is in it."""

    input: NonNegativeFloat
    output: NonNegativeFloat


class Reflection(Section):
    """The model that reads what went wrong and writes prompts: any OpenAI-compatible endpoint."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
    """Such as ``https://models.example.com/v1``, or a ``vllm serve`` on this machine."""
    model: Annotated[str, Field(min_length=1)]
    """Its name there."""
    api_key: Annotated[str, Field(pattern=r"^env:[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """``env:NAME``: the environment variable that holds the key. Never the key itself."""
    temperature: Annotated[float, Field(ge=0, le=5)] | None = 1.0
    """null leaves it to the server: some models refuse the parameter."""
    max_tokens: PositiveInt = 8192
    """The longest answer, in tokens."""
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The name under which the server takes it: newer models of OpenAI want the second."""
    concurrency: PositiveInt = 8
    """Calls at once."""
    requests_per_minute: PositiveFloat | None = None
    """No more calls than this, evenly spread."""
    retries: Annotated[int, Field(ge=0)] = 5
    """How often a call is tried again after a fault of the line or the server, ever later (the OpenAI SDK's back-off)."""
    timeout_seconds: PositiveFloat = 120.0
    """How long one try may take."""
    price: Price | None = None


class Budget(Section):
    """What a run may spend in all, the measuring of its result included. At least one limit."""

    rollouts: PositiveInt | None = None
    """Rollouts of the team."""
    calls: PositiveInt | None = None
    """LLM calls: the team's and the reflecting model's."""
    tokens: PositiveInt | None = None
    """Tokens of all calls, in and out."""
    money: PositiveFloat | None = None
    """By ``prices`` and ``reflection.price``."""
    seconds: PositiveFloat | None = None
    """Time, over all processes that worked on the run."""

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if not any(getattr(self, name) is not None for name in type(self).model_fields):
            raise ValueError(f"give at least one limit of: {', '.join(type(self).model_fields)}")
        return self


class RewardRange(Section):
    """Which reward counts, and what it may be."""

    name: str = "reward"
    """The rewards of this name that are bound to the whole team add up to a rollout's score."""
    range: tuple[float, float] = (0.0, 1.0)
    """The least and the largest score: one outside of it ends the run. A rollout that failed scores the least."""

    @field_validator("range")
    @classmethod
    def _in_order(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("the first must be below the second")
        return value


class Selection(Section):
    """How the winner is chosen on ``val`` and reported on ``test``."""

    samples: PositiveInt = 1
    """Rollouts a validation task for a candidate that goes the whole way."""
    finalists: PositiveInt = 4
    """How many of the optimiser's candidates are measured on validation, beside the seed."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of the intervals: those that drop a finalist early, and that of the gain."""
    test_samples: PositiveInt = 2
    """Rollouts a test task, for the winner and for the seed."""
    ablate: bool = True
    """Measure what each changed prompt adds, where several changed: the winner without it, on validation, with what is left of
    the budget."""
    gate: Literal["test", "val", "none"] = "test"
    """On which split the gain's interval must lie above 0 for the winner to become active; ``none`` takes it as it is."""
    flagged: Literal["report", "refuse"] = "report"
    """What becomes of a finalist whose texts hold parts of single tasks or grew without end: ``report`` says so and lets it lose
    ties; ``refuse`` leaves it out."""
    growth: Annotated[float, Field(ge=1)] = 4.0
    """A text that is longer than so many times the one it began as, and 2,000 characters more, is flagged."""
    longest: PositiveInt = 20_000
    """So is one of more characters than this, and examples that are."""


class Sampling(Section):
    """What is changed in the team's calls while it is measured."""

    seeded: bool = True
    """Send each call the parameter ``seed``: a task's n-th rollout has the same for every candidate. Only where the API has
    it; switch it off for a server that refuses it."""
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    """null leaves what the agents ask for."""


class Tuning(Section):
    """How prompts are tuned, by themselves or in turn with weights."""

    prompts: dict[str, PromptSetting] = Field(default_factory=dict)
    """Prompt name → what it is. Empty means the system prompt of every role, as the first rollouts show it."""
    optimiser: str | dict[str, dict[str, Any]] = "gepa"
    """A name, or ``{name: {setting: value}}``."""
    reflection: Reflection | None = None
    """For optimisers that ask a model."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """Model name, as the team asks for it → its price."""
    budget: Budget
    reward: RewardRange = RewardRange()
    selection: Selection = Selection()
    sampling: Sampling = Sampling()

    @property
    def optimiser_name(self) -> str:
        """Which optimiser searches."""
        return self.optimiser if isinstance(self.optimiser, str) else next(iter(self.optimiser))

    @property
    def optimiser_settings(self) -> dict[str, Any]:
        """What it is made with."""
        return {} if isinstance(self.optimiser, str) else self.optimiser[self.optimiser_name]

    @field_validator("prompts", "optimiser", mode="before")
    @classmethod
    def _nothing_said(cls, value: Any) -> Any:
        return {name: {} if one is None else one for name, one in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_optimiser(self) -> Self:
        if not isinstance(self.optimiser, str) and len(self.optimiser) != 1:
            raise ValueError("optimiser: name one, as 'gepa' or as {gepa: {…}}")
        return self

    @model_validator(mode="after")
    def _one_prompt_a_part(self) -> Self:
        owner: dict[tuple[str, str], str] = {}
        for name, setting in self.prompts.items():
            key = setting.role_of(name), setting.part_of(name)
            try:
                check_part(key[1], of=f"prompts.{name}")
            except PromptError as error:
                raise ValueError(str(error)) from None
            if owner.setdefault(key, name) != name:
                raise ValueError(f"prompts: {owner[key]!r} and {name!r} are both the {key[1]!r} of the role {key[0]!r}")
        return self

    @model_validator(mode="after")
    def _prices_for_money(self) -> Self:
        if self.budget.money is not None and not self.prices:
            raise ValueError("budget.money needs 'prices': model name → {input: …, output: …}, a million tokens")
        if self.budget.money is not None and self.reflection is not None and self.reflection.price is None:
            raise ValueError("budget.money needs 'reflection.price': {input: …, output: …}, a million tokens")
        return self


class OptimizeConfig(Tuning):
    """Everything ``coterie optimize APP CONFIG`` needs."""

    name: str
    seed: int = 0
    store: str | None = None
    """A store's URL; ``store.db`` in the work folder by default."""
    dataset: Dataset
    agents: dict[str, str] = Field(default_factory=dict)
    """Agent name → role, where the name in normal form is not the role."""
    runner: Runner = Runner()
    metrics: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Where figures go besides the store and the console; each needs the extra of its name."""

    @model_validator(mode="after")
    def _a_store_that_others_reach(self) -> Self:
        if self.runner.where == "elsewhere" and self.store is None:
            raise ValueError("with runner.where 'elsewhere' the store must be one that runners reach: set store: URL")
        return self


class PromptTuning(Tuning):
    """The section ``prompts`` of ``coterie train``: searches for better prompts between training steps."""

    every: PositiveInt
    """Training steps from one search to the next."""
    first: Literal["prompts", "weights"] = "prompts"
    """Whether there is a search before the first step too."""
    selection: Selection = Selection(gate="val")
    """``gate`` is ``val`` or ``none`` here: the test split is for the end of the run."""

    @field_validator("selection", mode="before")
    @classmethod
    def _gate_of_its_own(cls, value: Any) -> Any:
        return {"gate": "val", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _test_is_for_the_end(self) -> Self:
        if self.selection.gate == "test":
            raise ValueError("selection.gate: in a training run the test split is for its end; set it to val or none")
        return self
