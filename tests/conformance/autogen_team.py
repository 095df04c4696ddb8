"""The described team in AutoGen: a swarm of planner and reviewer, the coder as a tool of the planner's."""

from __future__ import annotations

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import SourceMatchTermination
from autogen_agentchat.teams import Swarm
from autogen_agentchat.tools import AgentTool
from autogen_ext.models.openai import OpenAIChatCompletionClient

from coterie.testing.described_team import TASK, TeamSetting

MODEL_INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": False,
    "structured_output": False,
    "family": "unknown",
}


class Program:
    """The team, made anew for each run as the clients of a closed event loop cannot be used again."""

    def __init__(self, setting: TeamSetting) -> None:
        self.setting = setting

    async def run(self) -> None:
        await team_of(self.setting).run(task=TASK)


def team_of(setting: TeamSetting) -> Swarm:
    client = OpenAIChatCompletionClient(
        model=setting.model,
        base_url=setting.base_url,
        api_key=setting.api_key,
        max_retries=setting.max_retries,
        timeout=30,
        model_info=MODEL_INFO,
    )

    def run_tests(path: str) -> str:
        """Run the tests of a file."""
        return setting.run_tests(path)

    coder = AssistantAgent(
        "coder",
        client,
        tools=[run_tests],
        system_message=setting.prompts["coder"],
        reflect_on_tool_use=True,
        model_client_stream=setting.streamed,
    )
    planner = AssistantAgent(
        "planner",
        client,
        tools=[AgentTool(coder)],
        handoffs=["reviewer"],
        system_message=setting.prompts["planner"],
        max_tool_iterations=3,
        model_client_stream=setting.streamed,
    )
    reviewer = AssistantAgent(
        "reviewer", client, system_message=setting.prompts["reviewer"], model_client_stream=setting.streamed
    )
    return Swarm([planner, reviewer], termination_condition=SourceMatchTermination(["reviewer"]))
