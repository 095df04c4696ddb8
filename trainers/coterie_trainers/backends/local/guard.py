"""Runs one command such that nothing of it outlives the process that wanted it.

Started by path with the standard library alone: ``python guard.py --parent PID --lifeline FD [--remove GLOB]... --
COMMAND``. The guard adopts every orphan below it, so a server's own children are found too. It ends them all when the
command ends, when it gets SIGTERM, and when the process ``PID`` is gone, however that died; then it removes the files
that match the globs, and the registrations that OpenMP leaves in shared memory. Its exit status is the command's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import glob
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

GRACE_SECONDS = 5.0
"""How long a command may take to end by itself after SIGTERM."""
TRACKER_SECONDS = 5.0
"""How long Python's resource trackers may take to unlink what was left."""
LOOK_SECONDS = 0.5
"""How often the guard looks whether the process that wanted the command is still there."""
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OPENMP_REGISTRATION = re.compile(r"__KMP_REGISTERED_LIB_(\d+)_\d+$")


def main(arguments: Sequence[str]) -> int:
    """Run the command to its end; gives its exit status, or 128 + signal number."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True, help="process that must stay alive")
    parser.add_argument("--lifeline", type=int, required=True, help="pipe that closes when that process ends")
    parser.add_argument("--pass-fd", type=int, action="append", default=[], help="descriptor for the command")
    parser.add_argument("--remove", action="append", default=[], help="glob of files to remove in the end")
    parser.add_argument("command", nargs="+")
    wanted = parser.parse_args(arguments)

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakeup, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write)
    asked_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: asked_to_stop.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    command = subprocess.Popen(  # noqa: S603
        wanted.command,
        stdin=subprocess.DEVNULL,
        pass_fds=wanted.pass_fd,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
    )
    for descriptor in wanted.pass_fd:
        os.close(descriptor)

    status: int | None = None
    while status is None and not asked_to_stop:
        ready, _, _ = select.select([wanted.lifeline, wakeup], [], [], LOOK_SECONDS)
        if wanted.lifeline in ready or os.getppid() != wanted.parent:
            break
        if wakeup in ready:
            os.read(wakeup, 4096)
        status = _reap().get(command.pid)
    if asked_to_stop and status is None:
        command.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while status is None and time.monotonic() < deadline and os.getppid() == wanted.parent:
            time.sleep(0.02)
            status = _reap().get(command.pid)
    ended = _end_all_descendants()
    _remove(wanted.remove)
    status = ended.get(command.pid, 0) if status is None else status
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _reap() -> dict[int, int]:
    """Collect every child that has ended: pid → wait status."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def _end_all_descendants() -> dict[int, int]:
    """SIGKILL until no descendant is left; their orphans become ours, so a few rounds find all.

    Python's resource trackers come last: once those they work for are gone, they unlink what these left in shared
    memory, and end by themselves.
    """
    ended: dict[int, int] = {}
    began = time.monotonic()
    while time.monotonic() < began + 10:
        descendants = _descendants(os.getpid())
        trackers_too = time.monotonic() > began + TRACKER_SECONDS
        for pid in descendants if trackers_too else [pid for pid in descendants if not _is_tracker(pid)]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        ended |= _reap()
        if not descendants:
            break
        time.sleep(0.01)
    return ended


def _is_tracker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                # The command's name may hold spaces and brackets: the parent comes second after the last bracket.
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _remove(patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in glob.glob(pattern):
            if path == os.path.dirname(patterns[0]):
                # The folder that several guards share: the last of them finds it empty.
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            elif os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(path)
    for entry in os.scandir("/dev/shm") if os.path.isdir("/dev/shm") else ():  # noqa: S108
        registration = _OPENMP_REGISTRATION.match(entry.name)
        if registration and not os.path.exists(f"/proc/{registration[1]}"):
            with contextlib.suppress(OSError):
                os.unlink(entry.path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
