"""Episodes from what other instrumentors really wrote about small teams; ``record_traces.py`` recorded it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie.episodes import Episode
from coterie.foreign import read_traces
from coterie.missing import Lack
from coterie.testing import toy_tokens

RECORDED = Path(__file__).parent / "recorded"

Turns = list[tuple[str, str]]
"""Agent path, and the text or the name of the tool that was asked for."""
Edges = set[tuple[str, str, str]]
Tools = list[tuple[str, str, object, str]]
"""Agent path, name, arguments, result."""

SUPERVISOR: Turns = [
    ("supervisor", "ask_researcher"),
    ("supervisor/researcher", "search"),
    ("supervisor/researcher", "It is 42."),
    ("supervisor", "The answer is 42."),
]
SUPERVISOR_EDGES: Edges = {("delegation", "supervisor", "researcher")}
SUPERVISOR_TOOLS: Tools = [
    ("supervisor", "ask_researcher", {"question": "What is the answer?"}, "It is 42."),
    ("supervisor/researcher", "search", {"query": "answer"}, "found: answer is 42"),
]
HANDOFF: Turns = [("triage", "transfer_to_coder"), ("coder", "print(42)")]
HANDOFF_EDGES: Edges = {("handoff", "triage", "coder")}
HANDOFF_TOOLS: Tools = [("triage", "transfer_to_coder", {}, "Transferred to coder")]
ROUND_ROBIN: Turns = [
    ("writer", "search"),
    ("writer", "The answer is 42."),
    ("reviewer", "Good."),
    ("writer", "The answer is 42."),
    ("reviewer", "Good."),
]
ROUND_ROBIN_EDGES: Edges = {("message", "writer", "reviewer"), ("message", "reviewer", "writer")}
ROUND_ROBIN_TOOLS: Tools = [("writer", "search", {"query": "answer"}, "found: answer is 42")]
SWARM: Turns = [("alice", "transfer_to_bob"), ("bob", "DONE")]
SWARM_EDGES: Edges = {("handoff", "alice", "bob"), ("message", "bob", "alice")}
SWARM_TOOLS: Tools = [("alice", "transfer_to_bob", {}, "")]
CREW: Turns = [
    ("lead", "delegate_work_to_coworker"),
    ("lead/analyst", "42 rows."),
    ("lead", "The count is 42."),
    ("analyst", "Fine."),
]
CREW_EDGES: Edges = {("delegation", "lead", "analyst")}
DELEGATED = {"task": "Count.", "context": "The data.", "coworker": "analyst"}
CREW_TOOLS: Tools = [("lead", "delegate_work_to_coworker", DELEGATED, "42 rows.")]
AGENTS_HANDOFF: Turns = [("triage", "transfer_to_coder"), ("coder", "search"), ("coder", "print(42)")]
AGENTS_HANDOFF_TOOLS: Tools = [("coder", "search", {"query": "answer"}, "found: answer is 42")]
AS_TOOL: Turns = [("lead", "ask_researcher"), ("lead/researcher", "It is 42."), ("lead", "42.")]
AS_TOOL_EDGES: Edges = {("delegation", "lead", "researcher")}
AS_TOOL_TOOLS: Tools = [("lead", "ask_researcher", {"input": "What is the answer?"}, "It is 42.")]

NO_TOKENS = {Lack.TOKEN_IDS, Lack.LOGPROBS}
NO_CONTENT = NO_TOKENS | {Lack.MESSAGES, Lack.RESPONSES, Lack.TOOL_ARGUMENTS, Lack.TOOL_RESULTS}

EXPECTED: dict[str, tuple[Turns, Edges, Tools, set[Lack]]] = {
    "openinference_langgraph_supervisor": (SUPERVISOR, SUPERVISOR_EDGES, SUPERVISOR_TOOLS, NO_TOKENS),
    "openinference_langgraph_handoff": (HANDOFF, HANDOFF_EDGES, HANDOFF_TOOLS, NO_TOKENS),
    "openinference_autogen_round_robin": (ROUND_ROBIN, ROUND_ROBIN_EDGES, ROUND_ROBIN_TOOLS, NO_TOKENS),
    "openinference_autogen_swarm": (
        SWARM,
        SWARM_EDGES,
        [("alice", "transfer_to_bob", {}, "Transferred to bob, adopting the role of bob immediately.")],
        NO_TOKENS,
    ),
    "openinference_crewai_delegation": (CREW, CREW_EDGES, CREW_TOOLS, NO_TOKENS),
    "openinference_openai_agents_handoff": (AGENTS_HANDOFF, HANDOFF_EDGES, AGENTS_HANDOFF_TOOLS, NO_TOKENS),
    "openinference_openai_agents_as_tool": (AS_TOOL, AS_TOOL_EDGES, AS_TOOL_TOOLS, NO_TOKENS),
    "openinference_plain_openai": ([("agent", "Hi.")], set(), [], {Lack.AGENT_NAMES}),
    "openllmetry_langgraph_supervisor": (SUPERVISOR, SUPERVISOR_EDGES, SUPERVISOR_TOOLS, NO_TOKENS),
    "openllmetry_langgraph_handoff": (HANDOFF, HANDOFF_EDGES, HANDOFF_TOOLS, NO_TOKENS),
    "openllmetry_autogen_round_robin": (ROUND_ROBIN, ROUND_ROBIN_EDGES, ROUND_ROBIN_TOOLS, NO_TOKENS),
    "openllmetry_autogen_swarm": (SWARM, SWARM_EDGES, SWARM_TOOLS, NO_TOKENS | {Lack.TOOL_RESULTS}),
    "openllmetry_crewai_delegation": (CREW, CREW_EDGES, [], NO_TOKENS),
    "openllmetry_openai_agents_handoff": (AGENTS_HANDOFF, HANDOFF_EDGES, AGENTS_HANDOFF_TOOLS, NO_TOKENS),
    # An agent that runs as a tool hangs beside its caller there.
    "openllmetry_openai_agents_as_tool": (
        [("lead", "ask_researcher"), ("researcher", "It is 42."), ("lead", "42.")],
        set(),
        AS_TOOL_TOOLS,
        NO_TOKENS | {Lack.EDGES},
    ),
    "openllmetry_plain_openai": ([("agent", "Hi.")], set(), [], NO_TOKENS | {Lack.AGENT_NAMES}),
    "genai_langgraph_supervisor": (SUPERVISOR, SUPERVISOR_EDGES, SUPERVISOR_TOOLS, NO_TOKENS),
    "genai_langgraph_handoff": (HANDOFF, HANDOFF_EDGES, HANDOFF_TOOLS, NO_TOKENS),
    "genai_autogen_round_robin": (ROUND_ROBIN, ROUND_ROBIN_EDGES, ROUND_ROBIN_TOOLS, NO_TOKENS),
    "genai_autogen_swarm": (SWARM, SWARM_EDGES, SWARM_TOOLS, NO_TOKENS | {Lack.TOOL_RESULTS}),
    "genai_openai_agents_handoff": (AGENTS_HANDOFF, HANDOFF_EDGES, AGENTS_HANDOFF_TOOLS, NO_TOKENS),
    "genai_openai_agents_as_tool": (AS_TOOL, AS_TOOL_EDGES, AS_TOOL_TOOLS, NO_TOKENS),
    "genai-quiet_langgraph_supervisor": (
        [(path, "") for path, _ in SUPERVISOR],
        SUPERVISOR_EDGES,
        [(path, name, None, "") for path, name, _, _ in SUPERVISOR_TOOLS],
        NO_CONTENT,
    ),
    "genai-quiet_langgraph_handoff": (
        [(path, "") for path, _ in HANDOFF],
        set(),
        [("triage", "transfer_to_coder", None, "")],
        NO_CONTENT | {Lack.EDGES},
    ),
    "genai-v2_autogen_round_robin": (ROUND_ROBIN, ROUND_ROBIN_EDGES, ROUND_ROBIN_TOOLS, NO_TOKENS),
    "genai-v2_autogen_swarm": (SWARM, SWARM_EDGES, SWARM_TOOLS, NO_TOKENS | {Lack.TOOL_RESULTS}),
    "genai-v2_openai_agents_handoff": (AGENTS_HANDOFF, HANDOFF_EDGES, AGENTS_HANDOFF_TOOLS, NO_TOKENS),
    "genai-v2_openai_agents_as_tool": (AS_TOOL, AS_TOOL_EDGES, AS_TOOL_TOOLS, NO_TOKENS),
    "native_autogen_round_robin": (
        [],
        ROUND_ROBIN_EDGES,
        [("writer", "search", None, "")],
        {Lack.LLM_CALLS, Lack.TOOL_ARGUMENTS, Lack.TOOL_RESULTS},
    ),
    "native_autogen_swarm": (
        [],
        SWARM_EDGES,
        [("alice", "transfer_to_bob", None, "")],
        {Lack.LLM_CALLS, Lack.TOOL_ARGUMENTS, Lack.TOOL_RESULTS},
    ),
    "openinference+coterie_langgraph_supervisor": (SUPERVISOR, SUPERVISOR_EDGES, SUPERVISOR_TOOLS, NO_TOKENS),
    "openinference+coterie_langgraph_handoff": (HANDOFF, HANDOFF_EDGES, HANDOFF_TOOLS, NO_TOKENS),
    "genai+coterie_langgraph_supervisor": (SUPERVISOR, SUPERVISOR_EDGES, SUPERVISOR_TOOLS, NO_TOKENS),
    "genai+coterie_langgraph_handoff": (HANDOFF, HANDOFF_EDGES, HANDOFF_TOOLS, NO_TOKENS),
}


def said(episode: Episode) -> Turns:
    return [
        (turn.agent_path, turn.text or "".join(call["function"]["name"] for one in turn.output for call in calls(one)))
        for turn in episode.turns
    ]


def calls(message: object) -> list[dict]:
    return message.get("tool_calls", [])


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_what_was_recorded_is_one_episode(name: str) -> None:
    turns, edges, tools, missing = EXPECTED[name]
    (episode,) = read_traces(RECORDED / f"{name}.json")
    assert said(episode) == turns
    assert {(edge.kind.value, edge.source, edge.target) for edge in episode.edges} == edges
    assert len(episode.edges) == (4 if "round_robin" in name else len(edges))
    assert [
        (call.agent_path, call.name, json.loads(call.arguments) if call.arguments else None, call.result)
        for call in episode.tool_calls
    ] == tools
    assert {one.what for one in episode.missing} == missing
    assert not any(turn.error for turn in episode.turns)


def test_every_recording_is_read() -> None:
    assert {path.stem for path in RECORDED.glob("*.json")} == {*EXPECTED, "genai_crewai_delegation"}


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if "quiet" not in name and "native" not in name))
def test_messages_are_in_openais_form(name: str) -> None:
    (episode,) = read_traces(RECORDED / f"{name}.json")
    for turn in episode.turns:
        assert turn.messages
        for message in (*turn.messages, *turn.output):
            assert message["role"] in ("system", "developer", "user", "assistant", "tool")
            assert isinstance(message["content"], str | None)
            assert "parts" not in message
            if message["role"] == "tool":
                assert message["tool_call_id"].startswith("call_")
            for call in calls(message):
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
        assert turn.model in ("scripted", "gpt-4o-mini")
        if "genai-v2_openai_agents" not in name:  # it writes neither the system prompt nor the reason
            assert turn.finish_reason in ("stop", "tool_calls")
            assert "plain" in name or turn.messages[0] | {"role": ""} == {
                "role": "",
                "content": instructions(turn.role, name),
            }


def instructions(role: str, name: str) -> str:
    if "crewai" in name:
        backstory, goal = {"lead": ("Leads.", "lead"), "analyst": ("Analyses.", "analyse")}[role]
        return f"You are {role}. {backstory}\nYour personal goal is: {goal}"
    return f"You are {role}."


def test_with_the_models_instrumentor_alone_each_call_is_a_trace_without_a_name() -> None:
    episodes = read_traces(RECORDED / "genai_crewai_delegation.json")
    assert [episode.turns[0].text for episode in episodes] == ["", "42 rows.", "The count is 42.", "Fine."]
    for episode in episodes:
        lacks = {one.what: one for one in episode.missing}
        assert lacks[Lack.AGENT_NAMES].count == lacks[Lack.AGENT_NAMES].of == 1
        assert "agent framework" in str(lacks[Lack.AGENT_NAMES])


def test_token_ids_in_the_recorded_body_make_a_turn_trainable() -> None:
    (episode,) = read_traces(RECORDED / "openinference_plain_openai.json")
    (turn,) = episode.turns
    assert turn.trainable
    assert turn.response_ids[:3] == tuple(toy_tokens("Hi."))
    assert len(turn.logprobs) == len(turn.response_ids)


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if "+coterie" in name))
def test_where_both_record_ours_wins(name: str) -> None:
    (episode,) = read_traces(RECORDED / f"{name}.json")
    assert all(turn.call_id.startswith("ca-") for turn in episode.turns)
