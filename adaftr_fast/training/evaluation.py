"""A model's predictions on a split, their metrics, and its diagnostics. N rows, T tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.distributed.ranks import Ranks
from adaftr_fast.errors import TrainingError
from adaftr_fast.training.checkpoint.state import sharded_tables
from adaftr_fast.training.metrics import auc, calibration, gauc, log_loss

TaskMetrics = dict[str, dict[str, float]]
"""Per task: ``auc``, ``gauc`` (where rows have groups), ``logloss`` and ``calibration``, as fractions."""


class Predictions(NamedTuple):
    """Of all rows of a split, in file order; those of several ranks one after another."""

    logits: np.ndarray  # float32 [N, T]
    labels: np.ndarray  # uint8 [N, T]
    group: np.ndarray | None  # int64 [N]


@torch.no_grad()
def predict(model: nn.Module, split: Split | EqualBatches, batch_size: int) -> Predictions:
    """One pass over ``split`` in batches of ``batch_size`` rows."""
    model.eval()
    device = device_of(model)
    parts = []
    for batch in split.batches(batch_size):
        z = model(*(part.to(device) for part in batch.features))
        group = None if batch.group is None else batch.group.numpy()
        parts.append(Predictions(z.float().cpu().numpy(), batch.labels.numpy().astype(np.uint8), group))
    return _joined(parts)


def _joined(parts: list[Predictions]) -> Predictions:
    logits, labels, groups = zip(*parts)
    return Predictions(
        np.concatenate(logits), np.concatenate(labels), None if groups[0] is None else np.concatenate(groups)
    )


def evaluate(model: nn.Module, split: Split, batch_size: int, ranks: Ranks | None = None) -> TaskMetrics:
    """AUC, GAUC (every group weighs the same; nan without a mixed one), log-loss and calibration of each task.

    Args:
        ranks: each predicts a part of the split, and the chief measures all predictions together.

    Raises:
        TrainingError: a prediction that is not finite.
    """
    if ranks is None:
        return measure(model.task_names, predict(model, split, batch_size))
    model.eval()  # on all ranks, also those without rows: it makes every row of a table current
    part = _part(model, split, ranks)
    parts = ranks.gathered(predict(model, part, batch_size) if len(part) else None)
    return ranks.from_chief(lambda: measure(model.task_names, _joined([each for each in parts if each is not None])))


def _part(model: nn.Module, split: Split, ranks: Ranks) -> Split | EqualBatches:
    """A rank's rows; where tables lie across ranks, in batches that come on all ranks together."""
    return EqualBatches(split, ranks) if sharded_tables(model) else split.shard(ranks.rank, ranks.size)


class EqualBatches:
    """A rank's part of a split, with empty batches after it until every rank has had as many.

    Look-ups in tables that lie across ranks are made by all ranks together.
    """

    def __init__(self, split: Split, ranks: Ranks) -> None:
        parts = [split.shard(rank, ranks.size) for rank in range(ranks.size)]
        self.split, self.mine, self.longest = split, parts[ranks.rank], max(map(len, parts))

    def __len__(self) -> int:
        return self.longest

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """As ``Split.batches``."""
        yield from self.mine.batches(batch_size)
        missing = -(-self.longest // batch_size) - -(-len(self.mine) // batch_size)
        if missing:
            empty = next(self.split.batches(1))[:0]
            yield from (empty for _ in range(missing))


def measure(task_names: Sequence[str], predictions: Predictions) -> TaskMetrics:
    """The metrics of ``evaluate``. Raises TrainingError as there."""
    logits, labels, group = predictions
    if wrong := np.count_nonzero(~np.isfinite(logits)):
        raise TrainingError(f"{wrong} of {logits.size} predictions are not finite: the model has diverged")
    metrics: TaskMetrics = {}
    for column, task in enumerate(task_names):
        y, z = labels[:, column], logits[:, column]
        metrics[task] = {"auc": auc(y, z), "logloss": log_loss(y, z), "calibration": calibration(y, z)}
        if group is not None:
            metrics[task]["gauc"] = gauc(y, z, group)
    return metrics


@torch.no_grad()
def diagnose(
    model: nn.Module, split: Split | EqualBatches, batch_size: int, ranks: Ranks | None = None
) -> dict[str, np.ndarray]:
    """What ``model.diagnostics`` says of every row, [N] each, such as the learned temperature; {} if it has none.

    With ``ranks`` each looks at a part of the split, and the chief gets all, the others {}.
    """
    if not hasattr(model, "diagnostics"):
        return {}
    model.eval()
    if ranks is not None:
        part = _part(model, split, ranks)
        parts = [each for each in ranks.gathered(diagnose(model, part, batch_size) if len(part) else None) if each]
        return {name: np.concatenate([each[name] for each in parts]) for name in parts[0]} if parts else {}
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
