"""The warehouse and its team: the real LangGraph program with the real client, against a scripted model behind a socket."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from example_modules import EXAMPLES, example_modules

import coterie
from coterie.assembly import build_episode
from coterie.episodes import Episode
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint, Reward, Task
from coterie_trainers.config_file import load_config
from coterie_trainers.credit import Credit, turn_rewards

# langchain-openai keeps its HTTP client for the life of the process, and a client keeps to one event loop.
one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def module() -> Iterator[Callable[[str], ModuleType]]:
    with pytest.MonkeyPatch.context() as patch, example_modules("long_horizon") as module:
        patch.setenv("OPENAI_API_KEY", "unused")
        yield module


class Staff:
    """Does a shift as it should be done, but for what ``slips`` says: right answer → what is answered in its place."""

    def __init__(self, module: Callable[[str], ModuleType], shift: Any, slips: dict[str, str] | None = None) -> None:
        self.module, self.order, self.slips = module, shift.order, slips or {}
        self.warehouse = module("warehouse").Warehouse()
        self.seen: list[str] = []

    def __call__(self, body: dict[str, Any]) -> str:
        agents, demonstrations = self.module("agents"), self.module("demonstrations")
        system, seen = (message["content"] for message in body["messages"])
        self.seen.append(seen)
        if system == agents.PLAN:
            right = str(demonstrations.next_goal(self.order, self.warehouse))
            return self.slips.get(right, right)
        goal = self.module("goals").Goal.parse(seen.split(" ; ")[0].removeprefix("goal "))
        right = demonstrations.next_step(goal, self.warehouse)
        answer = self.slips.get(right, right)
        self.warehouse.do(answer)
        return answer


async def run(module: Callable[[str], ModuleType], shift: Any, answer: Callable[[dict[str, Any]], str]) -> Episode:
    """One attempt of the example's rollout function, and its episode."""
    sink = ListSink()
    coterie.instrument()
    try:
        with ScriptedModel(answer) as model:
            endpoint = Endpoint(model.base_url, "scripted", "team")
            with attempt_scope(scope_for_test(sink, endpoints={"team": endpoint})):
                team = await module("app").team(task=Task(**shift.task))
    finally:
        coterie.uninstrument()
    return build_episode(
        shift.id, "at-test", "ro-test", sink.spans, [*sink.rewards, Reward("ro-test", "at-test", team)]
    )


def shift_of(module: Callable[[str], ModuleType], wanted: Callable[[Any], bool]) -> Any:
    return next(shift for shift in module("orders").make_splits()["train"] if wanted(shift.order))


def fragile(order: Any) -> bool:
    """One item, to be wrapped only because it breaks."""
    return list(order.items.values()) == [False] and list(order.box.values()) == [True]


def team_reward(episode: Episode) -> float:
    return turn_rewards(episode, Credit(local=0.0))[0].outcome


def own_rewards(episode: Episode) -> list[float]:
    return [reward.outcome for reward in turn_rewards(episode, Credit(team=0.0))]


@one_loop
@pytest.mark.parametrize("items", [1, 2])
async def test_a_faultless_shift(module: Callable[[str], ModuleType], items: int) -> None:
    shift = shift_of(module, lambda order: len(order.items) == items)
    staff = Staff(module, shift)
    episode = await run(module, shift, staff)
    assert team_reward(episode) == 1
    assert 8 <= len(episode.turns) <= 20
    assert [turn.role for turn in episode.turns].count("planner") == items + 1
    own = zip(episode.turns, own_rewards(episode), strict=True)
    assert {(turn.role, reward) for turn, reward in own} == {("planner", 0), ("executor", 1)}


@one_loop
async def test_a_call_is_made_in_the_state_that_the_agent_sees(module: Callable[[str], ModuleType]) -> None:
    shift = shift_of(module, lambda order: len(order.items) == 2)
    staff = Staff(module, shift)
    first = await run(module, shift, staff)
    again = await run(module, shift, Staff(module, shift))
    keys = [turn.state_key for turn in first.turns]
    assert keys == [turn.state_key for turn in again.turns]
    assert len(set(keys)) == len(set(staff.seen)) == len(keys)


