"""A tuning run that is killed with SIGKILL goes on where it was: with the same outcome, and without asking or playing anything twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told
from planted_team import LEARNED, answer, team_config, write_team

import coterie
from coterie.testing import ScriptedModel
from coterie.vocabulary import RolloutState
from coterie_trainers.prompts import OptimizeConfig, best, optimise
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Optimiser, Study

PROCESS = """
import asyncio, sys
from pathlib import Path
from loop_parts import Told
from test_tuning_resumes import resumed_config, searching
from coterie_trainers.prompts import optimise

folder = Path(sys.argv[1])
config = resumed_config(sys.argv[2])
asyncio.run(optimise("app.py:team", config, folder=folder, work=folder / "work", progress=Told(), optimiser=searching))
"""


async def searching(study: Study) -> Sequence[Candidate]:
    """Rounds of reflections on what failed, each role's asked for at once; the texts depend on the seed of the run as well."""
    best_so_far, found = study.seed, [study.seed]
    for _ in range(3):
        tasks = study.random.sample(list(study.train), 4)
        try:
            episodes = await study.episodes(await study.evaluate(best_so_far, tasks))
            said = "\n".join(turn.text for episode in episodes for turn in episode.turns)
            asked = [
                study.reflect(f"{text}\n{said}\nnumber {study.random.random()}", purpose="proposal")
                for text in best_so_far.texts.values()
            ]
            answers = await asyncio.gather(*asked)
        except BudgetSpentError:
            break
        texts = {
            name: answer.partition("<prompt>")[2].partition("</prompt>")[0]
            for name, answer in zip(best_so_far.texts, answers, strict=True)
        }
        best_so_far = Candidate(texts, parents=(best_so_far.id,), author="optimiser:searching")
        found.append(best_so_far)
    return found[::-1]


def slowly(body: dict[str, Any]) -> Any:
    async def later() -> str:
        await asyncio.sleep(0.05)
        return answer(body)

    return later()


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(slowly) as served:
        yield served


def resumed_config(base_url: str) -> OptimizeConfig:
    """With four tasks no gain could be shown, and it is not what these tests are about."""
    return team_config(base_url, selection={"test_samples": 1, "gate": "none"})


def reflections(model: ScriptedModel) -> int:
    return sum(request.body["model"] == "reflector" for request in model.requests)


def outcome(summary: dict[str, Any]) -> dict[str, Any]:
    """What must be the same: all but the time."""
    kept = {key: value for key, value in summary.items() if key != "spent"}
    return kept | {"spent": {key: value for key, value in summary["spent"].items() if key != "seconds"}}


@pytest.mark.timeout(400)  # It starts a process, which takes long on a busy machine.
@pytest.mark.parametrize("killed_after", [3, 5])
async def test_a_killed_run_ends_as_if_it_had_not_been(killed_after: int, tmp_path: Path, model: ScriptedModel) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        write_team(folder, model.base_url, tasks=4)
    config = resumed_config(model.base_url)
    uninterrupted = await run_in(whole, model, searching)
    asked, played = reflections(model), len(model.requests)

    killed(cut, model, after_reflections=asked + killed_after)
    finished = await run_in(cut, model, searching)

    assert uninterrupted.summary["taken"] is True
    texts = best(cut / "work")
    assert texts == best(whole / "work")
    assert all(texts[role].startswith(learned) for role, learned in LEARNED.items())
    assert outcome(dict(finished.summary)) == outcome(dict(uninterrupted.summary))
    # What was answered before the kill was on disk, but for what was under way.
    assert asked <= reflections(model) - asked <= asked + 2
    assert len(model.requests) - played < played + 2 * config.runner.concurrency + 2
    async with coterie.connect(str(cut / "work" / "store.db")) as store:
        rollouts = (await store.list_rollouts(run_id=finished.id)).items
    assert Counter(rollout.state for rollout in rollouts) == {RolloutState.SUCCEEDED: len(rollouts)}
    assert len(rollouts) == uninterrupted.summary["spent"]["rollouts"]


async def test_a_run_that_ended_with_its_budget_ends_there_again(tmp_path: Path, model: ScriptedModel) -> None:
    outcomes = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        write_team(folder, model.base_url, tasks=4)
        config = team_config(model.base_url, prompts={}, budget={"rollouts": 27})
        stopped: list[str] = []

        async def broken(study: Study, name: str = name, stopped: list[str] = stopped) -> Sequence[Candidate]:
            found = await searching(study)
            if name == "two" and not stopped:
                stopped.append("once")
                raise RuntimeError("the machine was switched off")
            return found

        if name == "two":
            with pytest.raises(RuntimeError, match="switched off"):
                await optimise_in(folder, config, broken)
        outcomes.append(outcome(dict((await optimise_in(folder, config, broken)).summary)))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["spent"]["rollouts"] <= 27


def killed(folder: Path, model: ScriptedModel, *, after_reflections: int) -> None:
    """Run it in a process of its own, and kill that when the model has been asked so often."""
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, str(Path(here).parent / "loop"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder), model.base_url],
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 300
        while reflections(model) < after_reflections and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        assert reflections(model) >= after_reflections
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    journal = (folder / "work" / "journal.jsonl").read_bytes().splitlines()
    assert any(json.loads(line)["key"].startswith("reflection/") for line in journal[:-1])


async def run_in(folder: Path, model: ScriptedModel, optimiser: Optimiser) -> Any:
    return await optimise_in(folder, resumed_config(model.base_url), optimiser)


async def optimise_in(folder: Path, config: Any, optimiser: Optimiser) -> Any:
    running = optimise("app.py:team", config, folder=folder, work=folder / "work", progress=Told(), optimiser=optimiser)
    return await asyncio.wait_for(running, 300)
