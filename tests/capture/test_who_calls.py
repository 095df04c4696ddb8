"""Each call is recorded under the agent that made it, however many run at once."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
from opentelemetry import trace

from coterie import conventions as names
from coterie import roles
from coterie.announced import AnnouncedCall, announce
from coterie.capture import call as call_module
from coterie.capture import instrument, uninstrument
from coterie.roles import Acting, Identity, acting_as, child_identity
from coterie.scope import attempt_scope
from coterie.spans import tracer
from coterie.testing import ListSink, ScriptedModel, scope_for_test
from coterie.vocabulary import Endpoint

pytestmark = pytest.mark.usefixtures("captured")

AGENTS = ("Analyst", "Coder", "Reviewer")
ASYNC_RUNS, THREADS = 20, 8


@contextmanager
def acting_globally(agent: str) -> Iterator[None]:
    """What one must not do: the identity in a plain global."""
    global _acting
    former, _acting = _acting, child_identity(agent, parent=Identity("", "", ()))
    try:
        yield
    finally:
        _acting = former


_acting: Identity | None = None


def wrong_roles(act_as: type[acting_as] | type[acting_globally]) -> tuple[int, int]:  # type: ignore[valid-type]
    """How many of all calls were recorded under another role than the one that the agent says in its message."""
    sink = ListSink()

    async def answer(_: object) -> str:
        await asyncio.sleep(random.uniform(0.0, 0.02))
        return "done"

    with ScriptedModel(answer) as model:
        endpoint = Endpoint(model.base_url, "policy", "team")

        async def async_run(client: openai.AsyncOpenAI, number: int) -> None:
            with attempt_scope(scope_for_test(sink, attempt_id=f"async-{number}", endpoints={"e": endpoint})):
                for agent in AGENTS:
                    with act_as(agent):
                        await asyncio.sleep(random.uniform(0.0, 0.02))
                        words = [{"role": "user", "content": f"{agent} in async-{number}"}]
                        if number % 2:
                            async for _ in await client.chat.completions.create(model="m", messages=words, stream=True):
                                pass
                        else:
                            await client.chat.completions.create(model="m", messages=words)

        def threaded_run(client: openai.OpenAI, number: int) -> None:
            with attempt_scope(scope_for_test(sink, attempt_id=f"thread-{number}", endpoints={"e": endpoint})):
                for agent in AGENTS:
                    with act_as(agent):
                        words = [{"role": "user", "content": f"{agent} in thread-{number}"}]
                        client.chat.completions.create(model="m", messages=words)

        async def everything() -> None:
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(THREADS) as pool, openai.OpenAI(api_key="k") as client:
                async with openai.AsyncOpenAI(api_key="k") as async_client:
                    threads = [
                        loop.run_in_executor(pool, contextvars.copy_context().run, threaded_run, client, number)
                        for number in range(THREADS)
                    ]
                    await asyncio.gather(*(async_run(async_client, number) for number in range(ASYNC_RUNS)), *threads)

        asyncio.run(everything())
    wrong = 0
    for span in sink.spans:
        said = span.attributes
        right = f"{said[names.AGENT_NAME]} in {span.attempt_id}"
        wrong += right not in said[names.INPUT_MESSAGES]
        assert said[names.PROMPT_TOKENS]
        assert said[names.RESPONSE_TOKENS]
    turns = Counter((span.attempt_id, span.attributes[names.ROLE]) for span in sink.spans)
    if wrong == 0:
        assert set(turns.values()) == {1}
    return wrong, len(sink.spans)


def test_parallel_agents_never_see_each_others_identity() -> None:
    assert wrong_roles(acting_as) == (0, (ASYNC_RUNS + THREADS) * len(AGENTS))


def test_the_check_above_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with a plain global in place of the ContextVar the same check finds wrong roles."""
    monkeypatch.setattr(call_module, "current_acting", lambda: Acting(_acting) if _acting else None)
    wrong, calls = wrong_roles(acting_globally)
    assert calls == (ASYNC_RUNS + THREADS) * len(AGENTS)
    assert wrong > 0


def test_an_announcement_counts_before_the_current_identity() -> None:
    sink = ListSink()
    with ScriptedModel(lambda _: "hi") as model, attempt_scope(scope_for_test(sink)), acting_as("Outer"):
        client = openai.OpenAI(base_url=model.base_url, api_key="k")
        parent = tracer().start_span("node")
        announced = AnnouncedCall(child_identity("Planner"), parent=parent)

        def framework() -> None:
            announce(announced)
            client.chat.completions.create(model="m", messages=[])
            assert announced.captured
            announced.ended = True
            client.chat.completions.create(model="m", messages=[])

        contextvars.copy_context().run(framework)
        parent.end()
    first, second, node = sink.spans
    assert first.attributes[names.AGENT_PATH] == "Outer/Planner"
    assert (first.parent_id, first.trace_id) == (node.span_id, node.trace_id)
    assert second.attributes[names.AGENT_PATH] == "Outer"
    assert second.parent_id is None


def test_a_call_hangs_under_the_current_span() -> None:
    sink = ListSink()
    with (
        ScriptedModel(lambda _: "hi") as model,
        attempt_scope(scope_for_test(sink)),
        tracer().start_as_current_span("agent") as agent,
    ):
        openai.OpenAI(base_url=model.base_url, api_key="k").chat.completions.create(model="m", messages=[])
        assert trace.get_current_span() is agent
    chat, outer = sink.spans
    assert chat.parent_id == outer.span_id


def test_the_role_map() -> None:
    former = roles._role_map
    uninstrument()
    instrument(roles={"Senior SQL Person": "coder"})
    sink = ListSink()
    with ScriptedModel(lambda _: "hi") as model, attempt_scope(scope_for_test(sink)), acting_as("Senior SQL Person"):
        openai.OpenAI(base_url=model.base_url, api_key="k").chat.completions.create(model="m", messages=[])
        assert model.requests[0].headers[names.HEADER_ROLE] == "coder"
    assert sink.spans[0].attributes[names.ROLE] == "coder"
    uninstrument()
    assert roles._role_map is former
