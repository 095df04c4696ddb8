"""``RecordingHooks``: what the SDK says of a run's agents, tools, hand-offs and LLM calls, on its way to the user's hooks.

The SDK runs hooks in tasks of their own, where a ContextVar that is set is lost. Its loop *calls* them before that, in
the very context in which the model or the tool is then called. So these are plain functions: they record at the call,
and give back the user's own coroutine.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from agents.lifecycle import RunHooks, RunHooksBase

from coterie.announced import AnnouncedCall, announce
from coterie.capture.faults import guarded
from coterie_openai_sdk import hosted, uncaptured
from coterie_openai_sdk.identity import Place, place
from coterie_openai_sdk.runs import Run

Done = Coroutine[Any, Any, None]


def are_hooks(users: Any) -> bool:
    """True for what the SDK takes as hooks; it refuses all else by itself."""
    return users is None or isinstance(users, RunHooksBase)


class RecordingHooks(RunHooks[Any]):
    """Hooks of one run."""

    def __init__(self, run: Run, users: RunHooksBase[Any, Any] | None) -> None:
        self._run = run
        self._users: RunHooksBase[Any, Any] = users if users is not None else RunHooks()

    def on_agent_start(self, context: Any, agent: Any) -> Done:
        """An agent starts, at first or after a hand-off."""
        _agent_starts(self._run, agent)
        return self._users.on_agent_start(context, agent)

    def on_agent_end(self, context: Any, agent: Any, output: Any) -> Done:
        """An agent gave the run's output. It acts until the run ends: guardrails may judge what it gave."""
        return self._users.on_agent_end(context, agent, output)

    def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> Done:
        """An agent hands control over."""
        _hands_over(self._run, from_agent, to_agent)
        return self._users.on_handoff(context, from_agent, to_agent)

    def on_tool_start(self, context: Any, agent: Any, tool: Any) -> Done:
        """A tool is about to be invoked."""
        _tool_starts(self._run, context, agent, tool)
        return self._users.on_tool_start(context, agent, tool)

    def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> Done:
        """A tool returned, or its error became a text for the model."""
        _tool_ends(self._run, result)
        return self._users.on_tool_end(context, agent, tool, result)

    def on_llm_start(self, context: Any, agent: Any, system_prompt: str | None, input_items: list[Any]) -> Done:
        """A model is about to be called."""
        _model_starts(self._run, agent, system_prompt, input_items)
        return self._users.on_llm_start(context, agent, system_prompt, input_items)

    def on_llm_end(self, context: Any, agent: Any, response: Any) -> Done:
        """A model answered."""
        _model_ends(self._run, response)
        return self._users.on_llm_end(context, agent, response)


@guarded
def _agent_starts(run: Run, agent: Any) -> None:
    if not run.over:
        run.agent_starts(agent.name)


@guarded
def _hands_over(run: Run, source: Any, target: Any) -> None:
    if not run.over:
        run.hands_over(source.name, target.name)


@guarded
def _tool_starts(run: Run, context: Any, agent: Any, tool: Any) -> None:
    if run.over:
        return
    # Below an agent that runs as a tool, tools without a context of their own get that of the tool above.
    own = context if getattr(context, "tool_name", None) == tool.name else None
    use = run.start_tool(
        tool.name,
        agent.name,
        arguments=getattr(own, "tool_arguments", None),
        call_id=getattr(own, "tool_call_id", None),
    )
    place.set(Place(run, use))


@guarded
def _tool_ends(run: Run, result: Any) -> None:
    current = place.get()
    if current is not None and current.run is run and current.tool is not None:
        run.end_tool(current.tool, result)
        place.set(Place(run))


@guarded
def _model_starts(run: Run, agent: Any, system_prompt: str | None, input_items: Sequence[Any]) -> None:
    if run.over:
        return
    announced = AnnouncedCall(run.acts(agent.name), parent=run.activation.span)
    run.call = uncaptured.told_call(announced, agent, run.config, system_prompt, input_items)
    announce(announced)


@guarded
def _model_ends(run: Run, response: Any) -> None:
    call, run.call = run.call, None
    if call is None:
        return
    call.announced.ended = True
    uncaptured.record_answer(call, response)
    hosted.record_hosted_tools(response, run.activation.identity, run.activation.span)
