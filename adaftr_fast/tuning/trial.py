"""A trial of a search: trains one run, and ends it early if it is worse than the trials that finished before it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial

from adaftr_fast._json import loads
from adaftr_fast._locks import LOST_SECONDS
from adaftr_fast.config import RunConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.errors import ConfigError, DivergedError
from adaftr_fast.runs.run import fit_one
from adaftr_fast.training.evaluation import TaskMetrics, mean_auc
from adaftr_fast.training.logger import METRICS
from adaftr_fast.training.sharding import check_replicated
from adaftr_fast.training.trainer import StopRun
from adaftr_fast.tuning.space import Space, apply

TRIALS = "trials"  # name in the folder of the search
STARTUP_TRIALS, WARMUP_EPOCHS = 5, 1  # finished trials before the first is pruned; epochs of a trial before it is


@dataclass(frozen=True)
class Search:
    """What a search varies and measures.

    Attributes:
        data: the prepared data.
        config: the configuration; the options of ``space`` replace those of the same name.
        space: the options that vary.
        folder: the folder of the search.
        task: the task whose validation AUC counts; None for the mean over tasks.
    """

    data: PreparedData
    config: RunConfig
    space: Space
    folder: Path
    task: str | None = None

    def __post_init__(self) -> None:
        check_replicated("tune", self.config.training)
        tasks = self.data.manifest.tasks
        if self.task is not None and self.task not in tasks:
            raise ConfigError(f"--task: expected one of {', '.join(tasks)}, got {self.task!r}")

    def auc(self, record: dict[str, Any]) -> float:
        """Returns the validation AUC of an epoch's record that the search maximizes."""
        metrics: TaskMetrics = record["validation"]
        return float(mean_auc(metrics) if self.task is None else metrics[self.task]["auc"])

    def settings(self) -> dict[str, Any]:
        """Returns what all runs of a search must have in common."""
        space = {name: dataclasses.asdict(each) for name, each in self.space.items()}
        data = self.data.manifest.fingerprint
        return {"configuration": self.config.identity(), "space": space, "data": data, "task": self.task}

    def run_folder(self, number: int) -> Path:
        """Returns the folder of a trial's run."""
        return self.folder / TRIALS / f"{number:04d}"

    def validation(self, epoch: float) -> int:
        """Returns the number of the validation after some epochs."""
        return round(epoch * self.config.training.validations)


@dataclass(frozen=True)
class Asked:
    """A trial to train.

    Attributes:
        number: the number of the trial.
        options: its options by name.
        before: the trials that had finished when it was asked for, with which it is compared.
    """

    number: int
    options: dict[str, Any]
    before: list[FrozenTrial]


@dataclass(frozen=True)
class Trained:
    """What has become of a trial: it has a best epoch, was pruned, or has an error.

    Attributes:
        number: the number of the trial.
        values: the AUC that the search maximizes, by number of the validation.
        best_epoch: the epoch of the best weights; None if the trial was pruned or failed.
        error: the error of options that diverge or do not go together.
    """

    number: int
    values: dict[int, float] = field(default_factory=dict)
    best_epoch: float | None = None
    error: str | None = None


def train_trial(search: Search, asked: Asked) -> Trained:
    """Trains the run of a trial, or resumes it.

    The result depends on the arguments alone: the trial is pruned by those of ``asked.before``. The snapshots remain,
    so that a repeated call only ends the run again.

    Raises:
        KeyboardInterrupt, DataError, TrainingError, CheckpointError, BusyError, OSError: as ``fit_one``, apart from
            ``DivergedError``. The same call resumes the trial.
    """
    warmup = (WARMUP_EPOCHS + 1) * search.config.training.validations
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=warmup)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.add_trials(asked.before)
    trial = study.ask()
    folder = search.run_folder(asked.number)
    values: dict[int, float] = {}
    on_epoch = partial(_report, search, trial, folder / METRICS, values)
    best_epoch: float | None = None
    failure: str | None = None
    try:
        config = apply(search.config, asked.options)
        with fit_one(search.data, config, folder, on_epoch=on_epoch, wait=LOST_SECONDS) as trainer:
            best_epoch = trainer.result.best_epoch
    except StopRun:
        pass
    except (ConfigError, DivergedError) as error:  # of these options; any other error would end all trials alike
        failure = str(error)
    return Trained(asked.number, values, best_epoch, failure)


def _report(search: Search, trial: Trial, log: Path, values: dict[int, float], record: dict[str, Any]) -> None:
    """Reports each validation once, also those before an interruption. Raises StopRun if the trial is to be pruned."""
    for line in log.read_text(encoding="utf-8").splitlines():
        each = loads(line)
        number = search.validation(each["epoch"])
        if number not in values:
            values[number] = search.auc(each)
            trial.report(values[number], number)
    if trial.should_prune():
        raise StopRun
