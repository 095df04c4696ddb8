"""Reach: which later turns saw what a role said, and which saw only what others made of it.

A turn b saw the words of an earlier turn a if one of these holds:

- b's messages repeat a run of ``RUN`` words of what a said (all of it, if it is shorter) that did not stand in a's own messages;
- an edge leads from a's agent to b's, and b is that agent's first turn after it;
- a's agent works for b's (b's agent path is the beginning of a's), and b is that agent's first turn after a.

Who saw a turn that saw it was reached at one step more. Words that come to a role from elsewhere and are merely passed on by
code that rewrites them are not recognised; an edge or the agents' paths still show where they went.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coterie.assembly import message_text
from coterie.episodes import Episode, Turn

RUN = 8
"""Words that must stand in the same order for a text to count as repeated."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A later turn of another role that a role's words came to."""

    turn: Turn
    steps: int
    """1 if it saw the role's own words, 2 if it saw what one turn made of them, and so on."""
    through: Turn
    """The turn whose words it saw: the role's own if ``steps`` is 1."""


def reached(episode: Episode, role: str) -> list[Reached]:
    """The turns of other roles that a role's words came to, in order of time, each by its shortest way."""
    turns = sorted(episode.turns, key=lambda turn: (turn.start_ns, turn.call_id))
    words = [_Words.of(turn) for turn in turns]
    steps: list[int | None] = [0 if turn.role == role else None for turn in turns]
    found = []
    for later, turn in enumerate(turns):
        if turn.role == role:
            continue
        ways = [
            (step, earlier)
            for earlier, step in enumerate(steps[:later])
            if step is not None and _saw(later, earlier, turns, words, episode)
        ]
        if ways:
            step, earlier = min(ways)
            steps[later] = step + 1
            found.append(Reached(turn, step + 1, turns[earlier]))
    return found


def said(turn: Turn) -> str:
    """What came back in a turn: its text, and the tool calls that it asks for."""
    return "\n".join([*([turn.text] if turn.text else []), *(f"It calls {call}" for call in _asked_calls(turn))])


def _asked_calls(turn: Turn) -> Iterator[str]:
    for message in turn.output:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list | tuple) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                yield f"{function.get('name')}({function.get('arguments') or ''})"


@dataclass(frozen=True, slots=True)
class _Words:
    """What a turn read and said, as text in which only words and their order count."""

    read: str
    new: frozenset[str]
    """The runs of words that it said and had not read."""

    @classmethod
    def of(cls, turn: Turn) -> _Words:
        read = _words("\n".join(message_text(each) for each in turn.messages if each.get("role") != "system"))
        words = _words(said(turn)).split()
        runs = {" ".join(words[at : at + RUN]) for at in range(max(len(words) - RUN, 0) + 1)} if words else set()
        # Spaces at both ends, so that only whole words match.
        return cls(f" {read} ", frozenset(run for run in runs if f" {run} " not in f" {read} "))


def _saw(later: int, earlier: int, turns: Sequence[Turn], words: Sequence[_Words], episode: Episode) -> bool:
    reader, speaker = turns[later], turns[earlier]
    if speaker.end_ns > reader.start_ns:
        return False
    if any(f" {run} " in words[later].read for run in words[earlier].new):
        return True
    between = [turn for turn in turns[:later] if turn.agent_path == reader.agent_path]
    returned = speaker.agent_path.startswith(f"{reader.agent_path}/")
    if returned and not any(turn.start_ns >= speaker.end_ns for turn in between):
        return True
    return any(
        edge.source == speaker.agent
        and edge.target == reader.agent
        and speaker.start_ns <= edge.time_ns <= reader.start_ns
        and not any(turn.start_ns >= edge.time_ns for turn in between)
        for edge in episode.edges
    )


def _words(text: str) -> str:
    # A text inside JSON has its line breaks written out.
    return " ".join(re.findall(r"\w+", text.replace("\\n", " ").replace("\\t", " ").lower()))
