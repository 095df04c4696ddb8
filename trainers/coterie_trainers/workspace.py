"""The work folder of a run: one process at a time, checkpoints that are whole or absent, paths that are easy to find.

::

    work/
      run                  the id of the run that the folder belongs to
      store.db             tasks, rollouts, spans, rewards, metrics, decisions
      journal.jsonl        what the reflecting model said, in a run that tunes prompts
      checkpoints/         step-000012/…  the newest two, and the best on validation
      prompts/             what the reflecting model said in searches between training steps, a file each
      policies/<name>/     the final weights, ordinary Hugging Face folders
      report.html          the report
      logs/                model servers and trainers
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from coterie.errors import ConfigError


class Workspace:
    """A work folder, held by this process while the ``with`` block lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.checkpoints = self.folder / "checkpoints"
        self.policies = self.folder / "policies"
        self.logs = self.folder / "logs"
        self.searches = self.folder / "prompts"
        self.store_path = self.folder / "store.db"
        self.journal = self.folder / "journal.jsonl"
        self.report_page = self.folder / "report.html"
        self._run = self.folder / "run"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        """Make the folder and take it.

        Raises:
            ConfigError: the folder cannot be written, or another process works in it.
        """
        try:
            for folder in (self.folder, self.checkpoints, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("a+")
        except OSError as error:
            raise ConfigError(
                f"The work folder {self.folder} cannot be written ({error.strerror}). Name another with --out."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise ConfigError(
                f"Another process (pid {holder}) works in {self.folder}. Wait for it, stop it, or name another "
                "folder with --out."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after ``step`` steps lies."""
        return checkpoint_folder(self.folder, step)

    def saved_steps(self) -> list[int]:
        """The steps that have a whole checkpoint, in order."""
        return saved_steps(self.folder)

    def run_id(self) -> str | None:
        """The run that the folder belongs to; None in a new one."""
        return self._run.read_text() if self._run.exists() else None

    def remember_run(self, run_id: str) -> None:
        """Make this run the folder's, in one step."""
        unfinished = self._run.with_suffix(".tmp")
        unfinished.write_text(run_id)
        unfinished.replace(self._run)

    def prune_checkpoints(self, keep: Collection[int | None]) -> None:
        """Delete all checkpoints but those of these steps and the newest two."""
        for step in self.saved_steps()[:-2]:
            if step not in keep:
                shutil.rmtree(self.checkpoint(step), ignore_errors=True)

    def reject_checkpoints(self, *, after: int) -> None:
        """Put the checkpoints of all later steps aside, so that nothing goes on from them."""
        for step in self.saved_steps():
            if step > after:
                aside = self.checkpoints / f"rejected-{step:06d}"
                shutil.rmtree(aside, ignore_errors=True)
                self.checkpoint(step).rename(aside)

    def clear(self) -> None:
        """Forget everything of earlier runs but what ``prepare`` made (``--fresh``)."""
        for path in (self.checkpoints, self.policies, self.logs, self.searches):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self._run, self.report_page, self.journal, *self.folder.glob("store.db*")):
            path.unlink(missing_ok=True)
        self.checkpoints.mkdir(parents=True)
        self.logs.mkdir(parents=True)


def checkpoint_folder(work: Path, step: int) -> Path:
    """Where a work folder has the checkpoint after ``step`` steps."""
    return work / "checkpoints" / f"step-{step:06d}"


def saved_steps(work: Path) -> list[int]:
    """The steps that have a whole checkpoint in a work folder, in order."""
    found = (re.fullmatch(r"step-(\d{6})", path.name) for path in (work / "checkpoints").glob("*"))
    return sorted(int(match[1]) for match in found if match)
