"""MLflow: where MLFLOW_TRACKING_URI says, otherwise its own default beside where the command is typed."""

import logging
import os
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from PIL import Image

from ditkit.trackers.base import PROJECT, TrackedRun

AT_ONCE, LONGEST = 100, 500
"""Parameters in a request, and characters of a value, that every server takes."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that has gone holds a training up for seconds; by itself MLflow tries for minutes."""


class MLflow:
    """A run in the experiment `ditkit`, or that of MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: TrackedRun):
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for chatty in ("mlflow", "alembic"):  # of migrations, and of addresses; what matters is raised
            logging.getLogger(chatty).setLevel(logging.ERROR)
        self._metric, self._client = Metric, MlflowClient()
        if run.id is None:
            self.id = self._begin(run.name)
            pairs = (Param(name, str(value)[:LONGEST]) for name, value in run.parameters.items())
            while some := list(islice(pairs, AT_ONCE)):
                self._client.log_batch(self.id, params=some)
        else:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
        self._client.log_dict(self.id, dict(run.settings), "recipe.json")  # parameters stay as they began

    def _begin(self, name: str) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(title)
        experiment = known.experiment_id if known else self._client.create_experiment(title)
        return self._client.create_run(experiment, run_name=name).info.run_id

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(
            self.id, [self._metric(name, value, now, images) for name, value in values.items()]
        )

    def picture(self, name: str, file: Path, images: int) -> None:
        with Image.open(file) as picture:
            self._client.log_image(self.id, picture, key=name, step=images, synchronous=True)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")
