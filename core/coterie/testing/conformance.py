"""The conformance suite of plugins: a class to derive from in a file of tests. Needs pytest.

Write the described team (``described_team.py``) in your framework's idiom, as a user would, and say how it is played::

    class TestMyFramework(PluginConformance):
        instrumentor = "coterie_myframework:MyInstrumentor"
        framework = "myframework"

        def build(self, setting: TeamSetting) -> Any: ...
        async def play_async(self, program: Any) -> None: ...

pytest then runs every check below on it. The team is described once and there is one expected episode, so two
frameworks that pass record the same.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import coterie
from coterie import announced, roles
from coterie import conventions as names
from coterie.assembly import build_episode, load_episodes
from coterie.episodes import Episode
from coterie.prompts.versions import PromptVersion
from coterie.runner import Runner
from coterie.scope import attempt_scope
from coterie.testing.canonical import CanonicalEpisode, canonical
from coterie.testing.described_team import CALLS, HIDDEN_WORD, TeamSetting, expected_episode, speaker, team_answer
from coterie.testing.scripted_model import Reply, ScriptedModel
from coterie.testing.sink import ListSink, scope_for_test
from coterie.vocabulary import Endpoint, Mode, Resource, ResourceKind, Rollout, Task

ASYNC_TEAMS, THREADED_TEAMS = 20, 8
"""How many teams run at once in the check of attribution under load."""


class PluginConformance(ABC):
    """What a plugin must do, on the described team."""

    framework: ClassVar[str]
    """The framework's import name; the checks are skipped where it is not installed."""
    instrumentor: ClassVar[str]
    """``module:class`` of the plugin's instrumentor."""
    patches: ClassVar[Sequence[str]] = ()
    """Top-level modules in which the plugin may wrap something: all of it must be back after uninstrument."""
    openinference: ClassVar[str | None] = None
    """``module:class`` of OpenInference's instrumentor for the framework."""
    streams: ClassVar[Sequence[bool]] = (False, True)
    """Whether the program can ask its models for whole answers and for streams."""
    runs_in_threads: ClassVar[bool] = True
    """Whether ``play`` may be called in several threads at once."""

    @abstractmethod
    def build(self, setting: TeamSetting) -> Any:
        """The program: the user's own objects, made without Coterie."""

    @abstractmethod
    async def play_async(self, program: Any) -> None:
        """Run the team once on ``described_team.TASK``, asynchronously. It may be run again afterwards."""

    def play(self, program: Any) -> None:
        """The same synchronously, in the calling thread. By default in an event loop of its own."""
        asyncio.run(self.play_async(program))

    @pytest.fixture(autouse=True)
    def _needs_framework(self) -> None:
        pytest.importorskip(self.framework)

    @pytest.fixture
    def recording(self) -> Iterator[None]:
        """``coterie.instrument()`` before the test, ``uninstrument()`` after."""
        coterie.instrument()
        yield
        coterie.uninstrument()

    @pytest.fixture
    def server(self) -> Iterator[ScriptedModel]:
        """The described team's model."""
        with ScriptedModel(team_answer) as server:
            yield server

    # The episode

    @pytest.mark.usefixtures("recording")
    @pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
    def test_the_episode_is_the_expected_one(
        self, server: ScriptedModel, tmp_path: Path, asynchronous: bool, streamed: bool
    ) -> None:
        """Roles, turns, edges, tool calls, rewards and exact tokens, through a runner and a store on disk."""
        program = self.build(TeamSetting(server.base_url, streamed=streamed))

        @coterie.rollout
        def team() -> dict[str, float]:
            self.play(program)
            coterie.reward(0.5, name="tests", role="coder")
            return {"team": 1.0}

        @coterie.rollout
        async def team_async() -> dict[str, float]:
            await self.play_async(program)
            coterie.reward(0.5, name="tests", role="coder")
            return {"team": 1.0}

        episode = asyncio.run(_run_in_store(team_async if asynchronous else team, server, tmp_path / "team.db"))
        assert_same(canonical(episode), expected_episode())
        _assert_exact(episode, server)
        _assert_invocations(episode)

    @pytest.fixture(params=["whole", "streamed"])
    def streamed(self, request: pytest.FixtureRequest) -> bool:
        """Whether models are asked for streams."""
        streamed: bool = request.param == "streamed"
        if streamed not in self.streams:
            pytest.skip(f"{self.framework} has no such way")
        return streamed

    @pytest.mark.usefixtures("recording")
    def test_every_call_is_recorded_as_it_went_over_the_wire(self, server: ScriptedModel) -> None:
        """One span a request, with the messages, the parameters and the answer; the request says whose call it is."""
        sink = self._played(server)
        chats = {span.attributes[names.CALL_ID]: span for span in sink.of(names.CHAT)}
        assert len(chats) == len(server.requests) == CALLS
        for request in server.requests:
            span = chats[request.headers[names.HEADER_CALL_ID]]
            assert speaker(request.body) == (span.attributes[names.ROLE], "team")
            assert request.headers[names.HEADER_ROLE] == span.attributes[names.ROLE]
            assert span.attributes[names.REQUEST_MODEL] == request.body["model"]
            assert span.attributes[names.OUTPUT_TOKENS] > 0
            assert HIDDEN_WORD in span.attributes[names.INPUT_MESSAGES]
            assert bool(span.attributes.get(names.TOOL_DEFINITIONS)) == bool(request.body.get("tools"))
            assert span.parent_id is not None

    @pytest.mark.usefixtures("recording")
    def test_a_retried_request_is_one_call(self) -> None:
        """The SDK's second try belongs to the same call, which says how many there were."""
        failed: list[str] = []

        def answer(body: dict[str, Any]) -> Any:
            who = speaker(body)
            if who is not None and who[0] == "coder" and not failed:
                failed.append("coder")
                return Reply("try again", status=500, headers={"retry-after-ms": "1"})
            return team_answer(body)

        with ScriptedModel(answer) as server:
            sink = self._played(server, max_retries=2)
        chats = sink.of(names.CHAT)
        assert len(server.requests) == CALLS + 1
        assert sorted(span.attributes[names.CALL_TRIES] for span in chats) == [1, 1, 1, 1, 2]
        assert_same(_canonical_of(sink), expected_episode(rewarded=False))

    # Rewriting on the way out

    @pytest.mark.usefixtures("recording")
    def test_calls_are_rewritten_per_role_and_the_users_objects_stay(self, server: ScriptedModel) -> None:
        """Endpoint, model, sampling and system prompt of one role change on the wire; the program stays as it was."""
        new_prompt = "Judge sternly. [reviewer of team]"
        setting = TeamSetting(server.base_url)
        program = self.build(setting)
        with ScriptedModel(team_answer, policy_version=7) as other:
            endpoint = Endpoint(
                base_url=other.base_url,
                model="tuned",
                policy="judge",
                roles=("reviewer",),
                sampling={"temperature": 0.25, "max_tokens": 99},
            )
            sink = ListSink()
            scope = scope_for_test(
                sink,
                endpoints={"judge": endpoint},
                prompts=[PromptVersion("prompt.reviewer", 3, new_prompt, "reviewer")],
            )
            with attempt_scope(scope):
                self.play(program)
            (moved,) = other.requests
            assert [speaker(request.body) for request in server.requests] == [
                (turn.role, "team") for turn in expected_episode().turns[:-1]
            ]
            assert moved.body["model"] == "tuned"
            assert moved.body["temperature"] == 0.25
            assert setting.api_key not in moved.headers.get("authorization", "")
            assert new_prompt in str(moved.body)
            assert HIDDEN_WORD not in str(
                [m for m in _sent_messages(moved.body) if m.get("role") in ("system", "developer")]
            )
        (turn,) = [turn for turn in _episode_of(sink).turns if turn.role == "reviewer"]
        assert (turn.policy, turn.policy_version) == ("judge", 7)
        assert (turn.prompt_name, turn.prompt_version) == ("prompt.reviewer", 3)
        assert turn.trainable
        assert new_prompt in str(turn.messages)

        server.requests.clear()
        with attempt_scope(scope_for_test(ListSink())):
            self.play(program)
        last = server.requests[-1].body
        assert speaker(last) == ("reviewer", "team")
        assert HIDDEN_WORD in str(last)
        assert last["model"] == setting.model
        assert last.get("temperature") != 0.25

    # Attribution under load

    @pytest.mark.usefixtures("recording")
    def test_attribution_holds_under_load(self, streamed: bool) -> None:
        """Many teams at once, async and in threads, with random delays: nothing wrong, lost or doubled."""
        with ScriptedModel(_answer_late) as server:
            sinks = asyncio.run(self._play_many(server, streamed=streamed))
            wrong = _mistakes(server, sinks)
        assert not wrong, f"{len(wrong)} mistakes, the first: {wrong[0]}"

    @pytest.mark.usefixtures("recording")
    def test_the_check_of_attribution_can_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The negative control: with plain globals in place of ContextVars the same check finds mistakes."""
        monkeypatch.setattr(announced, "_announced", PlainGlobal())
        monkeypatch.setattr(roles, "_acting", PlainGlobal())
        monkeypatch.setattr("coterie.scope._scope", PlainGlobal())
        with ScriptedModel(_answer_late) as server:
            sinks = asyncio.run(self._play_many(server, streamed=False, forgiving=True))
            assert _mistakes(server, sinks)

    # The user's program is left in peace

    @pytest.mark.usefixtures("recording")
    def test_suppressed_instrumentation_records_nothing(self, server: ScriptedModel) -> None:
        """Inside OpenTelemetry's ``suppress_instrumentation`` nothing is recorded and no header is sent."""
        sink = ListSink()
        with attempt_scope(scope_for_test(sink)), suppress_instrumentation():
            self.play(self.build(TeamSetting(server.base_url)))
        assert len(server.requests) == CALLS
        assert _ours(sink) == []
        assert not any(names.HEADER_CALL_ID in request.headers for request in server.requests)

    @pytest.mark.usefixtures("recording")
    @pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
    def test_spans_hang_under_the_users_span_and_reach_the_users_exporter(
        self, server: ScriptedModel, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
    ) -> None:
        """With a tracer provider of the user's, our spans join the trace and go to its exporter too, each once."""
        exporter = _user_exporter(monkeypatch)
        sink, program = ListSink(), self.build(TeamSetting(server.base_url))

        async def play() -> None:
            with trace.get_tracer("user").start_as_current_span("request"):
                await self.play_async(program)

        with attempt_scope(scope_for_test(sink)):
            if asynchronous:
                asyncio.run(play())
            else:
                with trace.get_tracer("user").start_as_current_span("request"):
                    self.play(program)
        exported = exporter.get_finished_spans()
        chats = [span for span in exported if (span.attributes or {}).get(names.CALL_ID)]
        assert len(chats) == CALLS
        assert {span.context.trace_id for span in chats} == {exported[-1].context.trace_id}
        assert exported[-1].name == "request"
        assert_same(_canonical_of(sink), expected_episode(exact=False, rewarded=False))

    @pytest.mark.parametrize("order", ["theirs first", "ours first"])
    def test_beside_openinference(self, server: ScriptedModel, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
        """Another instrumentor in the same program: both record, and our episode has everything once."""
        if self.openinference is None:
            pytest.skip("no instrumentor of OpenInference is named")
        pytest.importorskip(self.openinference.partition(":")[0])
        other, exporter = _load(self.openinference)(), _user_exporter(monkeypatch)
        switches = [
            lambda: other.instrument(tracer_provider=trace.get_tracer_provider(), skip_dep_check=True),
            coterie.instrument,
        ]
        for switch_on in switches if order == "theirs first" else reversed(switches):
            switch_on()
        try:
            sink = self._played(server)
        finally:
            for switch_off in (coterie.uninstrument, other.uninstrument)[:: -1 if order == "ours first" else 1]:
                switch_off()
        assert any("openinference.span.kind" in (span.attributes or {}) for span in exporter.get_finished_spans())
        assert_same(_canonical_of(sink), expected_episode(exact=False, rewarded=False))

    @pytest.mark.parametrize("rules", [{"capture_content": False}, {"mask": lambda text: "#" * len(text)}])
    def test_content_is_masked_or_left_out(self, server: ScriptedModel, rules: dict[str, Any]) -> None:
        """No text of prompts, answers, arguments or results is in any span."""
        coterie.instrument(**rules)
        try:
            sink = self._played(server, mode=Mode.PRODUCTION, tokens=True)
        finally:
            coterie.uninstrument()
        recorded = " ".join(str((s.attributes, s.events, s.status_message)) for s in _ours(sink))
        for text in (HIDDEN_WORD, "I ask the coder", "Approved", "team.py", "3 passed", "Write"):
            assert text not in recorded
        assert len(sink.of(names.CHAT)) == CALLS
        assert not any(names.RESPONSE_TOKENS in span.attributes for span in sink.spans)

    def test_an_error_is_the_frameworks_own(self) -> None:
        """A model that refuses raises in the user's code just what it raises without us, and is recorded as an error."""

        def refuse(body: dict[str, Any]) -> Any:
            who = speaker(body)
            return Reply("no such thing", status=400) if who and who[0] == "coder" else team_answer(body)

        with ScriptedModel(refuse) as server:
            program = self.build(TeamSetting(server.base_url))
            bare = _raised(lambda: self.play(program))
            coterie.instrument()
            try:
                sink = ListSink()
                with attempt_scope(scope_for_test(sink)):
                    seen = _raised(lambda: self.play(self.build(TeamSetting(server.base_url))))
            finally:
                coterie.uninstrument()
        assert seen == bare
        failed = [span for span in sink.of(names.CHAT) if span.status == "error"]
        assert failed
        assert {span.attributes[names.ROLE] for span in failed} == {"coder"}

    @pytest.mark.parametrize("broken", ["spans", "roles"])
    def test_a_fault_of_ours_is_never_seen(
        self, server: ScriptedModel, monkeypatch: pytest.MonkeyPatch, broken: str
    ) -> None:
        """Something of Coterie raises at every turn: the team's calls are those that it makes without us."""
        self.play(self.build(TeamSetting(server.base_url)))
        bare = _bodies(server)
        server.requests.clear()

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError("a fault of ours")

        coterie.instrument()
        try:
            if broken == "spans":
                monkeypatch.setattr(Tracer, "start_span", fail)
            else:
                monkeypatch.setattr(roles.RoleMap, "role", fail)
            with attempt_scope(scope_for_test(ListSink())):
                self.play(self.build(TeamSetting(server.base_url)))
        finally:
            monkeypatch.undo()
            coterie.uninstrument()
        assert _bodies(server) == bare

    def test_uninstrument_puts_everything_back(self, server: ScriptedModel) -> None:
        """No function, method or property of the framework is another one than before, and nothing is recorded."""
        program = self.build(TeamSetting(server.base_url))
        self.play(program)
        before = _functions([self.framework, *self.patches, "openai"])
        sources = list(roles._acting_sources)
        for _ in range(2):
            coterie.instrument()
            self._played(server)
            coterie.uninstrument()
        after = _functions([self.framework, *self.patches, "openai"])
        changed = [where for where, function in before.items() if after.get(where) is not function]
        assert changed == []
        assert roles._acting_sources == sources
        sink = ListSink()
        server.requests.clear()
        with attempt_scope(scope_for_test(sink)):
            self.play(program)
        assert _ours(sink) == []
        assert len(server.requests) == CALLS

    def test_instrumented_twice_records_once(self, server: ScriptedModel) -> None:
        """``coterie.instrument()`` again, and the plugin's instrumentor by hand, add nothing."""
        coterie.instrument()
        try:
            _load(self.instrumentor)().instrument()
            coterie.instrument()
            sink = self._played(server)
        finally:
            coterie.uninstrument()
        assert_same(_canonical_of(sink), expected_episode(exact=False, rewarded=False))

    def test_zero_code(self, server: ScriptedModel, tmp_path: Path) -> None:
        """``opentelemetry-instrument python program.py`` records a program that does not know of Coterie."""
        kind = type(self)
        folder = Path(sys.modules[kind.__module__].__file__ or "").parent
        program = tmp_path / "program.py"
        program.write_text(
            f"import sys; sys.path.insert(0, {str(folder)!r})\n"
            f"from {kind.__module__} import {kind.__name__}\n"
            "from coterie.testing.described_team import TeamSetting\n"
            f"team = {kind.__name__}()\n"
            f"team.play(team.build(TeamSetting({server.base_url!r})))\n"
        )
        environment = os.environ | {"COTERIE_RECORD": str(tmp_path / "team.db")}
        command = Path(sys.executable).with_name("opentelemetry-instrument")
        done = subprocess.run(  # noqa: S603 - the user's own command
            [command, sys.executable, program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        episode = asyncio.run(_latest_episode(tmp_path / "team.db"))
        assert_same(canonical(episode), expected_episode(exact=False, rewarded=False))

    def test_the_plugin_alone_is_silent_without_its_framework(self) -> None:
        """Importing the plugin's package loads nothing of the framework."""
        package = self.instrumentor.partition(":")[0]
        code = f"import sys, {package}; assert {self.framework!r} not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)  # noqa: S603
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")

    def _played(
        self,
        server: ScriptedModel,
        *,
        mode: Mode = Mode.TRAIN,
        max_retries: int = 0,
        tokens: bool = False,
    ) -> ListSink:
        """The spans of one run of the team; with ``tokens`` the server is asked for token ids."""
        sink = ListSink()
        tokens = tokens or max_retries > 0
        endpoint = Endpoint(base_url=server.base_url, model="scripted", policy="team")
        scope = scope_for_test(sink, mode=mode, endpoints={"team": endpoint} if tokens else {})
        with attempt_scope(scope):
            self.play(self.build(TeamSetting(server.base_url, max_retries=max_retries)))
        return sink

    async def _play_many(
        self, server: ScriptedModel, *, streamed: bool, forgiving: bool = False
    ) -> dict[str, ListSink]:
        """Run many teams at once; gives each team's name and the spans that reached its attempt."""
        sinks: dict[str, ListSink] = {}
        endpoint = Endpoint(base_url=server.base_url, model="scripted", policy="team")

        def scope(team: str) -> Any:
            sinks[team] = ListSink()
            return scope_for_test(
                sinks[team], rollout_id=f"ro-{team}", attempt_id=f"at-{team}", endpoints={"team": endpoint}
            )

        async def run_async(team: str) -> None:
            await asyncio.sleep(random.random() * 0.05)
            with attempt_scope(scope(team)):
                await self.play_async(self.build(TeamSetting(server.base_url, name=team, streamed=streamed)))

        def run_thread(team: str) -> None:
            with attempt_scope(scope(team)):
                self.play(self.build(TeamSetting(server.base_url, name=team, streamed=streamed)))

        threaded = THREADED_TEAMS if self.runs_in_threads else 0
        with ThreadPoolExecutor(THREADED_TEAMS) as threads:
            running = [asyncio.wrap_future(threads.submit(run_thread, f"t{n}")) for n in range(threaded)]
            done = await asyncio.gather(
                *(run_async(f"a{n}") for n in range(ASYNC_TEAMS)), *running, return_exceptions=True
            )
        raised = [error for error in done if isinstance(error, BaseException)]
        if raised and not forgiving:
            raise raised[0]
        return sinks


def assert_same(found: CanonicalEpisode, expected: CanonicalEpisode) -> None:
    """Compare part by part, so that a difference reads well."""
    assert found.turns == expected.turns
    assert found.edges == expected.edges
    assert found.tool_calls == expected.tool_calls
    assert found.rewards == expected.rewards


async def _run_in_store(team: Any, server: ScriptedModel, path: Path) -> Episode:
    async with coterie.connect(path) as store:
        await store.add_tasks([Task("t1", "the task")])
        endpoint = Endpoint(base_url=server.base_url, model="scripted", policy="team")
        published = await store.publish(_endpoint_resource(endpoint))
        rollout = Rollout("t1", mode=Mode.TRAIN, resources={published.name: published.version}, deadline_seconds=60)
        async with Runner(store, team):
            await store.enqueue([rollout])
            await asyncio.wait_for(store.wait([rollout.id]), 90)
        (attempt,) = (await store.get_attempts([rollout.id]))[rollout.id]
        assert attempt.error is None, attempt.error
        assert list(attempt.warnings) == []
        (episode,) = await load_episodes(store, [rollout.id])
        return episode


async def _latest_episode(path: Path) -> Episode:
    async with coterie.connect(path) as store:
        rollouts = (await store.list_rollouts()).items
        return (await load_episodes(store, [rollouts[-1].id]))[0]


def _endpoint_resource(endpoint: Endpoint) -> Any:
    return Resource(name="policy.team", kind=ResourceKind.ENDPOINT, content=asdict(endpoint))


def _assert_invocations(episode: Episode) -> None:
    """Every turn belongs to a run of its agent, the coder's two to one run, and no two agents share one."""
    invocations = {role: {turn.invocation for turn in episode.turns if turn.role == role} for role in episode.roles}
    assert all(None not in runs for runs in invocations.values())
    assert len(invocations["coder"]) == 1
    assert len(set().union(*invocations.values())) == sum(map(len, invocations.values()))


def _assert_exact(episode: Episode, server: ScriptedModel) -> None:
    """Token ids are those that the server gave for the same call."""
    for turn in episode.turns:
        written = server.written[turn.call_id]
        assert turn.prompt_ids == tuple(written.prompt_ids)
        assert turn.response_ids == tuple(written.response_ids)


def _episode_of(sink: ListSink) -> Episode:
    return build_episode("t1", "at-test", "ro-test", sink.spans, sink.rewards)


def _canonical_of(sink: ListSink) -> CanonicalEpisode:
    return canonical(_episode_of(sink))


def _ours(sink: ListSink) -> list[Any]:
    """The spans of Coterie, without those that the framework itself or the user made."""
    return [span for span in sink.spans if names.ROLE in span.attributes or names.CALL_ID in span.attributes]


async def _answer_late(body: dict[str, Any]) -> Any:
    await asyncio.sleep(random.random() * 0.02)
    return team_answer(body)


def _mistakes(server: ScriptedModel, sinks: dict[str, ListSink]) -> list[str]:
    """Everything that is recorded under another team, role, agent or call than the one that it is of."""
    wrong = []
    for request in server.requests:
        role, team = speaker(request.body) or ("", "")
        if (request.headers.get(names.HEADER_ROLE), request.headers.get(names.HEADER_ROLLOUT_ID)) != (
            role,
            f"ro-{team}",
        ):
            wrong.append(f"a request of the {role} of {team} went out as {request.headers.get(names.HEADER_ROLE)}")
    calls = Counter(request.headers.get(names.HEADER_CALL_ID) for request in server.requests)
    spans = Counter(span.attributes[names.CALL_ID] for sink in sinks.values() for span in sink.of(names.CHAT))
    if calls != spans:
        wrong.append(f"{sum(calls.values())} requests, {sum(spans.values())} recorded calls; they differ")
    for team, sink in sinks.items():
        for span in sink.of(names.CHAT):
            said = f"[{span.attributes[names.ROLE]} of {team}]"
            if said not in span.attributes[names.INPUT_MESSAGES]:
                wrong.append(f"a call recorded as {said} was another's")
            if not span.attributes.get(names.RESPONSE_TOKENS):
                wrong.append(f"a call of {said} has no token ids")
        found = _canonical_of(sink)
        if found != expected_episode(team, rewarded=False):
            wrong.append(f"the episode of {team} is another: {found}")
    return wrong


class PlainGlobal:
    """What a ContextVar must be used instead of."""

    def __init__(self) -> None:
        self.value: Any = None

    def get(self) -> Any:
        """The value, whoever set it."""
        return self.value

    def set(self, value: Any) -> Any:
        """Set it for everybody; gives the former value, to reset it by."""
        former, self.value = self.value, value
        return former

    def reset(self, token: Any) -> None:
        """Set a former value again."""
        self.value = token


def _user_exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """A tracer provider of the user's, set as OpenTelemetry's global one, and what it exports to."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return exporter


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _raised(run: Callable[[], None]) -> tuple[str, str] | None:
    """Class and text of what a call raises, or None."""
    try:
        run()
    except Exception as error:  # noqa: BLE001 - whatever the framework makes of it is to be compared
        return type(error).__name__, str(error)
    return None


def _bodies(server: ScriptedModel) -> list[tuple[str, Any]]:
    """Who asked and with which messages, without what changes from run to run."""
    return [(str(speaker(request.body)), len(_sent_messages(request.body))) for request in server.requests]


def _sent_messages(body: Any) -> list[Any]:
    given = body.get("messages", body.get("input"))
    system = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    return [*system, *(given if isinstance(given, list) else [{"role": "user", "content": given}])]


def _functions(packages: Sequence[str]) -> dict[str, Any]:
    """Every function, method and property of the loaded modules of some packages, by where it is."""
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in packages or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == name:
                for member, inner in list(vars(value).items()):
                    if callable(inner) or isinstance(inner, (staticmethod, classmethod, property)):
                        found[f"{name}.{attribute}.{member}"] = inner
            elif callable(value):
                found[f"{name}.{attribute}"] = value
    return found
