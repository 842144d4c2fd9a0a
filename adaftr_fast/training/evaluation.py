"""A model's predictions on a split, their metrics, and its diagnostics. N rows, T tasks."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from adaftr_fast.data.loader import Split
from adaftr_fast.training.errors import TrainingError
from adaftr_fast.training.metrics import auc, gauc, log_loss

TaskMetrics = dict[str, dict[str, float]]
"""Per task: ``auc``, ``gauc`` (where rows have groups) and ``logloss``, as fractions."""


@torch.no_grad()
def predict(model: nn.Module, split: Split, batch_size: int) -> np.ndarray:
    """Logits float32 [N, T] of all rows, in file order."""
    model.eval()
    return torch.cat([model(batch.ids) for batch in split.batches(batch_size)]).float().numpy()


def evaluate(model: nn.Module, split: Split, batch_size: int) -> TaskMetrics:
    """AUC, GAUC (every group weighs the same; nan when none has both classes) and log-loss of each task.

    Raises:
        TrainingError: a prediction that is not finite.
    """
    logits, labels = predict(model, split, batch_size), split.labels.numpy()
    if wrong := np.count_nonzero(~np.isfinite(logits)):
        raise TrainingError(f"{wrong} of {logits.size} predictions are not finite: the model has diverged")
    metrics: TaskMetrics = {}
    for column, task in enumerate(model.task_names):
        y, z = labels[:, column], logits[:, column]
        metrics[task] = {"auc": auc(y, z), "logloss": log_loss(y, z)}
        if split.group is not None:
            metrics[task]["gauc"] = gauc(y, z, split.group.numpy())
    return metrics


@torch.no_grad()
def diagnose(model: nn.Module, split: Split, batch_size: int) -> dict[str, np.ndarray]:
    """What ``model.diagnostics`` says of every row, [N] each, such as the learned temperature; {} if it has none."""
    if not hasattr(model, "diagnostics"):
        return {}
    model.eval()
    parts = [model.diagnostics(batch) for batch in split.batches(batch_size)]
    return {name: torch.cat([part[name] for part in parts]).float().numpy() for name in parts[0]}


def spread(values: np.ndarray) -> dict[str, float]:
    """5 %, 50 % and 95 % points of a diagnostic: where they coincide, it has collapsed to a constant."""
    return dict(zip(("p5", "p50", "p95"), np.quantile(values, (0.05, 0.5, 0.95)).tolist(), strict=True))


def mean_auc(metrics: TaskMetrics) -> float:
    """What early stopping selects by."""
    return float(np.mean([each["auc"] for each in metrics.values()]))
