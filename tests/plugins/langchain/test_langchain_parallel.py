"""Many teams at once: every call belongs to the agent, the attempt and the span that made it."""

from __future__ import annotations

import asyncio
import operator
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypedDict

import pytest
from chat_models import chat_model
from langchain_core.messages import HumanMessage, SystemMessage
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from reading_spans import edges, scope_of, system_text

from coterie import announced, roles
from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink, Reply, ScriptedModel
from coterie.testing.conformance import PlainGlobal

pytestmark = pytest.mark.usefixtures("recording")

ASYNC_TEAMS, THREADED_TEAMS, WORKERS = 20, 8, 3


class Work(TypedDict, total=False):
    """What a team works on."""

    team: str
    part: int
    done: Annotated[list[str], operator.add]


def team_of(model: Any) -> Any:
    """A planner, several workers side by side, a judge. Each says its name and its team's in its prompt."""

    def messages(agent: str, team: str) -> list[Any]:
        return [SystemMessage(f"{agent} of {team}"), HumanMessage("go")]

    def sync(agent: str) -> Any:
        return lambda state: {"done": [model.invoke(messages(agent, state["team"])).text]}

    def later(agent: str) -> Any:
        async def act(state: Work) -> Work:
            await asyncio.sleep(random.random() * 0.01)
            return {"done": [(await model.ainvoke(messages(agent, state["team"]))).text]}

        return act

    def compiled(node: Any) -> Any:
        graph = StateGraph(Work)
        for agent in ("planner", "worker", "judge"):
            graph.add_node(agent, node(agent))
        graph.add_edge(START, "planner")
        graph.add_conditional_edges(
            "planner", lambda state: [Send("worker", {"team": state["team"]}) for _ in range(WORKERS)], ["worker"]
        )
        graph.add_edge("worker", "judge")
        graph.add_edge("judge", END)
        return graph.compile()

    return compiled(sync), compiled(later)


async def play(server: ScriptedModel) -> dict[str, ListSink]:
    """Run all teams; gives team name to the spans that reached its attempt."""
    sinks: dict[str, ListSink] = {}
    sync_team, async_team = team_of(chat_model(server))

    def scope(team: str) -> Any:
        sinks[team] = ListSink()
        return scope_of(server, sinks[team], rollout_id=f"ro-{team}", attempt_id=f"at-{team}")

    async def run_async(team: str) -> None:
        with attempt_scope(scope(team)):
            await async_team.ainvoke({"team": team, "done": []})

    def run_thread(team: str) -> None:
        with attempt_scope(scope(team)):
            sync_team.invoke({"team": team, "done": []})

    with ThreadPoolExecutor(THREADED_TEAMS) as threads:
        running = [asyncio.wrap_future(threads.submit(run_thread, f"t{n}")) for n in range(THREADED_TEAMS)]
        await asyncio.gather(*(run_async(f"a{n}") for n in range(ASYNC_TEAMS)), *running)
    return sinks


def wrong_calls(server: ScriptedModel, sinks: dict[str, ListSink]) -> int:
    """How many calls are recorded under another agent, attempt or parent span than the one whose prompt it has."""
    wrong = 0
    for team, sink in sinks.items():
        by_id = {span.span_id: span for span in sink.spans}
        for chat in sink.of(names.CHAT):
            said = re.search(r"(\w+) of (\w+)", chat.attributes[names.INPUT_MESSAGES])
            assert said is not None
            above = by_id.get(chat.parent_id or "")
            right = (
                said.groups() == (chat.attributes[names.AGENT_NAME], team)
                and chat.attributes[names.ROLE] == said[1]
                and chat.rollout_id == f"ro-{team}"
                and above is not None
                and above.name == f"invoke_agent {said[1]}"
            )
            wrong += not right
    for request in server.requests:
        agent, team = system_text(request.body).split(" of ")
        wrong += request.headers["x-coterie-role"] != agent
        wrong += request.headers["x-coterie-rollout-id"] != f"ro-{team}"
    return wrong


def delayed(body: dict[str, Any]) -> Reply:
    return Reply(text=f"{system_text(body)} spoke", delay_seconds=random.random() * 0.02)


async def test_every_call_is_attributed_right_in_parallel(serve):
    server = serve(delayed)
    sinks = await play(server)

    teams, calls_each = ASYNC_TEAMS + THREADED_TEAMS, WORKERS + 2
    assert len(server.requests) == teams * calls_each
    assert wrong_calls(server, sinks) == 0
    for sink in sinks.values():
        chats = sink.of(names.CHAT)
        assert len(chats) == calls_each
        assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in chats)
        workers = [chat.attributes[names.TURN] for chat in chats if chat.attributes[names.ROLE] == "worker"]
        assert sorted(workers) == list(range(WORKERS))
        assert len({chat.parent_id for chat in chats}) == calls_each
        to_worker, to_judge = ("handoff", "planner", "worker"), ("handoff", "worker", "judge")
        assert edges(sink.spans) == [to_worker] * WORKERS + [to_judge] * WORKERS


async def test_the_check_above_can_fail(serve, monkeypatch):
    monkeypatch.setattr(announced, "_announced", PlainGlobal())
    monkeypatch.setattr(roles, "_acting_sources", [])
    server = serve(delayed)
    assert wrong_calls(server, await play(server)) > 0
