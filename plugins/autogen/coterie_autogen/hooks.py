"""Where the plugin takes hold of AutoGen: which methods of which classes are wrapped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from coterie_autogen import models, tools
from coterie_autogen.identity import begin_agent, begin_handling, begin_team
from coterie_autogen.watching import watched_call, watched_stream
from coterie_autogen.wrapping import Wrappers


def install(wrappers: Wrappers) -> None:
    """Wrap the methods through which every run goes, also those of classes that the user defines."""
    from autogen_core import RoutedAgent
    from autogen_core.models import ChatCompletionClient
    from autogen_core.tools import BaseTool, FunctionTool, Workbench

    wrappers.wrap(RoutedAgent, "on_message_impl", _around_message)
    wrappers.wrap_family(
        ChatCompletionClient, {"create": models.around_create, "create_stream": models.around_create_stream}
    )
    wrappers.wrap_family(BaseTool, {"run_json": tools.around_tool_run, "run_json_stream": tools.around_tool_stream})
    wrappers.wrap_family(
        Workbench, {"call_tool": tools.around_workbench_call, "call_tool_stream": tools.around_workbench_stream}
    )
    wrappers.wrap(FunctionTool, "run", tools.around_function)
    if find_spec("autogen_agentchat") is None:
        return
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.base import ChatAgent
    from autogen_agentchat.teams import BaseGroupChat

    wrappers.wrap_family(
        ChatAgent,
        {
            "run": _around_agent,
            "run_stream": _around_agent_stream,
            "on_messages": _around_agent,
            "on_messages_stream": _around_agent_stream,
            "execute_code_block": tools.around_code_execution,
        },
    )
    wrappers.wrap(BaseGroupChat, "run_stream", _around_team)
    wrappers.wrap(AssistantAgent, "_execute_tool_call", tools.around_tool_execution)


def _around_message(original: Callable[..., Any]) -> Callable[..., Any]:
    async def on_message_impl(self: Any, message: Any, ctx: Any) -> Any:
        return await watched_call(begin_handling(self, message, ctx), lambda: original(self, message, ctx))

    return on_message_impl


def _around_agent(original: Callable[..., Any]) -> Callable[..., Any]:
    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await watched_call(begin_agent(self), lambda: original(self, *args, **kwargs))

    return run


def _around_agent_stream(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        return watched_stream(partial(begin_agent, self), original(self, *args, **kwargs))

    return run_stream


def _around_team(original: Callable[..., Any]) -> Callable[..., Any]:
    def run_stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        return watched_stream(partial(begin_team, self), original(self, *args, **kwargs))

    return run_stream
