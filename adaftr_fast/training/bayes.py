"""Metrics of the true probabilities, an upper bound in expectation for every model; synthetic data sets hold them."""

from __future__ import annotations

import numpy as np

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.dataset.split_file import GROUP, TRUTH, read_split
from adaftr_fast.errors import DataError
from adaftr_fast.stores import AnyPath, as_path, open_folder
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.metrics import auc, gauc, log_loss


def bayes_metrics(folder: str | AnyPath, split: str = "test") -> TaskMetrics:
    """Computes ``auc``, ``gauc`` and ``logloss`` of the true probabilities on a split of a prepared folder.

    On a finite split a model may exceed these metrics by chance.

    Args:
        folder: the prepared folder.
        split: the name of the split.

    Returns:
        The metrics as fractions, per task whose true probabilities the folder holds. Empty for a data set that is not
        synthetic.

    Raises:
        DataError: the folder is not a prepared folder, it has no such split, or a probability is outside (0, 1).
    """
    folder = open_folder(as_path(folder))
    manifest = read_manifest(folder)
    if split not in manifest.splits:
        raise DataError(f"{folder}: no split {split!r}; expected one of {', '.join(manifest.splits)}")
    groups = [GROUP] if manifest.group else []
    wanted = [*manifest.tasks, *(TRUTH + task for task in manifest.tasks), *groups]
    table = read_split(folder, manifest, split, wanted)
    tasks = [task for task in manifest.tasks if TRUTH + task in table.column_names]
    metrics: TaskMetrics = {}
    for task in tasks:
        labels = table[task].to_numpy()
        truth = table[TRUTH + task].to_numpy()
        if not ((truth > 0) & (truth < 1)).all():
            raise DataError(f"{folder / split}: column {TRUTH + task}: expected probabilities in (0, 1)")
        logits = np.log(truth) - np.log1p(-truth)
        metrics[task] = {"auc": auc(labels, logits), "logloss": log_loss(labels, logits)}
        if groups:
            metrics[task]["gauc"] = gauc(labels, logits, table[GROUP].to_numpy())
    return metrics
