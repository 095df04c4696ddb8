"""The described team in the OpenAI Agents SDK: the coder as a tool, a hand-off to the reviewer."""

from __future__ import annotations

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, function_tool
from openai import AsyncOpenAI

from coterie.testing.described_team import TeamSetting


def team_of(setting: TeamSetting, model_class: type[OpenAIResponsesModel] | type[OpenAIChatCompletionsModel]) -> Agent:
    client = AsyncOpenAI(
        base_url=setting.base_url, api_key=setting.api_key, max_retries=setting.max_retries, timeout=30
    )
    model = model_class(setting.model, client)

    @function_tool
    def run_tests(path: str) -> str:
        """Run the tests of a file."""
        return setting.run_tests(path)

    def agent(role: str, **settings: object) -> Agent:
        # Without usage the SDK would ask streams for none.
        return Agent(
            name=role,
            instructions=setting.prompts[role],
            model=model,
            model_settings=ModelSettings(include_usage=True),
            **settings,
        )

    coder = agent("coder", tools=[run_tests])
    reviewer = agent("reviewer")
    asks = coder.as_tool(tool_name="ask_coder", tool_description="Ask the coder for a function.")
    return agent("planner", tools=[asks], handoffs=[reviewer])
