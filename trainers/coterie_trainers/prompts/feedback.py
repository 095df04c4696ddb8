"""Feedback: what a reflecting model should read about one role in one trial, so that it learns that role's lesson.

Three sections:

- **did**: the role's own turns: what it was given (new messages only, without its prompt), what it said, which tools it used;
- **judged**: the team's score and the rewards that are bound to the role, to its agent path or to one of its calls, with what
  their sources say about them; and why the rollout failed, if it did;
- **later**: the downstream blame: which later turns saw what the role said, what they made of it, how these were judged, and
  what failed there.

Why: with the trace of a whole team in front of it a model must first guess whose fault it reads about; with the role's turns
alone it never learns that a plan that looks fine made the next role fail.

Source: blames from downstream agents, MAPRO, arXiv 2510.07475. Where we depart: the paper has a model write a blame for each
edge of a fixed graph; here the blame is what was recorded, along the ways that the words really took (``reach.py``), and the
reflecting model judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from coterie.assembly import message_text
from coterie.episodes import Episode, ToolCall, Turn
from coterie.vocabulary import JSON, Reward
from coterie_trainers.prompts.reach import Reached, reached, said
from coterie_trainers.prompts.study import Trial

T = TypeVar("T")
LIMIT = 6000
"""Characters of one feedback."""
MANY = 8
"""Turns of one kind that are told; of more the first and the last ones."""


@dataclass(frozen=True, slots=True)
class RoleFeedback:
    """What there is to say about one role in one trial."""

    role: str
    task_id: str
    score: float
    """The team's."""
    did: str
    judged: str
    later: str

    def __str__(self) -> str:
        """All sections, for a reflecting model."""
        return (
            f"What {self.role} did:\n{self.did}\n\nHow it was judged:\n{self.judged}\n\nWhat came of it:\n{self.later}"
        )


def role_feedback(trial: Trial, episode: Episode, role: str, *, limit: int = LIMIT) -> RoleFeedback:
    """What a reflecting model should read about a role in a trial.

    Args:
        trial: How the rollout ended.
        episode: What happened in it.
        role: Whom it is about.
        limit: About how many characters all sections may have; long texts are cut in their middle, short ones are whole.
    """
    ways = reached(episode, role)
    own = [turn for turn in episode.turns if turn.role == role]
    did = [note for turn in _some(own) for note in _told(turn, own, episode)]
    judged = _judged(trial, episode, role)
    later = [note for way in _some(ways) for note in _way(way, episode)]
    if not own:
        did = [_Note("", f"The role {role} was not reached: it made no call.")]
    elif not later:
        after = any(turn.role != role and turn.start_ns >= own[0].end_ns for turn in episode.turns)
        later = [_Note("", "No later role saw what it said." if after else "No other role acted after it.")]
    fitted = _fitted([did, judged, later], limit)
    return RoleFeedback(role, trial.task.id, trial.score, *("\n".join(section) for section in fitted))


def whole_trace(trial: Trial, episode: Episode, *, limit: int = LIMIT) -> str:
    """All that happened in a trial, in order, without saying who is to blame: what an optimiser sees that knows no roles."""
    turns = [note for turn in _some(episode.turns) for note in _told(turn, episode.turns, episode, named=True)]
    rewards = [_rewarded(reward, role_of_reward(reward, episode) or "the team") for reward in episode.rewards]
    return "\n".join(line for section in _fitted([turns, [_ended(trial), *rewards]], limit) for line in section)


def role_of_reward(reward: Reward, episode: Episode) -> str | None:
    """The role that a reward is bound to, by call, agent path or role; None if it is the whole team's."""
    for turn in episode.turns:
        if reward.call_id is not None:
            if turn.call_id == reward.call_id:
                return turn.role
        elif reward.agent_path is not None and turn.agent_path == reward.agent_path:
            return turn.role
    return reward.role


@dataclass(frozen=True, slots=True)
class _Note:
    """A line: what it is, and a text that may be cut."""

    what: str
    text: str


def _told(turn: Turn, others: Sequence[Turn], episode: Episode, *, named: bool = False) -> Iterator[_Note]:
    who = f"{turn.role}, " if named else ""
    yield _Note(
        f"[{who}turn {turn.index + 1}] It was given:", "\n".join(_new_messages(turn, others)) or "(nothing new)"
    )
    if turn.error is not None:
        yield _Note("The call failed:", turn.error)
    else:
        yield _Note("It said:", said(turn) or "(nothing)")
    if turn.finish_reason == "length":
        yield _Note("", "The answer was cut off: it was too long.")
    calls, last = _calls_after(turn, episode)
    for call in calls:
        if call.error is not None:
            yield _Note(f"Its tool {call.name}({call.arguments}) failed:", call.error)
        elif last:
            yield _Note(f"Its tool {call.name}({call.arguments}) gave:", call.result)


