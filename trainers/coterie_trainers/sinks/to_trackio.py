"""trackio: a run of the project that the configuration's name names, in trackio's own folder (``TRACKIO_DIR``) or Space."""

from __future__ import annotations

from collections.abc import Mapping

import trackio

from coterie_trainers.sinks.sink import RunFacts


class TrackioSink:
    """The trackio run that is named by our run's id; it is resumed if it exists."""

    def __init__(self, facts: RunFacts) -> None:
        self._run = trackio.init(
            project=facts.name,
            name=facts.id,
            config=dict(facts.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log figures."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()
