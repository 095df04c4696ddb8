"""Audits of a real team, a real runner, a real store and a scripted model: they find the role on which all hangs."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from replayed_team import DrawnAnswers, ask, play, published, rollouts_of

import coterie
from coterie.assembly import load_episodes
from coterie.errors import AuditError, ConfigError
from coterie.runner import Runner
from coterie.store.base import Store
from coterie.testing import ScriptedModel
from coterie.vocabulary import Mode, Rollout, RolloutState, Run, Task
from coterie_trainers.audits import Audit, Method, audit
from coterie_trainers.audits.findings import Finding, findings_in
from coterie_trainers.audits.playing import withdraw_unfinished
from coterie_trainers.audits.sampling import choose_rollouts

pytestmark = pytest.mark.usefixtures("captured")

TASKS = [Task(f"t{number}", f"question {number}", split="test") for number in range(12)]


class Quiet:
    """Progress that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.made = 0

    def stage(self, name: str, total: int | None = None) -> None:
        self.made += total or 0

    def advance(self, amount: int = 1, **figures: float | str) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def close(self) -> None: ...


@pytest.fixture
def answers() -> DrawnAnswers:
    return DrawnAnswers(seed=1)


@pytest.fixture
def model(answers: DrawnAnswers) -> Iterator[ScriptedModel]:
    with ScriptedModel(answers) as served:
        yield served


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with coterie.connect(tmp_path / "store.db") as opened:
        await opened.add_tasks(TASKS)
        await opened.save_run(Run("run-1", "train", "t", {}))
        yield opened


async def finished(store: Store, model: ScriptedModel, function: Any = play, tasks: int = 12) -> list[Rollout]:
    rollouts = rollouts_of(TASKS[:tasks], await published(store, model), each=2)
    async with Runner(store, coterie.rollout(function), concurrency=1, run_id="run-1"):
        await store.enqueue(rollouts)
        return list(await store.wait([rollout.id for rollout in rollouts], timeout_seconds=100))


async def audited(
    store: Store,
    rollouts: list[Rollout],
    method: Method,
    function: Any = play,
    progress: Quiet | None = None,
    **more: Any,
) -> Audit:
    options: dict[str, Any] = {"replays": 4, **more}
    async with Runner(store, coterie.rollout(function), concurrency=1, run_id="run-1"):
        return await audit(store, "run-1", rollouts, method=method, progress=progress or Quiet(), **options)


def by_place(found: Audit) -> dict[str, Finding]:
    return {finding.place: finding for finding in found.findings}


async def test_mask_finds_the_role_that_the_team_cannot_do_without(store, model, answers):
    rollouts = await finished(store, model)
    answers.asked.clear()
    found = await audited(store, rollouts, Method.MASK)
    roles = by_place(found)
    assert found.findings[0].role == "coder"
    assert roles["coder"].weight.low > 0.2
    assert roles["coder"].weight.value - roles["planner"].weight.value > 0.2
    assert (roles["reviewer"].weight.low, roles["reviewer"].weight.high) == (0.0, 0.0)
    assert (found.rollouts, found.replays, found.problems) == (24, 24 * 3 * 4, {})
    # What comes before a mask, and what it does not change, asks nobody.
    assert answers.asked == {"coder": 24 * 4, "reviewer": 2 * 24 * 4}
    assert found.asked == answers.asked.total()


async def test_replay_finds_the_turn_that_decides(store, model, answers):
    rollouts = await finished(store, model)
    found = await audited(store, rollouts, Method.REPLAY)
    turns = by_place(found)
    assert found.findings[0].place == "coder 0"
    assert turns["coder 0"].weight.value == pytest.approx(0.25, abs=0.1)
    assert turns["coder 0"].lost.value < -0.3
    assert turns["coder 0"].won.value > 0.3
    assert abs(turns["planner 0"].weight.value) < 0.1
    assert abs(turns["planner 0"].lost.value) < 0.3
    assert turns["reviewer 0"].weight.value == turns["reviewer 0"].lost.value == 0.0


async def test_what_was_found_stands_in_the_store(store, model):
    found = await audited(store, await finished(store, model, tasks=2), Method.MASK, replays=1)
    (decision,) = await store.get_decisions("run-1")
    assert decision.kind == "audited"
    assert findings_in(decision) == found.findings
    assert decision.evidence["method"] == "mask"
    (row,) = await store.get_metrics("run-1", stage="audit_mask")
    assert row.values["coder/weight"] == by_place(found)["coder"].weight.value


