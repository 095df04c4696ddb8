"""Small team tasks with tabular policies, played in every possible way.

``TEAM``: a manager decides which of two jobs the workers do, each worker tries, and once more if it failed, a reviewer who
sees whether all succeeded accepts or sends back, and what was sent back is tried once more. The job of a kind of task is
done when what *it* needs is done. ``LINE``: three roles, one call each, in a row. ``RUNS``: a manager has a worker run once or
twice; a run goes on until it succeeds or has failed five times, so that those in vain are the long ones.

A play is one way a rollout may go: the turns with their actions, the probability of everything that is chance, and rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Row = tuple[str, ...]
"""What an agent sees: role, kind of task, and its situation. A row of the policy's table."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One turn."""

    role: str
    path: str
    row: Row
    action: int
    actions: int
    """How many there were to choose from."""
    invocation: int


@dataclass(slots=True)
class Play:
    """One way a rollout may go."""

    turns: list[Choice] = field(default_factory=list)
    chance: float = 1.0
    """Probability of what is not the agents' choice."""
    team: float = 0.0
    own: dict[str, float] = field(default_factory=dict)
    """Agent path → the reward for its own part."""


@dataclass(frozen=True, slots=True)
class TeamTask:
    """A task for benchmarks."""

    name: str
    play: Callable[[Dice, str], None]
    kinds: Sequence[str]


class Dice:
    """Plays along a script of decisions, then takes the first option each time and notes how many there were."""

    def __init__(self, script: Sequence[int]) -> None:
        self.script = script
        self.taken: list[int] = []
        self.options: list[int] = []
        self.result = Play()
        self._invocations = 0

    def begins(self) -> int:
        """A new run of an agent."""
        self._invocations += 1
        return self._invocations

    def act(self, path: str, invocation: int, *situation: str, actions: int) -> int:
        """An agent chooses in a situation."""
        action = self._decide(actions)
        role = path.rsplit("/", 1)[-1].split("-")[0]
        self.result.turns.append(Choice(role, path, (role, *situation), action, actions, invocation))
        return action

    def happens(self, probability: float) -> bool:
        """Chance decides."""
        if probability in (0.0, 1.0):
            return probability == 1.0
        yes = self._decide(2) == 0
        self.result.chance *= probability if yes else 1 - probability
        return yes

    def _decide(self, options: int) -> int:
        at = len(self.taken)
        taken = self.script[at] if at < len(self.script) else 0
        self.taken.append(taken)
        self.options.append(options)
        return taken


def every_play(task: TeamTask, kind: str) -> Iterator[Play]:
    """All ways in which a rollout of this kind of task may go, each once."""
    scripts: list[Sequence[int]] = [()]
    while scripts:
        script = scripts.pop()
        dice = Dice(script)
        task.play(dice, kind)
        for at in range(len(script), len(dice.taken)):
            scripts += [(*dice.taken[:at], other) for other in range(1, dice.options[at])]
        yield dice.result


NEEDS: Mapping[str, str] = {"easy a": "a", "hard a": "a", "easy both": "ab", "hard both": "ab"}
SKILL = {"easy": (0.9, 0.6, 0.3), "hard": (0.6, 0.3, 0.1)}
"""How often a try succeeds, by action."""
PLANS = ("a", "ab", "b")


def _play_team(dice: Dice, kind: str) -> None:
    plan = PLANS[dice.act("manager", dice.begins(), kind, "plan", actions=3)]
    done = {job: _tries(dice, kind, job) for job in plan}
    reviewer = dice.begins()
    right = all(done.get(job, False) for job in NEEDS[kind])
    sent_back = dice.act("reviewer", reviewer, kind, "all well" if all(done.values()) else "not well", actions=2)
    if sent_back and all(done.values()):
        # What was good may be spoilt by doing it again.
        done = dict.fromkeys(done, dice.happens(0.5))
    elif sent_back:
        for job in (job for job, ok in done.items() if not ok):
            done[job] = _one_try(dice, kind, job, dice.begins(), "again")
    team = float(all(done.get(job, False) for job in NEEDS[kind]))
    dice.result.team = team
    dice.result.own = {"manager": team, "reviewer": float(right != bool(sent_back))}
    dice.result.own |= {f"manager/worker-{job}": float(ok) for job, ok in done.items()}


def _tries(dice: Dice, kind: str, job: str) -> bool:
    invocation = dice.begins()
    return _one_try(dice, kind, job, invocation, "first") or _one_try(dice, kind, job, invocation, "second")


def _one_try(dice: Dice, kind: str, job: str, invocation: int, which: str) -> bool:
    action = dice.act(f"manager/worker-{job}", invocation, kind, job, which, actions=3)
    level = kind.split()[0] if job == "a" else "hard"
    return dice.happens(SKILL[level][(action + len(which) + len(kind)) % 3])


def _play_line(dice: Dice, kind: str) -> None:
    """Each role's good choice makes success likelier; a fault by one is not made good by another."""
    easy = kind == "easy"
    good = [dice.act(role, dice.begins(), kind, actions=3) == 1 for role in ("analyst", "coder", "reviewer")]
    success = dice.happens((0.95 if easy else 0.8) * 0.5 ** good.count(False))
    dice.result.team = float(success)
    dice.result.own = dict.fromkeys(("analyst", "coder", "reviewer"), float(success))


CHANCES = {"easy": (0.7, 0.2), "hard": (0.35, 0.1)}
"""How often a try of a run succeeds, by action."""
TRIES = ("first", "second", "third", "fourth", "fifth")


def _play_runs(dice: Dice, kind: str) -> None:
    """Two runs succeed more often than one, and cost a quarter."""
    runs = 1 + dice.act("manager", dice.begins(), kind, actions=2)
    done = {f"manager/worker-{number}": False for number in range(runs)}
    for path in done:
        done[path] = _run(dice, kind, path)
    team = float(any(done.values())) - 0.25 * (runs - 1)
    dice.result.team = team
    dice.result.own = {"manager": team, **{path: float(ok) for path, ok in done.items()}}


def _run(dice: Dice, kind: str, path: str) -> bool:
    invocation = dice.begins()
    for number, which in enumerate(TRIES):
        action = dice.act(path, invocation, kind, which, actions=2)
        if dice.happens(CHANCES[kind][(action + number) % 2]):
            return True
    return False


TEAM = TeamTask("team", _play_team, tuple(NEEDS))
LINE = TeamTask("line", _play_line, ("easy", "hard"))
RUNS = TeamTask("runs", _play_runs, ("easy", "hard"))


def random_policy(rows: Mapping[Row, int], *, seed: int, spread: float = 0.7) -> dict[Row, np.ndarray]:
    """Row → logits of its actions, drawn from a normal distribution."""
    chance = np.random.default_rng(seed)
    return {row: spread * chance.normal(size=actions) for row, actions in sorted(rows.items())}
