"""What a planted task is: a small team, a scripted model that plays its agents, and instructions that it lacks.

The scripted model does what its system prompts say, in a narrow way: each task lists sentences that it understands, and a
prompt that holds one of them (or, where a task says so, an example that shows the same) changes what the agent does.
Whatever else a prompt says changes nothing. So it is known of each task which instruction is missing, and from whom.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

import coterie
from coterie.rollouts import RolloutFunction
from coterie.vocabulary import JSON, Task

TRAIN, VAL, TEST = 12, 16, 24
"""Tasks of each split."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """An instruction that one role's prompt lacks."""

    role: str
    text: str
    shown: str | None = None
    """A regular expression: an example in the prompt that matches it teaches the same as the text."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A remark in a trace that makes a reader want to change a prompt, rightly or not."""

    clue: str
    """A regular expression for the remark."""
    role: str
    """Whose prompt it makes one want to change."""
    advice: str
    """What one would write there: a lesson's text, or something that is of no use or does harm."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The system prompt with which an agent was called."""

    text: str

    def holds(self, lesson: Lesson | str) -> bool:
        """Whether it says so, or shows it by an example."""
        if isinstance(lesson, str):
            return _plain(lesson) in _plain(self.text)
        return self.holds(lesson.text) or bool(lesson.shown and re.search(lesson.shown, self.text))


Answer = Callable[[str, Prompt, str], str]
"""Role, its prompt, what it was told → what it answers."""


@dataclass(frozen=True, slots=True)
class PlantedTask:
    """A team and what is planted in it."""

    name: str
    asks: str
    """What it asks of an optimiser."""
    prompts: Mapping[str, str]
    """Role → the prompt it starts with. The first sentence names the role and is unlike the others'."""
    lessons: Sequence[Lesson]
    suspicions: Sequence[Suspicion]
    answer: Answer = field(repr=False)
    team: Callable[[str], RolloutFunction[..., object]] = field(repr=False)
    """Base URL of the model → the team, as a user would write it."""
    tasks: Sequence[Task] = field(repr=False)

    def split(self, name: str) -> list[Task]:
        """The tasks of a split."""
        return [task for task in self.tasks if task.split == name]

    @property
    def oracle(self) -> dict[str, str]:
        """The prompts with every lesson."""
        return self.taught(self.lessons)

    def taught(self, lessons: Sequence[Lesson]) -> dict[str, str]:
        """The prompts with some lessons."""
        return {
            role: "\n".join([text, *(lesson.text for lesson in lessons if lesson.role == role)])
            for role, text in self.prompts.items()
        }

    def found(self, prompts: Mapping[str, str]) -> list[Lesson]:
        """The lessons that stand in the right role's prompt; ``prompts`` are by role."""
        return [lesson for lesson in self.lessons if Prompt(prompts.get(lesson.role, "")).holds(lesson)]

    def reply(self, body: Mapping[str, Any]) -> str:
        """The scripted model of the team: a request's body → the answer's text."""
        system = "\n".join(content_text(m["content"]) for m in body["messages"] if m["role"] in ("system", "developer"))
        told = content_text(body["messages"][-1]["content"])
        match = re.match(r"For the (\w+)\.\n", told)
        if match is None or match[1] not in self.prompts:
            raise ValueError(f"{self.name}: no agent of this team is asked so: {told[:80]!r}")
        return self.answer(match[1], Prompt(system), told[match.end() :])


def asked(role: str, *parts: str) -> str:
    """What an agent is told, in the form that ``PlantedTask.reply`` reads."""
    return "\n".join([f"For the {role}.", *parts])


async def ask(client: AsyncOpenAI, role: str, prompt: str, *parts: str) -> str:
    """One agent of a plain-Python team: a call with its prompt."""
    with coterie.agent(role):
        answer = await client.chat.completions.create(
            model="scripted",
            messages=[{"role": "system", "content": prompt}, {"role": "user", "content": asked(role, *parts)}],
        )
    return answer.choices[0].message.content or ""


_clients: dict[str, AsyncOpenAI] = {}


def client_of(base_url: str) -> AsyncOpenAI:
    """The client that a team's agents use."""
    if base_url not in _clients:
        _clients[base_url] = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60)
    return _clients[base_url]


async def close_client(base_url: str) -> None:
    """Close its connections, if a team has used it."""
    client = _clients.pop(base_url, None)
    if client is not None:
        await client.close()


def drawn(name: str, make: Callable[[random.Random, str, int], tuple[JSON, JSON]]) -> list[Task]:
    """A task's three splits; ``make(random, split, number)`` gives input and reference."""
    tasks = []
    for split, count in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        for number in range(count):
            given, reference = make(random.Random(f"{name}/{split}/{number}"), split, number)
            tasks.append(Task(f"{name}-{split}-{number}", given, reference, dataset=name, split=split))
    return tasks


def line_of(text: str, label: str) -> str:
    """What stands after ``label:`` on its line; empty if there is none."""
    match = re.search(rf"^{re.escape(label)}: *(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def content_text(content: Any) -> str:
    """A message's content as text."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") if isinstance(part, Mapping) else json.dumps(part) for part in content or ())


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