@one_loop
async def test_steps_towards_a_wrong_goal_are_no_fault_of_the_executor(module: Callable[[str], ModuleType]) -> None:
    shift = shift_of(module, fragile)
    (item,) = shift.order.items
    episode = await run(module, shift, Staff(module, shift, {f"pack {item} wrapped": f"pack {item} plain"}))
    assert team_reward(episode) == 0
    rewards = own_rewards(episode)
    assert {reward for turn, reward in zip(episode.turns, rewards, strict=True) if turn.role == "executor"} == {1}


@one_loop
async def test_only_the_steps_of_a_missed_goal_go_unrewarded(module: Callable[[str], ModuleType]) -> None:
    shift = shift_of(module, fragile)
    (item,) = shift.order.items
    episode = await run(module, shift, Staff(module, shift, {f"wrap {item}": f"pack {item}"}))
    assert team_reward(episode) == 0
    rewards = own_rewards(episode)
    executor = [reward for turn, reward in zip(episode.turns, rewards, strict=True) if turn.role == "executor"]
    assert executor == [0, 0, 0, 0, 1, 1, 1]


@one_loop
@pytest.mark.parametrize("rubbish", ["", "nonsense", "pack", "send express", "pack vase plain"])
async def test_a_team_that_gets_nowhere_ends(module: Callable[[str], ModuleType], rubbish: str) -> None:
    agents = module("agents")
    shift = shift_of(module, lambda order: len(order.items) == 2)
    episode = await run(module, shift, lambda _body: rubbish)
    assert team_reward(episode) == 0
    assert len(episode.turns) <= agents.MOST_GOALS * (1 + agents.MOST_STEPS)


def test_what_is_packed_or_shipped_stays_so_whatever_the_robot_does(module: Callable[[str], ModuleType]) -> None:
    warehouse = module("warehouse")
    rng = random.Random(0)
    verbs = ("go", "take", "take", "wrap", "pack", "label", "ship", "")
    for _ in range(60):
        state = warehouse.Warehouse()
        for _ in range(200):
            box, shipped, before = list(state.box), state.shipped, repr(state)
            things = (*warehouse.PLACES, *warehouse.AISLE_OF, *warehouse.LABELS, state.hold, "")
            done = state.do(f"{rng.choice(verbs)} {rng.choice(things)}".strip())
            assert done == (repr(state) != before)
            assert state.box[: len(box)] == box
            assert state.shipped or not shipped
            assert not (shipped and done)


def test_no_order_of_one_split_is_in_another(module: Callable[[str], ModuleType]) -> None:
    of_split = {
        split: {(frozenset(shift.order.items.items()), shift.order.urgent) for shift in shifts}
        for split, shifts in module("orders").make_splits().items()
    }
    assert not of_split["train"] & of_split["val"]
    assert not of_split["train"] & of_split["test"]
    assert not of_split["val"] & of_split["test"]


def test_every_order_can_be_fulfilled(module: Callable[[str], ModuleType]) -> None:
    demonstrations = module("demonstrations")
    for shifts in module("orders").make_splits().values():
        for shift in shifts:
            order, state = module("orders").read_order(shift.task["input"]), module("warehouse").Warehouse()
            for _ in range(len(order.items) + 1):
                goal = demonstrations.next_goal(order, state)
                packed = len(state.box)
                while not goal.over(state, packed):
                    assert state.do(demonstrations.next_step(goal, state))
                assert goal.reached(state, packed)
            assert order.fulfilled(state)


def test_demonstrations_show_training_orders_alone(module: Callable[[str], ModuleType]) -> None:
    splits = module("orders").make_splits()
    start = module("warehouse").Warehouse()
    shown = {each.user for each in module("demonstrations").demonstrate(splits["train"], 900, 0)}
    held_out = {shift.order.seen(start) for shift in splits["val"] + splits["test"] if len(shift.order.items) == 2}
    assert held_out
    assert not shown & held_out


def test_the_configuration_is_valid() -> None:
    assert load_config(EXAMPLES / "long_horizon" / "config.yaml").credit.advantage == "state"
