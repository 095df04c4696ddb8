"""The team of docs/how-to/improve-prompts.md in any framework: its program taken from the page, its tasks, and a scripted model
behind a real socket that plays its agents and the reflecting model.

What the scripted agents say depends on what their prompts say. The reader loses the word "dozen" unless its prompt has the
sentence ``UNITS``; the clerk counts a refund as a sale unless its prompt has ``SIGNS``. The scripted reflecting model proposes
the sentence of the role whose prompt it is shown, if it is shown an order that the sentence is about, and else one that changes
nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loop_parts import SPLITS, Told

import coterie
from coterie.cli import main
from coterie.testing import ScriptedModel
from coterie.vocabulary import Run, RunState
from coterie_trainers.prompts import best, optimise
from coterie_trainers.prompts.config import OptimizeConfig

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "improve-prompts.md"
UNITS = "Keep the unit of every quantity."
SIGNS = "Count refunds as negative."
LESSONS = {"reader": UNITS, "clerk": SIGNS}
NOTHING = "Take care."
ABOUT = {"reader": "dozen", "clerk": "refund"}
"""Role → the word in an order that its lesson is about."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a reader of the page types."""

    app: str
    config: str
    commands: tuple[str, ...]
    production: str


def page(framework: str) -> Page:
    """The page's program in one framework, and what is the same for all."""
    text = PAGE.read_text()
    ((app,),) = [re.findall(r"```python\n(# app\.py.*?)```", _section(text, framework), re.DOTALL)]
    (config,) = re.findall(r"```yaml\n(# tune\.yaml.*?)```", text, re.DOTALL)
    (production,) = re.findall(r"```python\n(# serve\.py.*?)```", text, re.DOTALL)
    commands = re.findall(r"^coterie .*$", text, re.MULTILINE)
    return Page(app, config, tuple(commands), production)


