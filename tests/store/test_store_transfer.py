"""A store to files and back: all that it has, exactly, in each format, whatever goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores_under_test import OpenStore

from coterie.errors import ConfigError, NotFoundError, StoreUnavailableError
from coterie.store.base import Page, Store
from coterie.store.sqlite import SqliteStore
from coterie.store.transfer import Records
from coterie.transfer import Format, Manifest, Range, export_store, import_store
from coterie.transfer.files import open_writer, read_records
from coterie.vocabulary import (
    AttemptState,
    Decision,
    FailureCause,
    Metrics,
    Mode,
    Resource,
    ResourceKind,
    RetryPolicy,
    Reward,
    Rollout,
    RolloutState,
    Run,
    Span,
    SpanEvent,
    SpanStatus,
    Task,
)

TOKENS = {"coterie.tokens.prompt": [1, 2, 3], "coterie.tokens.response": [9], "coterie.logprobs": [-0.5, -1e-300]}


async def fill(store: Store) -> None:
    """One of everything, rollouts in all states."""
    await store.add_tasks(
        [Task(f"t{number}", {"n": number}, [1, None], "set", "val", {"é": "🕰"}) for number in range(3)]
    )
    for text in ("a", "b"):
        await store.publish(Resource("prompt", ResourceKind.PROMPT, {"text": text}, note="\x00"))
    await store.publish(Resource("other", ResourceKind.MEMORY, {}))
    await store.save_run(Run("run-1", "train", "first", {"steps": 3}))
    await store.save_run(Run("run-2", "train", "second", {}))
    for run in ("run-1", "run-2"):
        await store.add_metrics([Metrics(run, 0, {"loss": math.nan}), Metrics(run, 1, {"loss": 0.5})])
        await store.add_decision(Decision(run, "published", "policy", {"x": 10**30}))
    waiting = []
    for number, run in enumerate(["run-1", "run-2", None]):
        rollouts = [
            Rollout(
                f"t{number}",
                Mode.VAL,
                id=f"ro-{number}-{what}",
                run_id=run,
                resources={"prompt": number % 2 + 1},
                created_ns=1_000 * number,
                retry=RetryPolicy({FailureCause.DEADLINE: 2}, delay_seconds=0.5),
                metadata={"what": what},
            )
            for what in ("ok", "dead", "withdrawn", "running", "queued")
        ]
        await store.enqueue(rollouts[:-1])
        for lease in await store.lease("w", limit=4):
            ids = {"rollout_id": lease.rollout.id, "attempt_id": lease.attempt.id}
            what = lease.rollout.metadata["what"]
            span = Span(
                f"{number:032x}",
                f"{number:08x}{abs(hash(what)) % 2**32:08x}",
                "chat",
                5_000,
                6_000,
                **ids,
                status=SpanStatus.ERROR,
                attributes={"text": "a\x00b", **TOKENS},
                events=(SpanEvent("e", 1, {"k": [None]}), SpanEvent("f", 2)),
            )
            rewards = [Reward(**ids, value=0.1 + number, role="coder"), Reward(**ids, value=-1e-300)]
            if what == "ok":
                await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[span], rewards=rewards)
            elif what == "dead":
                await store.finish(
                    lease.attempt.id, AttemptState.FAILED, error="x\ny", warnings=["w", "ä"], spans=[span]
                )
            elif what == "withdrawn":
                await store.cancel([lease.rollout.id])
            else:
                await store.add_spans([span])
        waiting += rollouts[-1:]
    await store.enqueue(waiting)
    loose = [
        Span(f"{99:032x}", f"{number:016x}", "loose", 1_000 * number, 1_000 * number + 1) for number in range(1, 4)
    ]
    await store.add_spans(loose)


async def contents(store: Store) -> dict[str, Any]:
    """All that a store has, in an order that does not depend on when it arrived."""

    async def all_of(get: Callable[..., Any]) -> list[Any]:
        items: list[Any] = []
        after: str | None = None
        while True:
            page: Page[Any] = await get(after=after, limit=7)
            items += page.items
            after = page.cursor
            if after is None:
                return sorted(items, key=repr)

    names = [resource.name for resource in await store.list_resources()]
    runs = await all_of(store.list_runs)
    return {
        "tasks": await all_of(store.list_tasks),
        "rollouts": await all_of(store.list_rollouts),
        "attempts": await all_of(store.list_attempts),
        "spans": await all_of(store.list_spans),
        "rewards": await all_of(store.list_rewards),
        "decisions": await all_of(store.list_decisions),
        "runs": runs,
        "metrics": [await store.get_metrics(run.id) for run in runs],
        "resources": [await store.list_resources(name=name) for name in sorted(names)],
    }


def skip_without_pyarrow(format_: Format) -> None:
    if format_ is Format.PARQUET:
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("format_", list(Format))
async def test_all_of_it_comes_back_and_a_second_import_changes_nothing(
    open_store: OpenStore, tmp_path: Path, format_: Format
) -> None:
    skip_without_pyarrow(format_)
    source, target = await open_store("source"), await open_store("target")
    await fill(source)
    manifest = await export_store(source, tmp_path / "out", format=format_)
    before = await contents(source)
    assert {state: sum(one.state == state for one in before["rollouts"]) for state in RolloutState} == dict.fromkeys(
        RolloutState, 3
    )
    assert manifest.files["spans"].records == len(before["spans"]) == 12
    assert await import_store(tmp_path / "out", target) == manifest
    assert await contents(target) == before
    await import_store(tmp_path / "out", target)
    assert await contents(target) == before


async def test_an_empty_store_is_a_folder_too(open_store: OpenStore, tmp_path: Path) -> None:
    source, target = await open_store("source"), await open_store("target")
    assert (await export_store(source, tmp_path / "out")).records == 0
    await import_store(tmp_path / "out", target)
    assert await contents(target) == await contents(source)


@pytest.fixture
async def sqlite(tmp_path: Path):
    source, target = await SqliteStore.open(tmp_path / "source.db"), await SqliteStore.open(tmp_path / "target.db")
    async with source, target:
        yield source, target


async def test_a_run_comes_with_what_it_needs_and_nothing_else(sqlite, tmp_path: Path) -> None:
    source, target = sqlite
    await fill(source)
    await export_store(source, tmp_path / "out", only=Range(run_id="run-2"))
    await import_store(tmp_path / "out", target)
    found, before = await contents(target), await contents(source)
    assert found["rollouts"] == [one for one in before["rollouts"] if one.run_id == "run-2"]
    assert {one.rollout_id for one in found["spans"]} == {"ro-1-ok", "ro-1-dead", "ro-1-withdrawn", "ro-1-running"} - {
        "ro-1-withdrawn"
    }
    assert [one.id for one in found["tasks"]] == ["t1"]
    assert [one.id for one in found["runs"]] == ["run-2"]
    assert found["resources"] == [versions for versions in before["resources"] if versions[0].name == "prompt"]
    assert len(found["metrics"][0]) == 2
    assert len(found["decisions"]) == 1
    with pytest.raises(NotFoundError, match="run-9"):
        await export_store(source, tmp_path / "none", only=Range(run_id="run-9"))
    assert not (tmp_path / "none").exists()


async def test_a_time(sqlite, tmp_path: Path) -> None:
    source, target = sqlite
    await fill(source)
    await export_store(source, tmp_path / "out", only=Range(from_ns=1_000, before_ns=2_000))
    await import_store(tmp_path / "out", target)
    found = await contents(target)
    assert {one.run_id for one in found["rollouts"]} == {"run-2"}
    assert [one.start_ns for one in found["spans"] if one.rollout_id is None] == [1_000]
    assert [one.id for one in found["runs"]] == ["run-2"]


async def test_a_store_in_use_gives_what_can_be_imported(sqlite, tmp_path: Path) -> None:
    source, _ = sqlite
    await source.add_tasks([Task("t", None)])
    going = True

    async def work(name: str) -> None:
        number = 0
        while going:
            number += 1
            await source.enqueue([Rollout("t", id=f"ro-{name}-{number}", max_attempts=3)])
            for lease in await source.lease(name, limit=3):
                state = [AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.CANCELLED][number % 3]
                await source.finish(lease.attempt.id, state, rewards=[Reward(lease.rollout.id, lease.attempt.id, 1.0)])

    workers = [asyncio.create_task(work(f"w{number}")) for number in range(4)]
    try:
        for number in range(3):
            await asyncio.sleep(0.05)
            await export_store(source, tmp_path / f"out{number}")
            async with await SqliteStore.open(tmp_path / f"target{number}.db") as each:
                await import_store(tmp_path / f"out{number}", each)
                for rollout in (await each.list_rollouts(limit=10_000)).items:
                    attempts = (await each.get_attempts([rollout.id]))[rollout.id]
                    succeeded = any(attempt.state is AttemptState.SUCCEEDED for attempt in attempts)
                    assert succeeded == (rollout.state is RolloutState.SUCCEEDED)
    finally:
        going = False
        await asyncio.gather(*workers)


async def test_an_import_that_was_cut_off_goes_on(sqlite, tmp_path: Path, monkeypatch) -> None:
    source, target = sqlite
    await fill(source)
    await export_store(source, tmp_path / "out")
    load, left = SqliteStore.load, 6

    async def failing(self: SqliteStore, records: Records) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise StoreUnavailableError("the disk is full")
        await load(self, records)

    monkeypatch.setattr(SqliteStore, "load", failing)
    with pytest.raises(StoreUnavailableError):
        await import_store(tmp_path / "out", target)
    assert (await contents(target))["rollouts"] == []
    await import_store(tmp_path / "out", target)
    assert await contents(target) == await contents(source)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def change(file: Path) -> None:
    text = file.read_bytes()
    file.write_bytes(text.replace(b"w", b"v", 1) if b"w" in text else bytes([text[0] ^ 1]) + text[1:])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: cut(folder / "spans.jsonl"), "it is not whole"),
        (lambda folder: change(folder / "spans.jsonl"), "its checksum differs"),
        (lambda folder: (folder / "tasks.jsonl").unlink(), "tasks.jsonl: it cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "no finished `coterie export`"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "it is no manifest"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "it is no manifest"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "it cannot be read"),
        (lambda folder: edit(folder, format_version=2), "it has format version 2"),
        (lambda folder: edit(folder, format="csv"), "it is no manifest"),
        (lambda folder: edit(folder, files={}), "it lacks or does not know: attempts"),
        (lambda folder: edit(folder, extra=1), "it is no manifest"),
    ],
)
async def test_what_is_damaged_or_foreign_is_refused_before_anything_is_written(
    sqlite, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    source, target = sqlite
    await fill(source)
    await export_store(source, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ConfigError, match=says):
        await import_store(tmp_path / "out", target)
    assert not any((await contents(target)).values())


def edit(folder: Path, **fields: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))


async def test_an_export_is_whole_or_absent(sqlite, tmp_path: Path, monkeypatch) -> None:
    source, _ = sqlite
    await fill(source)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        await export_store(source, tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    await export_store(source, tmp_path / "empty")
    before = sorted(os.listdir(tmp_path))

    async def fails(self: SqliteStore, ids: Sequence[str]) -> Any:
        raise StoreUnavailableError("gone")

    monkeypatch.setattr(SqliteStore, "get_rewards", fails)
    with pytest.raises(StoreUnavailableError):
        await export_store(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == before


async def test_it_takes_little_memory(sqlite, tmp_path: Path) -> None:
    source, target = sqlite
    text = "x" * 20_000
    for start in range(0, 2_000, 100):
        await source.add_spans(
            [
                Span(f"{1:032x}", f"{number:016x}", "s", number, number, attributes={"text": f"{number}{text}"})
                for number in range(start, start + 100)
            ]
        )
    tracemalloc.start()
    try:
        await export_store(source, tmp_path / "out")
        await import_store(tmp_path / "out", target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (await target.statistics())["spans"] == 2_000
    assert peak < 30e6  # of 40 MB


# What a store can hold: text of any characters, integers of any size, floats that are finite.
Text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
Number = st.integers(-(2**63), 2**63 - 1)
Json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | Text | st.sampled_from(["NaN", "Infinity", "-Infinity", "\x00", "\u2028", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(Text, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
Attributes = st.dictionaries(st.sampled_from([*TOKENS, "text", ""]), Json | st.lists(Number, max_size=4), max_size=4)
Spans = st.builds(
    Span,
    trace_id=Text,
    span_id=Text,
    name=Text,
    start_ns=Number,
    end_ns=Number,
    parent_id=st.none() | Text,
    status=st.sampled_from(SpanStatus),
    status_message=Text,
    attributes=Attributes,
    events=st.lists(st.builds(SpanEvent, Text, Number, st.dictionaries(Text, Json, max_size=2)), max_size=2).map(tuple),
)
Rollouts = st.builds(
    Rollout,
    Text,
    step=st.none() | Number,
    deadline_seconds=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    sampling=st.dictionaries(Text, Json, max_size=2),
    retry=st.builds(RetryPolicy, st.dictionaries(st.sampled_from(FailureCause), st.integers(1, 9), max_size=2)),
    metadata=st.dictionaries(Text, Json, max_size=2),
)


@pytest.mark.parametrize("format_", list(Format))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(Spans, max_size=4), st.lists(Rollouts, max_size=3), st.lists(st.builds(Task, Text, Json, Json)))
def test_any_contents_come_back(format_: Format, spans: list[Span], rollouts: list[Rollout], tasks: list[Task]) -> None:
    skip_without_pyarrow(format_)
    folder = Path(tempfile.mkdtemp())
    try:
        for kind, records in (("spans", spans), ("rollouts", rollouts), ("tasks", tasks)):
            with open_writer(folder, kind, format_) as writer:
                writer.write(records)
            assert [record for record, _ in read_records(folder, kind, format_)] == records
    finally:
        shutil.rmtree(folder)


async def test_token_ids_are_lists_of_their_own_in_parquet(sqlite, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    source, _ = sqlite
    await fill(source)
    await export_store(source, tmp_path / "out", format=Format.PARQUET)
    table = pyarrow.read_table(tmp_path / "out" / "spans.parquet")
    rows = [row for row in table.to_pylist() if row["name"] == "chat"]
    assert {tuple(row["prompt_tokens"]) for row in rows} == {(1, 2, 3)}
    assert json.loads(rows[0]["attributes"]) == {"text": "a\x00b"}


def test_a_manifest_of_another_program_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "something", "format_version": 1}))
    with pytest.raises(ConfigError, match="it is of something else"):
        Manifest.read(tmp_path)
