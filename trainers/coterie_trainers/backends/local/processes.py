"""Starts a guarded command, keeps its log, and stops it with everything below it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.errors import BackendError

_GUARD = Path(__file__).with_name("guard.py")
_LAST_LINES = 15


class GuardedProcess:
    """A command under ``guard.py``: it ends with ``stop``, and also when this process is killed."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        remove: Sequence[str] = (),
        pass_fd: int | None = None,
    ) -> None:
        """Start it.

        Args:
            name: What errors call it, such as ``the model server of policy 'team'``.
            command: Program and arguments.
            environment: Its whole environment.
            log: File that its output is appended to.
            remove: Globs of files that go when it has ended.
            pass_fd: A descriptor that it inherits under the same number; closed here.
        """
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        lifeline, self._lifeline = os.pipe()
        passed = [] if pass_fd is None else [pass_fd]
        guard = [sys.executable, "-I", "-S", str(_GUARD), "--parent", str(os.getpid()), "--lifeline", str(lifeline)]
        guard += [f"--pass-fd={descriptor}" for descriptor in passed]
        guard += [f"--remove={pattern}" for pattern in remove]
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._guard = subprocess.Popen(  # noqa: S603
                [*guard, "--", *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lifeline, *passed],
                start_new_session=True,
            )
        for descriptor in [lifeline, *passed]:
            os.close(descriptor)

    @property
    def pid(self) -> int:
        """The guard's process id; the command and all below it descend from it."""
        return self._guard.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + signal number if a signal ended it."""
        return self._guard.poll()

    def last_lines(self) -> str:
        """The end of what it has printed."""
        with self.log.open("rb") as written:
            size = written.seek(0, os.SEEK_END)
            written.seek(max(self._log_start, size - 16_384))
            lines = written.read().decode(errors="replace").splitlines()
        return "\n".join(line for line in lines[-_LAST_LINES:])

    def failure(self, what: str) -> BackendError:
        """An error that says ``what`` happened to this process and ends with its last log lines."""
        return BackendError(f"{self.name} {what}. Its log is {self.log}; the last lines:\n{self.last_lines()}")

    def require_alive(self) -> None:
        """Raise a BackendError if it has ended."""
        if self.exit_code is not None:
            raise self.failure(f"ended with exit code {self.exit_code}")

    def stop(self, seconds: float = 15.0) -> None:
        """End it and all its descendants, and wait for that. Safe to call twice."""
        if self._guard.poll() is None:
            self._guard.send_signal(signal.SIGTERM)
        if self._lifeline >= 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(seconds)
            os.close(self._lifeline)
            self._lifeline = -1
        try:
            self._guard.wait(seconds)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
