"""What a run folder records about its run, besides the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adaftr_fast._json import from_json, loads
from adaftr_fast.errors import CheckpointError
from adaftr_fast.training.checkpoint.progress import epochs_after
from adaftr_fast.training.checkpoint.weights import Description
from adaftr_fast.training.evaluation import TaskMetrics, mean_auc
from adaftr_fast.training.files import TEST
from adaftr_fast.training.logger import METRICS
from adaftr_fast.training.result import TrainedRun

RECORDED = {"epoch": float, "train": dict[str, float], "seconds": float, "samples_per_s": float}
"""What each line of metrics.jsonl holds, besides metrics."""


def read_result(folder: Path, about: Description) -> TrainedRun:
    """Reads the epochs and the test metrics of a run, which an unfinished run lacks.

    Args:
        folder: the run folder.
        about: the description in its checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        epochs = [_epoch(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
        per_epoch = about.config.training.validations
        for number, record in enumerate(epochs, 1):
            expected = epochs_after(number, per_epoch)
            if record["epoch"] != expected:
                raise ValueError(f"{METRICS}: line {number}: expected epoch {expected:g}, got {record['epoch']:g}")
            record["epoch"] = expected
        test = _metrics(loads((folder / TEST).read_text(encoding="utf-8")), TEST) if (folder / TEST).exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the run cannot be read: {error}") from error
    return TrainedRun(about.config.model.name, epochs, _best(epochs, about), test)


def _epoch(line: str) -> dict[str, Any]:
    """Reads a line of metrics.jsonl, where null stands for a metric that is undefined."""
    record = from_json(dict[str, Any], loads(line))
    record["validation"] = _metrics(record.get("validation"), "validation")
    for name, kind in RECORDED.items():
        record[name] = from_json(kind, record.get(name), name)
    return record


def _metrics(value: Any, where: str) -> TaskMetrics:
    metrics = from_json(TaskMetrics, value, where)
    for task, each in metrics.items():
        for name in ("auc", "logloss"):
            if name not in each:
                raise ValueError(f"missing key {f'{where}.{task}.{name}'!r}")
    return metrics


def _best(epochs: list[dict[str, Any]], about: Description) -> float:
    """Returns the epoch of the best weights: the first with their mean AUC, since later ones must be strictly better.

    0 if there is none, in a folder whose files are not of one run.
    """
    found = mean_auc(about.metrics)
    return next((record["epoch"] for record in epochs if mean_auc(record["validation"]) == found), 0)
