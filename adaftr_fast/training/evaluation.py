"""Predictions of a model on a split, their metrics, and the model's diagnostics.

Shapes: N rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from adaftr_fast.data.dataset.batch import Batch
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.data.schema.parse import funnel_stages
from adaftr_fast.distributed.ranks import ALONE, Ranks
from adaftr_fast.errors import ConfigError, DivergedError, TrainingError
from adaftr_fast.models.base import MultiTaskModel
from adaftr_fast.ops.embedding.lookup import raise_bad_ids
from adaftr_fast.optim.tables import sharded_tables
from adaftr_fast.training.metrics import (
    auc,
    calibration,
    cvr_auc,
    grouped_auc,
    log_loss,
    rate_log_loss,
)

KEPT, SORTED = (
    12,
    64,
)  # bytes for a row: its group and weight, and its numbers while one task is measured
Arrays = dict[str, np.ndarray]
GaucWeights = Literal["none", "impressions"]
TaskMetrics = dict[str, dict[str, float]]
"""``rows``, ``positives``, ``auc``, ``logloss``, ``rate_logloss``, ``calibration``, and ``gauc`` and
``gauc_groups`` if rows have groups, per task; areas are fractions.

They weigh the rows by the sample weights of the prepared data, if these have any; then
``unweighted_auc``, ``unweighted_logloss`` and ``unweighted_calibration`` count each row once.
``rate_logloss`` is the log-loss of the rate as a constant. ``gauc_groups`` is the number of groups
that have both classes, over which ``gauc`` is the mean.

Each stage of a funnel but the first also has ``cvr_auc``, the AUC of its rate after the stage
before, on the rows that reached that stage.
"""


DIAGNOSTIC = "diagnostic "  # before the name of one, among the arrays of predictions


class Predictions(NamedTuple):
    """Predictions of all rows of a split in file order, or rank by rank."""

    logits: np.ndarray  # float32 [N, T]
    labels: np.ndarray  # uint8 [N, T]
    group: np.ndarray | None = None  # int64 [N]
    weight: np.ndarray | None = None  # float32 [N], sample weights


def predict(model: MultiTaskModel, split: Split | EqualBatches, batch_size: int) -> Predictions:
    """Predicts ``split`` in batches of ``batch_size`` rows. Raises IndexError if an id is out of
    range.
    """
    return _predict(model, split, batch_size, with_diagnostics=False)[0]


@torch.no_grad()
def _predict(
    model: MultiTaskModel, split: Split | EqualBatches, batch_size: int, *, with_diagnostics: bool
) -> tuple[Predictions, Arrays]:
    """Predicts a split, and computes the diagnostics of every row [N] by name."""
    model.eval()
    device = device_of(model)
    logits = []
    labels = []
    groups = []
    weights = []
    diagnostics = []
    for batch in split.batches(batch_size):
        if with_diagnostics:
            z, found = _diagnosed(model, batch.map(lambda each: each.to(device)))
            diagnostics.append(found)
        else:
            z = model(*(None if part is None else part.to(device) for part in batch.features))
        logits.append(z.float().cpu().numpy())
        labels.append(batch.labels.numpy().astype(np.uint8))
        if batch.group is not None:
            groups.append(batch.group.numpy())
        if batch.weight is not None:
            weights.append(batch.weight.numpy())
    raise_bad_ids(device)
    group = np.concatenate(groups) if groups else None
    weight = np.concatenate(weights) if weights else None
    predictions = Predictions(np.concatenate(logits), np.concatenate(labels), group, weight)
    names = diagnostics[0] if diagnostics else ()
    return predictions, {
        name: torch.cat([each[name] for each in diagnostics]).float().cpu().numpy()
        for name in names
    }


def _diagnosed(model: MultiTaskModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Calls ``model.diagnosed``, or the parts of it that a module of one's own has."""
    if hasattr(model, "diagnosed"):
        return model.diagnosed(batch)
    diagnostics = model.diagnostics(batch) if hasattr(model, "diagnostics") else {}
    return model(*batch.features), diagnostics


def memory_needed(rows: int, tasks: int) -> int:
    """Returns the bytes of memory for the predictions of so many rows, while metrics and buckets
    are computed.

    They come on top of the program, of the model, and of the rows that are read.
    """
    return rows * (KEPT + (4 + 1) * tasks + SORTED)


