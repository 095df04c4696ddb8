"""What goes into a store comes out of it: every record, exactly, once, in order, a page at a time."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import NotFoundError, RewardError, StoreError
from coterie.store import records
from coterie.store.base import Store
from coterie.vocabulary import (
    AttemptState,
    Decision,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    ResourceStatus,
    Reward,
    Rollout,
    RolloutState,
    Run,
    RunState,
    Span,
    SpanEvent,
    SpanStatus,
    Task,
)

TASK = Task("t1", {"question": "wie viele?"}, {"sql": "SELECT 1"}, "spider", "train", {"family": "joins"})
SPAN = Span(
    trace_id="0" * 31 + "1",
    span_id="0" * 15 + "1",
    name="chat",
    start_ns=1_700_000_000_123_456_789,
    end_ns=1_700_000_000_923_456_789,
    parent_id="f" * 16,
    status=SpanStatus.ERROR,
    status_message="zu spät 🕰",
    attributes={"tokens": [1, 2, 3], "logprobs": [-0.1, -1e-300], "text": "a\x00b", "none": None, "yes": True},
    events=(SpanEvent("handoff", 17, {"to": "coder"}), SpanEvent("end", 18)),
)


async def attempt_at(store: Store, task: Task = TASK) -> Reward:
    """A reward, not written yet, for a new attempt at a new rollout."""
    await store.add_tasks([task])
    rollout = Rollout(task.id)
    await store.enqueue([rollout])
    (lease,) = await store.lease("w")
    return Reward(lease.rollout.id, lease.attempt.id, 0.5)


async def test_tasks_come_back_as_they_were_and_are_replaced_by_id(store: Store) -> None:
    bare = Task("t2", "plain text")
    await store.add_tasks([TASK, bare])
    assert list(await store.get_tasks(["t2", "t1", "t2"])) == [bare, TASK, bare]
    changed = replace(TASK, input=[1, None], split="test")
    await store.add_tasks([changed])
    assert list(await store.get_tasks(["t1"])) == [changed]


async def test_replacing_a_task_keeps_its_rollouts(store: Store) -> None:
    reward = await attempt_at(store)
    await store.add_tasks([replace(TASK, input="new")])
    (rollout,) = await store.get_rollouts([reward.rollout_id])
    assert rollout.state is RolloutState.RUNNING


async def test_missing_tasks_are_named(store: Store) -> None:
    await store.add_tasks([TASK])
    with pytest.raises(NotFoundError, match="'nope'"):
        await store.get_tasks(["t1", "nope"])


async def test_rollouts_come_back_as_they_were(store: Store) -> None:
    await store.add_tasks([TASK])
    await store.publish(Resource("prompt", ResourceKind.PROMPT, {"text": "x"}))
    full = Rollout(
        "t1",
        Mode.VAL,
        run_id="run",
        group_id="g",
        step=3,
        resources={"prompt": 1},
        sampling={"temperature": 0},
        max_attempts=4,
        deadline_seconds=1.5,
        metadata={"seed": 7},
    )
    bare = Rollout("t1")
    await store.enqueue([full, bare])
    assert list(await store.get_rollouts([bare.id, full.id])) == [bare, full]


async def test_enqueueing_twice_changes_nothing(store: Store) -> None:
    reward = await attempt_at(store)
    before = await store.get_rollouts([reward.rollout_id])
    await store.enqueue([Rollout("t1", id=reward.rollout_id, max_attempts=9)])
    assert await store.get_rollouts([reward.rollout_id]) == before
    assert await store.lease("w") in ([], ())


async def test_enqueueing_is_all_or_nothing(store: Store) -> None:
    await store.add_tasks([TASK])
    good = Rollout("t1")
    with pytest.raises(NotFoundError, match="'t9'"):
        await store.enqueue([good, Rollout("t9")])
    with pytest.raises(NotFoundError, match="weights version 3"):
        await store.enqueue([good, Rollout("t1", resources={"weights": 3})])
    with pytest.raises(StoreError, match="max_attempts"):
        await store.enqueue([good, Rollout("t1", max_attempts=0)])
    with pytest.raises(StoreError, match="deadline_seconds"):
        await store.enqueue([good, Rollout("t1", deadline_seconds=math.nan)])
    assert not (await store.list_rollouts()).items


async def test_spans_come_back_as_they_were_and_once(store: Store) -> None:
    span = replace(SPAN, rollout_id="ro", attempt_id="at")
    later = replace(span, span_id="2" * 16, start_ns=span.start_ns + 1)
    bare = Span("a" * 32, "b" * 16, "tool", 1, 2)
    await store.add_spans([later, span, bare])
    await store.add_spans([replace(span, name="another")])
    assert await store.get_spans(["at", "none"]) == {"at": (span, later), "none": ()}
    assert list((await store.list_spans()).items) == [later, span, bare]
    assert list((await store.list_spans(trace_id="a" * 32)).items) == [bare]
    assert list((await store.list_spans(rollout_id="ro")).items) == [later, span]


async def test_text_that_no_database_takes_is_kept_readable(store: Store) -> None:
    span = replace(SPAN, attempt_id="at", status_message="bad \udcff name", attributes={"text": "\udcff"})
    await store.add_spans([span])
    (kept,) = (await store.get_spans(["at"]))["at"]
    assert kept.status_message == "bad \\udcff name"
    assert kept.attributes == {"text": "\udcff"}


async def test_the_character_nul_becomes_readable_in_texts_and_is_refused_in_ids(store: Store) -> None:
    span = replace(SPAN, attempt_id="at", name="a\0b", status_message="\0", attributes={"te\0xt": "c\0d"})
    await store.add_spans([span])
    (kept,) = (await store.get_spans(["at"]))["at"]
    assert (kept.name, kept.status_message) == ("a\\x00b", "\\x00")
    assert kept.attributes == {"te\0xt": "c\0d"}
    with pytest.raises(StoreError, match=r"span .*trace_id holds the character NUL"):
        await store.add_spans([replace(span, trace_id="a\0")])
    with pytest.raises(StoreError, match=r"dataset holds the character NUL"):
        await store.add_tasks([TASK, replace(TASK, id="t2", dataset="a\0")])
    assert not (await store.list_tasks()).items


async def test_a_value_that_cannot_be_stored_is_named_and_writes_nothing(store: Store) -> None:
    with pytest.raises(StoreError, match=r"task 't3': input .*bytes"):
        await store.add_tasks([TASK, Task("t3", b"bytes")])
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(StoreError, match="JSON"):
        await store.add_tasks([TASK, Task("t3", endless)])
    with pytest.raises(StoreError, match="cannot be stored"):
        await store.add_spans([SPAN, replace(SPAN, span_id="9" * 16, start_ns=2**70)])
    assert not (await store.list_tasks()).items
    assert not (await store.list_spans()).items


async def test_one_bad_write_fails_alone(store: Store) -> None:
    spans = [replace(SPAN, span_id=f"{number:016x}") for number in range(32)]
    spans[7] = replace(spans[7], start_ns=2**70)
    outcomes = await asyncio.gather(*(store.add_spans([span]) for span in spans), return_exceptions=True)
    assert [number for number, outcome in enumerate(outcomes) if outcome is not None] == [7]
    assert len((await store.list_spans()).items) == 31


async def test_rewards_come_back_as_they_were_and_once(store: Store) -> None:
    plain = await attempt_at(store)
    bound = Reward(
        plain.rollout_id, plain.attempt_id, 1, "correct", "judge", "coder", "manager/coder", "call", "weil", time_ns=1
    )
    await store.add_rewards([plain, bound])
    await store.add_rewards([replace(plain, value=0.9)])
    assert await store.get_rewards([plain.attempt_id, "none"]) == {plain.attempt_id: (bound, plain), "none": ()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, [1]])
async def test_a_reward_that_is_no_number_is_refused(store: Store, value: object) -> None:
    good = await attempt_at(store)
    bad = Reward(good.rollout_id, good.attempt_id, value)  # type: ignore[arg-type]
    with pytest.raises(RewardError, match="no finite number"):
        await store.add_rewards([good, bad])
    with pytest.raises(RewardError, match="no finite number"):
        await store.finish(good.attempt_id, AttemptState.SUCCEEDED, rewards=[bad])
    assert not (await store.get_rewards([good.attempt_id]))[good.attempt_id]
    assert (await store.get_rollouts([good.rollout_id]))[0].state is RolloutState.RUNNING


async def test_a_reward_for_nothing_is_refused(store: Store) -> None:
    good = await attempt_at(store)
    other = await attempt_at(store)
    for bad in (replace(good, attempt_id="none"), replace(good, rollout_id=other.rollout_id)):
        with pytest.raises(NotFoundError):
            await store.add_rewards([good, replace(bad, id="bad")])
    assert not (await store.get_rewards([good.attempt_id]))[good.attempt_id]


async def test_resources_count_their_versions(store: Store) -> None:
    first = await store.publish(Resource("coder", ResourceKind.PROMPT, {"text": "a"}, created_ns=1))
    second = await store.publish(
        Resource("coder", ResourceKind.PROMPT, {"text": "b"}, author="gepa", parent=1, note="n", created_ns=2)
    )
    other = await store.publish(Resource("model", ResourceKind.ENDPOINT, {"base_url": "u"}, created_ns=3))
    assert (first.version, second.version, other.version) == (1, 2, 1)
    assert second == Resource("coder", ResourceKind.PROMPT, {"text": "b"}, 2, "gepa", 1, "n", 2)
    assert await store.get_resource("coder") == second
    first = replace(first, status=ResourceStatus.RETIRED)
    assert await store.get_resource("coder", 1) == first
    assert list(await store.list_resources()) == [second, other]
    assert list(await store.list_resources(kind=ResourceKind.PROMPT)) == [second]
    assert list(await store.list_resources(name="coder")) == [first, second]


async def test_versions_are_never_given_twice(store: Store) -> None:
    published = await asyncio.gather(
        *(store.publish(Resource("p", ResourceKind.MEMORY, {"n": number})) for number in range(40))
    )
    assert sorted(resource.version for resource in published) == list(range(1, 41))
    active = await store.get_resource("p")
    assert active.version == 40
    for resource in published:
        kept = await store.get_resource("p", resource.version)
        assert kept == replace(resource, status=ResourceStatus.RETIRED if resource.version < 40 else resource.status)


async def test_a_version_that_is_given_must_be_the_next(store: Store) -> None:
    first = await store.publish(Resource("p", ResourceKind.PROMPT, {"text": "a"}, version=1))
    assert await store.publish(first) == first
    with pytest.raises(StoreError, match="the next one is 2"):
        await store.publish(replace(first, content={"text": "b"}))
    with pytest.raises(StoreError, match="is a prompt"):
        await store.publish(Resource("p", ResourceKind.WEIGHTS, {}))


async def test_missing_resources_say_what_there_is(store: Store) -> None:
    with pytest.raises(NotFoundError, match="none has been published"):
        await store.get_resource("coder")
    await store.publish(Resource("coder", ResourceKind.PROMPT, {"text": "a"}))
    with pytest.raises(NotFoundError, match="'coder'"):
        await store.get_resource("codr")
    with pytest.raises(NotFoundError, match="there are 1 to 1"):
        await store.get_resource("coder", 5)


async def test_runs_come_back_as_they_were_newest_first(store: Store) -> None:
    runs = [Run(f"r{number}", "train", "name", {"lr": 1e-6}, created_ns=number) for number in range(5)]
    for run in runs:
        await store.save_run(run)
    ended = replace(runs[1], state=RunState.SUCCEEDED, finished_ns=9, summary={"after": 0.7})
    await store.save_run(ended)
    assert await store.get_run("r1") == ended
    assert [run.id for run in (await store.list_runs()).items] == ["r4", "r3", "r2", "r1", "r0"]
    assert list((await store.list_runs(state=RunState.SUCCEEDED)).items) == [ended]
    page = await store.list_runs(limit=2)
    assert [run.id for run in (await store.list_runs(after=page.cursor, limit=2)).items] == ["r2", "r1"]
    with pytest.raises(NotFoundError, match="'r4'"):
        await store.get_run("nope")


async def test_metrics_are_replaced_by_step_and_stage(store: Store) -> None:
    first = Metrics("r", 2, {"loss": 0.5, "note": "x", "none": None, "n": 3}, time_ns=1)
    earlier = Metrics("r", 1, {"loss": 0.7}, time_ns=2)
    validation = Metrics("r", 2, {"success": 0.1}, stage="val", time_ns=3)
    await store.add_metrics([first, earlier, validation])
    again = replace(first, values={"loss": 0.4}, time_ns=4)
    await store.add_metrics([again])
    assert list(await store.get_metrics("r")) == [earlier, validation, again]
    assert list(await store.get_metrics("r", stage="train")) == [earlier, again]
    assert list(await store.get_metrics("other")) == []


async def test_metrics_without_a_number_stay_valid_json(store: Store) -> None:
    await store.add_metrics([Metrics("r", 1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})])
    (metrics,) = await store.get_metrics("r")
    assert metrics.values == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 1.0}
    json.dumps(dict(metrics.values), allow_nan=False)


async def test_decisions_come_back_in_order_of_time_and_once(store: Store) -> None:
    late = Decision("r", "promoted", "policy team@2", {"interval": [0.1, 0.2]}, time_ns=9)
    early = Decision("r", "published", "policy team@2", {}, time_ns=1)
    for decision in (late, early, late):
        await store.add_decision(decision)
    assert list(await store.get_decisions("r")) == [early, late]


async def test_pages_give_everything_once_while_more_arrives(store: Store) -> None:
    await store.add_tasks(
        [Task(f"t{number:02}", number, split="even" if number % 2 == 0 else "odd") for number in range(25)]
    )
    rollouts = [Rollout(f"t{number:02}", run_id="run", step=number % 3) for number in range(25)]
    await store.enqueue(rollouts)
    seen: list[Rollout] = []
    cursor: str | None = None
    for _ in range(20):
        page = await store.list_rollouts(run_id="run", after=cursor, limit=7)
        assert len(page.items) <= 7
        seen += page.items
        if len(seen) == 14:
            rollouts.append(Rollout("t00", run_id="run"))
            await store.enqueue(rollouts[-1:])
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == rollouts
    tasks = await store.list_tasks(split="odd", limit=5)
    more = await store.list_tasks(split="odd", after=tasks.cursor, limit=100)
    assert [task.id for task in (*tasks.items, *more.items)] == [f"t{number:02}" for number in range(1, 25, 2)]
    assert more.cursor is None


async def test_a_full_last_page_has_no_cursor(store: Store) -> None:
    await store.add_tasks([Task("a", 1), Task("b", 2)])
    assert (await store.list_tasks(limit=2)).cursor is None
    assert (await store.list_tasks(limit=1)).cursor is not None


async def test_listings_refuse_nonsense(store: Store) -> None:
    with pytest.raises(StoreError, match="limit"):
        await store.list_tasks(limit=0)
    with pytest.raises(StoreError, match="no cursor"):
        await store.list_rollouts(after="page-two")


async def test_rollouts_are_listed_by_every_filter(store: Store) -> None:
    await store.add_tasks([Task("a", 1), Task("b", 2)])
    one = Rollout("a", Mode.TRAIN, run_id="x", step=1)
    two = Rollout("b", Mode.TEST, run_id="x", step=2)
    three = Rollout("b", Mode.TRAIN, run_id="y", step=1)
    await store.enqueue([one, two, three])
    await store.cancel([three.id])

    async def ids(**filters: object) -> list[str]:
        return [rollout.id for rollout in (await store.list_rollouts(**filters)).items]  # type: ignore[arg-type]

    assert await ids() == [one.id, two.id, three.id]
    assert await ids(run_id="x") == [one.id, two.id]
    assert await ids(mode=Mode.TEST) == [two.id]
    assert await ids(state=RolloutState.CANCELLED) == [three.id]
    assert await ids(step=1) == [one.id, three.id]
    assert await ids(task_id="b") == [two.id, three.id]
    assert await ids(task_id="b", run_id="x", state=RolloutState.QUEUED) == [two.id]


async def test_many_ids_in_one_call(store: Store) -> None:
    tasks = [Task(f"t{number}", number) for number in range(2500)]
    await store.add_tasks(tasks)
    assert list(await store.get_tasks([task.id for task in tasks])) == tasks


async def test_statistics_count(store: Store) -> None:
    reward = await attempt_at(store)
    await store.enqueue([Rollout("t1"), Rollout("t1")])
    await store.finish(reward.attempt_id, AttemptState.SUCCEEDED, rewards=[reward], spans=[SPAN])
    statistics = await store.statistics()
    assert statistics["tasks"] == statistics["spans"] == statistics["rewards"] == statistics["attempts"] == 1
    assert statistics["rollouts"] == 3
    assert statistics["rollouts_by_state"] == {"queued": 2, "running": 0, "succeeded": 1, "dead": 0, "cancelled": 0}
    assert statistics["bytes"] > 0
    json.dumps(statistics)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def as_kept(value: object) -> object:
    """What the store promises for floats that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list):
        return [as_kept(entry) for entry in value]
    if isinstance(value, dict):
        return {key: as_kept(entry) for key, entry in value.items()}
    return value


@given(JSON_VALUES)
def test_any_json_survives(value: object) -> None:
    text = records.to_json(value, "task 't'", "input")
    assert records.of_json(text) == as_kept(value)
    json.loads(text, parse_constant=pytest.fail)
    text.encode()


def test_numpy_numbers_count_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    value = {"loss": numpy.float32(0.5), "ids": numpy.array([1, 2]), "bad": numpy.float32("nan")}
    assert records.of_json(records.to_json(value, "metrics", "values")) == {"loss": 0.5, "ids": [1, 2], "bad": "NaN"}
