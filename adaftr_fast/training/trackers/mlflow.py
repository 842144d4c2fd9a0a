"""MLflow, which reads its own environment variables, such as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
import re
import time

import mlflow
from mlflow.entities import Metric, Param

from adaftr_fast.training.trackers.base import Numbers, Opening

EXPERIMENT = "adaftr-fast"  # without MLFLOW_EXPERIMENT_NAME
NOT_IN_NAMES = re.compile(r"[^\w/. -]")
VALUE_LENGTH = 500  # of a parameter, in the oldest servers


class MLflow:
    """Logs to a run of MLflow, with the number of the validation as its step."""

    def __init__(self, opening: Opening) -> None:
        self._client = mlflow.MlflowClient()
        self.known = self._begin(opening) if opening.known is None else opening.known
        self._client.set_terminated(self.known, "RUNNING")  # raises if the run that is resumed is no longer there
        self._step = opening.first_step - 1

    def _begin(self, opening: Opening) -> str:
        """Creates a run with the options as its parameters and returns its id."""
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if found is None else found.experiment_id
        run = self._client.create_run(number, run_name=opening.name).info.run_id
        options = [Param(name, str(value)[:VALUE_LENGTH]) for name, value in opening.parameters.items()]
        self._client.log_batch(run, params=options)
        return run

    def log(self, numbers: Numbers, step: int) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self.known, metrics=metrics)
        self._step = step

    def log_test(self, numbers: Numbers) -> None:
        self.log(numbers, self._step)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.known, "FAILED" if failed else "FINISHED")
