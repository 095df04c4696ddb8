"""Batches: credited turns and their advantages as rows to train on, such that a rollout counts once.

**Merging.** Turns of one role that continue each other exactly (the later prompt begins with all tokens of the earlier turn)
become one row; what tools and other agents wrote in between is masked. Nothing is lost: each sampled token keeps its
log-prob, its advantage and the very tokens it was conditioned on, but the prefix is computed once.

**Weights.** A row weighs 1 / (rows of its rollout for this policy), scaled so that the mean over the policy's rows is 1. The unit
is the rollout, not (rollout, role): the rollout is what was sampled. A role that speaks once among nine turns of another
holds a tenth of the rollout's tokens in the policy's gradient; giving each role an equal share would make tokens of
seldom roles louder only because they are seldom. Where each role has a policy of its own the two are the same.

How a trainer applies a weight: multiply the row's advantages by it. The clipped PPO objective is positively homogeneous in
the advantage: max(−A·ρ, −A·clip(ρ)), and its dual clip −A·c, scale with w > 0, and neither which side is clipped nor the
sign changes. So with an aggregation that first reduces each sequence and then takes the mean over sequences (verl's
``seq-mean-token-mean`` and ``seq-mean-token-sum``), the loss is

    (1/R) Σ_rows w_row · ℓ_row  =  (1/Σu) Σ_rollouts (mean of ℓ over the rollout's rows),   u_row = 1 / (rows of its rollout)

With ``token-mean`` a row counts by its tokens besides: a rollout by the mean length of its rows, not by their number.
(``backends/local/verl_loss.py`` applies weights beside the advantages, which comes to the same in these modes and is right in
those, too, that are not homogeneous.)

**Rows without advantage** add nothing to that gradient and are dropped to save their computation. The weights are set
*before*: a rollout of four rows of which one is left contributes that row with 1/4, as it would with all four, so that dropping
never changes what rows weigh against each other. The scaling comes *after*, over the rows that are left, so that the size of
a gradient step does not shrink with the number of groups that had nothing to teach (the point of DAPO's dynamic
sampling, arXiv 2503.14476, section 3.2). Turns without tokens or beyond ``max_tokens`` are not rows at all: what is left of
their rollout weighs one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from coterie.episodes import Turn
from coterie.errors import ConfigError
from coterie.interfaces import TrainingRow
from coterie.store.garbage import no_search_for_garbage
from coterie_trainers.credit import CreditedTurn

_Item = TypeVar("_Item")
PolicyOf = str | Mapping[str, str] | Callable[[str], str | None]
"""Role → policy: one policy for all roles, a mapping, or a function. A role without a policy is frozen."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to train on, and what became of every turn.

    ``turns = frozen + untrainable + trainable`` and ``trainable = masked + too_long + zero_advantage + trained``; the turns
    trained lie in ``trained − merged`` rows.
    """

    rows: Mapping[str, Sequence[TrainingRow]]
    """Policy → its rows, by rollout and time. A policy whose turns gave no row has an empty sequence."""
    turns: int
    """All turns that came in."""
    frozen: Mapping[str, int] = field(default_factory=dict)
    """Role without a policy → its turns."""
    untrainable: int = 0
    """Turns of trained roles without token ids, or without one finite log-prob a token."""
    trainable: int = 0
    """Turns of trained roles with all that."""
    masked: int = 0
    """Trainable turns that are not to be trained on: what the caller masked."""
    too_long: int = 0
    """Trainable turns with more than ``max_tokens`` tokens: dropped."""
    zero_advantage: int = 0
    """Trainable turns in rows without any advantage: dropped."""
    merged: int = 0
    """Turns that continue another one's row."""

    @property
    def trained(self) -> int:
        """Turns that lie in a row."""
        return sum(len(row.call_ids) for rows in self.rows.values() for row in rows)