async def test_replays_are_no_rollouts_of_training_or_measurement_and_nothing_in_them_that_was_given_is_trainable(
    store, model
):
    rollouts = await finished(store, model, tasks=2)
    await audited(store, rollouts, Method.MASK, replays=1)
    made = (await store.list_rollouts(run_id="run-1", mode=Mode.AUDIT)).items
    assert len(made) == 4 + 4 * 3
    assert not {rollout.group_id for rollout in made} & {rollout.group_id for rollout in rollouts}
    for episode in await load_episodes(store, [rollout.id for rollout in made]):
        assert all(turn.answered_by is None for turn in episode.turns if turn.trainable)
    assert {rollout.mode for rollout in await choose_rollouts(store, "run-1", count=99)} == {Mode.TRAIN}


async def test_an_audit_that_was_cut_off_goes_on_and_one_with_more_replays_makes_what_is_missing(store, model, answers):
    rollouts = await finished(store, model, tasks=3)
    whole = Quiet()
    await audited(store, rollouts, Method.REPLAY, progress=whole, replays=1)
    asked = answers.asked.total()
    again = Quiet()
    await audited(store, rollouts, Method.REPLAY, progress=again, replays=1)
    assert (whole.made, again.made) == (6 + 6 * 3, 0)
    assert answers.asked.total() == asked
    # As if killed: one replay is still queued for a server that is gone, one was not begun.
    made = (await store.list_rollouts(run_id="run-1", mode=Mode.AUDIT)).items
    await store.delete_rollouts([rollout.id for rollout in made[-2:]])
    gone = await published(store, model)
    await store.enqueue([dataclasses.replace(made[-1], state=RolloutState.QUEUED, resources=gone)])
    await withdraw_unfinished(store, "run-1")
    more = Quiet()
    found = await audited(store, rollouts, Method.REPLAY, progress=more, replays=2)
    assert more.made == 2 + 6 * 3
    assert found.replays == 6 * 3 * 2


async def test_a_program_that_does_not_repeat_is_left_out_and_told(store, model):
    hours = iter(range(1000))

    async def asks_the_time(task: Task) -> float:
        await ask("planner", f"it is {next(hours)} o'clock")
        return 1.0

    rollouts = await finished(store, model, asks_the_time, tasks=1)
    with pytest.raises(AuditError, match=r"None of the 2 rollouts.*do not repeat.*planner 0\) asks something else"):
        await audited(store, rollouts, Method.MASK, asks_the_time)


async def test_a_team_that_fails_without_a_role_is_no_evidence_and_another_text_mends_it(store, model):
    async def needs_a_number(task: Task) -> float:
        said = await ask("counter", str(task.input))
        return float(int(said.split()[1]) >= 0)

    rollouts = await finished(store, model, needs_a_number, tasks=1)
    with pytest.raises(AuditError, match=r"No replay of the 2 rollouts is evidence.*ValueError"):
        await audited(store, rollouts, Method.MASK, needs_a_number, replays=1)
    texts = {"counter": "no -1"}
    found = await audited(store, rollouts, Method.MASK, needs_a_number, replays=1, mask_texts=texts)
    assert by_place(found)["counter"].weight.value == 1.0


async def test_a_judge_that_draws_at_random_is_told_and_the_rollout_audited(store, model):
    draws = iter(range(1000))

    async def drawn(task: Task) -> float:
        await ask("solver", str(task.input))
        return float(next(draws))

    progress = Quiet()
    rollouts = await finished(store, model, drawn, tasks=1)
    await audited(store, rollouts, Method.MASK, drawn, progress=progress, replays=1)
    assert any("another reward though each call got the same answer" in warning for warning in progress.warnings)


async def test_the_sample_spreads_over_tasks_and_is_the_same_each_time(store, model):
    await finished(store, model, tasks=4)
    sample = await choose_rollouts(store, "run-1", count=4)
    assert len({rollout.task_id for rollout in sample}) == 4
    assert sample == await choose_rollouts(store, "run-1", count=4)
    assert len(await choose_rollouts(store, "run-1", count=99)) == 8
    with pytest.raises(ConfigError, match="no finished rollout of mode val"):
        await choose_rollouts(store, "run-1", count=4, mode=Mode.VAL)


async def test_of_a_finished_run_the_test_rollouts_of_the_final_policies_are_audited(store, model):
    labels = [("before", "sampled"), ("after", "sampled"), ("after", "greedy")]
    tests = [
        Rollout("t0", mode=Mode.TEST, run_id="run-1", id=f"ro-{a}-{b}", metadata={"evaluation": a, "decoding": b})
        for a, b in labels
    ]
    rollouts = [*tests, Rollout("t0", run_id="run-1", step=3)]

    async def team(task: Task) -> float:
        return 1.0

    async with Runner(store, coterie.rollout(team), run_id="run-1"):
        await store.enqueue(rollouts)
        await store.wait([rollout.id for rollout in rollouts], timeout_seconds=30)
    assert [rollout.id for rollout in await choose_rollouts(store, "run-1", count=9)] == ["ro-after-sampled"]
