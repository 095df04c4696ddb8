"""Our advantage estimators for verl's own trainers: ``algorithm.adv_estimator=coterie_role`` in a plain verl configuration.

    VERL_USE_EXTERNAL_MODULES=coterie_trainers.backends.verl_advantages python -m verl.trainer.main_ppo …

Importing this module registers each estimator that ``coterie_trainers.advantages`` knows, those of other packages
among them, as ``coterie_<name>`` with verl's ``register_adv_est``.

What a row is must be known for each: its task, rollout, role, turn and so on (``COLUMNS``). verl hands to a registered
estimator the rewards, the mask and the ``uid`` of each row, and no other column. So there are three ways:

- a plain uid: it names the task, and every row is a rollout of a single role. That is what single-agent data is.
- a uid made by ``pack``: the columns as one text. ``pack_columns`` makes it of a batch's columns; verl itself only
  compares uids, and groups rows by them where it makes figures.
- a call with ``non_tensor_batch=…`` and ``batch=…``, as verl calls its own ``gdpo``: the columns are read from there.
  ``coterie_turn_gae`` needs this, since its values are in the batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import register_adv_est

from coterie.errors import ConfigError
from coterie.interfaces import Sample
from coterie_trainers import advantages
from coterie_trainers.advantages.turn_gae import TurnGae

PREFIX = "coterie_"
"""What the names in verl begin with."""
COLUMNS = ("rollout", "role", "agent_path", "turn", "step", "invocation", "state")
"""What may be said of a row besides its uid. Left out: each row is a rollout of the role ``agent``, and its first turn."""

_logger = logging.getLogger(__name__)


def pack(task: str, **columns: str | int | None) -> str:
    """One text that names a row's task and says its columns, for verl's ``uid``.

    Raises:
        ConfigError: a column has an unknown name.
    """
    if unknown := sorted(set(columns) - set(COLUMNS)):
        raise ConfigError(f"verl: a row has no column {unknown[0]!r}. There are: {', '.join(COLUMNS)}.")
    return json.dumps({"task": task, **{name: value for name, value in columns.items() if value is not None}})


def pack_columns(non_tensor_batch: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """The ``uid`` column to put in the place of a batch's, with its other columns packed in."""
    columns = {name: non_tensor_batch[name] for name in COLUMNS if name in non_tensor_batch}
    packed = [
        pack(str(task), **{name: _plain(values[row]) for name, values in columns.items()})
        for row, task in enumerate(non_tensor_batch["uid"])
    ]
    return np.array(packed, dtype=object)


def register(names: Iterable[str] | None = None) -> None:
    """Make estimators known to verl as ``coterie_<name>``: those named, or all that there are but ``gae``, which is verl's."""
    for name in names or (each for each in advantages.names() if each != "gae"):
        register_adv_est(PREFIX + name)(_for_verl(name))


def _for_verl(name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    chosen: list[advantages.Estimate] = []

    def estimate(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: Sequence[Any] | None = None,
        config: Any = None,  # noqa: ARG001 - verl passes it by name
        non_tensor_batch: Mapping[str, Sequence[Any]] | None = None,
        batch: Mapping[str, torch.Tensor] | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages and returns, each of shape (batch, response_length); a turn's own for each of its tokens."""
        if not chosen:
            chosen.append(advantages.check(name))
        (estimator,) = chosen
        samples = _samples(token_level_rewards, response_mask, index, non_tensor_batch, batch)
        if not any(sample.role != _ROLE for sample in samples) and name not in _ROLELESS:
            _logger.warning("%s%s: no row says its role, so every row counts as a rollout of one role.", PREFIX, name)
        advantages_N = estimator(samples)
        made = estimator.estimators[name]
        returns_N = made.returns(samples) if isinstance(made, TurnGae) else advantages_N
        mask = response_mask.to(token_level_rewards)
        return _over_tokens(advantages_N, mask), _over_tokens(returns_N, mask)

    estimate.__name__ = PREFIX + name
    return estimate


_ROLE = "agent"
_ROLELESS = frozenset({"rollout", "transition", "loo"})


def _samples(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Sequence[Any] | None,
    non_tensor_batch: Mapping[str, Sequence[Any]] | None,
    batch: Mapping[str, torch.Tensor] | None,
) -> list[Sample]:
    reward_N = token_level_rewards.detach().double().sum(dim=-1).tolist()
    uids = index if index is not None else (non_tensor_batch or {}).get("uid")
    if uids is None:
        raise ConfigError("verl: the rows have no uid, which names their task. Fill data.non_tensor_batch['uid'].")
    columns = non_tensor_batch or {}
    samples = []
    for row, (reward, uid) in enumerate(zip(reward_N, uids, strict=True)):
        known = _unpacked(uid) | {name: _plain(columns[name][row]) for name in COLUMNS if name in columns}
        samples.append(_sample(row, reward, known))
    if batch is not None and "values" in batch:
        # verl's value at a token is that of the text before it, so at a turn's first token that of its prompt.
        first_N = response_mask.argmax(dim=-1)
        value_N = batch["values"].detach().double().gather(1, first_N[:, None])[:, 0].tolist()
        samples = [replace(sample, value=value) for sample, value in zip(samples, value_N, strict=True)]
    return samples


def _sample(row: int, reward: float, known: Mapping[str, Any]) -> Sample:
    said = {name: value for name, value in known.items() if value is not None}
    role = str(said.get("role", _ROLE))
    turn = int(said.get("turn", 0))
    return Sample(
        task_id=str(said["task"]),
        rollout_id=str(said.get("rollout", f"row {row}")),
        role=role,
        agent_path=str(said.get("agent_path", role)),
        turn=turn,
        reward=reward,
        state_key=said.get("state"),
        step=int(said.get("step", turn)),
        invocation=said.get("invocation"),
        step_reward=reward,
    )


def _unpacked(uid: Any) -> dict[str, Any]:
    text = str(uid)
    if text.startswith('{"task": '):
        try:
            known: dict[str, Any] = json.loads(text)
        except ValueError:
            raise ConfigError(f"verl: the uid {text!r} was not made by pack(...) as it stands.") from None
        return known
    return {"task": text}


def _plain(value: Any) -> Any:
    """A value without NumPy's type around it."""
    return value.item() if isinstance(value, np.generic) else value


def _over_tokens(value_N: np.ndarray, mask: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(value_N, dtype=mask.dtype, device=mask.device)[:, None] * mask


register()
