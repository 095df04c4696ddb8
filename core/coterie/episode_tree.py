"""An episode as a tree of plain text: what each agent said, which tools it used, who came after whom, and the rewards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coterie.assembly import message_text
from coterie.episodes import Edge, Episode, ToolCall, Turn
from coterie.replays import AnsweredBy
from coterie.vocabulary import Reward

TEXT_LIMIT = 100
"""Characters of a text that a line shows."""


def tree(episode: Episode, *, text_limit: int = TEXT_LIMIT) -> str:
    """The episode as text, a line a thing; agents by path, what each did in order of time.

    Args:
        episode: what to show.
        text_limit: characters of each message, argument or result that are shown.
    """
    show = _Shortener(text_limit)
    sections = _agents(episode, show)
    for title, items in (
        ("edges", [_edge_line(edge) for edge in episode.edges]),
        ("rewards", [_reward_line(reward, episode, show) for reward in episode.rewards]),
        ("missing", [str(lack) for lack in getattr(episode, "missing", ())]),
    ):
        if items:
            sections.append(_Node(title, [_Node(item) for item in items]))
    return "\n".join([_headline(episode), *_drawn(sections)])


@dataclass(slots=True)
class _Node:
    """A line, and what hangs under it."""

    text: str
    children: list[_Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Shortener:
    limit: int

    def __call__(self, text: str) -> str:
        """A text on one line, its end cut off if it is too long."""
        line = " ".join(text.split())
        return line if len(line) <= self.limit else line[: self.limit - 1] + "…"


@dataclass(slots=True)
class _Agent:
    """What hangs under one agent path."""

    role: str = ""
    things: list[tuple[int, _Node]] = field(default_factory=list)
    """Start time and line."""


def _headline(episode: Episode) -> str:
    turns, tools = len(episode.turns), len(episode.tool_calls)
    trainable = sum(turn.trainable for turn in episode.turns)
    what = f"{turns} turn{'s' * (turns != 1)} ({trainable} trainable), {tools} tool call{'s' * (tools != 1)}"
    return f"rollout {episode.rollout_id}, attempt {episode.attempt_id}, task {episode.task_id}: {what}"


def _agents(episode: Episode, show: _Shortener) -> list[_Node]:
    agents: dict[tuple[str, ...], _Agent] = {}
    lines: list[tuple[Turn | ToolCall, _Node]] = [(turn, _turn_node(turn, show)) for turn in episode.turns]
    lines += [(call, _tool_node(call, show)) for call in episode.tool_calls]
    for thing, node in lines:
        path = tuple(thing.agent_path.split("/"))
        agent = agents.setdefault(path, _Agent())
        agent.role = agent.role or thing.role
        agent.things.append((thing.start_ns, node))
        for depth in range(1, len(path)):
            agents.setdefault(path[:depth], _Agent())
    return [node for _, node in _agents_below((), agents)]


def _agents_below(path: tuple[str, ...], agents: Mapping[tuple[str, ...], _Agent]) -> list[tuple[int, _Node]]:
    """The agents right below a path, each with the time of its first deed and all that hangs under it."""
    nodes = []
    for child, agent in agents.items():
        if child[:-1] != path:
            continue
        things = sorted([*agent.things, *_agents_below(child, agents)], key=lambda one: one[0])
        role = f" (role {agent.role})" if agent.role and agent.role != child[-1] else ""
        nodes.append((things[0][0], _Node(f"{child[-1]}{role}", [node for _, node in things])))
    return sorted(nodes, key=lambda one: one[0])


def _turn_node(turn: Turn, show: _Shortener) -> _Node:
    facts = [turn.model or "unknown model", f"{max(turn.end_ns - turn.start_ns, 0) / 1e9:.2f} s"]
    if turn.answered_by is not None:
        facts.append(f"answered by {'its recording' if turn.answered_by == AnsweredBy.RECORDING else 'a mask'}")
    if turn.prompt_ids is not None or turn.response_ids is not None:
        facts.append(f"tokens {len(turn.prompt_ids or ())} → {len(turn.response_ids or ())}")
    if turn.policy is not None:
        facts.append(f"policy {turn.policy}@{_known(turn.policy_version)}")
    if turn.prompt_name is not None:
        facts.append(f"prompt {turn.prompt_name}@{_known(turn.prompt_version)}")
    facts += [f"prompt {name}@{version}" for name, version in turn.prompt_parts.values()]
    if turn.finish_reason not in (None, "stop", "tool_calls"):
        facts.append(f"ended by {turn.finish_reason}")
    node = _Node(f"turn {turn.index}: {', '.join(facts)}")
    asked = next((text for message in reversed(turn.messages) if (text := message_text(message))), "")
    if asked:
        node.children.append(_Node(f"← {show(asked)}"))
    if turn.text:
        node.children.append(_Node(f"→ {show(turn.text)}"))
    for message in turn.output:
        node.children += [_Node(f"→ calls {show(call)}") for call in _asked_calls(message.get("tool_calls"))]
    if turn.error is not None:
        node.children.append(_Node(f"✗ {show(turn.error)}"))
    return node


def _asked_calls(calls: object) -> Iterator[str]:
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield f"{function.get('name')}({function.get('arguments') or ''})"


def _tool_node(call: ToolCall, show: _Shortener) -> _Node:
    carries = f" [{call.carries.value}]" if call.carries is not None else ""
    came = f"✗ {show(call.error)}" if call.error is not None else f"→ {show(call.result)}"
    return _Node(f"tool {call.name}({show(call.arguments)}){carries} {came}")


def _edge_line(edge: Edge) -> str:
    return f"{edge.source} → {edge.target} ({edge.kind.value})"


def _reward_line(reward: Reward, episode: Episode, show: _Shortener) -> str:
    turn = next((turn for turn in episode.turns if turn.call_id == reward.call_id), None)
    if turn is not None:
        bound = f"{turn.role}'s turn {turn.index}"
    elif reward.call_id is not None:
        bound = f"call {reward.call_id}"
    elif reward.agent_path is not None:
        bound = reward.agent_path
    else:
        bound = f"role {reward.role}" if reward.role is not None else "team"
    because = f": {show(reward.explanation)}" if reward.explanation else ""
    return f"{reward.name} = {reward.value:g} for {bound}, from {reward.source}{because}"


def _known(version: int | None) -> str:
    return "?" if version is None else str(version)


def _drawn(nodes: Sequence[_Node], indent: str = "") -> Iterator[str]:
    for at, node in enumerate(nodes):
        last = at == len(nodes) - 1
        yield f"{indent}{'└─ ' if last else '├─ '}{node.text}"
        yield from _drawn(node.children, indent + ("   " if last else "│  "))
