"""Batches that a loader passes to a model. Shapes: B rows, F fields, T tasks, N ids, D dense
fields.

Multi-valued fields are concatenated ids and bag offsets: ``offsets`` [B * F + 1] increase from 0 to
N. Bag b * F + f is field f of row b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

Inputs = tuple[Tensor, *tuple[Tensor | None, ...]]
BLOCK = 4096  # rows copied at a time, to bound the index arrays


@dataclass(frozen=True)
class Batch:
    """B rows of a prepared split.

    Attributes:
        ids: embedding ids, int32 [B, F], 0 = unknown or missing. If any field is multi-valued,
            int32 [N] in order of row and field.
        labels: 0/1 labels, float32 [B, T].
        group: group (user) of each row for GAUC, int64 [B], -1 = none; None without a group column.
        weight: sample weights, float32 [B]; None if all are one.
        offsets: start of the ids of field f of row b at index b * F + f, and N at the end, int64
            [B * F + 1]; None if all fields are single-valued.
        weight_mean: mean weight of the whole batch, float32 0-dim, if these rows are a part of it,
            as of one rank; else None.
        dense: numbers of the dense fields, float32 [B, D], NaN = missing; None without dense
            fields.
    """

    ids: Tensor
    labels: Tensor
    group: Tensor | None = None
    weight: Tensor | None = None
    offsets: Tensor | None = None
    weight_mean: Tensor | None = None
    dense: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def features(self) -> Inputs:
        """Inputs of a model, see :func:`model_inputs`."""
        return model_inputs(self.ids, self.offsets, self.dense)

    def __getitem__(self, rows: slice) -> Batch:
        """Returns a range of adjacent rows. Tensors are views, except the offsets."""
        bags = None
        if self.offsets is not None:
            bags = slice_bags(self.ids, self.offsets, len(self), rows)
        return self._rows(lambda part: part[rows], bags)

    def take(self, order: np.ndarray) -> Batch:
        """Returns the rows ``order`` [n], in that order. Uses NumPy: torch would start a second
        thread pool.
        """
        bags = None
        if self.offsets is not None:
            ids, offsets = take_bags(self.ids.numpy(), self.offsets.numpy(), len(self), order)
            bags = torch.from_numpy(ids), torch.from_numpy(offsets)
        return self._rows(lambda part: torch.from_numpy(np.take(part.numpy(), order, axis=0)), bags)

    def _rows(
        self, change: Callable[[Tensor], Tensor], bags: tuple[Tensor, Tensor] | None
    ) -> Batch:
        """Applies ``change`` to every tensor with one entry per row.

        Args:
            bags: ids and offsets of the rows; None if all fields are single-valued.
        """
        ids, offsets = bags or (change(self.ids), None)
        others = {name: getattr(self, name) for name in ("labels", "group", "weight", "dense")}
        return Batch(
            ids,
            offsets=offsets,
            weight_mean=self.weight_mean,
            **{name: change(part) for name, part in others.items() if part is not None},
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Applies ``change`` to every tensor, such as a move to a device."""
        parts = {each.name: getattr(self, each.name) for each in fields(self)}
        return Batch(**{name: change(part) for name, part in parts.items() if part is not None})


def model_inputs(ids: Tensor, offsets: Tensor | None, dense: Tensor | None) -> Inputs:
    """Returns ids, offsets and numbers, without those at the end that are None: a model need not
    take them.
    """
    if dense is not None:
        return ids, offsets, dense
    return (ids,) if offsets is None else (ids, offsets)


def concat(batches: Sequence[Batch]) -> Batch:
    """Concatenates one or more batches with the same columns. Uses NumPy, as
    ``Batch.take`` does.
    """
    if len(batches) == 1:
        return batches[0]
    whole = {}
    for each in fields(Batch):
        parts = [getattr(batch, each.name) for batch in batches]
        if parts[0] is not None:
            join = concat_offsets if each.name == "offsets" else np.concatenate
            whole[each.name] = torch.from_numpy(join([part.numpy() for part in parts]))
    return Batch(**whole)


def rebatch(blocks: Iterable[Batch], batch_size: int, *, drop_last: bool) -> Iterator[Batch]:
    """Yields batches of ``batch_size`` rows from blocks of any size. The last batch may be short,
    or is dropped.
    """
    pending: list[Batch] = []
    missing = batch_size
    for block in blocks:
        start = 0
        while start < len(block):
            piece = block[start : start + missing]
            pending.append(piece)
            start += len(piece)
            missing -= len(piece)
            if not missing:
                yield concat(pending)
                pending = []
                missing = batch_size
    if pending and not drop_last:
        yield concat(pending)


def interleave(
    columns: Sequence[tuple[np.ndarray, np.ndarray | None]],
) -> tuple[np.ndarray, np.ndarray]:
    """Joins columns row by row.

    Args:
        columns: per field, its ids and its offsets [B + 1] from 0; offsets are None for a
            single-valued field, [B] ids.

    Returns:
        ids [N] and int64 offsets.
    """
    counts = [np.ones(len(ids), np.int64) if own is None else np.diff(own) for ids, own in columns]
    offsets = _cumulative(np.stack(counts, axis=1))
    joined = np.empty(offsets[-1], columns[0][0].dtype)
    for field, (ids, own) in enumerate(columns):
        starts = offsets[field : -1 : len(columns)]
        if own is None:
            joined[starts] = ids
        else:
            joined[np.repeat(starts - own[:-1], counts[field]) + np.arange(len(ids))] = ids
    return joined, offsets


def take_bags(
    ids: np.ndarray, offsets: np.ndarray, rows: int, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bags of the rows ``order`` [n], in that order, out of ``rows`` rows."""
    if not len(order):
        return ids[:0], offsets[:1]
    counts = np.diff(offsets).reshape(rows, -1)[order]  # [n, F]
    width = counts.shape[1]
    taken = _cumulative(counts)
    bounds = taken[::width]  # [n + 1], destination of each row's ids
    moved = np.empty(taken[-1], ids.dtype)
    for first in range(0, len(order), BLOCK):
        some = order[first : first + BLOCK]
        own = bounds[first : first + len(some) + 1]
        shift = np.repeat(offsets[::width][some] - own[:-1], np.diff(own))
        moved[own[0] : own[-1]] = ids[shift + np.arange(own[0], own[-1])]
    return moved, taken


def slice_bags(ids: Tensor, offsets: Tensor, rows: int, part: slice) -> tuple[Tensor, Tensor]:
    """Returns the bags of a range of adjacent rows out of ``rows`` rows. The ids are a view."""
    start, stop, _ = part.indices(rows)
    width = (len(offsets) - 1) // max(rows, 1)
    own = offsets[start * width : max(start, stop) * width + 1]
    return ids[own[0] : own[-1]], own - own[0]


def concat_offsets(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the offsets of concatenated bags."""
    return _cumulative(np.concatenate([np.diff(part) for part in parts]))


def _cumulative(counts: np.ndarray) -> np.ndarray:
    """Converts lengths of any shape to offsets from 0."""
    offsets = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
