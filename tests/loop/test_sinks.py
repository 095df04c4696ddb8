"""Sinks against the real libraries, offline, each where it is installed; and what happens when one is missing or breaks."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from loop_parts import Told, small_config, write_project
from scripted_backend import ScriptedBackend

from coterie.errors import ConfigError
from coterie_trainers.loop import run as loop
from coterie_trainers.sinks import sinks
from coterie_trainers.sinks.sink import RunFacts


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


def facts(folder: Path, *, first_step: int = 1) -> RunFacts:
    return RunFacts("run-1", "text to sql", {"seed": 0, "training": {"steps": 3}}, folder, first_step)


async def two_sessions(name: str, folder: Path) -> Told:
    """A run that is cut off after two steps of which the second is made again, as a resumed run does."""
    told = Told()
    for first in (1, 2):
        open_ = await asyncio.wait_for(sinks.open_sinks([name], facts(folder, first_step=first), told), 100)
        for step in (first, first + 1):
            open_.write("train", step, {"success": 0.25 * step, "role/coder x/entropy": 0.5, "note": "no number"})
        open_.write("val", first + 1, {"success": 0.5 * first})
        await asyncio.wait_for(open_.close(), 100)
    assert told.warnings == []
    return told


@pytest.mark.train  # verl brings it along
@needs("tensorboard")
async def test_tensorboard_has_every_figure_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    await two_sessions("tensorboard", tmp_path)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"train/success", "train/role/coder x/entropy", "val/success"}
    assert [(each.step, each.value) for each in read.Scalars("train/success")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert [(each.step, each.value) for each in read.Scalars("val/success")] == [(3, 1.0)]


def records(file: bytes) -> Iterator[bytes]:
    """The records of a ``.wandb`` file, a LevelDB log: blocks of 32 KiB, of chunks with checksum, length and kind."""
    place, record = 7, b""
    while place + 7 <= len(file):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", file, place + 4)
        record += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.train  # verl brings it along
@needs("wandb")
async def test_wandb_gets_both_sessions_under_one_run_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    from wandb.proto import wandb_internal_pb2

    await two_sessions("wandb", tmp_path)
    logged: list[tuple[int, str | None, str | None]] = []
    for _ in range(200):  # its service writes on for a moment after the run has finished
        logged = []
        for file in sorted(tmp_path.glob("wandb/offline-run-*/run-run-1.wandb")):
            for data in records(file.read_bytes()):
                record = wandb_internal_pb2.Record.FromString(data)
                if record.WhichOneof("record_type") == "history":
                    items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                    logged.append((json.loads(items["step"]), items.get("train/success"), items.get("val/success")))
        if len(logged) == 6:
            break
        await asyncio.sleep(0.1)
    successes = [(step, float(success)) for step, success, _ in logged if success]
    assert successes == [(1, 0.25), (2, 0.5), (2, 0.5), (3, 0.75)]
    assert [(step, float(success)) for step, _, success in logged if success] == [(2, 0.5), (3, 1.0)]


@needs("mlflow")
async def test_mlflow_goes_on_with_the_run_of_the_same_tag(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow import MlflowClient

    await two_sessions("mlflow", tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("text to sql").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/success")
    assert {(each.step, each.value) for each in history} == {(1, 0.25), (2, 0.5), (3, 0.75)}
    assert client.get_metric_history(run.info.run_id, "train/role/coder x/entropy")


@needs("trackio")
async def test_trackio_goes_on_with_the_run_of_the_same_name(tmp_path):
    # trackio reads its folder when it is imported: a process of its own keeps the user's apart.
    code = f"""
import asyncio, os
os.environ["TRACKIO_DIR"] = {str(tmp_path / "trackio")!r}
from pathlib import Path
import test_sinks
asyncio.run(test_sinks.two_sessions("trackio", Path({str(tmp_path)!r})))
from trackio.sqlite_storage import SQLiteStorage
project = "text to sql"
assert list(SQLiteStorage.get_runs(project)) == ["run-1"], SQLiteStorage.get_runs(project)
rows = SQLiteStorage.get_logs(project, "run-1")
print([(row["step"], row["train/success"]) for row in rows if "train/success" in row])
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env={**os.environ, "PYTHONPATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, error.decode()
    assert out.decode().splitlines()[-1] == "[(1, 0.25), (2, 0.5), (2, 0.5), (3, 0.75)]"


def test_a_missing_library_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"metrics: 'wandb' needs .* not installed\. Do: pip install \"coterie\[wandb\]\""
    ):
        sinks.check_sinks(["wandb"])


class Broken:
    """Takes one step, then fails."""

    def __init__(self, facts: RunFacts) -> None:
        self.taken: list[int] = []

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if self.taken:
            raise OSError("the disk is full")
        self.taken.append(step)

    def close(self) -> None: ...


class Stuck(Broken):
    def write(self, step: int, figures: Mapping[str, float]) -> None:
        threading.Event().wait()


async def run_with(kind: object, folder: Path, model, monkeypatch) -> Told:
    monkeypatch.setattr(sinks, "_open", lambda name, facts: kind(facts))
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(loop, "check_sinks", lambda names: None)
    monkeypatch.setattr(loop, "make_backend", lambda *_: ScriptedBackend(model))
    write_project(folder, APP)
    config = small_config(
        training={"steps": 3}, evaluation={"every": 3}, runner={"concurrency": 1}, metrics=["wandb"], guard=None
    )
    told = Told()
    await asyncio.wait_for(loop.train("app.py:team", config, folder=folder, work=folder / "work", progress=told), 60)
    return told


APP = """
import itertools
import coterie
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0, timeout=5)
flip = itertools.count()

@coterie.rollout
async def team(task):
    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": str(task.input)}])
    return float(next(flip) % 2)
"""


async def test_a_sink_that_fails_is_said_once_and_the_run_ends_well(tmp_path, model, monkeypatch):
    told = await run_with(Broken, tmp_path, model, monkeypatch)
    assert [each for each in told.warnings if "wandb" in each] == [
        "metrics: wandb failed (OSError: the disk is full). The run goes on without it; the store has all figures."
    ]


async def test_a_sink_that_hangs_holds_up_nothing(tmp_path, model, monkeypatch):
    told = await run_with(Stuck, tmp_path, model, monkeypatch)
    (warning,) = [each for each in told.warnings if "wandb" in each]
    assert "did not take its last figures within 0.2 s" in warning


async def test_a_sink_that_cannot_be_opened_ends_the_run_before_it_begins(tmp_path, model, monkeypatch):
    def refuse(facts: RunFacts) -> Broken:
        raise PermissionError("no account")

    with pytest.raises(ConfigError, match="metrics: wandb cannot be opened: PermissionError: no account"):
        await run_with(refuse, tmp_path, model, monkeypatch)
    assert model.requests == []
