"""``coterie export``, ``import``, ``prune``, ``dead`` and ``requeue``, as a person types them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from coterie import connect
from coterie.cli import main
from coterie.cli.amounts import bytes_of, seconds_of, size_text, time_of
from coterie.errors import ConfigError
from coterie.store.base import Store
from coterie.vocabulary import AttemptState, Mode, Rollout, RolloutState, Span, Task

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(tmp_path: Path, monkeypatch, capsys) -> Typed:
    """Runs a command in a folder of its own: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COTERIE_STORE", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, said.out, said.err

    return run


def on(name: str, work: Callable[[Store], Awaitable[Any]]) -> Any:
    async def done() -> Any:
        async with connect(name) as store:
            return await work(store)

    return asyncio.run(done())


async def three_ends(store: Store) -> None:
    """A rollout that succeeded, one that died, one that waits."""
    await store.add_tasks([Task("t", None)])
    await store.enqueue([Rollout("t", Mode.VAL, id="ro-good"), Rollout("t", id="ro-bad", run_id="run-1")])
    for lease in await store.lease("w", limit=2):
        span = Span(f"{1:032x}", lease.rollout.id, "s", 1, 2, None, lease.rollout.id, lease.attempt.id)
        if lease.rollout.id == "ro-good":
            await store.finish(lease.attempt.id, AttemptState.SUCCEEDED, spans=[span])
        else:
            await store.finish(lease.attempt.id, AttemptState.FAILED, error="ValueError: no", spans=[span])
    await store.enqueue([Rollout("t", id="ro-waits")])


def test_export_and_import(typed: Typed, tmp_path: Path) -> None:
    on("a.db", three_ends)
    code, out, _ = typed("export", "--store", "a.db", "--to", "out", "--format", "jsonl.gz")
    assert code == 0
    assert out.startswith("exported to out: 1 tasks, 3 rollouts, 2 attempts, 2 spans (")
    assert typed("import", "out", "--store", "sqlite:///b.db")[0] == 0
    assert on("b.db", lambda store: store.statistics())["rollouts"] == 3
    code, out, _ = typed("import", "out", "--store", "b.db", "--json")
    assert json.loads(out)["files"]["rollouts"]["records"] == 3
    code, out, _ = typed("export", "--store", "a.db", "--to", "run", "--run", "run-1")
    assert (code, "run-1" in out) == (2, False)  # the run itself was never saved
    code, out, _ = typed("export", "--store", "a.db", "--to", "late", "--before", "7d")
    assert out.startswith("exported to late: nothing")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "--store", "gone.db", "--to", "x"], "there is no file gone.db"),
        (["export", "--store", "a.db", "--to", "."], "not empty"),
        (["export", "--store", "a.db", "--to", "x", "--from", "soon"], "--from 'soon': write a date"),
        (["import", "nowhere", "--store", "new.db"], "nowhere: there is no such folder"),
        (["import", ".", "--store", "new.db"], "no finished `coterie export`"),
        (["prune", "--store", "a.db"], "--older-than 30d"),
        (["prune", "--store", "a.db", "--older-than", "30"], "--older-than '30': write a number and"),
        (["prune", "--store", "a.db", "--max-size", "10 apples"], "--max-size '10 apples'"),
        (["requeue", "--store", "a.db"], "--all-dead"),
        (["requeue", "--store", "a.db", "ro-good"], "ro-good"),
        (["requeue", "--store", "a.db", "ro-nope"], "'ro-nope'"),
        (["dead", "--store", "gone.db"], "there is no file gone.db"),
    ],
)
def test_wrong_input_is_a_sentence_and_changes_nothing(typed: Typed, arguments: list[str], says: str) -> None:
    on("a.db", three_ends)
    code, out, error = typed(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("Error: ")
    assert says in error
    assert not Path("new.db").exists()
    assert on("a.db", lambda store: store.get_rollouts(["ro-good"]))[0].state is RolloutState.SUCCEEDED


def test_dead_letters_and_their_way_back(typed: Typed) -> None:
    on("a.db", three_ends)
    code, out, _ = typed("dead", "--store", "a.db")
    assert code == 0
    assert "ro-bad" in out
    assert "train       1 attempts  Attempt 1 failed: ValueError: no" in out
    assert json.loads(typed("dead", "--store", "a.db", "--json")[1])[0]["id"] == "ro-bad"
    assert typed("dead", "--store", "a.db", "--run", "other")[1] == "No dead rollouts.\n"
    assert typed("requeue", "--store", "a.db", "--all-dead", "--attempts", "2")[1] == "ro-bad is back in the queue\n"
    (rollout,) = on("a.db", lambda store: store.get_rollouts(["ro-bad"]))
    assert (rollout.state, rollout.max_attempts) == (RolloutState.QUEUED, 3)
    assert typed("dead", "--store", "a.db")[1] == "No dead rollouts.\n"


def test_prune_says_what_would_go_and_then_removes_it(typed: Typed) -> None:
    on("a.db", three_ends)
    code, out, _ = typed("prune", "--store", "a.db", "--older-than", "0s", "--keep-mode", "val", "--dry-run")
    assert code == 0
    assert out.startswith("would remove 1 rollouts for their age, of 1 that may be removed")
    assert on("a.db", lambda store: store.statistics())["rollouts"] == 3
    assert "too much" in typed("prune", "--store", "a.db", "--max-size", "1kB", "--dry-run")[1]
    code, out, _ = typed("prune", "--store", "a.db", "--older-than", "0s", "--keep-mode", "val")
    assert out.startswith("removed 1 rollouts, 1 attempts, 1 spans, 0 rewards; the store had ")
    assert on("a.db", lambda store: store.statistics())["rollouts"] == 2


def test_amounts() -> None:
    assert [seconds_of(text, "x") for text in ("45s", "1.5h", "30d", "2 w")] == [45, 5400, 2592000, 1209600]
    assert [bytes_of(text, "x") for text in ("7", "10GB", "1.5kB", "2MiB")] == [7, 10**10, 1500, 2**21]
    assert [size_text(size) for size in (0, 999, 1_500, 2 * 10**10, 10**16)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "20 GB",
        "1e+04 TB",
    ]
    now = 10**18
    assert time_of("1d", "x", now_ns=now) == now - 86400 * 10**9
    assert time_of("2026-05-01", "x", now_ns=now) == time_of("2026-05-01T02:00+02:00", "x", now_ns=now)
    for wrong in ("", "d", "-1d", "1y", "nan"):
        with pytest.raises(ConfigError):
            seconds_of(wrong, "x")
        with pytest.raises(ConfigError):
            bytes_of(wrong + " x", "x")
