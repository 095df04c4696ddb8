"""The figures of a run, computed from a store whose content is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_run import RUN, Fill

import coterie
from coterie.errors import NotFoundError
from coterie.vocabulary import Metrics, RunState
from coterie_trainers.report import Figures, compute_figures
from coterie_trainers.report.wording import health_lines


async def figures_of(work, run_id: str = RUN) -> Figures:
    async with coterie.connect(work / "store.db") as store:
        return await compute_figures(store, run_id)


async def test_success_before_and_after_counts_a_dead_rollout_as_lost(fill: Fill):
    figures = await figures_of(await fill())
    sampled, greedy = figures.decodings["sampled"], figures.decodings["greedy"]
    assert (sampled.before.value, sampled.after.value) == (3 / 8, 6 / 8)
    assert (greedy.before.value, greedy.after.value) == (1 / 4, 3 / 4)
    assert (sampled.after.tasks, sampled.after.rollouts) == (4, 8)
    assert sampled.difference.value == pytest.approx(3 / 8)
    for interval in (sampled.before, sampled.after, sampled.difference, greedy.before, greedy.after):
        assert interval.low <= interval.value <= interval.high


async def test_families_by_difficulty_and_roles(fill: Fill):
    figures = await figures_of(await fill())
    assert [(each.family, each.tasks, each.before, each.after) for each in figures.families] == [
        ("filters", 2, 1 / 4, 1.0),
        ("joins", 2, 2 / 4, 2 / 4),
    ]
    coder, reviewer = figures.roles
    assert (coder.role, coder.reward_before, coder.reward_after) == ("coder", 0.25, 0.75)
    assert (reviewer.reward_before, reviewer.reward_after) == (None, None)
    assert (coder.calls_before, coder.calls_after) == (1.0, 7 / 8), "the dead rollout left no call"
    assert coder.calls == 4 * 10 + 23, "those of training steps from the metrics, those of tests from the spans"


async def test_mismatch_is_judged_where_the_weights_were_the_same(fill: Fill):
    work = await fill()
    async with coterie.connect(work / "store.db") as store:
        (row,) = [row for row in await store.get_metrics(RUN, stage="train") if row.step == 4]
        stale = {"staleness_max": 2.0, "role/coder/staleness_max": 2.0, "mismatch_max": 0.3}
        await store.add_metrics([replace(row, values={**row.values, **stale})])
    figures = await figures_of(work)
    assert (figures.health.max_mismatch, figures.health.max_staleness) == (0.003, 2)
    told = {line: well for well, line in health_lines(figures)}
    assert told["asynchronous collection: turns were at most 2 policy versions old when they were trained on"]
    assert [well for line, well in told.items() if "log-probabilities differ" in line] == [True]


async def test_curve_health_and_costs(fill: Fill):
    figures = await figures_of(await fill())
    assert [(point.step, round(point.success, 9)) for point in figures.curve.train] == [
        (1, 0.2),
        (2, 0.4),
        (3, 0.6),
        (4, 0.8),
    ]
    assert [point.step for point in figures.curve.val] == [2, 4]
    health, costs = figures.health, figures.costs
    assert health.max_mismatch == 0.004
    assert health.trainable_calls_missing == 1
    assert health.failed_attempts == {"error": 1}
    assert health.failures == ["ValueError: no such table"]
    assert sum(health.warnings.values()) == 7
    assert health.steps_without_rows == 1
    assert (costs.train_seconds, costs.steps, costs.trained_tokens) == (8.0, 4, 400)
    assert costs.rollouts == {"test": 24}
    assert [(model.policy, model.path, model.step) for model in figures.models] == [("team", "/models/team", 4)]


async def test_what_the_guard_said_is_shown_once_with_how_often(fill: Fill):
    work = await fill()
    async with coterie.connect(work / "store.db") as store:
        for step, share in ((2, "25%"), (3, "20%")):
            words = {"level": "warn", "entropy, role 'coder'": f"entropy fell to {share}"}
            await store.add_metrics([Metrics(RUN, step, words, stage="guard")])
        await store.add_metrics(
            [Metrics(RUN, 4, {"level": "stop", "gradient, the policy": "no number"}, stage="guard")]
        )
    figures = await figures_of(work)
    assert [line for good, line in health_lines(figures) if line.startswith("guard")] == [
        "guard (entropy, role 'coder'): entropy fell to 20%; at 2 steps, last at step 3",
        "guard (gradient, the policy): no number; at 1 step, last at step 4",
    ]
    assert not any(good for good, line in health_lines(figures) if line.startswith("guard"))


async def test_pairs_are_of_each_kind_greedy_first(fill: Fill):
    figures = await figures_of(await fill())
    assert [pair.title for pair in figures.pairs] == ["lost before, won after", "lost both times", "won both times"]
    assert {pair.decoding for pair in figures.pairs} == {"greedy"}
    assert [role for role, _ in figures.pairs[0].before.turns] == ["coder", "reviewer"]
    assert figures.pairs[0].before.turns[0][1].startswith("before ")
    assert figures.pairs[0].after.turns[0][1].startswith("after ")


@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.STOPPED, RunState.FAILED])
async def test_a_run_that_has_not_ended_has_what_there_is(fill: Fill, state: RunState):
    figures = await figures_of(await fill(state=state, evaluations=["before"]))
    sampled = figures.decodings["sampled"]
    assert sampled.before.value == 3 / 8
    assert sampled.after is None
    assert sampled.difference is None
    assert figures.pairs == []
    assert figures.models == []
    assert figures.families[0].after is None


async def test_a_run_that_has_only_begun(fill: Fill):
    work = await fill(state=RunState.RUNNING, evaluations=[])
    async with coterie.connect(work / "store.db") as store:
        await store.save_run(coterie.vocabulary.Run("bare", "train", "bare", {}))
        figures = await compute_figures(store, "bare")
    assert figures.decodings["sampled"].before is None
    assert figures.costs.steps == 0
    assert not figures.curve.train


async def test_another_run_in_the_same_store_is_left_out(fill: Fill):
    await fill(run_id="other", state=RunState.RUNNING, evaluations=["before"])
    figures = await figures_of(await fill())
    assert figures.costs.rollouts == {"test": 24}


async def test_an_unknown_run_is_not_found(fill: Fill):
    work = await fill()
    with pytest.raises(NotFoundError):
        await figures_of(work, "gone")
