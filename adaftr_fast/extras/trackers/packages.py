"""TensorBoard, Weights & Biases and MLflow.

The constructor of each tracker takes an ``Opening`` and imports its package, which belongs to an
extra. ``known`` identifies the run to a process that resumes it. ``log`` logs the numbers of a
validation, which are not lost if the process is killed later, W&B aside, and ``log_test`` the
metrics on the test split, once. ``close`` ends the run, which another process may resume if
training ``failed`` or was interrupted. All of them raise what the package raises.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Numbers = Mapping[str, float]
"""Numbers by name, such as "validation/click/auc". An undefined metric is nan."""


@dataclass(frozen=True)
class Opening:
    """What a tracker is opened with.

    Attributes:
        folder: the run folder.
        parameters: the options of the run as ``section.option`` -> value.
        first_step: the first step that will be logged, from which on what an interrupted process
            logged is void. The step of a validation is its number in the run.
        known: what ``known`` of the tracker of the interrupted process was; None to begin a run.
    """

    folder: Path
    parameters: Mapping[str, Any]
    first_step: int
    known: str | None

    @property
    def name(self) -> str:
        """The last two parts of the run folder, such as "runs/mine"."""
        return "/".join(self.folder.resolve().parts[-2:])


FOLDER = "tensorboard"  # in the run folder


class TensorBoard:
    """Writes scalars by the number of the validation, and the options and test metrics for the
    HParams page.
    """

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.known = FOLDER
        self._parameters = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in opening.parameters.items()
        }
        # purge_step discards what a killed process had logged and not noted in trackers.json, and a
        # run before
        self._writer = SummaryWriter(str(opening.folder / FOLDER), purge_step=opening.first_step)
        self._step = opening.first_step - 1

    def log(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._step = step

    def log_test(self, numbers: Numbers) -> None:
        """Writes to the event file of the run; ``SummaryWriter.add_hparams`` would add a file in
        another folder.

        The step is the last one, so that ``purge_step`` of a later run in the folder discards them.
        """
        from torch.utils.tensorboard.summary import hparams

        for name, value in numbers.items():
            self._writer.add_scalar(name, value, self._step)
        for summary in hparams(self._parameters, dict(numbers)):
            self._writer._get_file_writer().add_summary(summary)

    def close(self, failed: bool) -> None:
        self._writer.close()


PROJECT = "adaftr-fast"  # without WANDB_PROJECT


class WeightsAndBiases:
    """Logs to a run of Weights & Biases, with the number of the validation as its step.

    Its files are in ``wandb`` of the run folder. W&B writes them every 15 seconds, so a process
    that is killed loses what it logged since.
    """

    def __init__(self, opening: Opening) -> None:
        import wandb

        self.known = opening.known or secrets.token_hex(8)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", opening.name),
            dir=str(opening.folder),
            id=self.known,
            resume="allow",
            reinit="create_new",  # by default, a run that is still open in the process is returned
            config=dict(opening.parameters),
            allow_val_change=True,  # of options that are free on resuming
        )

    def log(self, numbers: Numbers, step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def log_test(self, numbers: Numbers) -> None:
        self._run.summary.update(dict(numbers))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


EXPERIMENT = "adaftr-fast"  # without MLFLOW_EXPERIMENT_NAME
NOT_IN_NAMES = re.compile(r"[^\w/. -]")
VALUE_LENGTH = 500  # of a parameter, in the oldest servers


class MLflow:
    """Logs to a run of MLflow, with the number of the validation as its step."""

    def __init__(self, opening: Opening) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        self.known = self._begin(opening) if opening.known is None else opening.known
        # raises if the run that is resumed is no longer there
        self._client.set_terminated(self.known, "RUNNING")
        self._step = opening.first_step - 1

    def _begin(self, opening: Opening) -> str:
        """Creates a run with the options as its parameters and returns its id."""
        from mlflow.entities import Param

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(experiment)
        number = (
            self._client.create_experiment(experiment) if found is None else found.experiment_id
        )
        run = self._client.create_run(number, run_name=opening.name).info.run_id
        options = [
            Param(name, str(value)[:VALUE_LENGTH]) for name, value in opening.parameters.items()
        ]
        self._client.log_batch(run, params=options)
        return run

    def log(self, numbers: Numbers, step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in numbers.items()
        ]
        self._client.log_batch(self.known, metrics=metrics)
        self._step = step

    def log_test(self, numbers: Numbers) -> None:
        self.log(numbers, self._step)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.known, "FAILED" if failed else "FINISHED")


Tracker = TensorBoard | WeightsAndBiases | MLflow
CLASSES: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
"""The trackers by their names in ``TrainingConfig.trackers``."""
