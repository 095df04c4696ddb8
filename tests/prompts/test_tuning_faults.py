"""A tuning run against bad input and faults: each is said clearly, nothing that was played is lost, and no budget is overdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_parts import Told
from planted_team import APP, LEARNED, SEED, answer, team_config, write_team

import coterie
from coterie.errors import ConfigError, CoterieError, RewardError
from coterie.testing import ScriptedModel
from coterie.vocabulary import RunState
from coterie_trainers.prompts import best, optimise
from coterie_trainers.prompts.study import BudgetSpentError, Candidate, Study, Trial


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


NO_GATE = {"test_samples": 1, "gate": "none"}


async def play(folder: Path, model: ScriptedModel, *, app: str = APP, by: Any = None, **settings: Any) -> Any:
    told = Told()
    write_team(folder, model.base_url, app=app, tasks=4)
    config = team_config(model.base_url, **settings)
    work = folder / "work"
    running = optimise("app.py:team", config, folder=folder, work=work, progress=told, optimiser=by)
    return await asyncio.wait_for(running, 100), told


TOOL = {"planner/tool/search": {"text": "Searches."}}
NO_SYSTEM = APP.replace('{"role": "system", "content": PROMPTS[role]}, ', "")
CHANGING = APP.replace('PROMPTS[role]}, {"role"', 'PROMPTS[role] + text}, {"role"')


@pytest.mark.parametrize(
    ("settings", "app", "said"),
    [
        (
            {"prompts": {"critic": {"text": "Judge."}}},
            APP,
            r"prompts.critic: the role 'critic' made no call.*'planner', 'coder'",
        ),
        ({"prompts": TOOL}, APP, r"No call of the team used a tuned prompt \(planner/tool/search\)"),
        (
            {"prompts": {"coder": None}},
            NO_SYSTEM,
            "prompts.coder: the role 'coder' sends no system text.*prompts.coder.text",
        ),
        ({"prompts": {"coder": None}}, CHANGING, "sent 3 different system texts.*placeholders"),
        ({"prompts": {"coder": {"file": "coder.txt"}}}, APP, r"prompts.coder.file: .*coder.txt cannot be read"),
        ({"prompts": {"coder": {"text": "Hi", "placeholders": ["lang"]}}}, APP, r"prompts.coder: .*\{\{lang\}\}"),
        ({"optimiser": "gradient"}, APP, "there is no optimiser 'gradient'. There are: .*unchanged"),
        (
            {"optimiser": {"random_edits": {"batch": 0, "speed": 1}}},
            APP,
            "optimiser 'random_edits': batch = 0 is not allowed.*unknown key 'speed'.*it has: steps, batch, finalists",
        ),
        ({"optimiser": "rewrite", "reflection": None}, APP, "Add the section 'reflection'"),
        (
            {"budget": {"rollouts": 12}},
            APP,
            "budget.rollouts = 12 leaves nothing for the search: 4 .* 8 to both on test",
        ),
        (
            {"budget": {"money": 5.0}, "prices": {"other": {"input": 1, "output": 1}}, "reflection": None},
            APP,
            "prices: the team called the model 'team', which has no price",
        ),
        (
            {},
            APP.replace("    plan =", "    raise ValueError('no database')\n    plan ="),
            "All 4 rollouts .* no database",
        ),
        (
            {},
            APP.replace("return 1.0 if right else 0.0", "return {'coder': 1.0}"),
            "has no reward 'reward' of the team",
        ),
    ],
)
async def test_what_is_wrong_is_said(
    settings: Mapping[str, Any], app: str, said: str, tmp_path: Path, model: ScriptedModel
) -> None:
    with pytest.raises(CoterieError, match=f"(?s){said}"):
        await play(tmp_path, model, app=app, **settings)


@pytest.mark.parametrize("optimiser", ["apo", "contrast", "gepa", "rewrite"])
async def test_an_optimiser_that_asks_a_model_is_refused_where_there_is_none_before_anything_is_played(
    optimiser: str, tmp_path: Path, model: ScriptedModel
) -> None:
    with pytest.raises(ConfigError, match="Add the section 'reflection'"):
        await play(tmp_path, model, optimiser=optimiser, reflection=None)
    assert not model.requests


async def test_an_empty_dataset_is_said_before_anything_runs(tmp_path: Path, model: ScriptedModel) -> None:
    write_team(tmp_path, model.base_url)
    (tmp_path / "val.jsonl").write_text("\n")
    with pytest.raises(CoterieError, match=r"dataset.val: val.jsonl holds no task"):
        await optimise(
            "app.py:team", team_config(model.base_url), folder=tmp_path, work=tmp_path / "work", progress=Told()
        )
    assert not model.requests


async def test_a_prompt_that_no_call_used_is_said_loudly(tmp_path: Path, model: ScriptedModel) -> None:
    _, told = await play(tmp_path, model, prompts={"coder": {"text": SEED["coder"]}, **TOOL})
    assert any("prompts.planner/tool/search: no call of the role 'planner' used it" in line for line in told.warnings)
    assert any("not tuned" not in line for line in told.notes)


async def test_a_reward_outside_its_range_stops_the_run_and_nothing_is_lost(
    tmp_path: Path, model: ScriptedModel
) -> None:
    app = APP.replace("return 1.0 if right else 0.0", "return 5.0 if right else 0.0")
    with pytest.raises(RewardError, match=r"has the reward 5, outside of reward.range = \[0, 1\]"):
        await play(tmp_path, model, app=app)
    async with coterie.connect(str(tmp_path / "work" / "store.db")) as store:
        assert [run.state for run in (await store.list_runs()).items] == [RunState.FAILED]
    played = len(model.requests)
    run, _ = await play(tmp_path, model, app=app, reward={"range": [0, 10]})
    assert run.state is RunState.SUCCEEDED
    assert run.summary["test_before"]["value"] == 5.0 / 4
    # The validation of the seed was there; only the test was played: two calls a rollout.
    assert len(model.requests) - played == 2 * 4


async def test_a_rollout_that_fails_scores_the_least_and_the_run_goes_on(tmp_path: Path, model: ScriptedModel) -> None:
    seen: list[Trial] = []

    async def looks(study: Study) -> Sequence[Candidate]:
        seen.extend(await study.evaluate(study.seed, study.train))
        episodes = await study.episodes(seen)
        assert [len(episode.turns) for episode in episodes] == [2, 2, 2, 2]
        return []

    app = APP.replace("    right =", "    assert 'signs' not in plan, 'the judge fell over'\n    right =")
    _, told = await play(tmp_path, model, app=app, by=looks, reward={"range": [-1, 1]})
    failed = [trial for trial in seen if trial.failure is not None]
    assert [(trial.task.input.split()[0], trial.score) for trial in failed] == [("signs", -1.0)]
    assert "the judge fell over" in str(failed[0].failure)
    assert any("1 of 4 rollouts failed" in line for line in told.warnings)


@pytest.mark.parametrize(("limit", "in_flight"), [({"calls": 60}, 2 * 2), ({"tokens": 8000}, 2 * 2 * 150)])
async def test_a_budget_is_not_exceeded_by_more_than_what_was_in_flight(
    limit: Mapping[str, int], in_flight: int, tmp_path: Path, model: ScriptedModel
) -> None:
    spent: list[str] = []

    async def greedy(study: Study) -> Sequence[Candidate]:
        found = []
        for number in range(100):
            candidate = Candidate({**LEARNED, "coder": f"{LEARNED['coder']} {number}"})
            try:
                await study.evaluate(candidate, study.train)
            except BudgetSpentError as error:
                spent.append(str(error))
                break
            found.append(candidate)
        return found[::-1]

    run, _ = await play(
        tmp_path,
        model,
        by=greedy,
        budget=limit,
        selection=NO_GATE,
        runner={"concurrency": 2, "deadline_seconds": 20},
    )
    name, most = next(iter(limit.items()))
    used = run.summary["spent"]
    total = used["calls"] if name == "calls" else used["input_tokens"] + used["output_tokens"]
    assert spent
    assert "put aside for measuring" in spent[0]
    assert most / 2 < total <= most + in_flight
    # What was put aside was enough: the winner was measured on test.
    assert run.summary["test_after"] is not None
    assert best(tmp_path / "work") != SEED


async def test_a_finalist_that_cannot_be_played_is_refused(tmp_path: Path, model: ScriptedModel) -> None:
    async def forgetful(study: Study) -> Sequence[Candidate]:
        return [Candidate({"coder": "only one"}, author="optimiser:forgetful")]

    with pytest.raises(
        CoterieError, match=r"candidate of optimiser:forgetful must hold a text for each tuned prompt.*planner"
    ):
        await play(tmp_path, model, by=forgetful)


async def test_an_optimiser_sees_no_test_task(tmp_path: Path, model: ScriptedModel) -> None:
    async def peeking(study: Any) -> Sequence[Candidate]:
        await study.evaluate(study.seed, study.splits["test"])
        return []

    with pytest.raises(CoterieError, match="tasks of the split 'test' are for the end"):
        await play(tmp_path, model, by=peeking)


async def test_nonsense_from_the_reflecting_model_changes_nothing(tmp_path: Path) -> None:
    def nonsense(body: dict[str, Any]) -> Any:
        return "as you wish" if body["model"] == "reflector" else answer(body)

    told = Told()
    with ScriptedModel(nonsense) as model:
        write_team(tmp_path, model.base_url, tasks=4)
        config = team_config(model.base_url, optimiser="rewrite")
        run = await optimise("app.py:team", config, folder=tmp_path, work=tmp_path / "work", progress=told)
    assert run.summary["taken"] is False
    assert any("<prompt>" in note for note in told.notes)
    assert best(tmp_path / "work") == SEED