def evaluate(
    model: MultiTaskModel,
    split: Split,
    batch_size: int,
    ranks: Ranks = ALONE,
    gauc_weights: GaucWeights = "none",
) -> TaskMetrics:
    """Computes AUC, GAUC (nan if no group has both classes), log-loss and calibration of each task.

    Each later stage of a funnel also has its AUC after the stage before (``cvr_auc``; nan if the
    rows that reached the stage before have a single class). Mean AUC and early stopping do not
    depend on it.

    Args:
        model: the model, which is put into evaluation mode.
        split: the rows. If it does not tell its funnel, click and conversion are one, if the model
            has such tasks.
        batch_size: rows per forward pass.
        ranks: each predicts a part of the split, and rank 0 computes the metrics of all
            predictions.
        gauc_weights: how GAUC weighs the groups, see ``metrics.gauc``.

    Returns:
        The metrics per task, on every rank.

    Raises:
        DivergedError: a prediction is not finite.
    """
    return examine(model, split, batch_size, ranks, gauc_weights, with_diagnostics=False)[0]


def examine(
    model: MultiTaskModel,
    split: Split,
    batch_size: int,
    ranks: Ranks = ALONE,
    gauc_weights: GaucWeights = "none",
    *,
    with_diagnostics: bool = True,
) -> tuple[TaskMetrics, Arrays]:
    """Computes the metrics that ``evaluate`` returns, and in the same pass ``model.diagnostics`` of
    every row, such as the learned temperature.

    Returns:
        The metrics per task, on every rank; the diagnostics by name, [N] each. These are empty if
        the model has none, and on ranks other than rank 0.
    """
    tasks = model.task_names
    funnel = funnel_stages(None, tasks) if split.funnel is None else split.funnel

    def predicted(part: Split | EqualBatches) -> Arrays:
        found, diagnostics = _predict(model, part, batch_size, with_diagnostics=with_diagnostics)
        arrays = {name: value for name, value in found._asdict().items() if value is not None}
        return arrays | {DIAGNOSTIC + name: value for name, value in diagnostics.items()}

    found = _on_rank_zero(model, split, ranks, predicted)
    diagnostics = {
        name.removeprefix(DIAGNOSTIC): found.pop(name)
        for name in list(found)
        if name.startswith(DIAGNOSTIC)
    }
    metrics: TaskMetrics = ranks.from_rank_zero(
        lambda: measure(tasks, Predictions(**found), funnel, gauc_weights)
    )
    return metrics, diagnostics


def _on_rank_zero(
    model: nn.Module,
    split: Split,
    ranks: Ranks,
    compute: Callable[[Split | EqualBatches], Arrays],
) -> Arrays:
    """Returns, on rank 0, the named arrays of all rows, of which each rank computes a part; {}
    elsewhere.
    """
    model.eval()  # also on ranks without rows, since it applies the deferred updates of table rows
    if ranks.is_alone:
        return compute(split)
    part: Split | EqualBatches = (  # with sharded tables, all ranks need as many batches
        EqualBatches(split, ranks) if sharded_tables(model) else split.shard(ranks.rank, ranks.size)
    )
    own = compute(part) if len(part) else {}
    tensors = {name: torch.from_numpy(value) for name, value in own.items()}
    parts = [each for each in ranks.tensors_to_rank_zero(tensors) if each]
    names = parts[0] if parts else {}
    return {name: np.concatenate([each[name].numpy() for each in parts]) for name in names}


