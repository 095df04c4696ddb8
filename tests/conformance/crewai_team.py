"""The described team in CrewAI: a sequential crew whose planner may delegate, and a task for the reviewer."""

from __future__ import annotations

from typing import Any

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

from coterie.testing.described_team import TASK, TeamSetting


def team_of(setting: TeamSetting) -> Any:
    llm = LLM(
        model=setting.model,
        provider="openai",
        base_url=setting.base_url,
        api_key=setting.api_key,
        stream=setting.streamed,
        max_retries=setting.max_retries,
        timeout=30,
    )

    @tool("run_tests")
    def run_tests(path: str) -> str:
        """Run the tests of a file."""
        return setting.run_tests(path)

    def agent(role: str, **settings: Any) -> Agent:
        return Agent(
            role=role.capitalize(),
            goal="Good functions.",
            backstory=setting.prompts[role],
            llm=llm,
            cache=False,
            **settings,
        )

    planner = agent("planner", allow_delegation=True)
    coder = agent("coder", tools=[run_tests])
    reviewer = agent("reviewer")
    plans = Task(description=TASK, expected_output="a function", agent=planner)
    reviews = Task(description="Review the function.", expected_output="a verdict", agent=reviewer)
    return Crew(agents=[planner, coder, reviewer], tasks=[plans, reviews], name="team", cache=False)
