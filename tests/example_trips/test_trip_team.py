"""The agency with the real OpenAI SDK, against a scripted model behind a real socket: who is rewarded for what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from example_modules import EXAMPLES, example_modules

import coterie
from coterie.assembly import build_episode
from coterie.episodes import EdgeKind, Episode
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Reward, Task
from coterie_trainers.config_file import load_config
from coterie_trainers.credit import Credit, turn_rewards

Answers = Callable[[str, str], Any]
"""System and user message → the answer."""


@pytest.fixture
def trips() -> Iterator[Callable[[str], ModuleType]]:
    with pytest.MonkeyPatch.context() as patch, example_modules("manager_workers") as module:
        patch.setenv("OPENAI_API_KEY", "unused")
        yield module


class Agency:
    """Answers as a faultless team would, but for what ``slips`` says."""

    def __init__(self, module: Callable[[str], ModuleType], slips: dict[str, str] | None = None) -> None:
        self.agents, self.briefs = module("agents"), module("briefs")
        self.request = next(each for each in module("trips").make_splits()["test"] if len(each.briefs) == 4)
        self.slips = slips or {}

    def __call__(self, system: str, user: str) -> str:
        if system == self.agents.SPLIT:
            return self.slips.get("split", " ; ".join(map(str, self.request.briefs)))
        if system == self.agents.JOIN:
            return self.slips.get("offer", f"offer {user.replace(' ; ', ' , ')}")
        brief = self.briefs.Brief.parse(user.split("\n")[0])
        return self.slips.get(brief.worker, brief.query)


@contextmanager
def served(answers: Answers) -> Iterator[ScriptedModel]:
    async def answer(body: dict[str, Any]) -> str:
        system, user = (message["content"] for message in body["messages"])
        given = answers(system, user)
        return str(await given if asyncio.iscoroutine(given) else given)

    with ScriptedModel(answer) as model, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", model.base_url)
        yield model


async def run(module: Callable[[str], ModuleType], request: Any, answers: Answers) -> Episode:
    """One attempt of the example's rollout function, and its episode."""
    sink = ListSink()
    with served(answers) as model:
        agents = module("agents")
        agents.client = agents.client.with_options(base_url=model.base_url)
        coterie.instrument()
        try:
            with attempt_scope(scope_for_test(sink)):
                team = await module("app").team(task=Task(**request.task))
        finally:
            coterie.uninstrument()
            await agents.client.close()
    rewards = [*sink.rewards, Reward("ro-test", "at-test", team)]
    return build_episode(request.id, "at-test", "ro-test", sink.spans, rewards)


def own_rewards(episode: Episode) -> dict[str, list[float]]:
    """Agent path → the rewards of its turns for its own part."""
    found: dict[str, list[float]] = {}
    for turn, reward in zip(episode.turns, turn_rewards(episode, Credit(team=0.0)), strict=True):
        found.setdefault(turn.agent_path, []).append(reward.outcome)
    return found


def team_reward(episode: Episode) -> float:
    return turn_rewards(episode, Credit(local=0.0))[0].outcome


async def test_a_faultless_team_is_right_in_every_part(trips: Callable[[str], ModuleType]) -> None:
    agency = Agency(trips)
    episode = await run(trips, agency.request, agency)
    workers = [brief.worker for brief in agency.request.briefs]
    assert team_reward(episode) == 1
    assert own_rewards(episode) == {"manager": [1, 1], **{f"manager/{worker}": [1] for worker in workers}}
    assert {(edge.kind, edge.source, edge.target) for edge in episode.edges} == {
        (EdgeKind.DELEGATION, "manager", worker) for worker in workers
    }


async def test_the_workers_run_side_by_side(trips: Callable[[str], ModuleType]) -> None:
    """Each worker's answer waits for all workers' questions: one after the other they would wait for ever."""
    agency = Agency(trips)
    together = asyncio.Barrier(4)

    async def answer(system: str, user: str) -> str:
        if system in agency.agents.WORK.values():
            await asyncio.wait_for(together.wait(), 10)
        return agency(system, user)

    assert team_reward(await run(trips, agency.request, answer)) == 1


