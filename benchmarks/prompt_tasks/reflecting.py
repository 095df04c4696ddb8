"""The scripted model that reflects: what stands for the strong LLM which proposes edits.

It is no model of how clever an LLM is, but a fixed and stated rule of how one reads; every optimiser has the same one:

1. It sees the messages that it is sent and nothing else: no task, no role, no score that does not stand in them.
2. It reads ``WINDOW`` characters at most: of a longer text its first and its last half window (what stands in the middle of a
   long context is found least; arXiv 2307.03172).
3. It looks for remarks that make a reader want to change a prompt (each task lists them, ``Suspicion``): one for each planted
   lesson, and several that lead astray. What a lesson is inferred from must be visible. Each mention catches its eye with the
   same chance, so a remark among many is found rarely, and one made in every failure is found often.
4. With chance ``DISCERNMENT`` it keeps to the remarks that bear on the role whose prompt it is asked to change; else it takes
   whichever caught its eye, also one that is another role's business, as LLMs do that are shown a whole trace.
5. What it writes is the prompt that it was shown with the advice as one more line, in the form that it is asked for. Asked for
   no prompt it writes the advice, as a criticism, and it follows a criticism that it is shown. If no remark is visible, it
   adds a general piece of advice that is of no use.

All chance is a hash of a seed and of the messages: the same request has the same answer.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_tasks.planted import PlantedTask, Suspicion, content_text

WINDOW = 8_000
"""Characters; about 2,000 tokens."""
DISCERNMENT = 0.5

SUGGESTED = "Suggested change: "
"""How a criticism begins the line of its advice."""
GENERAL = (
    "Be thorough.",
    "Think step by step.",
    "Be precise and complete.",
    "Check your work before you answer.",
    "Use a clear structure.",
    "Keep the reader in mind.",
)


@dataclass(frozen=True, slots=True)
class ReflectingModel:
    """The answers of the reflecting model of one task, for ``ScriptedModel``."""

    task: PlantedTask
    seed: int
    window: int = WINDOW
    discernment: float = DISCERNMENT

    def __call__(self, body: Mapping[str, Any]) -> str:
        """A request's body → the answer."""
        text = "\n\n".join(content_text(message["content"]) for message in body["messages"])
        sampled = body.get("seed")
        dice = random.Random(hashlib.sha256(f"{self.seed}/{sampled}/{text}".encode()).digest())
        read = self._read(text)
        role, current = self._shown_prompt(text)
        advice = self._advice(read, role, current, dice)
        if "<prompt>" in text:
            return f"<prompt>\n{current}\n{advice}\n</prompt>"
        if "```" in text:
            return f"```\n{current}\n{advice}\n```"
        return f"{SUGGESTED}{advice}"

    def _read(self, text: str) -> str:
        half = self.window // 2
        return text if len(text) <= self.window else f"{text[:half]}\n{text[-half:]}"

    def _shown_prompt(self, text: str) -> tuple[str | None, str]:
        """The prompt that it is asked to change: the one that is shown first, from its first sentence to a blank line,
        the end of a block or of a tag.
        """
        places = {role: text.find(prompt) for role, prompt in self._beginnings().items()}
        role = min((role for role, at in places.items() if at >= 0), key=lambda role: places[role], default=None)
        if role is None:
            return None, ""
        rest = text[places[role] :]
        end = re.search(r"\n\s*\n|\n?```|\n?</|\Z", rest)
        assert end is not None
        return role, rest[: end.start()].rstrip()

    def _beginnings(self) -> dict[str, str]:
        return {role: text.partition(".")[0] for role, text in self.task.prompts.items()}

    def _advice(self, read: str, role: str | None, current: str, dice: random.Random) -> str:
        told = [line for line in re.findall(rf"{re.escape(SUGGESTED)}(.+)", read) if line.strip() not in current]
        if told:
            return str(dice.choice(told)).strip()
        mentions = self._mentions(read, current)
        if role is not None and dice.random() < self.discernment:
            mentions = [each for each in mentions if each.role == role] or mentions
        if mentions:
            return dice.choice(mentions).advice
        return dice.choice([line for line in GENERAL if line not in current] or list(GENERAL))

    def _mentions(self, read: str, current: str) -> Sequence[Suspicion]:
        """One entry a mention; what the prompt says already is not suggested again."""
        return [
            suspicion
            for suspicion in self.task.suspicions
            if suspicion.advice not in current
            for _ in re.findall(suspicion.clue, read)
        ]
