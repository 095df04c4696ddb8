"""An episode as text, and ``coterie show``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import coterie
from coterie.cli import main
from coterie.episodes import Edge, EdgeKind, Episode, ToolCall, Turn
from coterie.vocabulary import Reward, RolloutState

SECOND = 10**9


def turn(path: str, index: int, at: float, text: str, **fields: object) -> Turn:
    values: dict[str, object] = {
        "call_id": f"{path}-{index}",
        "agent": path.rsplit("/")[-1],
        "role": path.rsplit("/")[-1].lower(),
        "agent_path": path,
        "index": index,
        "messages": [{"role": "user", "content": f"please\n  {text}?"}],
        "text": text,
        "output": [{"role": "assistant", "content": text}],
        "prompt_ids": (1, 2, 3),
        "response_ids": (4, 5),
        "logprobs": (-0.1, -0.2),
        "policy": "team",
        "policy_version": 3,
        "prompt_name": None,
        "prompt_version": None,
        "model": "small",
        "finish_reason": "stop",
        "error": None,
        "start_ns": int(at * SECOND),
        "end_ns": int((at + 0.5) * SECOND),
    }
    return Turn(**(values | fields))  # type: ignore[arg-type]


def tool(path: str, at: float, result: str, **fields: object) -> ToolCall:
    values: dict[str, object] = {
        "name": "multiply",
        "role": "coder",
        "agent_path": path,
        "call_id": None,
        "arguments": '{"a": 6}',
        "result": result,
        "error": None,
        "start_ns": int(at * SECOND),
        "end_ns": int(at * SECOND),
    }
    return ToolCall(**(values | fields))  # type: ignore[arg-type]


def test_a_tree_shows_what_happened_in_order() -> None:
    asked = {"role": "assistant", "tool_calls": [{"function": {"name": "coder", "arguments": "{}"}}]}
    episode = Episode(
        "ro-1",
        "at-1",
        "t1",
        turns=[
            turn("Lead", 0, 1, "", output=[asked]),
            turn("Lead/Coder", 0, 2, "x" * 300, prompt_name="coder", prompt_version=2, finish_reason="length"),
            turn("Lead", 1, 5, "done", prompt_ids=None, response_ids=None, logprobs=None, error="APIError: too long"),
        ],
        edges=[Edge(EdgeKind.DELEGATION, "Lead", "Coder", 2 * SECOND)],
        tool_calls=[
            tool("Lead", 1.5, "", name="coder", carries=EdgeKind.DELEGATION),
            tool("Lead/Coder", 3, "42"),
            tool("Lead/Coder", 4, "", error="ValueError: no"),
        ],
        rewards=(
            Reward("ro-1", "at-1", 1.0, id="r1", time_ns=1),
            Reward("ro-1", "at-1", 0.5, name="short", source="code", call_id="Lead-1", explanation="too\nlong"),
            Reward("ro-1", "at-1", 0.25, name="tidy", source="judge", role="coder"),
        ),
    )
    expected = f"""\
rollout ro-1, attempt at-1, task t1: 3 turns (2 trainable), 3 tool calls
├─ Lead (role lead)
│  ├─ turn 0: small, 0.50 s, tokens 3 → 2, policy team@3
│  │  ├─ ← please ?
│  │  └─ → calls coder({{}})
│  ├─ tool coder({{"a": 6}}) [delegation] →
│  ├─ Coder (role coder)
│  │  ├─ turn 0: small, 0.50 s, tokens 3 → 2, policy team@3, prompt coder@2, ended by length
│  │  │  ├─ ← please {"x" * 92}…
│  │  │  └─ → {"x" * 99}…
│  │  ├─ tool multiply({{"a": 6}}) → 42
│  │  └─ tool multiply({{"a": 6}}) ✗ ValueError: no
│  └─ turn 1: small, 0.50 s, policy team@3
│     ├─ ← please done?
│     ├─ → done
│     └─ ✗ APIError: too long
├─ edges
│  └─ Lead → Coder (delegation)
└─ rewards
   ├─ reward = 1 for team, from return
   ├─ short = 0.5 for lead's turn 1, from code: too long
   └─ tidy = 0.25 for role coder, from judge"""
    assert [line.rstrip() for line in str(episode).splitlines()] == expected.splitlines()
    assert episode.tree() == str(episode)


def test_a_tree_of_an_empty_episode_and_of_a_silent_manager() -> None:
    assert (
        Episode("r", "a", "t", turns=[]).tree() == "rollout r, attempt a, task t: 0 turns (0 trainable), 0 tool calls"
    )
    lines = Episode("r", "a", "t", turns=[turn("Manager/Coder", 0, 1, "hi")]).tree().splitlines()
    assert lines[1:3] == ["└─ Manager", "   └─ Coder (role coder)"]


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[str, str]:
    """The path of a store, and the rollout that failed in it."""
    path = str(tmp_path / "team.db")
    with coterie.record(path, task="What is 6 × 7?"):
        coterie.reward(1.0)
    failing = coterie.record(path, task={"question": 2})
    with pytest.raises(ValueError, match="gave up"), failing:
        raise ValueError("gave up")
    coterie.uninstrument()
    return path, failing.rollout_id


def shown(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[str, int]:
    with pytest.raises(SystemExit) as ended:
        main(["show", *arguments])
    captured = capsys.readouterr()
    return captured.out + captured.err, int(ended.value.code or 0)


def test_show_lists_and_shows(recorded: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, failed = recorded
    text, code = shown("--store", path, capsys=capsys)
    assert code == 0
    first, second = text.splitlines()
    assert re.fullmatch(rf'{failed}  \S+ \S+Z  production  dead       {{"question": 2}}', first)
    assert second.endswith("production  succeeded  What is 6 × 7?")

    text, _ = shown(second.split()[0], "--store", f"sqlite:///{path}", capsys=capsys)
    assert text.splitlines()[0] == "production rollout, succeeded; attempt 1 of 1 succeeded"
    assert "reward = 1 for team, from code" in text

    text, _ = shown(failed, "--store", path, capsys=capsys)
    assert "error: ValueError: gave up" in text

    text, _ = shown(failed, "--store", path, "--json", capsys=capsys)
    found = json.loads(text)
    assert (found["rollout"]["state"], found["attempt"]["number"]) == (RolloutState.DEAD, 1)
    assert found["episode"]["turns"] == []
    text, _ = shown("--store", path, "--json", "--limit", "1", capsys=capsys)
    assert [one["id"] for one in json.loads(text)] == [failed]


def test_show_explains_what_is_wrong(recorded: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, failed = recorded
    text, code = shown("ro-none", "--store", path, capsys=capsys)
    assert (code, "no rollout 'ro-none'" in text) == (2, True)
    text, code = shown("--store", path + ".typo", capsys=capsys)
    assert (code, "there is no file" in text) == (2, True)
    assert not Path(path + ".typo").exists()
    text, code = shown(failed, "--store", path, "--attempt", "7", capsys=capsys)
    assert (code, "has no attempt 7" in text) == (2, True)


def test_show_is_a_command_of_the_console_script(recorded: tuple[str, str]) -> None:
    command = [Path(sys.executable).with_name("coterie"), "show", "--store", recorded[0], "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert recorded[1] in done.stdout