class EqualBatches:
    """A rank's part of a split, padded with empty batches until all ranks have the same number of
    batches.

    A look-up in sharded tables is a collective, so all ranks must take part in each one.
    """

    def __init__(self, split: Split, ranks: Ranks) -> None:
        parts = [split.shard(rank, ranks.size) for rank in range(ranks.size)]
        self.split = split
        self.mine = parts[ranks.rank]
        self.longest = max(map(len, parts))

    def __len__(self) -> int:
        return self.longest

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields batches like ``Split.batches``."""
        yield from self.mine.batches(batch_size)
        missing = -(-self.longest // batch_size) - -(-len(self.mine) // batch_size)
        if missing:
            empty = next(self.split.batches(1))[:0]
            yield from (empty for _ in range(missing))


def measure(
    task_names: Sequence[str],
    predictions: Predictions,
    funnel: Sequence[str] = (),
    gauc_weights: GaucWeights = "none",
) -> TaskMetrics:
    """Computes the metrics that ``evaluate`` returns. Raises DivergedError if a prediction is not
    finite.

    Args:
        task_names: T names, in the order of the predictions.
        predictions: the predictions.
        funnel: names of tasks of which each can be positive only where the one before it is.
        gauc_weights: how GAUC weighs the groups, see ``metrics.gauc``.
    """
    logits, labels, group, weight = predictions
    if wrong := np.count_nonzero(~np.isfinite(logits)):
        raise DivergedError(
            f"{wrong} of {logits.size} predictions are not finite: the model has diverged"
        )
    metrics: TaskMetrics = {}
    for column, task in enumerate(task_names):
        y = labels[:, column]
        z = logits[:, column]
        metrics[task] = {
            "rows": len(y),
            "positives": int(np.count_nonzero(y)),
            "auc": auc(y, z, weight),
            "logloss": log_loss(y, z, weight),
            "rate_logloss": rate_log_loss(y, weight),
            "calibration": calibration(y, z, weight),
        }
        if weight is not None:
            metrics[task] |= {
                "unweighted_auc": auc(y, z),
                "unweighted_logloss": log_loss(y, z),
                "unweighted_calibration": calibration(y, z),
            }
        if group is not None:
            found = grouped_auc(y, z, group, gauc_weights, weight)
            metrics[task] |= {"gauc": found.mean, "gauc_groups": found.groups}
    for before, stage in _stages(funnel, task_names):
        a = task_names.index(before)
        b = task_names.index(stage)
        metrics[stage]["cvr_auc"] = cvr_auc(
            labels[:, a], labels[:, b], logits[:, a], logits[:, b], weight
        )
    return metrics


def _stages(funnel: Sequence[str], tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the stages that have a CVR AUC, each after the stage before it."""
    return list(pairwise(task for task in funnel if task in tasks))


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of the model's parameters."""
    return next(model.parameters()).device


def spread(values: np.ndarray) -> dict[str, float]:
    """Computes the 5 %, 50 % and 95 % quantiles of a diagnostic. Equal quantiles indicate a
    constant.
    """
    return dict(
        zip(("p5", "p50", "p95"), np.quantile(values, (0.05, 0.5, 0.95)).tolist(), strict=True)
    )


def mean_auc(metrics: TaskMetrics) -> float:
    """Computes the mean AUC over tasks."""
    return float(np.mean([each["auc"] for each in metrics.values()]))


def check_monitor(monitor: str, tasks: Sequence[str], split: Split) -> None:
    """Raises ConfigError if there is no such task, and TrainingError if the rows cannot have the
    metric.
    """
    funnel = funnel_stages(None, tasks) if split.funnel is None else split.funnel
    later = [stage for _, stage in _stages(funnel, tasks)]
    names = ["auc", "logloss", *(["gauc"] if split.rows.grouped else [])]
    _tasks_with(
        monitor, {task: [*names, *(["cvr_auc"] if task in later else [])] for task in tasks}
    )


def monitored(metrics: TaskMetrics, monitor: str) -> float:
    """Returns the number that chooses the best weights: more is better, so a log-loss is negated.
    It is nan if the metric of a task is undefined on these rows.

    Args:
        metrics: the validation metrics.
        monitor: the name of a metric, for its mean over the tasks that have it, or TASK/METRIC.

    Raises:
        ConfigError: there is no such task.
        TrainingError: no task has the metric.
    """
    name = monitor.rpartition("/")[2]
    mean = float(np.mean([metrics[task][name] for task in _tasks_with(monitor, metrics)]))
    return -mean if name == "logloss" else mean


def check_defined(metrics: TaskMetrics, monitor: str) -> None:
    """Raises TrainingError if the AUC of a task or the monitored metric is undefined."""
    for task, each in metrics.items():
        if np.isnan(each["auc"]):
            raise TrainingError(
                f"task {task}: expected two classes in the validation split, got a single class"
            )
    if np.isnan(monitored(metrics, monitor)):
        raise _lacks(monitor)


def _tasks_with(monitor: str, metrics: Mapping[str, Container[str]]) -> list[str]:
    """Returns the tasks whose metric is monitored, given the names of the metrics of each task."""
    task, _, name = monitor.rpartition("/")
    if task and task not in metrics:
        raise ConfigError(
            f"training.monitor: expected one of the tasks {', '.join(metrics)}, got {monitor!r}"
        )
    found = [each for each in ([task] if task else metrics) if name in metrics[each]]
    if not found:
        raise _lacks(monitor)
    return found


def _lacks(monitor: str) -> TrainingError:
    needs = {"gauc": "; it needs groups with both classes", "cvr_auc": "; it needs a funnel"}
    hint = needs.get(monitor.rpartition("/")[2], "")
    return TrainingError(f"training.monitor: the validation split has no {monitor}{hint}")
