"""A model's predictions on a split, their metrics, and its diagnostics. N rows, T tasks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from adaftr_fast.data.loader import Split
from adaftr_fast.training.errors import TrainingError
from adaftr_fast.training.metrics import auc, calibration, gauc, log_loss

TaskMetrics = dict[str, dict[str, float]]
"""Per task: ``auc``, ``gauc`` (where rows have groups), ``logloss`` and ``calibration``, as fractions."""


class Predictions(NamedTuple):
    """Of all rows of a split, in file order."""

    logits: np.ndarray  # float32 [N, T]
    labels: np.ndarray  # uint8 [N, T]
    group: np.ndarray | None  # int64 [N]


@torch.no_grad()
def predict(model: nn.Module, split: Split, batch_size: int) -> Predictions:
    """One pass over ``split`` in batches of ``batch_size`` rows."""
    model.eval()
    device = device_of(model)
    logits, labels, groups = [], [], []
    for batch in split.batches(batch_size):
        z = model(*(part.to(device) for part in batch.features))
        logits.append(z.float().cpu().numpy())
        labels.append(batch.labels.numpy().astype(np.uint8))
        groups.append(batch.group)
    group = None if groups[0] is None else torch.cat(groups).numpy()
    return Predictions(np.concatenate(logits), np.concatenate(labels), group)


def evaluate(model: nn.Module, split: Split, batch_size: int) -> TaskMetrics:
    """AUC, GAUC (every group weighs the same; nan without a mixed one), log-loss and calibration of each task.

    Raises:
        TrainingError: a prediction that is not finite.
    """
    logits, labels, group = predict(model, split, batch_size)
    if wrong := np.count_nonzero(~np.isfinite(logits)):
        raise TrainingError(f"{wrong} of {logits.size} predictions are not finite: the model has diverged")
    metrics: TaskMetrics = {}
    for column, task in enumerate(model.task_names):
        y, z = labels[:, column], logits[:, column]
        metrics[task] = {"auc": auc(y, z), "logloss": log_loss(y, z), "calibration": calibration(y, z)}
        if group is not None:
            metrics[task]["gauc"] = gauc(y, z, group)
    return metrics


@torch.no_grad()
def diagnose(model: nn.Module, split: Split, batch_size: int) -> dict[str, np.ndarray]:
    """What ``model.diagnostics`` says of every row, [N] each, such as the learned temperature; {} if it has none."""
    if not hasattr(model, "diagnostics"):
        return {}
    model.eval()
    device = device_of(model)
    parts = [model.diagnostics(batch.map(lambda part: part.to(device))) for batch in split.batches(batch_size)]
    return {name: torch.cat([part[name] for part in parts]).float().cpu().numpy() for name in parts[0]}


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are."""
    return next(model.parameters()).device


def spread(values: np.ndarray) -> dict[str, float]:
    """5 %, 50 % and 95 % points of a diagnostic: where they coincide, it has collapsed to a constant."""
    return dict(zip(("p5", "p50", "p95"), np.quantile(values, (0.05, 0.5, 0.95)).tolist(), strict=True))


def mean_auc(metrics: TaskMetrics) -> float:
    """What early stopping selects by."""
    return float(np.mean([each["auc"] for each in metrics.values()]))
