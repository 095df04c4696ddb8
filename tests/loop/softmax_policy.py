"""A policy that is a table, and truly learns: softmax over letters, the PPO objective by hand, in NumPy.

Everything that can go wrong with a model can go wrong with it: a learning rate can be too large, its entropy can collapse, a
reward can be exploited, what is served can be older than what is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coterie.interfaces import TrainingRow
from coterie_trainers.mismatch import mismatch

LETTERS = "abcdefgh"
CLIP = 0.2


@dataclass
class SoftmaxPolicy:
    """Answers the question of a class with letters, each drawn by itself: logits = weights · features of the class.

    ``right`` is the letter of each class. The features of classes overlap, so that a step for one moves the others.
    """

    classes: int = 16
    letters_an_answer: int = 1
    learning_rate: float = 2.0
    learning_rate_growth: float = 1.0
    """The learning rate is multiplied by this after each update."""
    entropy_bonus: float = 0.0
    """Its coefficient in the objective; a negative one is a mistake in the sign."""
    mini_batches: int = 1
    overlap: float = 0.3
    skill: float = 3.0
    """The logit of the right letter to begin with."""
    seed: int = 0
    asked: Counter[tuple[int, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        own, _ = np.linalg.qr(self.random.normal(size=(self.classes, self.classes)))
        common = np.ones(self.classes) / np.sqrt(self.classes)
        self.features = np.sqrt(1 - self.overlap**2) * own + self.overlap * common
        self.right = np.arange(self.classes) % len(LETTERS)
        wanted = 0.5 * self.random.normal(size=(self.classes, len(LETTERS)))
        wanted[np.arange(self.classes), self.right] += self.skill
        self.weights: NDArray[np.float64] = np.linalg.lstsq(self.features, wanted, rcond=None)[0].T

    def probabilities(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Class by letter."""
        logits = self.features @ (self.weights if weights is None else weights).T
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def success(self) -> float:
        """The exact success of the weights as they are: the chance that an answer holds the right letter, over all classes."""
        right = self.probabilities()[np.arange(self.classes), self.right]
        return float((1 - (1 - right) ** self.letters_an_answer).mean())

    def answer(self, number: int, weights: NDArray[np.float64], version: int) -> tuple[str, list[float]]:
        """An answer and its log-probs. The same for the n-th question of a class to a version, whoever asks when."""
        self.asked[number, version] += 1
        draw = np.random.default_rng([self.seed, number, version, self.asked[number, version]])
        chances = self.probabilities(weights)[number]
        letters = draw.choice(len(LETTERS), p=chances, size=self.letters_an_answer)
        return "".join(LETTERS[letter] for letter in letters), [float(np.log(chances[letter])) for letter in letters]

    def update(self, rows: Sequence[tuple[int, TrainingRow]]) -> dict[str, float]:
        """Gradient steps on rows, each with its class; gives the figures of an update."""
        # The order in which rollouts came must not matter.
        rows = sorted(rows, key=lambda row: (row[0], row[1].response_ids, row[1].advantages))
        class_T = np.array([number for number, row in rows for _ in row.response_ids])
        letter_T = np.array([LETTERS.index(chr(token)) for _, row in rows for token in row.response_ids])
        advantage_T = np.array([value * row.weight for _, row in rows for value in row.advantages])
        old_T = np.array([value for _, row in rows for value in row.rollout_logprobs])
        before = self.probabilities()
        figures = mismatch(old_T, np.log(before[class_T, letter_T]), np.ones(len(old_T))).metrics()
        figures["entropy"] = float(-(before * np.log(before)).sum(axis=1)[class_T].mean())
        norms, clipped = [], []
        for part in np.array_split(self.random.permutation(len(class_T)), self.mini_batches):
            gradient, share = self._gradient(class_T[part], letter_T[part], advantage_T[part], old_T[part])
            self.weights = self.weights + self.learning_rate * gradient
            norms.append(float(np.linalg.norm(gradient)))
            clipped.append(share)
        self.learning_rate *= self.learning_rate_growth
        return figures | {"loss": 0.0, "grad_norm": float(np.mean(norms)), "clip_fraction": float(np.mean(clipped))}

    def _gradient(
        self,
        class_T: NDArray[np.int64],
        letter_T: NDArray[np.int64],
        advantage_T: NDArray[np.float64],
        old_T: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], float]:
        chance_TL = np.maximum(self.probabilities()[class_T], 1e-12)
        ratio_T = np.exp(np.log(chance_TL[np.arange(len(class_T)), letter_T]) - old_T)
        outside_T = np.where(advantage_T > 0, ratio_T > 1 + CLIP, ratio_T < 1 - CLIP)
        pull_T = np.where(outside_T, 0.0, ratio_T * advantage_T)
        logits_TL = -chance_TL * pull_T[:, None]
        logits_TL[np.arange(len(class_T)), letter_T] += pull_T
        entropy_T1 = -(chance_TL * np.log(chance_TL)).sum(axis=1, keepdims=True)
        logits_TL -= self.entropy_bonus * chance_TL * (np.log(chance_TL) + entropy_T1)
        return logits_TL.T @ self.features[class_T] / len(class_T), float(outside_T.mean())


def left_alone(policy: SoftmaxPolicy, steps: int, reward: Callable[[str, str], float] | None = None) -> float:
    """How far exact success falls below its best when a policy is trained with nobody to guard it: no loop, store or HTTP.

    ``reward`` judges an answer by the right letter; as the team's own judge does, by default.
    """
    judge = reward or (lambda answer, right: float(right in answer))
    successes = [policy.success()]
    for step in range(1, steps + 1):
        rows: list[tuple[int, TrainingRow]] = []
        for number in policy.random.permutation(policy.classes)[:8]:
            right = LETTERS[policy.right[number]]
            answers = [policy.answer(int(number), policy.weights, step) for _ in range(8)]
            rewards = np.array([judge(text, right) for text, _ in answers])
            if rewards.std() > 0:
                advantages = (rewards - rewards.mean()) / rewards.std(ddof=1)
                rows += [
                    (int(number), _row(*answer, float(advantage)))
                    for answer, advantage in zip(answers, advantages, strict=True)
                ]
        if rows:
            policy.update(rows)
        successes.append(policy.success())
    return max(max(successes[: place + 1]) - success for place, success in enumerate(successes))


def _row(text: str, logprobs: list[float], advantage: float) -> TrainingRow:
    return TrainingRow(
        policy="team",
        rollout_id="alone",
        role="solver",
        call_ids=("alone",),
        prompt_ids=(1,),
        response_ids=tuple(map(ord, text)),
        response_mask=(1,) * len(text),
        rollout_logprobs=tuple(logprobs),
        advantages=(advantage,) * len(text),
    )
