"""Rows as verl wants them: jagged tensors, row after row without padding, in passes of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.workers.utils.padding import no_padding_2_padding

from coterie_trainers.backends.local.ranks import gathered, rank, rank_count
from coterie_trainers.backends.local.shares import passes_of_rank

COLUMNS = (
    "role",
    "prompt_ids",
    "response_ids",
    "response_mask",
    "rollout_logprobs",
    "advantages",
    "weight",
    "rewards",
    "returns",
)
"""What the driver sends, a list a column, a value a row."""


@dataclass(slots=True)
class Row:
    """One sequence to train on, as ``coterie.interfaces.TrainingRow`` has it, and what is computed for it here."""

    role: str
    prompt_ids: list[int]
    response_ids: list[int]
    response_mask: list[int]
    rollout_logprobs: list[float]
    advantages: list[float]
    weight: float
    rewards: list[float] | None = None
    """One a response token, where the critic is to make advantages of them."""
    returns: list[float | None] | None = None
    """What the critic is to say before each response token; None where nobody knows."""
    values: list[float] | None = None
    """What it says."""
    proximal_logprobs: list[float] | None = None
    """Under the policy from which the ratio is measured, where that is not the one that sampled."""
    reference_logprobs: list[float] | None = None
    """Under the model that the policy began with."""

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def tokens(self) -> int:
        """Tokens that the policy sampled."""
        return sum(self.response_mask)


_NOTHING = Row("", [0], [0, 0], [0, 0], [0.0, 0.0], [0.0, 0.0], 0.0)
"""A row without a trained token."""


def rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The rows that the driver sent as columns."""
    return [Row(*values) for values in zip(*(columns[name] for name in COLUMNS), strict=True)]


def passes(rows: Sequence[Row], limit: int) -> Iterator[list[Row]]:
    """Rows of like length together, such that rows × longest stays within ``limit`` padded tokens."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: -row.length):
        if group and (len(group) + 1) * group[0].length > limit:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def passes_here(rows: Sequence[Row], limit: int) -> list[Sequence[Row]]:
    """The passes that this process makes over its share of the rows."""
    return passes_of_rank(
        rows,
        lambda share: list(passes(share, limit)),
        lambda row: row.length,
        _NOTHING,
        rank=rank(),
        ranks=rank_count(),
    )


def one_pass(rows: Sequence[Row], *, temperature: float, entropy_gradient: bool = False) -> TensorDict:
    """The rows of one pass of verl's engine; what else it may ask for is in it too."""
    mask = jagged([row.response_mask for row in rows], torch.long)
    data = tensordict_utils.get_tensordict(
        {
            "input_ids": jagged([[*row.prompt_ids, *row.response_ids] for row in rows], torch.long),
            "position_ids": jagged([list(range(row.length)) for row in rows], torch.long),
            "prompts": jagged([row.prompt_ids for row in rows], torch.long),
            "responses": jagged([row.response_ids for row in rows], torch.long),
            "loss_mask": mask,
        }
    )
    tensordict_utils.assign_non_tensor(
        data,
        temperature=temperature,
        entropy_gradient=entropy_gradient,
        global_batch_size=len(rows),
        use_remove_padding=False,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=len(rows),
    )
    return data


def forward(engine: Any, rows: Sequence[Row], output: str, *, temperature: float, limit: int) -> list[list[float]]:
    """One value a response token of each row, without gradient: the engine's output of this name (log_probs, values)."""
    number_of = {id(row): number for number, row in enumerate(rows)}
    found: dict[int, list[float]] = {}
    with engine.eval_mode():
        for group in passes_here(rows, limit):
            data = one_pass(group, temperature=temperature)

            def keep(
                model_output: dict[str, Any],
                data: TensorDict,
                dp_group: Any,  # noqa: ARG001 - verl passes it
                group: Sequence[Row] = group,
            ) -> tuple[torch.Tensor, dict[str, Any]]:
                values_RT = no_padding_2_padding(model_output[output], data)
                for row, values_T in zip(group, values_RT.double().tolist(), strict=True):
                    if id(row) in number_of:
                        found[number_of[id(row)]] = values_T[: len(row.response_ids)]
                return torch.zeros(()), {}

            engine.forward_backward_batch(data, keep, forward_only=True)
    of_all = {number: values for part in gathered(found) for number, values in part.items()}
    return [of_all[number] for number in range(len(rows))]


def padded(rows: Sequence[Row], column: Callable[[Row], Sequence[float] | None], like: torch.Tensor) -> torch.Tensor:
    """A column of numbers a response token as ``values_RT``, 0 where a row has none, on the device of ``like``."""
    width = max(len(row.response_ids) for row in rows)
    lines = [[*values, *[0.0] * (width - len(values))] for values in (column(row) or () for row in rows)]
    return torch.tensor(lines, dtype=torch.float32, device=like.device)


def jagged(values: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    """Row after row, without padding."""
    lengths = torch.tensor([0, *map(len, values)])
    flat = torch.tensor([value for row in values for value in row], dtype=dtype)
    return torch.nested.nested_tensor_from_jagged(flat, offsets=lengths.cumsum(0))
