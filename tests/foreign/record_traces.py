"""Records what other people's instrumentors write about small teams, into ``recorded/<who>_<team>.json``.

Run it again when an instrumentor changes; the tests read only the files. It needs, in one environment:

    pip install crewai==1.15.30 openai==2.54.0 openai-agents==0.20.0 autogen-agentchat==0.7.5 "autogen-ext[openai]==0.7.5" \\
      langchain==1.4.7 langgraph==1.2.22 langchain-openai==1.7.3 \\
      openinference-instrumentation-{langchain==0.1.80,openai==0.1.66,crewai==1.1.21} \\
      openinference-instrumentation-{autogen-agentchat==0.1.22,openai-agents==2.6.0} \\
      opentelemetry-instrumentation-genai-{langchain,openai,openai-agents}==1.3b0 \\
      opentelemetry-instrumentation-{openai,langchain,crewai,openai-agents}==0.62.4

``opentelemetry-instrumentation-openai-agents-v2==0.1.0`` holds the same module as openllmetry's for OpenAI Agents, so
``genai-v2`` needs an environment of its own; ``opentelemetry-instrumentation-openai-v2==2.4b0`` works there with
``opentelemetry-util-genai==0.4b0``. ``python record_traces.py`` records everything, ``python
record_traces.py openinference langgraph_supervisor`` one file.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "recorded"

KEPT = ("name", "context", "parent_id", "start_time", "end_time", "status", "attributes", "events")
"""Of a span as the SDK writes it; the rest is the same on all."""

INSTRUMENTORS: dict[str, dict[str, list[str]]] = {
    "openinference": {
        "langgraph": ["openinference.instrumentation.langchain:LangChainInstrumentor"],
        "autogen": [
            "openinference.instrumentation.autogen_agentchat:AutogenAgentChatInstrumentor",
            "openinference.instrumentation.openai:OpenAIInstrumentor",
        ],
        "crewai": [
            "openinference.instrumentation.crewai:CrewAIInstrumentor",
            "openinference.instrumentation.openai:OpenAIInstrumentor",
        ],
        "openai_agents": ["openinference.instrumentation.openai_agents:OpenAIAgentsInstrumentor"],
        "plain": ["openinference.instrumentation.openai:OpenAIInstrumentor"],
    },
    "openllmetry": {
        "langgraph": ["opentelemetry.instrumentation.langchain:LangchainInstrumentor"],
        "autogen": ["opentelemetry.instrumentation.openai:OpenAIInstrumentor"],
        "crewai": [
            "opentelemetry.instrumentation.crewai:CrewAIInstrumentor",
            "opentelemetry.instrumentation.openai:OpenAIInstrumentor",
        ],
        "openai_agents": ["opentelemetry.instrumentation.openai_agents:OpenAIAgentsInstrumentor"],
        "plain": ["opentelemetry.instrumentation.openai:OpenAIInstrumentor"],
    },
    "genai": {
        "langgraph": ["opentelemetry.instrumentation.genai.langchain:LangChainInstrumentor"],
        "autogen": ["opentelemetry.instrumentation.genai.openai:OpenAIInstrumentor"],
        "crewai": ["opentelemetry.instrumentation.genai.openai:OpenAIInstrumentor"],
        "openai_agents": [
            "opentelemetry.instrumentation.genai.openai_agents:OpenAIAgentsInstrumentor",
            "opentelemetry.instrumentation.genai.openai:OpenAIInstrumentor",
        ],
    },
    "genai-quiet": {"langgraph": ["opentelemetry.instrumentation.genai.langchain:LangChainInstrumentor"]},
    "genai-v2": {
        "autogen": ["opentelemetry.instrumentation.openai_v2:OpenAIInstrumentor"],
        "openai_agents": ["opentelemetry.instrumentation.openai_agents:OpenAIAgentsInstrumentor"],
    },
    "native": {"autogen": []},
    "openinference+coterie": {"langgraph": ["openinference.instrumentation.langchain:LangChainInstrumentor"]},
    "genai+coterie": {"langgraph": ["opentelemetry.instrumentation.genai.langchain:LangChainInstrumentor"]},
}
"""Who records, and with which instrumentors a user of each framework would."""


def call(name: str, **arguments: str) -> dict[str, Any]:
    """An answer that calls a tool."""
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


def scripted(answers: dict[str, list[Any]]) -> Callable[[dict[str, Any]], Any]:
    """Each role's answers in turn; a request's role is the one after ``You are`` in its instructions."""
    asked: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> Any:
        role = re.findall(r"You are (\w+)", json.dumps(body))[0].lower()
        asked[role] += 1
        return answers[role][min(asked[role], len(answers[role])) - 1]

    return answer


def langgraph_supervisor(base_url: str) -> None:
    from langchain.agents import create_agent
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="scripted", base_url=base_url, api_key="none")

    @tool
    def search(query: str) -> str:
        """Search the web."""
        return f"found: {query} is 42"

    researcher = create_agent(model, [search], system_prompt="You are researcher.", name="researcher")

    @tool
    def ask_researcher(question: str) -> str:
        """Ask the researcher."""
        return str(researcher.invoke({"messages": [("user", question)]})["messages"][-1].content)

    supervisor = create_agent(model, [ask_researcher], system_prompt="You are supervisor.", name="supervisor")
    supervisor.invoke({"messages": [("user", "What is the answer?")]})


def langgraph_handoff(base_url: str) -> None:
    from langchain.agents import create_agent
    from langchain_core.messages import ToolMessage
    from langchain_core.tools import InjectedToolCallId, tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import InjectedState
    from langgraph.types import Command

    model = ChatOpenAI(model="scripted", base_url=base_url, api_key="none")

    def transfer_to_coder(state: Any, tool_call_id: Any) -> Any:
        """Hand over to the coder."""
        message = ToolMessage("Transferred to coder", name="transfer_to_coder", tool_call_id=tool_call_id)
        return Command(goto="coder", graph=Command.PARENT, update={"messages": [*state["messages"], message]})

    from typing import Annotated

    transfer_to_coder.__annotations__ = {
        "state": Annotated[dict, InjectedState],
        "tool_call_id": Annotated[str, InjectedToolCallId],
        "return": Command,
    }
    triage = create_agent(model, [tool(transfer_to_coder)], system_prompt="You are triage.", name="triage")
    coder = create_agent(model, [], system_prompt="You are coder.", name="coder")
    graph = StateGraph(MessagesState)
    graph.add_node("triage", triage, destinations=("coder",))
    graph.add_node("coder", coder)
    graph.add_edge(START, "triage")
    graph.compile(name="team").invoke({"messages": [("user", "Write code.")]})


def _autogen_client(base_url: str) -> Any:
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    return OpenAIChatCompletionClient(
        model="scripted",
        base_url=base_url,
        api_key="none",
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": False,
            "family": "unknown",
            "structured_output": False,
        },
    )


def autogen_round_robin(base_url: str) -> None:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import MaxMessageTermination
    from autogen_agentchat.teams import RoundRobinGroupChat

    async def search(query: str) -> str:
        """Search the web."""
        return f"found: {query} is 42"

    async def team() -> None:
        client = _autogen_client(base_url)
        writer = AssistantAgent(
            "writer", client, tools=[search], system_message="You are writer.", reflect_on_tool_use=True
        )
        reviewer = AssistantAgent("reviewer", client, system_message="You are reviewer.")
        group = RoundRobinGroupChat([writer, reviewer], termination_condition=MaxMessageTermination(5))
        await group.run(task="Write a line.")
        await client.close()

    asyncio.run(team())


def autogen_swarm(base_url: str) -> None:
    from autogen_agentchat.agents import AssistantAgent
    from autogen_agentchat.conditions import TextMentionTermination
    from autogen_agentchat.teams import Swarm

    async def team() -> None:
        client = _autogen_client(base_url)
        alice = AssistantAgent("alice", client, handoffs=["bob"], system_message="You are alice.")
        bob = AssistantAgent("bob", client, system_message="You are bob.")
        await Swarm([alice, bob], termination_condition=TextMentionTermination("DONE")).run(task="Begin.")
        await client.close()

    asyncio.run(team())


def crewai_delegation(base_url: str) -> None:
    from crewai import LLM, Agent, Crew, Process, Task

    llm = LLM(model="gpt-4o-mini", base_url=base_url, api_key="none")
    lead = Agent(role="lead", goal="lead", backstory="Leads.", llm=llm, allow_delegation=True)
    analyst = Agent(role="analyst", goal="analyse", backstory="Analyses.", llm=llm, allow_delegation=False)
    task = Task(description="Analyse the data.", expected_output="A line.", agent=lead)
    review = Task(description="Look at the analysis.", expected_output="A line.", agent=analyst)
    Crew(agents=[lead, analyst], tasks=[task, review], process=Process.sequential).kickoff()


def _agents_model(base_url: str) -> Any:
    from agents import OpenAIResponsesModel, set_tracing_export_api_key
    from openai import AsyncOpenAI

    set_tracing_export_api_key("none")
    return OpenAIResponsesModel("scripted", AsyncOpenAI(base_url=base_url, api_key="none"))


def openai_agents_handoff(base_url: str) -> None:
    from agents import Agent, Runner, function_tool

    @function_tool
    def search(query: str) -> str:
        """Search the web."""
        return f"found: {query} is 42"

    model = _agents_model(base_url)
    coder = Agent("coder", instructions="You are coder.", model=model, tools=[search])
    triage = Agent("triage", instructions="You are triage.", model=model, handoffs=[coder])
    asyncio.run(Runner.run(triage, "Write code."))


def openai_agents_as_tool(base_url: str) -> None:
    from agents import Agent, Runner

    model = _agents_model(base_url)
    researcher = Agent("researcher", instructions="You are researcher.", model=model)
    tool = researcher.as_tool("ask_researcher", "Ask the researcher.")
    asyncio.run(Runner.run(Agent("lead", instructions="You are lead.", model=model, tools=[tool]), "Answer."))


def plain_openai(base_url: str) -> None:
    from openai import OpenAI

    with OpenAI(base_url=base_url, api_key="none") as client:
        client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "You are writer. Write."}],
            logprobs=True,
            extra_body={"return_token_ids": True},
        )


TEAMS: dict[str, tuple[Callable[[str], None], dict[str, list[Any]]]] = {
    "langgraph_supervisor": (
        langgraph_supervisor,
        {
            "supervisor": [call("ask_researcher", question="What is the answer?"), "The answer is 42."],
            "researcher": [call("search", query="answer"), "It is 42."],
        },
    ),
    "langgraph_handoff": (langgraph_handoff, {"triage": [call("transfer_to_coder")], "coder": ["print(42)"]}),
    "autogen_round_robin": (
        autogen_round_robin,
        {"writer": [call("search", query="answer"), "The answer is 42."], "reviewer": ["Good."]},
    ),
    "autogen_swarm": (autogen_swarm, {"alice": [call("transfer_to_bob")], "bob": ["DONE"]}),
    "crewai_delegation": (
        crewai_delegation,
        {
            "lead": [
                call("delegate_work_to_coworker", task="Count.", context="The data.", coworker="analyst"),
                "The count is 42.",
            ],
            "analyst": ["42 rows.", "Fine."],
        },
    ),
    "openai_agents_handoff": (
        openai_agents_handoff,
        {"triage": [call("transfer_to_coder")], "coder": [call("search", query="answer"), "print(42)"]},
    ),
    "openai_agents_as_tool": (
        openai_agents_as_tool,
        {"lead": [call("ask_researcher", input="What is the answer?"), "42."], "researcher": ["It is 42."]},
    ),
    "plain_openai": (plain_openai, {"writer": ["Hi."]}),
}


def record(who: str, team: str) -> None:
    """Run one team under one set of instrumentors and write down its spans."""
    os.environ |= {
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_TRACING_ENABLED": "false",
        "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": _content(who, team),
        "OTEL_SEMCONV_STABILITY_OPT_IN": "gen_ai_latest_experimental",
        "TRACELOOP_TELEMETRY": "false",
        "TRACELOOP_TRACE_CONTENT": "true",
    }
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    import coterie
    from coterie.testing import ScriptedModel

    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": team}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)
    framework = next(name for name in INSTRUMENTORS[who] if team.startswith(name))
    for path in INSTRUMENTORS[who][framework]:
        module, _, name = path.partition(":")
        getattr(importlib.import_module(module), name)().instrument(
            tracer_provider=provider, skip_dep_check=True, **({"disable_batch": True} if "agents" in path else {})
        )
    if "coterie" in who:
        coterie.instrument()
    run, answers = TEAMS[team]
    with ScriptedModel(scripted(answers)) as model, ExitStack() as request:
        if "coterie" in who:
            # As in a web server: both instrumentors' spans are one trace.
            request.enter_context(provider.get_tracer("app").start_as_current_span("request"))
        run(model.base_url)
    provider.force_flush()
    spans = [json.loads(span.to_json(indent=None)) for span in kept.get_finished_spans()]
    lines = [json.dumps({name: span[name] for name in KEPT}) for span in spans]
    (RECORDED / f"{who}_{team}.json").write_text(_without_this_machine("\n".join(lines)) + "\n")


def _content(who: str, team: str) -> str:
    if who == "genai-quiet":
        return "no_content"
    # openai-agents-v2 wants a truth value where all others want a place.
    return "true" if who == "genai-v2" and "agents" in team else "span_only"


def _without_this_machine(text: str) -> str:
    """Leave out what belongs to the machine: ports, paths, and the stack of an exception."""
    text = re.sub(r'"server.port": \d+', '"server.port": 8000', text)
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8000", text)
    text = re.sub(r'("exception.stacktrace": )"(?:[^"\\]|\\.)*"', r'\1"Traceback"', text)
    return re.sub(r"/[\w./@+-]*/(?:site-packages|tests|lib)/", "/", text)


def main(arguments: list[str]) -> None:
    """Record one trace, or each in a process of its own: instrumentors change the process that they run in."""
    if len(arguments) == 2:
        record(*arguments)
        os._exit(0)
    for who, frameworks in INSTRUMENTORS.items():
        for team in TEAMS if who != "genai-v2" else ():
            if any(team.startswith(name) for name in frameworks):
                done = subprocess.run(
                    [sys.executable, __file__, who, team], timeout=120, capture_output=True, text=True
                )
                print(who, team, "ok" if done.returncode == 0 else done.stderr[-2000:], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