def _calls_after(turn: Turn, episode: Episode) -> tuple[list[ToolCall], bool]:
    """The role's tool calls between a turn and its next one, and whether it has no next one that would tell their results."""
    following = [each.start_ns for each in episode.turns if each.role == turn.role and each.start_ns > turn.start_ns]
    until = min(following, default=None)
    calls = [
        call
        for call in episode.tool_calls
        if call.role == turn.role and call.start_ns >= turn.start_ns and (until is None or call.start_ns < until)
    ]
    return calls, until is None


def _new_messages(turn: Turn, others: Sequence[Turn]) -> Iterator[str]:
    """What the role had not read or said before, in this run of its agent."""
    before = [
        each
        for each in others
        if each.agent_path == turn.agent_path and each.invocation == turn.invocation and each.start_ns < turn.start_ns
    ]
    known = [_told_once(message) for message in (*before[-1].messages, *before[-1].output)] if before else []
    for message in turn.messages:
        told = _told_once(message)
        if told in known:
            known.remove(told)
        elif message.get("role") not in ("system", "developer") and (text := message_text(message)):
            yield f"{message.get('name') or message.get('role') or 'message'}: {text}"


def _told_once(message: Mapping[str, JSON]) -> tuple[object, str, str]:
    return message.get("role"), message_text(message), str(message.get("tool_calls") or "")


def _judged(trial: Trial, episode: Episode, role: str) -> list[_Note]:
    notes = [_ended(trial)]
    for reward in episode.rewards:
        whose = role_of_reward(reward, episode)
        if whose == role:
            notes.append(_rewarded(reward, f"{role} itself"))
        elif whose is None and reward.explanation:
            notes.append(_rewarded(reward, "the team"))
    return notes[: MANY + 1]


def _ended(trial: Trial) -> _Note:
    if trial.failure is not None:
        return _Note(f"The team's score is {trial.score:g}, because the rollout failed:", trial.failure)
    return _Note("", f"The team's score is {trial.score:g}.")


def _rewarded(reward: Reward, whom: str) -> _Note:
    named = f"{reward.name} = {reward.value:g} for {whom}"
    return _Note(f"{named}, from {reward.source}:", reward.explanation) if reward.explanation else _Note("", named)


def _way(way: Reached, episode: Episode) -> Iterator[_Note]:
    turn = way.turn
    saw = "saw what it said" if way.steps == 1 else f"saw what {way.through.role} made of it"
    if turn.error is not None:
        yield _Note(f"{turn.role} {saw}; its call failed:", turn.error)
    else:
        yield _Note(f"{turn.role} {saw}, and said:", said(turn) or "(nothing)")
    for reward in episode.rewards:
        if (
            reward.call_id == turn.call_id
            or (reward.call_id is None and reward.agent_path == turn.agent_path)
            or (reward.call_id is None and reward.agent_path is None and reward.role == turn.role)
        ):
            yield _rewarded(reward, turn.role)
    for call in _calls_after(turn, episode)[0]:
        if call.error is not None:
            yield _Note(f"{turn.role}'s tool {call.name} failed:", call.error)


def _some(things: Sequence[T]) -> Sequence[T]:
    """The first and the last of many: how it began, and how it ended."""
    return things if len(things) <= MANY else [*things[: MANY // 2], *things[-(MANY - MANY // 2) :]]


def _fitted(sections: Sequence[Sequence[_Note]], limit: int) -> list[list[str]]:
    """The lines of each section. Texts share what the limit leaves; what a short one does not need goes to the long ones."""
    notes = [note for section in sections for note in section]
    room = max(limit - sum(len(note.what) for note in notes), 0)
    share = 0
    for place, length in enumerate(lengths := sorted(len(note.text) for note in notes)):
        share = max(room, 0) // (len(lengths) - place)
        if length > share:
            break
        room -= length
        share = length
    longest = max(share, 40)
    return [[f"{note.what} {_cut(note.text, longest)}".strip() for note in section] for section in sections]


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    head = longest * 2 // 3
    left_out = len(text) - longest
    return f"{text[:head]} … ({left_out} characters left out) … {text[len(text) - (longest - head) :]}"
