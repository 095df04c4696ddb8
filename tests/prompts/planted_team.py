"""A team of two with planted lessons, for tests of everything that tunes prompts.

The planner reads the task and writes a plan, the coder turns the plan into an answer. A scripted model plays both behind a real
socket: what it says depends on what the prompts say. A lesson is a sentence; the model does right what a lesson is about if,
and only if, the system prompt of the right role holds the sentence:

- tasks of the kind ``units`` fail unless the **planner** knows ``UNITS``;
- tasks of the kind ``signs`` fail unless the **coder** knows ``SIGNS``;
- tasks of the kind ``both`` fail unless each knows its own;
- tasks of the kind ``plain`` succeed in any case.

A scripted reflecting model stands behind the same socket under the name ``reflector``: it proposes a lesson when it is shown a
failure of the role whose lesson it is (the role's own words for it: ``UNITS_FAULT``, ``SIGNS_FAULT``), and else a sentence that
changes nothing. Its proposals are the prompt that it was shown with the sentence added, both between three backticks
and between ``<prompt>`` and ``</prompt>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie_trainers.prompts.config import OptimizeConfig

UNITS = "Name the unit of every quantity."
"""The planner's lesson."""
SIGNS = "Check the sign of every result."
"""The coder's lesson."""
UNITS_FAULT = "PLAN WITHOUT UNITS"
"""Stands in a plan that lacks the units which its task needs."""
SIGNS_FAULT = "ANSWER WITH THE WRONG SIGN"
"""Stands in an answer whose sign is wrong."""
SEED = {"planner": "You are the planner. Plan the task.", "coder": "You are the coder. Carry out the plan."}
"""Role → what it is told at first."""
LEARNED = {"planner": f"{SEED['planner']} {UNITS}", "coder": f"{SEED['coder']} {SIGNS}"}
"""Role → what it is told at best."""
KINDS = ("units", "signs", "both", "plain")

APP = """
import coterie
from openai import AsyncOpenAI

PROMPTS = {"planner": "You are the planner. Plan the task.", "coder": "You are the coder. Carry out the plan."}
client = AsyncOpenAI(base_url="BASE_URL", api_key="none", max_retries=0, timeout=20)


async def ask(role, text):
    with coterie.agent(role):
        reply = await client.chat.completions.create(
            model="team",
            messages=[{"role": "system", "content": PROMPTS[role]}, {"role": "user", "content": text}],
        )
    return reply.choices[0].message.content


@coterie.rollout
async def team(task):
    plan = await ask("planner", f"Task: {task.input}")
    answer = await ask("coder", f"Plan: {plan}")
    right = "ANSWER OK" in answer and "WITHOUT UNITS" not in answer
    coterie.reward(0.0 if "WITHOUT UNITS" in plan else 1.0, name="plan", role="planner", explanation=plan)
    return 1.0 if right else 0.0
"""


def write_team(folder: Path, base_url: str, *, app: str = APP, tasks: int = 8) -> Path:
    """Write ``app.py`` and ``tasks`` tasks of each split, the kinds in turn; gives the folder."""
    (folder / "app.py").write_text(app.replace("BASE_URL", base_url))
    for split in ("train", "val", "test"):
        lines = [
            json.dumps(
                {"id": f"{split}-{n}", "input": f"{KINDS[n % 4]} {split} {n}", "metadata": {"kind": KINDS[n % 4]}}
            )
            for n in range(tasks)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def team_config(base_url: str, **settings: Any) -> OptimizeConfig:
    """Settings for such a folder; ``settings`` replace sections."""
    return OptimizeConfig.model_validate(
        {
            "name": "planted",
            "dataset": {split: f"{split}.jsonl" for split in ("train", "val", "test")},
            "prompts": {role: {"text": text} for role, text in SEED.items()},
            "optimiser": "unchanged",
            "reflection": {"base_url": base_url, "model": "reflector", "retries": 0, "timeout_seconds": 20},
            "budget": {"rollouts": 400},
            "selection": {"test_samples": 1},
            "runner": {"concurrency": 16, "deadline_seconds": 20},
            **settings,
        }
    )


def answer(body: Mapping[str, Any]) -> str:
    """What the scripted model answers to a request, as ``ScriptedModel`` takes it."""
    if body.get("model") == "reflector":
        return reflection("\n".join(str(message.get("content")) for message in body["messages"]))
    system = "\n".join(
        str(message["content"]) for message in body["messages"] if message["role"] in ("system", "developer")
    )
    asked = str(body["messages"][-1]["content"])
    return _plan(system, asked) if asked.startswith("Task:") else _answer(system, asked)


def reflection(asked: str) -> str:
    """What the scripted reflecting model proposes: the prompt that it was shown, with a lesson if it saw what it is for."""
    role = "planner" if "You are the planner" in asked else "coder"
    lesson = "Take care."
    if role == "planner" and UNITS_FAULT in asked:
        lesson = UNITS
    elif role == "coder" and SIGNS_FAULT in asked:
        lesson = SIGNS
    shown = re.search(rf"({re.escape(SEED[role])}[^\n`<]*)", asked)
    text = shown[1].strip() if shown else SEED[role]
    proposed = text if lesson in text else f"{text} {lesson}"
    return f"The role failed where it did not do this.\n```\n{proposed}\n```\n<prompt>{proposed}</prompt>\n"


def _plan(system: str, asked: str) -> str:
    kind = asked.removeprefix("Task:").split()[0]
    if kind in ("units", "both") and UNITS not in system:
        return f"{kind}: {UNITS_FAULT}"
    return f"{kind}: a plan"


def _answer(system: str, asked: str) -> str:
    kind = asked.removeprefix("Plan:").split(":")[0].strip()
    faults = [UNITS_FAULT] if UNITS_FAULT in asked else []
    if kind in ("signs", "both") and SIGNS not in system:
        faults.append(SIGNS_FAULT)
    return "; ".join(faults) or "ANSWER OK"
