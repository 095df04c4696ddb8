"""The sections that configurations of all kinds are made of: what is run, and on which tasks."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        # Where no truth value is meant pydantic would take true for 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
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


class Runner(Section):
    """How the team runs."""

    where: Literal["here", "elsewhere"] = "here"
    """``elsewhere`` leaves the rollouts to ``coterie run`` on any machine that reaches the store."""
    concurrency: PositiveInt = 32
    """Attempts at once, here. Elsewhere, with ``training.collection: async``: as many as all runners together play at once."""
    deadline_seconds: PositiveFloat = 60.0
    max_attempts: PositiveInt = 1
    lost_attempts: PositiveInt = 3
    """Elsewhere: how many attempts of a rollout may be lost with their runner; these do not count as its own failures."""
    patience_seconds: PositiveFloat = 30.0
    """Elsewhere: how long rollouts may wait without a runner before a warning."""
