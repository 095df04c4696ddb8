"""A tuning run from its opening to its finish: a real store, a real runner, and a team whose scripted model answers behind a real
socket by what the prompts say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import typer
import yaml
from loop_parts import Told
from planted_team import LEARNED, SEED, answer, team_config, write_team

import coterie
from coterie.errors import ConfigError
from coterie.testing import ScriptedModel
from coterie.vocabulary import ResourceStatus, Run, RunState
from coterie_trainers.prompts import OptimizeConfig, best, find_best, optimise
from coterie_trainers.prompts.commands import optimize
from coterie_trainers.prompts.study import Candidate, Optimiser, Study, Trial


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(answer) as served:
        yield served


async def knows(study: Study) -> Sequence[Candidate]:
    """An optimiser that knows the answer."""
    return [Candidate(LEARNED, parents=(study.seed.id,), author="optimiser:knows", why={"coder": "signs were wrong"})]


async def test_the_winner_becomes_active_and_is_given_in_one_line(tmp_path: Path, model: ScriptedModel) -> None:
    folder = write_team(tmp_path, model.base_url)
    run = await optimise(
        "app.py:team",
        team_config(model.base_url),
        folder=folder,
        work=folder / "work",
        progress=Told(),
        optimiser=knows,
    )
    assert run.state is RunState.SUCCEEDED
    assert run.summary["taken"] is True
    assert run.summary["test_before"]["value"] == pytest.approx(0.25)
    assert run.summary["test_after"]["value"] == 1.0
    assert best(folder / "work") == LEARNED
    # Of 8 tasks 2 need the planner's lesson alone, 2 the coder's, and 2 both.
    assert {name: one["gain"]["value"] for name, one in run.summary["prompts"].items()} == {
        "planner": 0.5,
        "coder": 0.5,
    }
    async with coterie.connect(str(folder / "work" / "store.db")) as store:
        assert await find_best(store) == LEARNED
        with pytest.raises(ConfigError, match=r"await find_best\(store\)"):
            best(store)  # type: ignore[arg-type]
        for role, text in LEARNED.items():
            active = await store.get_resource(role)
            assert active.content["text"] == text
            assert active.author == "optimiser:knows"
            assert active.parent == 1
            assert active.scores[run.id]["test"] == 1.0
            first = await store.get_resource(role, 1)
            assert (first.content["text"], first.status) == (SEED[role], ResourceStatus.RETIRED)
        decisions = await store.get_decisions(run.id)
        assert [decision.kind for decision in decisions] == ["promoted"]


async def test_without_a_gain_the_prompts_stay_as_they_are(tmp_path: Path, model: ScriptedModel) -> None:
    async def harmless(study: Study) -> Sequence[Candidate]:
        return [Candidate({**study.seed.texts, "coder": f"{SEED['coder']} Take care."}, author="optimiser:harmless")]

    told = Told()
    run = await tuned(tmp_path, model, told=told, optimiser=harmless)
    assert run.summary["taken"] is False
    assert best(tmp_path / "work") == SEED
    assert any("stay as they are" in line for line in told.warnings)
    async with coterie.connect(str(tmp_path / "work" / "store.db")) as store:
        assert (await store.get_resource("coder")).version == 1
        assert [one.kind for one in await store.get_decisions(run.id)] == ["kept"]


async def test_a_gain_on_validation_alone_is_not_taken(tmp_path: Path, model: ScriptedModel) -> None:
    # The candidate does better on the tasks of val; those of test do not show it.
    write_team(tmp_path, model.base_url, tasks=4)
    plain = [{"id": f"test-{n}", "input": f"plain test {n}"} for n in range(4)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, plain)))
    run = await optimise(
        "app.py:team",
        team_config(model.base_url),
        folder=tmp_path,
        work=tmp_path / "work",
        progress=Told(),
        optimiser=knows,
    )
    assert run.summary["val_gain"]["low"] > 0
    assert run.summary["test_gain"]["value"] == 0
    assert run.summary["taken"] is False
    assert "does not lie above 0" in run.summary["reason"]


async def test_the_same_is_not_played_twice_and_samples_of_a_task_are_seeded_alike(
    tmp_path: Path, model: ScriptedModel
) -> None:
    seen: list[tuple[Sequence[Trial], Sequence[Trial], Sequence[Trial]]] = []

    async def asks_twice(study: Study) -> Sequence[Candidate]:
        other = Candidate({**study.seed.texts, "coder": f"{SEED['coder']} Take care."})
        tasks = study.train[:2]
        first, again = await asyncio.gather(
            study.evaluate(study.seed, tasks, samples=2), study.evaluate(Candidate(dict(SEED)), tasks, samples=2)
        )
        seen.append((first, again, await study.evaluate(other, tasks, samples=2)))
        episodes = await study.episodes(first)
        assert [episode.rollout_id for episode in episodes] == [trial.rollout_id for trial in first]
        assert [turn.role for turn in episodes[0].turns] == ["planner", "coder"]
        return []

    run = await tuned(tmp_path, model, optimiser=asks_twice)
    first, again, other = seen[0]
    assert first == again
    assert [(trial.task.id, trial.sample) for trial in first] == [
        ("train-0", 0),
        ("train-0", 1),
        ("train-1", 0),
        ("train-1", 1),
    ]
    assert first[0].role_scores == {"planner": 0.0}
    # 4 of the seed and 4 of the other, besides validation and test of the seed.
    assert run.summary["spent"]["rollouts"] == 4 + 4 + 4 + 4
    seeds: dict[str, set[int]] = {}
    async with coterie.connect(str(tmp_path / "work" / "store.db")) as store:
        rollouts = await store.get_rollouts([trial.rollout_id for trial in (*first, *other)])
        for rollout in rollouts:
            seeds.setdefault(f"{rollout.task_id}/{rollout.metadata['sample']}", set()).add(rollout.sampling["seed"])
    assert all(len(each) == 1 for each in seeds.values())
    assert len({min(each) for each in seeds.values()}) == 4
    assert {body["seed"] for body in (request.body for request in model.requests) if "seed" in body} >= {
        min(each) for each in seeds.values()
    }


async def test_prompts_that_nobody_wrote_down_begin_as_what_the_roles_send(
    tmp_path: Path, model: ScriptedModel
) -> None:
    config = team_config(model.base_url, prompts={}, selection={"test_samples": 1, "gate": "none"})
    run = await tuned(tmp_path, model, config, optimiser=knows)
    assert run.summary["winner"] == Candidate(LEARNED).id
    assert best(tmp_path / "work") == LEARNED
    # The first look, seed and winner on validation and on test, and the winner without each of its changes.
    assert run.summary["spent"]["rollouts"] == 3 + 2 * 4 + 2 * 4 + 2 * 4


@pytest.mark.parametrize(
    "above", ["", "---\nrole: coder\npart: system\nversion: 3\n---\n"], ids=["text alone", "exported"]
)
async def test_a_prompt_begins_as_the_text_of_its_file(tmp_path: Path, model: ScriptedModel, above: str) -> None:
    (tmp_path / "coder.md").write_text(f"{above}{SEED['coder']}\n")
    await tuned(tmp_path, model, team_config(model.base_url, prompts={"coder": {"file": "coder.md"}}))
    assert best(tmp_path / "work") == {"coder": SEED["coder"]}


@pytest.mark.parametrize("name", ["unchanged", "random_edits", "rewrite"])
def test_a_baseline_runs_from_the_command_line(
    name: str, tmp_path: Path, model: ScriptedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    write_team(tmp_path, model.base_url, tasks=4)
    settings = team_config(model.base_url).model_dump(mode="json", exclude_defaults=True) | {"optimiser": name}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    result, config = tmp_path / "result.json", tmp_path / "config.yaml"
    command = typer.Typer()
    command.command()(optimize)
    arguments = [f"{tmp_path}/app.py:team", str(config), "--out", str(tmp_path / "work"), "--json", str(result)]
    command([*arguments, "--set", "budget.rollouts=40"], standalone_mode=False)
    found = json.loads(result.read_text())
    assert found["optimiser"] == name
    assert found["spent"]["rollouts"] <= 40
    assert found["spent"]["reflections"] == (2 if name == "rewrite" else 0)
    assert "held-out test" in capsys.readouterr().out


async def tuned(
    folder: Path,
    model: ScriptedModel,
    config: OptimizeConfig | None = None,
    *,
    told: Told | None = None,
    optimiser: Optimiser | None = None,
) -> Run:
    """A whole run on four tasks a split."""
    write_team(folder, model.base_url, tasks=4)
    return await optimise(
        "app.py:team",
        config or team_config(model.base_url),
        folder=folder,
        work=folder / "work",
        progress=told or Told(),
        optimiser=optimiser,
    )
