"""Runs a user's ``prepare`` function, which makes the model and the data, in a process of its own.

The function is called as ``prepare(folder, seed=…, progress=…)`` with the work folder. It may import torch; the process
that runs agents stays free of it. Its progress comes back as JSON lines. When it returns, ``prepared.json`` marks the
work folder, and later runs with the same function and seed skip it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.errors import CoterieError
from coterie_trainers.progress import Progress

MARK = "prepared.json"


async def ensure_prepared(spec: str, *, folder: Path, work: Path, seed: int, progress: Progress) -> None:
    """Call ``spec`` (``file.py:function``, relative to ``folder``) unless ``work`` is marked as prepared by it.

    Raises:
        CoterieError: the function does not load or raised; the message ends with its last lines.
    """
    wanted = {"prepare": spec, "seed": seed}
    mark = work / MARK
    if mark.exists() and json.loads(mark.read_text()) == wanted:
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coterie_trainers.prepare", spec, str(folder), str(work), str(seed)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        async for line in process.stdout:
            _show(line, progress)
        code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code != 0:
        tail = (await errors).decode(errors="replace").strip().splitlines()[-12:]
        raise CoterieError(f"prepare: {spec} failed (exit code {code}). Its last lines:\n" + "\n".join(tail))
    unfinished = mark.with_suffix(".tmp")
    unfinished.write_text(json.dumps(wanted))
    unfinished.replace(mark)


def _show(line: bytes, progress: Progress) -> None:
    try:
        event: Mapping[str, Any] = json.loads(line)
        kind = event["progress"]
    except (ValueError, TypeError, KeyError):
        text = line.decode(errors="replace").rstrip()
        if text:
            progress.note(text)
        return
    if kind == "stage":
        progress.stage(event["name"], event["total"])
    elif kind == "advance":
        progress.advance(event["amount"], **event["figures"])
    else:
        progress.note(event["text"])


class _JsonProgress:
    """Writes progress as JSON lines to standard output."""

    def stage(self, name: str, total: int | None = None) -> None:
        self._write({"progress": "stage", "name": name, "total": total})

    def advance(self, amount: int = 1, **figures: float | str) -> None:
        self._write({"progress": "advance", "amount": amount, "figures": figures})

    def note(self, text: str) -> None:
        self._write({"progress": "note", "text": text})

    warn = note

    def close(self) -> None:
        pass

    def _write(self, event: Mapping[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def _main(spec: str, folder: str, work: str, seed: str) -> None:
    file, _, name = spec.partition(":")
    path = Path(folder) / file
    sys.path.insert(0, str(path.parent))
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None or not path.exists():
        raise SystemExit(f"{path} is no Python file. Give prepare as file.py:function, beside the config.")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    module_spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if function is None:
        raise SystemExit(f"{path} has no function {name!r}.")
    function(Path(work), seed=int(seed), progress=_JsonProgress())


if __name__ == "__main__":
    _main(*sys.argv[1:])