@no_search_for_garbage()
def build_batch(
    credited: Sequence[CreditedTurn],
    advantages_N: Sequence[float] | NDArray[np.float64],
    policy_of: PolicyOf,
    *,
    merge: bool = True,
    drop_zero: bool = True,
    max_tokens: int | None = None,
    masked: Collection[int] = (),
    token_level: bool = False,
    returns_N: Sequence[float | None] | None = None,
) -> Batch:
    """Rows for each policy. A row's ``advantages`` are as estimated: the weight is not multiplied in.

    Args:
        credited: N turns; all turns of a rollout together, in any order.
        advantages_N: One advantage a turn.
        policy_of: Which policy plays a role.
        merge: Join turns that continue each other exactly.
        drop_zero: Leave out rows in which every advantage is 0.
        max_tokens: Leave out turns whose prompt and response are longer than this together.
        masked: Places of turns that are not to be trained on.
        token_level: What is given as advantages are the rewards of the turns, of which the critic makes advantages by
            token: each turn is a row of its own, its reward at its last token.
        returns_N: What the critic is to learn to say at the beginning of each turn, None where nobody knows. Then, as with ``token_level``, no row
            is left out: one without advantage teaches the critic still.

    Raises:
        ConfigError: the number of advantages is wrong, one is not finite, or a turn was sampled by another policy than
            the one that is to be trained on it.
    """
    advantage_N = _checked(advantages_N, credited)
    look_up = _look_up(policy_of)
    frozen: Counter[str] = Counter()
    untrainable = trainable = too_long = left_out = 0
    merge = merge and not token_level
    drop_zero = drop_zero and not token_level and returns_N is None
    policies: dict[str, list[_Open]] = {}
    chains: dict[_ChainKey, list[_Open]] = defaultdict(list)

    for place in _by_time(credited):
        turn, sample = credited[place].turn, credited[place].sample
        policy = look_up(turn.role)
        if policy is None:
            frozen[turn.role] += 1
            continue
        rows = policies.setdefault(policy, [])
        _check_sampled_by(policy, turn)
        if not turn.trainable or not _all_finite(turn.logprobs or ()):
            untrainable += 1
            continue
        trainable += 1
        if place in masked:
            left_out += 1
            continue
        piece = _Piece.of(turn, advantage_N[place], None if returns_N is None else returns_N[place])
        if max_tokens is not None and piece.tokens > max_tokens:
            too_long += 1
            continue
        branches = chains[sample.rollout_id, policy, turn.role, turn.agent_path, turn.policy_version]
        continued = next((row for row in reversed(branches) if row.goes_on_with(piece)), None) if merge else None
        if continued is not None:
            continued.append(piece)
        else:
            row = _Open(policy, sample.rollout_id, turn, piece)
            branches.append(row)
            rows.append(row)

    kept = {policy: [row for row in rows if row.teaches] if drop_zero else rows for policy, rows in policies.items()}
    return Batch(
        rows={policy: _closed(rows, _weights(policies[policy]), token_level) for policy, rows in kept.items()},
        turns=len(credited),
        frozen=dict(frozen),
        untrainable=untrainable,
        trainable=trainable,
        masked=left_out,
        too_long=too_long,
        zero_advantage=_turns(policies) - _turns(kept),
        merged=_turns(kept) - sum(map(len, kept.values())),
    )


def value_rows(credited: Sequence[CreditedTurn], policy_of: PolicyOf) -> dict[str, list[tuple[int, TrainingRow]]]:
    """Policy → the place of each trainable turn and a row of its prompt and first token: at which the critic says what
    the state at the turn's beginning is worth.
    """
    look_up = _look_up(policy_of)
    rows: dict[str, list[tuple[int, TrainingRow]]] = {}
    for place, item in enumerate(credited):
        policy, turn = look_up(item.turn.role), item.turn
        if policy is None or not turn.trainable:
            continue
        first = TrainingRow(
            policy=policy,
            rollout_id=item.sample.rollout_id,
            role=turn.role,
            call_ids=(turn.call_id,),
            prompt_ids=tuple(turn.prompt_ids or ()),
            response_ids=tuple(turn.response_ids or ())[:1],
            response_mask=(1,),
            rollout_logprobs=tuple(turn.logprobs or ())[:1],
            advantages=(0.0,),
            policy_version=turn.policy_version,
        )
        rows.setdefault(policy, []).append((place, first))
    return rows


_ChainKey = tuple[str, str, str, str, int | None]
"""Rollout, policy, role, agent path, policy version: only turns that agree in all may share a row."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The tokens of one turn, and its advantage."""

    call_id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float
    returned: float | None

    @classmethod
    def of(cls, turn: Turn, advantage: float, returned: float | None) -> _Piece:
        return cls(
            turn.call_id,
            tuple(turn.prompt_ids or ()),
            tuple(turn.response_ids or ()),
            tuple(turn.logprobs or ()),
            float(advantage),
            returned,
        )

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


