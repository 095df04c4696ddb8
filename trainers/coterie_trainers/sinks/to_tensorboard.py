"""TensorBoard: event files in ``tensorboard/`` of the work folder. Look at them with ``tensorboard --logdir``."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from coterie_trainers.sinks.sink import RunFacts


class TensorBoardSink:
    """A new event file beside those of earlier sessions; what they hold of steps that are made again is purged."""

    def __init__(self, facts: RunFacts) -> None:
        self._writer = EventFileWriter(str(facts.folder / "tensorboard"))
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=facts.first_step, session_log=start))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write scalars, and bring them to disk."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
