"""Metrics of the true probabilities, an upper bound in expectation for every model; synthetic data
sets hold them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.split_file import GROUP, TRUTH, read_split
from adaftr_fast.errors import DataError
from adaftr_fast.training.evaluation import TaskMetrics
from adaftr_fast.training.metrics import auc, gauc, log_loss


def bayes_metrics(folder: str | Path, split: str = "test") -> TaskMetrics:
    """Computes ``auc``, ``gauc`` and ``logloss`` of the true probabilities on a split of a prepared
    folder.

    On a finite split a model may exceed these metrics by chance.

    Args:
        folder: the prepared folder.
        split: the name of the split.

    Returns:
        The metrics as fractions, per task whose true probabilities the folder holds. Empty for a
        data set that is not synthetic.

    Raises:
        DataError: the folder is not a prepared folder, it has no such split, or a probability is
            outside (0, 1).
    """
    data = PreparedData(folder)
    manifest = data.manifest
    if split not in manifest.splits:
        raise DataError(
            f"{data.folder}: no split {split!r}; expected one of {', '.join(manifest.splits)}"
        )
    groups = [GROUP] if manifest.group else []
    wanted = [*manifest.tasks, *(TRUTH + task for task in manifest.tasks), *groups]
    table = read_split(data.folder, manifest, split, wanted)
    tasks = [task for task in manifest.tasks if TRUTH + task in table.column_names]
    metrics: TaskMetrics = {}
    for task in tasks:
        labels = table[task].to_numpy()
        truth = table[TRUTH + task].to_numpy()
        if not ((truth > 0) & (truth < 1)).all():
            raise DataError(
                f"{data.folder / split}: column {TRUTH + task}: expected probabilities in (0, 1)"
            )
        logits = np.log(truth) - np.log1p(-truth)
        metrics[task] = {"auc": auc(labels, logits), "logloss": log_loss(labels, logits)}
        if groups:
            metrics[task]["gauc"] = gauc(labels, logits, table[GROUP].to_numpy())
    return metrics