def write_folder(folder: Path, written: Page, *, tests: int = 3) -> Path:
    """The page's files, three tasks of each split and ``tests`` of test: orders by the dozen, refunds, plain ones in turn."""
    (folder / "app.py").write_text(written.app)
    (folder / "tune.yaml").write_text(written.config)
    (folder / "serve.py").write_text(written.production)
    for number, split in enumerate(SPLITS):
        lines = [json.dumps(_order(99 * number + n)) for n in range(tests if split == "test" else 3)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


@dataclass(frozen=True, slots=True)
class Orders:
    """The scripted model's part."""

    seeds: Mapping[str, str]
    """Role → its system text, as the framework sends it at first."""

    def answer(self, body: dict[str, Any]) -> str:
        """What it answers to a request."""
        system, asked = _texts(body)
        if body.get("model") == "gpt-4.1":
            return self._reflection(f"{system}\n{asked}")
        return _total(system, asked) if "Quantities:" in asked else _quantities(system, asked)

    def _reflection(self, asked: str) -> str:
        shown = {role: at for role, seed in self.seeds.items() if (at := _flat(asked).find(_flat(seed))) >= 0}
        role = min(shown, key=shown.__getitem__) if shown else "reader"
        lesson, why = (LESSONS[role], f"It missed the {ABOUT[role]}.") if ABOUT[role] in asked else (NOTHING, "Hm.")
        known = [one for one in (*LESSONS.values(), NOTHING) if f"{self.seeds[role]} {one}" in asked]
        text = " ".join(dict.fromkeys([self.seeds[role], *known, lesson]))
        return f"{why}\n<prompt>\n{text}\n</prompt>" if "<prompt>" in asked else f"{why}\n```\n{text}\n```"


def serve_orders(
    serve: Callable[..., ScriptedModel], monkeypatch: pytest.MonkeyPatch, seeds: Mapping[str, str]
) -> ScriptedModel:
    """Start the model where the OpenAI SDK finds it."""
    server = serve(Orders(seeds).answer)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    return server


def _section(text: str, framework: str) -> str:
    found = re.search(rf"^### {re.escape(framework)}\n(.*?)^##", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the page has no section {framework}"
    return found[1]


def _order(number: int) -> dict[str, str]:
    count, price = number % 7 + 2, number % 5 + 3
    kind = number % 3
    if kind == 0:
        said, total = f"{count} dozen eggs at {price} each", 12 * count * price
    elif kind == 1:
        said, total = f"refund {count} pens at {price} each", -count * price
    else:
        said, total = f"{count} pens at {price} each", count * price
    return {"id": f"order-{number}", "input": f"Order {number}: {said}.", "reference": str(total)}


def _texts(body: Mapping[str, Any]) -> tuple[str, str]:
    """The system text and all the rest, in Chat Completions and in Responses."""
    system, asked = [str(body.get("instructions") or "")], []
    given = body.get("messages") or body.get("input") or ()
    for message in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        content = message.get("content") or ""
        text = content if isinstance(content, str) else "\n".join(str(block.get("text")) for block in content)
        (system if message.get("role") in ("system", "developer") else asked).append(text)
    return "\n".join(system), "\n".join(asked)


def _quantities(system: str, asked: str) -> str:
    """The reader's answer to the last order that it is shown."""
    *_, (refund, count, dozen, price) = re.findall(r"Order \d+: (refund )?(\d+) (dozen)?.*? at (\d+) each", asked)
    unit = " dozen" if dozen and UNITS in system else ""
    return f"Quantities: {refund}{count}{unit} at {price}"


def _total(system: str, asked: str) -> str:
    """The clerk's answer to the last quantities that it is shown."""
    *_, (refund, count, dozen, price) = re.findall(r"Quantities: (refund )?(\d+)( dozen)? at (\d+)", asked)
    total = int(count) * int(price) * (12 if dozen else 1)
    return f"The total is {-total if refund and SIGNS in system else total}"


def _flat(text: str) -> str:
    return " ".join(text.replace("\\n", " ").split())


# Tuning

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "apo": {"rounds": 1, "beam": 1, "branch": 1, "edits": "all"},
    "contrast": {"rounds": 2, "proposals": 1, "configurations": 3},
}
"""What an optimiser is made with here, where its own defaults take longer than a test may."""
LEARNS = ("apo", "contrast", "gepa")
"""The optimisers that find both lessons, since they read what went wrong."""
EXAMPLES = {"text": "An order and its total, as an example: Order 9: 2 pens at 3 each. The total is 6."}


async def tune(folder: Path, server: ScriptedModel, optimiser: str) -> tuple[Run, dict[str, str]]:
    """``coterie optimize`` in Python on the page's team, within 60 rollouts; gives the run and the prompts at its end."""
    config = OptimizeConfig.model_validate(
        {
            "name": "orders",
            "dataset": {split: f"{split}.jsonl" for split in SPLITS},
            "optimiser": {optimiser: dict(SETTINGS.get(optimiser, {}))},
            "prompts": {"clerk": {}, "reader": {}} | ({"clerk/examples": EXAMPLES} if optimiser == "bootstrap" else {}),
            "reflection": {"base_url": server.base_url, "model": "gpt-4.1", "retries": 0},
            "budget": {"rollouts": 60},
            "selection": {"test_samples": 1, "gate": "none"},
            "runner": {"concurrency": 8, "deadline_seconds": 60},
        }
    )
    told = Told()
    run = await optimise("app.py:team", config, folder=folder, work=folder / "work", progress=told)
    assert not [warning for warning in told.warnings if "no call" in warning]
    return run, dict(best(folder / "work"))


async def check_optimiser(folder: Path, server: ScriptedModel, optimiser: str, seeds: Mapping[str, str]) -> None:
    """An optimiser plays the page's team to its end, every rollout with the prompts that were to be tried, and those that
    learn find what both roles lacked.
    """
    run, texts = await tune(folder, server, optimiser)
    assert run.state is RunState.SUCCEEDED
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        rollouts = [one for one in (await store.list_rollouts(limit=1000)).items if one.resources]
        attempts = await store.get_attempts([rollout.id for rollout in rollouts])
    assert rollouts
    assert not [attempt.warnings for each in attempts.values() for attempt in each if attempt.warnings]
    if optimiser in LEARNS:
        assert run.summary["test_after"]["value"] == 1.0
        assert all(LESSONS[role] in texts[role] and texts[role].startswith(seed) for role, seed in seeds.items())


def check_page(
    written: Page, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's commands, one after the other, then its program in production."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    # The reflecting model is elsewhere, and there are fewer tasks.
    address = f"reflection.base_url={os.environ['OPENAI_BASE_URL']}"
    elsewhere = ["--set", address, "--set", "budget.rollouts=80", "--set", "selection.test_samples=1"]
    for command in written.commands:
        with pytest.raises(SystemExit) as ended:
            main([*command.split()[1:], *(elsewhere if " optimize " in command else [])])
        assert ended.value.code in (None, 0), command
    printed = capsys.readouterr().out
    assert all(lesson in printed for lesson in LESSONS.values())
    order = "Order 3: refund 5 pens at 6 each."
    program = f"import asyncio, serve; print(asyncio.run(serve.answer({order!r})))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r"-?\d+", ran.stdout)[-1] == "-30"
