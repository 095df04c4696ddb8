"""Many crews at once: every call, tool call and edge belongs to the agent, the attempt and the span that made it."""

from __future__ import annotations

import asyncio
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from crewai.tools import tool
from crews import agent_of, crew_of, model_at, task_of, tool_results
from reading_spans import edges, scope_of

from coterie import announced
from coterie import conventions as names
from coterie.scope import attempt_scope
from coterie.testing import ListSink, Reply, ScriptedModel
from coterie.testing.conformance import PlainGlobal

pytestmark = pytest.mark.usefixtures("recording")

ASYNC_CREWS, THREADED_CREWS, CALLS = 20, 8, 7
"""One call of the planner, two tool-using workers side by side with two each, two of the judge, who delegates none."""


@tool("measure")
def measure(of: str) -> str:
    """Measure something."""
    return f"measured {of}"


def team_of(server: ScriptedModel, team: str, **settings: Any) -> Any:
    """A planner, two workers side by side with a tool, a judge with a time limit, which is a thread of its own."""
    model = model_at(server, **settings)

    def agent(role: str, **more: Any) -> Any:
        return agent_of(model, f"{role} of {team}", **more)

    limited = {"tools": [measure], "max_execution_time": 60}
    return crew_of(
        task_of(agent("planner")),
        task_of(agent("left", tools=[measure]), async_execution=True),
        task_of(agent("right", tools=[measure]), async_execution=True),
        task_of(agent("judge", **limited)),
        name=team,
        cache=False,
    )


def speaker(messages: str) -> tuple[str, str]:
    found = re.search(r"\[(\w+) of (\w+)\]", messages)
    assert found is not None
    return found[1], found[2]


def worker(result: str) -> tuple[str, str]:
    found = re.search(r"measured (\w+) (\w+)", result)
    return (found[1], found[2]) if found is not None else ("nobody", "nowhere")


def delayed(body: dict[str, Any]) -> Reply:
    role, team = speaker(str(body["messages"]))
    delay = random.random() * 0.02
    if role == "planner" or tool_results(body):
        return Reply(f"{role} spoke", delay_seconds=delay)
    asked = [{"name": "measure", "arguments": {"of": f"{role} {team}"}}]
    return Reply(tool_calls=asked, delay_seconds=delay)


async def play(
    server: ScriptedModel, *, side_by_side: int = ASYNC_CREWS, threaded: int = THREADED_CREWS, **settings: Any
) -> dict[str, ListSink]:
    """Run all crews; gives crew name to the spans that reached its attempt."""
    sinks: dict[str, ListSink] = {}

    def scope(team: str) -> Any:
        sinks[team] = ListSink()
        return scope_of(server, sinks[team], rollout_id=f"ro-{team}", attempt_id=f"at-{team}")

    async def run_async(team: str) -> None:
        await asyncio.sleep(random.random() * 0.05)
        with attempt_scope(scope(team)):
            await team_of(server, team, **settings).akickoff()

    def run_thread(team: str) -> None:
        with attempt_scope(scope(team)):
            team_of(server, team, **settings).kickoff()

    with ThreadPoolExecutor(THREADED_CREWS) as threads:
        running = [asyncio.wrap_future(threads.submit(run_thread, f"t{n}")) for n in range(threaded)]
        await asyncio.gather(*(run_async(f"a{n}") for n in range(side_by_side)), *running)
    return sinks


def mistakes(server: ScriptedModel, sinks: dict[str, ListSink]) -> list[str]:
    """What is recorded under another agent, attempt or parent span than the one that it is of."""
    wrong = []
    for team, sink in sinks.items():
        by_id = {span.span_id: span for span in sink.spans}
        for span in [*sink.of(names.CHAT), *sink.of(names.EXECUTE_TOOL)]:
            if names.INPUT_MESSAGES in span.attributes:
                role, said_team = speaker(span.attributes[names.INPUT_MESSAGES])
            else:
                role, said_team = worker(span.attributes.get(names.TOOL_RESULT, ""))
            above = by_id.get(span.parent_id or "")
            if (
                (span.attributes[names.AGENT_NAME], said_team) != (f"{role} of {team}", team)
                or span.rollout_id != f"ro-{team}"
                or above is None
                or above.name != f"invoke_agent {role} of {team}"
            ):
                wrong.append(f"{span.name} of {role} of {said_team} is recorded in {team} under {above}")
    for request in server.requests:
        role, team = speaker(str(request.body["messages"]))
        said = request.headers["x-coterie-role"], request.headers["x-coterie-rollout-id"]
        if said != (f"{role}_of_{team}", f"ro-{team}"):
            wrong.append(f"a request of {role} of {team} went out as {said}")
    return wrong


@pytest.mark.parametrize("streamed", [False, True])
async def test_every_call_is_attributed_right_in_parallel(serve, streamed):
    server = serve(delayed)
    sinks = await play(server, stream=streamed)

    assert mistakes(server, sinks) == []
    assert len(server.requests) == (ASYNC_CREWS + THREADED_CREWS) * CALLS
    for team, sink in sinks.items():
        chats = sink.of(names.CHAT)
        assert len({chat.attributes[names.CALL_ID] for chat in chats}) == len(chats) == CALLS
        assert all(chat.attributes[names.RESPONSE_TOKENS] for chat in chats)
        calls = sink.of(names.EXECUTE_TOOL)
        assert len(calls) == 3
        assert all(call.attributes[names.TOOL_CALL_ID] for call in calls)
        assert sorted((source.split()[0], target.split()[0]) for _, source, target in edges(sink.spans)) == [
            ("left", "judge"),
            ("planner", "left"),
            ("planner", "right"),
            ("right", "judge"),
        ], team


async def test_the_check_above_can_fail(serve, monkeypatch):
    variable = PlainGlobal()
    monkeypatch.setattr(announced, "_announced", PlainGlobal())
    for module in ("identity", "runs", "tools"):
        monkeypatch.setattr(f"coterie_crewai.{module}._activity", variable)
    server = serve(delayed)
    assert mistakes(server, await play(server, side_by_side=6, threaded=4)) != []
