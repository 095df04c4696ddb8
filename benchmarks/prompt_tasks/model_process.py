"""A model that takes its time, in a process of its own: its work is not ours, and must not take our processor's time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from coterie.testing import Reply, ScriptedModel


@contextmanager
def slow_model(answer_seconds: float) -> Iterator[str]:
    """Serve within the block; gives the base URL. Every answer comes after ``answer_seconds``."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, answer_seconds), daemon=True)
    process.start()
    try:
        if not here.poll(60):
            raise TimeoutError("The scripted model did not start within 60 s.")
        yield here.recv()
    finally:
        here.send("end")
        process.join(10)
        process.kill()


def _serve(caller: Connection, answer_seconds: float) -> None:
    def answer(_: Mapping[str, Any]) -> Reply:
        return Reply("done", delay_seconds=answer_seconds)

    with ScriptedModel(answer) as model:
        caller.send(model.base_url)
        caller.recv()