class _Open:
    """A row that later turns may still continue."""

    def __init__(self, policy: str, rollout_id: str, turn: Turn, piece: _Piece) -> None:
        self.policy = policy
        self.rollout_id = rollout_id
        self.role = turn.role
        self.policy_version = turn.policy_version
        self.pieces = [piece]

    @property
    def teaches(self) -> bool:
        """True when a turn of it has an advantage."""
        return any(piece.advantage for piece in self.pieces)

    def goes_on_with(self, piece: _Piece) -> bool:
        """True when the piece's prompt begins with all tokens of this row."""
        last = self.pieces[-1]
        return (
            len(piece.prompt_ids) >= last.tokens
            # The cheapest sign of another branch, before slices are made.
            and piece.prompt_ids[last.tokens - 1] == last.response_ids[-1]
            and piece.prompt_ids[len(last.prompt_ids) : last.tokens] == last.response_ids
            and piece.prompt_ids[: len(last.prompt_ids)] == last.prompt_ids
        )

    def append(self, piece: _Piece) -> None:
        self.pieces.append(piece)

    def close(self, weight: float, token_level: bool) -> TrainingRow:
        """The row, whose tokens are the turn's own where it is only one."""
        first = self.pieces[0]
        foreign: list[tuple[int, ...]] = [()]
        end = len(first.prompt_ids) + len(first.response_ids)
        for piece in self.pieces[1:]:
            foreign.append(piece.prompt_ids[end:])
            end = piece.tokens
        lengths = [(len(ids), len(piece.response_ids)) for ids, piece in zip(foreign, self.pieces, strict=True)]
        advantages = [
            (0.0,) * before + (0.0 if token_level else piece.advantage,) * sampled
            for piece, (before, sampled) in zip(self.pieces, lengths, strict=True)
        ]
        total = sum(map(sum, lengths))
        return TrainingRow(
            policy=self.policy,
            rollout_id=self.rollout_id,
            role=self.role,
            call_ids=tuple(piece.call_id for piece in self.pieces),
            prompt_ids=first.prompt_ids,
            response_ids=_joined([ids + piece.response_ids for ids, piece in zip(foreign, self.pieces, strict=True)]),
            response_mask=_joined([(0,) * before + (1,) * sampled for before, sampled in lengths]),
            rollout_logprobs=_joined(
                [(0.0,) * before + piece.logprobs for piece, (before, _) in zip(self.pieces, lengths, strict=True)]
            ),
            advantages=_joined(advantages),
            weight=weight,
            policy_version=self.policy_version,
            rewards=(0.0,) * (total - 1) + (first.advantage,) if token_level else None,
            returns=self._returns(lengths),
        )

    def _returns(self, lengths: Sequence[tuple[int, int]]) -> tuple[float | None, ...] | None:
        """What the critic is to say at the first token of each turn; None if it is to say nothing."""
        if all(piece.returned is None for piece in self.pieces):
            return None
        return _joined(
            [
                (None,) * before + (piece.returned,) + (None,) * (sampled - 1)
                for piece, (before, sampled) in zip(self.pieces, lengths, strict=True)
            ]
        )


def _joined(parts: Sequence[tuple[_Item, ...]]) -> tuple[_Item, ...]:
    return parts[0] if len(parts) == 1 else tuple(chain.from_iterable(parts))


def _weights(rows: Sequence[_Open]) -> Mapping[str, float]:
    """Rollout → what each of its rows weighs."""
    return {rollout_id: 1.0 / count for rollout_id, count in Counter(row.rollout_id for row in rows).items()}


def _closed(rows: Sequence[_Open], weights: Mapping[str, float], token_level: bool) -> tuple[TrainingRow, ...]:
    """Rows with their weights, scaled to mean one."""
    total = math.fsum(weights[row.rollout_id] for row in rows)
    return tuple(row.close(weights[row.rollout_id] * len(rows) / total, token_level) for row in rows)


def _turns(rows_by_policy: Mapping[str, Sequence[_Open]]) -> int:
    return sum(len(row.pieces) for rows in rows_by_policy.values() for row in rows)


def _all_finite(values: Sequence[float]) -> bool:
    # A sum is finite only if all are, and quicker to make; one that overflows says nothing.
    return math.isfinite(sum(values)) or all(map(math.isfinite, values))


def _by_time(credited: Sequence[CreditedTurn]) -> list[int]:
    """Places by rollout, in order of first appearance, and within a rollout by start."""
    order: dict[str, int] = {}
    for item in credited:
        order.setdefault(item.sample.rollout_id, len(order))

    def when(place: int) -> tuple[int, int, int]:
        item = credited[place]
        return order[item.sample.rollout_id], item.turn.start_ns, item.turn.index

    return sorted(range(len(credited)), key=when)


def _look_up(policy_of: PolicyOf) -> Callable[[str], str | None]:
    if isinstance(policy_of, str):
        return lambda _role: policy_of
    return policy_of.get if isinstance(policy_of, Mapping) else policy_of


def _check_sampled_by(policy: str, turn: Turn) -> None:
    if turn.policy is not None and turn.policy != policy:
        raise ConfigError(
            f"policies: call {turn.call_id} of role {turn.role!r} was answered by policy {turn.policy!r}, but "
            f"{policy!r} is to be trained on it. Give the role the endpoint of {policy!r}, or change `policies`."
        )


def _checked(
    advantages_N: Sequence[float] | NDArray[np.float64], credited: Sequence[CreditedTurn]
) -> NDArray[np.float64]:
    advantage_N = np.asarray(advantages_N, dtype=np.float64)
    if advantage_N.shape != (len(credited),):
        raise ConfigError(f"There are {len(credited)} turns but advantages of shape {advantage_N.shape}: one a turn.")
    for place in map(int, np.flatnonzero(~np.isfinite(advantage_N))):
        turn = credited[place].turn
        raise ConfigError(
            f"The advantage of call {turn.call_id} of role {turn.role!r} in rollout "
            f"{credited[place].sample.rollout_id} is {advantage_N[place]}. It must be a finite number."
        )
    return advantage_N
