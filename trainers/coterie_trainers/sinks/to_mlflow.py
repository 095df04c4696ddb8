"""MLflow: a run of the experiment that the configuration's name names, at ``MLFLOW_TRACKING_URI``.

Without that variable, a SQLite file ``mlflow.db`` in the work folder.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric

from coterie_trainers.sinks.sink import RunFacts

RUN_TAG = "coterie.run"
AT_ONCE = 1000
"""The most figures that MLflow takes in one call."""


class MlflowSink:
    """The MLflow run that is tagged with our run's id; a new one if there is none."""

    def __init__(self, facts: RunFacts) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{facts.folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(facts.name)
        experiment = found.experiment_id if found else self._client.create_experiment(facts.name)
        runs = self._client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{facts.id}'")
        tags = {RUN_TAG: facts.id}
        run = runs[0] if runs else self._client.create_run(experiment, run_name=facts.id, tags=tags)
        self._run_id = run.info.run_id
        self._client.update_run(self._run_id, status="RUNNING")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log figures; characters that MLflow does not allow in a name become ``_``."""
        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, step) for name, value in figures.items()]
        for start in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + AT_ONCE])

    def close(self) -> None:
        """Mark the run as finished; going on with it marks it as running again."""
        self._client.set_terminated(self._run_id, "FINISHED")


def _allowed(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name)
