from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coterie.errors import ConfigError
from coterie_trainers.workspace import Workspace

HOLD = """
import sys, pathlib
from coterie_trainers.workspace import Workspace
with Workspace(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_told_who_works_there(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"pid {other.pid}.*--out"), Workspace(tmp_path):
            pass
        other.kill()
        other.wait(10)
    with Workspace(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.*--out"), Workspace(tmp_path / "file" / "work"):
        pass


def test_pruning_keeps_the_newest_two_and_the_named(tmp_path: Path):
    with Workspace(tmp_path) as work:
        for step in (1, 2, 3, 4, 5):
            work.checkpoint(step).mkdir()
        (work.checkpoints / "step-000006.partial").mkdir()
        work.prune_checkpoints(keep={2})
        assert work.saved_steps() == [2, 4, 5]


def test_clearing_forgets_the_run_but_not_what_prepare_made(tmp_path: Path):
    with Workspace(tmp_path) as work:
        work.checkpoint(1).mkdir()
        work.store_path.write_text("")
        work.remember_run("run-1")
        assert work.run_id() == "run-1"
        (tmp_path / "model").mkdir()
        work.clear()
        assert work.saved_steps() == []
        assert not work.store_path.exists()
        assert work.run_id() is None
        assert (tmp_path / "model").exists()
