"""What each text of each prompt is worth, out of joint configurations that were played on the same tasks.

A *configuration* has a text for every prompt. With y_ct the score of configuration c on task t and x_c its row of ones and
zeros (an intercept and one column a text), the main effects β of task t are the least squares

    y_ct = x_c β_t + noise      ⇒      β_t = X⁺ y_t      and the credit of a text = mean over t of (β_t[text] - β_t[base])

where ``base`` is the text that the prompt has now. All tasks have the same X, so what makes a task easy falls out of the
difference, and the estimates of the tasks are independent of each other: the standard error is their deviation / √T.

What it means: when all combinations were played (a full factorial), a credit is the mean, over everything that the other
prompts may be, of what the text adds: exact for every game, whatever the interactions. With fewer it is exact where the
prompts' effects add up, and else an interaction that the design cannot tell apart from a main effect goes to the texts that
take part in it. So a lesson that two prompts must learn together gives credit to both, and none to the bystanders.

Why not one change at a time: a change that is worth something only together with another shows nothing there; and in a mixed
design every rollout says something about every prompt.

Source: contrasting joint configurations on the same query, CANTANTE, arXiv 2605.13295. Where we depart: there an LLM reads the
traces of a group of configurations and divides each score among the agents; here it is the main effects of a design, which
cost no call, have a standard error, and can be checked. The design: D-optimality by exchange (V. Fedorov, "Theory of optimal
experiments", 1972).
"""

from __future__ import annotations

import random as random_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

Configuration = tuple[str, ...]
"""A text for each prompt, in the order of the prompts."""
ENUMERATED = 512
"""Up to so many combinations all are looked at; of more a random part."""
EXCHANGES = 4
"""How often each chosen row may be exchanged for a better one."""
RIDGE = 0.05
"""So that a design which does not tell everything yet can be compared with another."""


@dataclass(frozen=True, slots=True)
class Credit:
    """What a text adds to the score, in place of the text that its prompt has now."""

    value: float
    error: float
    """The standard error, over tasks; 0 with a single task, where it is unknown."""
    played: int
    """Configurations with this text."""


def text_credits(scores: Mapping[Configuration, Sequence[float]], base: Configuration) -> list[dict[str, Credit]]:
    """For each prompt: text → its credit, for all texts that were played.

    Args:
        scores: Configuration → its score on each task; the same tasks in the same order for all.
        base: What is compared with; one of the configurations that were played.
    """
    configurations = list(scores)
    levels = [list(dict.fromkeys(row[place] for row in configurations)) for place in range(len(base))]
    x_CL = _rows(configurations, levels)
    y_CT = np.array([scores[row] for row in configurations], dtype=np.float64)
    beta_LT = np.linalg.pinv(x_CL, rcond=1e-9) @ (y_CT - y_CT.mean(axis=0))
    found: list[dict[str, Credit]] = []
    column = 1
    for place, texts in enumerate(levels):
        now = column + texts.index(base[place])
        credit: dict[str, Credit] = {}
        for offset, text in enumerate(texts):
            difference_T = beta_LT[column + offset] - beta_LT[now]
            tasks = len(difference_T)
            error = float(difference_T.std(ddof=1)) / tasks**0.5 if tasks > 1 else 0.0
            credit[text] = Credit(float(difference_T.mean()), error, int(x_CL[:, column + offset].sum()))
        found.append(credit)
        column += len(texts)
    return found


def design(
    levels: Sequence[Sequence[str]],
    played: Sequence[Configuration],
    count: int,
    *,
    first: Sequence[Configuration] = (),
    random: random_module.Random,
) -> list[Configuration]:
    """Configurations to play next, none of which was played: all that are left if there are no more than ``count``, else those
    that tell most about the texts' main effects, given what was played.

    Args:
        levels: For each prompt the texts that it may have.
        played: Configurations that are known already.
        count: How many at most.
        first: Some that are to be among them.
        random: Draws the combinations to choose from where there are too many to look at, and breaks ties.
    """
    known = set(played)
    if prod(map(len, levels)) <= ENUMERATED:
        open_ = [row for row in product(*levels) if row not in known]
        random.shuffle(open_)
    else:
        drawn = [tuple(random.choice(list(texts)) for texts in levels) for _ in range(ENUMERATED)]
        open_ = [row for row in dict.fromkeys(drawn) if row not in known]
    chosen = [row for row in dict.fromkeys(first) if row not in known][:count]
    open_ = [row for row in open_ if row not in set(chosen)]
    if len(open_) + len(chosen) <= count:
        return chosen + open_
    texts = [list(dict.fromkeys([*one, *(row[place] for row in played)])) for place, one in enumerate(levels)]
    open_CL = _rows(open_, texts)
    fixed_CL = _rows([*played, *chosen], texts)
    information_LL = fixed_CL.T @ fixed_CL + RIDGE * np.eye(fixed_CL.shape[1])
    return chosen + [open_[at] for at in _most_telling(open_CL, information_LL, count - len(chosen))]


def _most_telling(open_CL: NDArray[np.float64], information_LL: NDArray[np.float64], count: int) -> list[int]:
    """Which rows to add so that the determinant of the information grows most: one by one, then each exchanged for a better one
    as long as that helps.
    """
    # det(M + x xᵀ) = det(M) (1 + xᵀ M⁻¹ x): the row with the largest leverage tells most.
    places: list[int] = []

    def best() -> int:
        leverage_C = np.einsum("cl,lm,cm->c", open_CL, np.linalg.inv(information_LL), open_CL)
        leverage_C[places] = -np.inf
        return int(np.argmax(np.round(leverage_C, 9)))

    for _ in range(count):
        places.append(best())
        information_LL = information_LL + np.outer(open_CL[places[-1]], open_CL[places[-1]])
    for _ in range(EXCHANGES):
        before = sorted(places)
        for _ in range(count):
            left = places.pop(0)
            information_LL = information_LL - np.outer(open_CL[left], open_CL[left])
            places.append(best())
            information_LL = information_LL + np.outer(open_CL[places[-1]], open_CL[places[-1]])
        if sorted(places) == before:
            break
    return places


def _rows(configurations: Sequence[Configuration], levels: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """An intercept, and for each text of each prompt whether the configuration has it."""
    rows = [
        [1.0, *(float(row[place] == text) for place, texts in enumerate(levels) for text in texts)]
        for row in configurations
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 1 + sum(map(len, levels)))
