"""Who acts: the identity of an agent that is activated alone, in a team, or below another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from coterie.roles import Identity, child_identity, current_acting, role_of
from coterie.structure import start_workflow
from coterie_autogen.handoffs import add_delegation, heard_by, speakers
from coterie_autogen.registering import is_recorded
from coterie_autogen.runs import Activation, Frame, Onlooker, TeamRun, current_frame, team_runs
from coterie_autogen.watching import Watch, beginning


@beginning
def begin_agent(agent: Any) -> Watch | None:
    """An agent is called: alone, by another agent or by a tool. Its own calls of itself are no new activation."""
    frame, name = current_frame(), name_of(agent)
    if isinstance(frame, Activation) and (frame.agent is agent or frame.identity.agent == name):
        return Onlooker(frame)
    if not _is_to_be_recorded(agent, frame):
        return None
    acting = current_acting()
    parent = acting.span if acting is not None else None
    if isinstance(frame, Activation):
        parent = frame.open()
        add_delegation(parent, frame.identity.agent, name)
    elif isinstance(frame, TeamRun):
        parent = frame.span
    activation = Activation(_below(acting.identity if acting is not None else None, name), parent, agent)
    activation.open()
    return activation


@beginning
def begin_team(team: Any) -> Watch | None:
    """A team is run: by the user, as a participant of another team, by an agent, or by a tool."""
    frame, acting = current_frame(), current_acting()
    if not _is_to_be_recorded(team, frame):
        return None
    around = _team_run_around(frame)
    names = around.names if around is not None else set()
    names.update(map(name_of, team._participants), [team._group_chat_manager_name])
    run = TeamRun(
        team_id=team._team_id,
        around=acting,
        span=start_workflow(
            getattr(team, "name", None) or type(team).__name__,
            identity=acting.identity if acting is not None else None,
            parent=frame.open() if isinstance(frame, Activation) else frame.span if frame is not None else None,
        ),
        names=names,
        delegated_by=frame if isinstance(frame, Activation) else None,
    )
    # A team that is running already refuses a second run: the first one's agents stay the first one's.
    team_runs.setdefault(run.team_id, run)
    return run


@beginning
def begin_handling(agent: Any, message: Any, context: Any) -> Watch | None:
    """An agent of the runtime gets a message: a participant of a team, a team's manager, or an agent of the Core API."""
    if not is_instrumentation_enabled():
        return None
    kind, run = type(message).__name__, team_runs.get(agent.id.key)
    if run is None and not is_recorded(agent):
        return None
    if hasattr(agent, "_message_buffer") and hasattr(agent, "_agent"):
        return _begin_participant(agent, run) if kind == "GroupChatRequestPublish" else None
    if hasattr(agent, "_group_topic_type"):
        return _begin_manager(agent, message, run) if kind in _MAY_MAKE_MANAGER_ACT else None
    activation = _activation(run, agent, agent.id.type)
    if context.sender is not None:
        activation.heard = (context.sender.type,)
    return activation


def name_of(agent: Any) -> str:
    """An agent's name; of a filter in front of an agent, that agent's."""
    while (inner := getattr(agent, "_wrapped_agent", None)) is not None:
        agent = inner
    name: str = agent.name
    return name


@dataclass(slots=True, eq=False)
class _InnerTeam:
    """A team that takes part in another one's run gets its turn."""

    run: TeamRun

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self.run.entered():
            yield

    def saw(self, item: Any) -> None: ...

    def ended(self, error: BaseException | None) -> None: ...


_MAY_MAKE_MANAGER_ACT = frozenset({"GroupChatStart", "GroupChatAgentResponse", "GroupChatTeamResponse"})


def _begin_participant(container: Any, run: TeamRun | None) -> Watch | None:
    participant, said = container._agent, container._message_buffer
    if not hasattr(participant, "on_messages"):
        return _InnerTeam(run) if run is not None else None
    activation = _activation(run, participant, name_of(participant))
    # A team whose run is in another process has participants that are not known here.
    names = run.names if run is not None else {message.source for message in said} - {"user"}
    activation.heard = heard_by(activation.identity.agent, said, names)
    activation.open()
    return activation


def _begin_manager(manager: Any, message: Any, run: TeamRun | None) -> Watch:
    # Most managers call no model: what they hear is kept until one does.
    activation = _activation(run, manager, getattr(manager, "_name", None) or type(manager).__name__)
    if run is not None:
        run.unheard |= speakers(_messages_in(message), run.names)
        activation.heard = run.unheard
    return activation


def _activation(run: TeamRun | None, agent: Any, name: str) -> Activation:
    around = run.around.identity if run is not None and run.around is not None else None
    return Activation(_below(around, name), run.span if run is not None else None, agent, run)


def _messages_in(message: Any) -> Sequence[Any]:
    if hasattr(message, "agent_response"):  # before 0.7
        return (message.agent_response.chat_message,)
    if hasattr(message, "response"):
        return (message.response.chat_message,)
    if hasattr(message, "result"):
        found: Sequence[Any] = message.result.messages
        return found
    return message.messages or ()


def _below(parent: Identity | None, name: str) -> Identity:
    # Not child_identity alone: without a parent it takes who acts in the context, which may be a runtime's task.
    return child_identity(name, parent) if parent is not None else Identity(name, role_of(name), (name,))


def _is_to_be_recorded(target: Any, frame: Frame | None) -> bool:
    return is_instrumentation_enabled() and (frame is not None or is_recorded(target))


def _team_run_around(frame: Frame | None) -> TeamRun | None:
    if isinstance(frame, TeamRun):
        return frame
    return frame.run if isinstance(frame, Activation) else None
