"""The result of training a model and measuring it on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adaftr_fast._tables import Table
from adaftr_fast.training.evaluation import TaskMetrics

REPORT, PICTURE = "report.md", "report.png"  # names in the run folder
DEAD_MARGIN = 0.005  # a tower whose validation AUC is this close to 0.5 predicts a constant or noise
METRIC_COLUMNS = ("AUC", "GAUC", "log-loss", "CVR AUC")


@dataclass(frozen=True)
class TrainedRun:
    """The result of a run: of its training alone, or also of the test split.

    Attributes:
        name: the name in reports.
        epochs: the records of metrics.jsonl, one per validation. ``epoch`` is the number of epochs trained, an int
            unless ``TrainingConfig.validate_every`` is less than 1.
        best_epoch: the ``epoch`` of the best weights; 0 if there are none.
        test: metrics of the best weights on the test split; {} before they are measured.
        diagnostics: diagnostics of the rows of the test split by name, [N] each, such as the learned temperature.
        interrupted: the number of the signal (Ctrl-C or SIGTERM) that ended training; 0 without a signal.
    """

    name: str
    epochs: list[dict[str, Any]]
    best_epoch: float
    test: TaskMetrics = field(default_factory=dict)
    diagnostics: dict[str, np.ndarray] = field(default_factory=dict)
    interrupted: int = 0

    @property
    def validation(self) -> TaskMetrics:
        """Metrics of the best weights on the validation split; {} if there are none."""
        return next((each["validation"] for each in self.epochs if each["epoch"] == self.best_epoch), {})

    @property
    def dead_tasks(self) -> list[str]:
        """The tasks whose validation AUC is 0.5 within ``DEAD_MARGIN``."""
        return [task for task, each in self.validation.items() if abs(each["auc"] - 0.5) < DEAD_MARGIN]

    @property
    def trained_epochs(self) -> float:
        """The number of epochs trained."""
        return self.epochs[-1]["epoch"] if self.epochs else 0

    @property
    def seconds_per_epoch(self) -> float:
        return sum(record["seconds"] for record in self.epochs) / max(self.trained_epochs, 1e-9)

    @property
    def samples_per_s(self) -> float:
        return float(np.mean([record["samples_per_s"] for record in self.epochs]))


def result_table(runs: Sequence[TrainedRun], first: str = "model") -> Table:
    """Returns test metrics and speed, with a row per run and task; AUCs are in percent. ``first`` heads the names."""
    header = [first, "task", *METRIC_COLUMNS, "best epoch", "samples/s", "s/epoch"]
    rows = []
    for run in runs:
        speed = [f"{run.best_epoch:g}", f"{run.samples_per_s:,.0f}", f"{run.seconds_per_epoch:.1f}"]
        rows += [[run.name, *cells, *speed] for cells in metric_cells(run.test)]
    return Table(header, rows, text_columns=2)


def metric_cells(metrics: TaskMetrics) -> list[list[str]]:
    """Returns a row per task: its name and the ``METRIC_COLUMNS``, AUCs in percent."""
    return [
        [
            task,
            f"{100 * each['auc']:.2f}",
            _percent(each.get("gauc")),
            f"{each['logloss']:.4f}",
            _percent(each.get("cvr_auc")),
        ]
        for task, each in metrics.items()
    ]


def aucs(metrics: TaskMetrics) -> str:
    """Formats the AUC of each task in percent, for a line."""
    return ", ".join(f"{task} AUC {100 * each['auc']:.2f}" for task, each in metrics.items())


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"