@pytest.mark.parametrize("guilty", ["flights", "hotels", "events", "cars"])
async def test_one_workers_fault_is_nobody_elses(trips: Callable[[str], ModuleType], guilty: str) -> None:
    agency = Agency(trips)
    right = next(brief.query for brief in agency.request.briefs if brief.worker == guilty)
    column = right.rpartition(" ")[2]
    other = next(sort for sort in trips("catalogue").SORTS[guilty] if sort != column)
    agency.slips = {guilty: right.removesuffix(column) + other}
    episode = await run(trips, agency.request, agency)
    assert team_reward(episode) == 0
    rewards = own_rewards(episode)
    assert rewards.pop(f"manager/{guilty}") == [0]
    assert {value for values in rewards.values() for value in values} == {1}


async def test_a_wrong_brief_is_the_managers_fault(trips: Callable[[str], ModuleType]) -> None:
    agency = Agency(trips)
    gold = agency.request.briefs
    wrong = next(word for word in ("cheap", "quiet", "near") if word != gold[1].words[1])
    brief = trips("briefs").Brief("hotels", (gold[1].words[0], wrong, *gold[1].words[2:]))
    agency.slips = {"split": " ; ".join(map(str, [gold[0], brief, *gold[2:]]))}
    episode = await run(trips, agency.request, agency)
    rewards = own_rewards(episode)
    assert team_reward(episode) == 0
    assert rewards.pop("manager") == [0.75, 1]
    assert {value for values in rewards.values() for value in values} == {1}


async def test_a_wrong_offer_of_right_finds_is_the_managers_last_call(trips: Callable[[str], ModuleType]) -> None:
    agency = Agency(trips, {"offer": "offer flights 'Nowhere'"})
    episode = await run(trips, agency.request, agency)
    assert team_reward(episode) == 0
    assert own_rewards(episode)["manager"] == [1, 0]


async def test_a_worker_that_finds_nothing_tries_once_more(trips: Callable[[str], ModuleType]) -> None:
    agency = Agency(trips)
    asked: list[str] = []

    def answer(system: str, user: str) -> str:
        if user.startswith("cars "):
            asked.append(user)
            return "city 'Atlantis' , sort price" if len(asked) == 1 else agency(system, user)
        return agency(system, user)

    episode = await run(trips, agency.request, answer)
    assert asked == [asked[0], f"{asked[0]}\nnothing : city 'Atlantis' , sort price"]
    assert team_reward(episode) == 1
    assert own_rewards(episode)["manager/cars"] == [1, 1]


@pytest.mark.parametrize("rubbish", ["", "nonsense", " ; ; ", "hotels", "hotels hotels ; hotels", "city 'Oslo' , sort"])
async def test_rubbish_is_judged_and_no_exception(trips: Callable[[str], ModuleType], rubbish: str) -> None:
    agency = Agency(trips)
    episode = await run(trips, agency.request, lambda _system, _user: rubbish)
    assert team_reward(episode) == 0
    assert not any(value for values in own_rewards(episode).values() for value in values[:1])


def test_no_brief_of_a_held_out_trip_is_in_another_split(trips: Callable[[str], ModuleType]) -> None:
    of_split = {
        split: {(brief.worker, brief.query) for request in requests for brief in request.briefs}
        for split, requests in trips("trips").make_splits().items()
    }
    assert not of_split["train"] & of_split["val"]
    assert not of_split["train"] & of_split["test"]
    assert not of_split["val"] & of_split["test"]


def test_the_same_trips_on_every_call_and_none_twice(trips: Callable[[str], ModuleType]) -> None:
    make = trips("trips").make_splits
    one = [request for requests in make().values() for request in requests]
    assert one == [request for requests in make().values() for request in requests]
    assert len({request.text for request in one}) == len({request.id for request in one}) == len(one)


def test_another_sort_finds_something_else(trips: Callable[[str], ModuleType]) -> None:
    """Otherwise a wrong query would be right by luck."""
    search, sorts = trips("catalogue").search, trips("catalogue").SORTS
    for request in trips("trips").make_splits()["val"]:
        for brief in request.briefs:
            start = brief.query.rpartition(" ")[0]
            found = [search(brief.worker, f"{start} {sort}").name for sort in sorts[brief.worker]]
            assert len(set(found)) == len(found)


def test_demonstrations_show_no_held_out_brief(trips: Callable[[str], ModuleType]) -> None:
    splits = trips("trips").make_splits()
    shown = list(trips("demonstrations").demonstrate(splits["train"], 1500, 0))
    texts = {part for each in shown for part in each.answer.split(" ; ")}
    for request in splits["val"] + splits["test"]:
        for brief in request.briefs:
            assert str(brief) not in texts
            assert brief.query not in texts


def test_the_configuration_is_valid() -> None:
    assert load_config(EXAMPLES / "manager_workers" / "config.yaml").training.balance == "family"
