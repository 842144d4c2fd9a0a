"""Permutation importance: how much worse a model ranks when the values of one field are those of
other rows.

Shapes: n rows, F fields (dense ones last), T tasks, R repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from adaftr_fast.data.dataset.batch import Batch, concat
from adaftr_fast.data.dataset.loader import Split
from adaftr_fast.display.progress import progress_bar
from adaftr_fast.display.tables import Shown, Table
from adaftr_fast.errors import ConfigError
from adaftr_fast.models import MultiTaskModel
from adaftr_fast.training.evaluation import predict
from adaftr_fast.training.metrics import auc

READ_ROWS = 1 << 16
NOTICED = 2.0  # standard errors above 0


@dataclass(frozen=True, repr=False)
class Importance(Shown):
    """The AUC that each field is worth, per task. It prints as a table, in percentage points of
    AUC.

    Attributes:
        fields: F names.
        tasks: T names.
        drops: float64 [R, F, T], the AUC of the rows minus that with the values of a field permuted
            among them, in each of R permutations; nan for a task of which the rows have a single
            class.
        rows: the number of rows.
    """

    fields: Sequence[str]
    tasks: Sequence[str]
    drops: np.ndarray
    rows: int

    @property
    def mean(self) -> np.ndarray:
        """The mean drop over the permutations, float64 [F, T]."""
        return self.drops.mean(0)

    @property
    def standard_error(self) -> np.ndarray:
        """The standard error of ``mean`` over the permutations, float64 [F, T]; nan for one
        permutation.

        It says how much other permutations of these rows would change the mean, not how much other
        rows would.
        """
        repeats = len(self.drops)
        if repeats < 2:
            return np.full(self.drops.shape[1:], np.nan)
        return self.drops.std(0, ddof=1) / np.sqrt(repeats)

    def order(self) -> list[int]:
        """Returns the positions of the fields, the most important one (by the mean over tasks)
        first.
        """
        return np.argsort(-np.nan_to_num(self.mean).mean(1), kind="stable").tolist()

    def unnoticed(self) -> list[str]:
        """Returns the fields whose drop is not above 0 by two standard errors in any task."""
        if len(self.drops) < 2 or np.isnan(self.mean).all():  # then nothing says what chance does
            return []
        is_noticed = self.mean > NOTICED * np.nan_to_num(self.standard_error)
        return [name for name, noticed in zip(self.fields, is_noticed.any(1)) if not noticed]

    def table(self) -> Table:
        """Returns a row per field, the most important one first: drop ± standard error per task, in
        points of AUC.
        """
        cells = [
            [self.fields[f], *(self._cell(f, t) for t in range(len(self.tasks)))]
            for f in self.order()
        ]
        return Table(["AUC lost without", *self.tasks], cells)

    def _cell(self, field: int, task: int) -> str:
        mean = 100 * self.mean[field, task]
        error = 100 * self.standard_error[field, task]
        return f"{mean:.3f} ± {error:.3f}" if len(self.drops) > 1 else f"{mean:.3f}"

    def _parts(self) -> list[str | Table]:
        return [self.table()]


def permutation_importance(
    model: MultiTaskModel,
    split: Split,
    fields: Sequence[str],
    *,
    repeats: int = 5,
    max_rows: int = 50_000,
    batch_size: int = 8192,
    seed: int = 0,
    progress: bool = False,
) -> Importance:
    """Measures each field by permuting its values among the rows, as
    ``sklearn.inspection.permutation_importance``.

    It takes F * R + 1 predictions of at most ``max_rows`` rows. A multi-valued field is permuted
    list by list.

    Args:
        model: the model, which is put into evaluation mode.
        split: the rows.
        fields: F names, in the order of the ids and then of the dense fields.
        repeats: the number R of permutations of each field.
        max_rows: the most rows to measure; of a larger split they are drawn without replacement.
        batch_size: rows per forward pass.
        seed: of the permutations and of the draw.
        progress: show a progress bar.

    Raises:
        ConfigError: ``repeats`` or ``max_rows`` is less than 1, or ``seed`` less than 0.
    """
    for name, value, least in (
        ("repeats", repeats, 1),
        ("max_rows", max_rows, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name}: expected >= {least}, got {value}")
    random = np.random.default_rng(seed)
    rows = sample(split, max_rows, random)
    before = _aucs(model, rows, batch_size)
    drops = np.empty((repeats, len(fields), len(before)))
    turns = list(product(range(repeats), range(len(fields))))
    for repeat, field in progress_bar(turns, "importance", disable=not progress):
        permuted = permute_field(rows, field, random.permutation(len(rows)))
        drops[repeat, field] = before - _aucs(model, permuted, batch_size)
    return Importance(list(fields), model.task_names, drops, len(rows))


def sample(split: Split, most: int, random: np.random.Generator) -> Batch:
    """Returns all rows of a split, or ``most`` of them that are drawn without replacement, in file
    order.
    """
    chosen = np.sort(random.choice(len(split), min(most, len(split)), replace=False, shuffle=False))
    parts = []
    first = 0
    for batch in split.batches(READ_ROWS):
        inside = chosen[(chosen >= first) & (chosen < first + len(batch))] - first
        if len(inside):
            parts.append(batch.take(inside))
        first += len(batch)
    return concat(parts)


def permute_field(batch: Batch, field: int, order: np.ndarray) -> Batch:
    """Returns the rows of a batch [n] with the values of one field those of the rows
    ``order`` [n].
    """
    n = len(batch)
    ids = batch.ids
    offsets = batch.offsets
    dense = batch.dense
    width = ids.shape[1] if offsets is None else (len(offsets) - 1) // n
    moved = torch.from_numpy(order)
    if field >= width:
        assert dense is not None  # the fields after the last one of ids
        dense = _with_column(dense, field - width, moved)
    elif offsets is None:
        ids = _with_column(ids, field, moved)
    else:
        starts = _with_column(offsets[:-1].view(n, width), field, moved)
        counts = _with_column(offsets.diff().view(n, width), field, moved)
        offsets = torch.cat([counts.new_zeros(1), counts.flatten().cumsum(0)])
        shift = torch.repeat_interleave(starts.flatten() - offsets[:-1], counts.flatten())
        ids = ids[shift + torch.arange(len(shift))]
    return replace(batch, ids=ids, offsets=offsets, dense=dense)


def _with_column(values: Tensor, column: int, order: Tensor) -> Tensor:
    changed = values.clone()
    changed[:, column] = values[order, column]
    return changed


def _aucs(model: MultiTaskModel, rows: Batch, batch_size: int) -> np.ndarray:
    """Returns the AUC of each task, float64 [T]."""
    found = predict(model, Split.of(rows), batch_size)
    return np.array([auc(y, z, found.weight) for y, z in zip(found.labels.T, found.logits.T)])
