"""A study without rollouts, for tests of optimisers: what a text is worth and what is reflected is written in the test."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coterie.episodes import Episode, Turn
from coterie.vocabulary import Reward, Task
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Messages, Trial, TunedPrompt

Scores = Mapping[str, float]
"""``team`` and roles → what they got."""


class WrittenStudy:
    """``worth`` gives the scores of texts on a task, ``reflection`` the answer to a question; both may raise.

    Every role says ``<role> on <input>: <its prompt>`` once a rollout, in the order of the prompts.
    """

    def __init__(
        self,
        prompts: Mapping[str, str],
        worth: Callable[[Mapping[str, str], Task], Scores],
        reflection: Callable[[str], str] = lambda question: "",
        *,
        train: int = 8,
        val: int = 8,
        rollouts: int = 100_000,
        reflections: int = 100_000,
        tuned: Mapping[str, TunedPrompt] | None = None,
        seed: int = 0,
    ) -> None:
        self.prompts: dict[str, TunedPrompt] = dict(tuned or {name: TunedPrompt(name, name) for name in prompts})
        self.train = [Task(f"train-{n}", n, split="train") for n in range(train)]
        self.val = [Task(f"val-{n}", n, split="val") for n in range(val)]
        self.seed = Candidate(dict(prompts))
        self.score_range = (0.0, 1.0)
        self.random = random.Random(seed)
        self.rollouts_left, self.reflections_left = rollouts, reflections
        self.played: dict[tuple[str, str, int], Trial] = {}
        self.texts: dict[str, Mapping[str, str]] = {}
        self.questions: list[tuple[str, str]] = []
        """Purpose and text of each, in order."""
        self.notes: list[str] = []
        self._worth, self._reflection = worth, reflection

    async def evaluate(self, candidate: Candidate, tasks: Sequence[Task], *, samples: int = 1) -> Sequence[Trial]:
        id_ = candidate.id
        self.texts[id_] = candidate.texts
        keys = [(id_, task.id, sample) for task in tasks for sample in range(samples)]
        new = [key for key in keys if key not in self.played]
        if len(new) > self.rollouts_left:
            raise BudgetSpentError("no rollouts are left")
        self.rollouts_left -= len(new)
        by_id = {task.id: task for task in tasks}
        for _, task_id, sample in new:
            scores = dict(self._worth(candidate.texts, by_id[task_id]))
            team = scores.pop("team")
            name = f"{id_}/{task_id}/{sample}"
            self.played[id_, task_id, sample] = Trial(id_, by_id[task_id], sample, name, team, None, scores)
        return [self.played[key] for key in keys]

    async def episodes(self, trials: Sequence[Trial]) -> Sequence[Episode]:
        return [self._episode(trial) for trial in trials]

    async def reflect(self, messages: Messages, *, purpose: str) -> str:
        text = messages if isinstance(messages, str) else "\n".join(each["content"] for each in messages)
        if not self.reflections_left:
            raise BudgetSpentError("no reflections are left")
        self.reflections_left -= 1
        self.questions.append((purpose, text))
        return self._reflection(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def _episode(self, trial: Trial) -> Episode:
        texts = self.texts[trial.candidate]
        turns = [
            turn_of(prompt.role, f"input {trial.task.input}", f"{prompt.role} on {trial.task.input}: {texts[name]}", at)
            for at, (name, prompt) in enumerate(self.prompts.items())
        ]
        ids = (trial.rollout_id, "at")
        rewards = [
            Reward(*ids, trial.score),
            *(Reward(*ids, score, role=role) for role, score in trial.role_scores.items()),
        ]
        return Episode(trial.rollout_id, "at", trial.task.id, turns, rewards=rewards)


def turn_of(role: str, asked: str, said: str, at: int = 0, **more: Any) -> Turn:
    """A turn that begins at the second ``at`` and takes half of one."""
    told = [{"role": "system", "content": "what the role is told"}, {"role": "user", "content": asked}]
    fields: dict[str, Any] = {
        "call_id": f"ca-{role}-{at}",
        "agent": role,
        "role": role,
        "agent_path": role,
        "index": 0,
        "messages": told,
        "text": said,
        "output": [{"role": "assistant", "content": said}],
        "start_ns": at * 10**9,
        "end_ns": at * 10**9 + 5 * 10**8,
    }
    fields |= dict.fromkeys(("prompt_ids", "response_ids", "logprobs", "policy", "policy_version"))
    fields |= dict.fromkeys(("prompt_name", "prompt_version", "model", "finish_reason", "error"))
    return Turn(**(fields | more))
