"""Status and scores of resources: at most one version of a name is active, whatever happens, and content stays."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from stores_under_test import STORES, OpenStore

from coterie.errors import NotFoundError, StoreError
from coterie.store.base import Store
from coterie.store.transfer import Records
from coterie.vocabulary import Resource, ResourceKind, ResourceStatus

CANDIDATE, ACTIVE, RETIRED = ResourceStatus.CANDIDATE, ResourceStatus.ACTIVE, ResourceStatus.RETIRED


def prompt(text: str = "x", name: str = "coder", **fields: Any) -> Resource:
    return Resource(name, ResourceKind.PROMPT, {"text": text, "role": name}, **fields)


async def statuses(store: Store, name: str = "coder") -> list[ResourceStatus]:
    return [version.status for version in await store.list_resources(name=name)]


async def test_what_is_published_takes_the_place_of_what_was_active(store: Store) -> None:
    await store.publish(prompt("a", name="other"))
    for text in ("a", "b", "c"):
        await store.publish(prompt(text))
    assert await statuses(store) == [RETIRED, RETIRED, ACTIVE]
    assert await statuses(store, "other") == [ACTIVE]


async def test_a_candidate_is_taken_up_by_nobody_who_does_not_name_it(store: Store) -> None:
    active = await store.publish(prompt("a"))
    candidate = await store.publish(prompt("b", status=CANDIDATE, parent=1, scores={"val": {"success": 0.5}}))
    assert (candidate.version, candidate.status) == (2, CANDIDATE)
    assert await store.get_resource("coder") == active
    assert await store.get_resource("coder", 2) == candidate
    assert list(await store.list_resources()) == [active]
    assert (await store.publish(prompt("c"))).version == 3
    assert await statuses(store) == [RETIRED, CANDIDATE, ACTIVE]


async def test_the_newest_is_listed_where_none_is_active(store: Store) -> None:
    await store.publish(prompt("a", status=CANDIDATE))
    newest = await store.publish(prompt("b", status=CANDIDATE))
    assert list(await store.list_resources()) == [newest]
    assert list(await store.list_resources(status=ACTIVE)) == []
    with pytest.raises(NotFoundError, match="no active version; there are 1 to 2, and the newest is candidate") as told:
        await store.get_resource("coder")
    assert "Store.mark('coder', 2, ResourceStatus.ACTIVE)" in str(told.value)


async def test_all_versions_of_a_status_are_listed(store: Store) -> None:
    for name in ("b", "a"):
        for status in (CANDIDATE, ACTIVE, CANDIDATE):
            await store.publish(prompt(name=name, status=status))
    await store.publish(Resource("model", ResourceKind.ENDPOINT, {}, status=CANDIDATE))

    async def listed(**where: Any) -> list[tuple[str, int]]:
        return [(one.name, one.version) for one in await store.list_resources(**where)]

    assert await listed(status=CANDIDATE) == [("a", 1), ("a", 3), ("b", 1), ("b", 3), ("model", 1)]
    assert await listed(status=CANDIDATE, kind=ResourceKind.ENDPOINT) == [("model", 1)]
    assert await listed(status=ACTIVE) == [("a", 2), ("b", 2)]
    assert await listed(status=CANDIDATE, name="b") == [("b", 1), ("b", 3)]
    assert await listed(name="b", kind=ResourceKind.ENDPOINT) == []


async def test_marking_one_active_retires_the_other(store: Store) -> None:
    for text in ("a", "b"):
        await store.publish(prompt(text))
    back = await store.mark("coder", 1, ACTIVE)
    assert back == await store.get_resource("coder")
    assert await statuses(store) == [ACTIVE, RETIRED]
    assert await store.mark("coder", 1, ACTIVE) == back
    await store.mark("coder", 1, CANDIDATE)
    assert await statuses(store) == [CANDIDATE, RETIRED]


async def test_scores_are_added_and_nothing_else_is_changed(store: Store) -> None:
    published = await store.publish(prompt("a", status=CANDIDATE, scores={"val": 0.5, "why": {"of": "seed"}}))
    marked = await store.mark("coder", 1, scores={"val": 0.75, "test": [0.5, 2**70, math.inf, "ü{}"]})
    scores = {"val": 0.75, "why": {"of": "seed"}, "test": [0.5, 2**70, "Infinity", "ü{}"]}
    assert marked == replace(published, scores=scores) == await store.get_resource("coder", 1)
    assert await store.mark("coder", 1, ACTIVE, scores={}) == replace(marked, status=ACTIVE)
    assert await store.mark("coder", 1) == replace(marked, status=ACTIVE)


async def test_marking_what_is_not_there_says_what_is(store: Store) -> None:
    with pytest.raises(NotFoundError, match="none has been published"):
        await store.mark("coder", 1, ACTIVE)
    await store.publish(prompt())
    with pytest.raises(NotFoundError, match="no version 2; there are 1 to 1"):
        await store.mark("coder", 2, ACTIVE)
    with pytest.raises(StoreError, match="resource 'coder': scores cannot be stored as JSON"):
        await store.mark("coder", 1, RETIRED, scores={"val": object()})
    assert await statuses(store) == [ACTIVE]


async def test_publishing_again_leaves_what_was_marked_since(store: Store) -> None:
    first = await store.publish(prompt("a", version=1))
    await store.publish(prompt("b"))
    marked = await store.mark("coder", 1, scores={"val": 1})
    assert await store.publish(first) == marked
    assert await statuses(store) == [RETIRED, ACTIVE]


async def test_of_many_who_publish_and_mark_at_once_one_is_active(open_store: OpenStore) -> None:
    one, other = await open_store(), await open_store()
    await one.publish(prompt())
    published = [store.publish(prompt(str(number))) for number in range(10) for store in (one, other)]
    marked = [store.mark("coder", 1, ACTIVE, scores={str(number): 1}) for number in range(10) for store in (one, other)]
    await asyncio.gather(*(each for pair in zip(published, marked, strict=True) for each in pair))
    versions = await one.list_resources(name="coder")
    assert len(versions) == 21
    assert len([version for version in versions if version.status is ACTIVE]) == 1
    assert len(versions[0].scores) == 10


@pytest.mark.parametrize(
    ("loaded", "expected"),
    [
        ([1, 2, 3, 4], [RETIRED, RETIRED, RETIRED, ACTIVE]),
        ([1, 2, 3], [RETIRED, RETIRED, ACTIVE]),
        ([1], [RETIRED, ACTIVE]),
    ],
)
async def test_of_several_active_versions_that_meet_the_highest_stays(
    store: Store, loaded: list[int], expected: list[ResourceStatus]
) -> None:
    for text in ("a", "b"):
        await store.publish(prompt(text))
    records = Records(resources=[prompt(version=version, created_ns=version) for version in loaded])
    for _ in range(2):
        await store.load(records)
        assert await statuses(store) == expected


class ResourceMachine(RuleBasedStateMachine):
    """Two stores on one database against a list of statuses."""

    kind: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.opened = STORES[self.kind](Path(self.folder.name))
        self.stores: list[Store] = [self.do(self.opened("model")) for _ in range(2)]
        self.model: list[Resource] = []

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.do(self.opened.close())
        self.runner.close()
        self.folder.cleanup()

    def expect(self, change: Callable[[Resource], Resource], version: int) -> None:
        changed = change(self.model[version - 1])
        if changed.status is ACTIVE:
            self.model = [replace(one, status=RETIRED) if one.status is ACTIVE else one for one in self.model]
        self.model[version - 1] = changed

    @rule(store=st.sampled_from([0, 1]), status=st.sampled_from(ResourceStatus), text=st.text(max_size=5))
    def publish(self, store: int, status: ResourceStatus, text: str) -> None:
        given = prompt(text.replace("\0", ""), status=status)
        published = self.do(self.stores[store].publish(given))
        self.model.append(replace(given, version=len(self.model) + 1, status=RETIRED))
        self.expect(lambda one: replace(one, status=status), len(self.model))
        assert published == self.model[-1]

    @rule(
        store=st.sampled_from([0, 1]),
        version=st.integers(1, 6),
        status=st.sampled_from([None, *ResourceStatus]),
        scores=st.none() | st.dictionaries(st.sampled_from("ab"), st.integers(0, 3)),
    )
    def mark(self, store: int, version: int, status: ResourceStatus | None, scores: dict[str, int] | None) -> None:
        marking = self.stores[store].mark("coder", version, status, scores=scores)
        if version > len(self.model):
            with pytest.raises(NotFoundError):
                self.do(marking)
            return
        marked = self.do(marking)
        if status is not None:
            self.expect(lambda one: replace(one, status=status), version)
        self.model[version - 1] = replace(
            self.model[version - 1], scores={**self.model[version - 1].scores, **(scores or {})}
        )
        assert marked == self.model[version - 1]

    @rule(store=st.sampled_from([0, 1]), change=st.sampled_from([CANDIDATE, ACTIVE]))
    def load_what_is_there(self, store: int, change: ResourceStatus) -> None:
        """What another store says of versions that are here already counts for nothing."""
        others = [replace(one, status=change, scores={"c": 1}) for one in self.model]
        self.do(self.stores[store].load(Records(resources=others)))

    @invariant()
    def stores_and_model_agree(self) -> None:
        for store in self.stores:
            assert list(self.do(store.list_resources(name="coder"))) == self.model
            active = [one for one in self.model if one.status is ACTIVE]
            assert len(active) <= 1
            assert list(self.do(store.list_resources(status=ACTIVE))) == active
            assert list(self.do(store.list_resources())) == (active or self.model[-1:])


@pytest.mark.parametrize("kind", sorted(STORES))
def test_resources_behave_like_their_model(kind: str) -> None:
    machine = type(f"{kind.title()}ResourceMachine", (ResourceMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples={"http": 4, "postgresql": 5, "sqlite": 10}[kind],
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
