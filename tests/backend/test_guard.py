"""The guard, with ordinary programs in place of vLLM: whatever dies, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from left_behind import LeftBehind

from coterie_trainers.backends.local.processes import GuardedProcess

pytestmark = pytest.mark.timeout(60)

FAMILY = """
import os, subprocess, sys, time
from multiprocessing import shared_memory, resource_tracker
memory = shared_memory.SharedMemory(create=True, size=1024)
code = "import os, time; os.setsid(); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code])
print("ready", flush=True)
time.sleep(600)
"""
"""A program with a child in a session of its own and a piece of shared memory."""


def start(folder: Path, code: str, **settings: object) -> GuardedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return GuardedProcess("the program", command, environment=os.environ, log=folder / "log", **settings)  # type: ignore[arg-type]


def wait_for(process: GuardedProcess, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in process.log.read_text():
        process.require_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stop_ends_descendants_and_removes_what_they_left(tmp_path: Path, left_behind: LeftBehind) -> None:
    (tmp_path / "runtime").mkdir()
    process = start(tmp_path, FAMILY, remove=[str(tmp_path / "runtime")])
    wait_for(process, "ready")
    assert len(left_behind.processes()) >= 3
    process.stop()
    process.stop()
    left_behind.assert_nothing(2)
    assert not (tmp_path / "runtime").exists()


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path, left_behind: LeftBehind) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    process = start(tmp_path, stubborn)
    wait_for(process, "ready")
    began = time.monotonic()
    process.stop()
    assert time.monotonic() - began < 10
    left_behind.assert_nothing(2)


def test_children_of_a_program_that_was_killed_end_too(tmp_path: Path, left_behind: LeftBehind) -> None:
    process = start(tmp_path, "import os; print('pid', os.getpid(), flush=True)\n" + FAMILY)
    wait_for(process, "ready")
    os.kill(int(process.log.read_text().split()[1]), signal.SIGKILL)
    left_behind.assert_nothing()
    assert process.exit_code == 128 + signal.SIGKILL
    process.stop()


def test_nothing_is_left_when_the_driver_is_killed(tmp_path: Path, left_behind: LeftBehind) -> None:
    driver = f"""
        import os, subprocess, sys, time
        from pathlib import Path
        from coterie_trainers.backends.local.processes import GuardedProcess
        p = GuardedProcess("p", [sys.executable, "-c", {FAMILY!r}], environment=os.environ, log=Path({str(tmp_path / "log")!r}))
        os.fork()  # a copy of the driver that also holds the pipe open must not keep the program alive
        time.sleep(20)
    """
    running = subprocess.Popen([sys.executable, "-c", textwrap.dedent(driver)])
    deadline = time.monotonic() + 20
    while not ((tmp_path / "log").exists() and "ready" in (tmp_path / "log").read_text()):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.kill()
    running.wait()
    for pid, command in left_behind.processes().items():
        if "GuardedProcess" in command:
            copy = pid
    time.sleep(3)
    assert set(left_behind.processes()) <= {copy}
    os.kill(copy, signal.SIGKILL)
    left_behind.assert_nothing(5)


def test_exit_code_and_last_lines_are_told(tmp_path: Path) -> None:
    process = start(tmp_path, "import sys; [print('line', i) for i in range(40)]; sys.exit(7)")
    deadline = time.monotonic() + 20
    while process.exit_code is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.exit_code == 7
    message = str(process.failure("ended"))
    assert message.startswith("the program ended")
    assert message.endswith("line 39")
    assert "line 10\n" not in message
    process.stop()
