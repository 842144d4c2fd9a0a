"""What a loader hands to a model. B rows, F fields, T tasks, N ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from adaftr_fast.data.dataset.bags import concat_offsets, slice_bags, take_bags


@dataclass(frozen=True)
class Batch:
    """B rows of a prepared split.

    Attributes:
        ids: int32 [B, F], the embedding id of each field, 0 = unknown or missing; where any field is multi-valued
            int32 [N], row after row and field after field.
        labels: float32 [B, T], 0 or 1.
        group: int64 [B], the group (user) of each row for GAUC, -1 = none; None without a group column.
        weight: float32 [B], sample weights; None = all one.
        offsets: int64 [B * F + 1], where the ids of field f of row b begin, and N; None where all fields are
            single-valued.
        weight_mean: float32 0-dim, the mean weight of the whole batch where these rows are one rank's part of it; None
            where they are the batch.
    """

    ids: Tensor
    labels: Tensor
    group: Tensor | None = None
    weight: Tensor | None = None
    offsets: Tensor | None = None
    weight_mean: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def features(self) -> tuple[Tensor, ...]:
        """What a model reads: ids, and offsets where there are any."""
        return (self.ids,) if self.offsets is None else (self.ids, self.offsets)

    def __getitem__(self, rows: slice) -> Batch:
        """A range of neighbouring rows, as views but for the offsets."""
        if self.offsets is None:
            return self.map(lambda part: part[rows])
        ids, offsets = slice_bags(self.ids, self.offsets, len(self), rows)
        return Batch(ids, *self._each(lambda part: part[rows]), offsets)

    def take(self, order: np.ndarray) -> Batch:
        """The rows that ``order`` [n] numbers, in its order, by NumPy: torch would start a second pool of threads."""

        def taken(part: Tensor) -> Tensor:
            return torch.from_numpy(np.take(part.numpy(), order, axis=0))

        if self.offsets is None:
            return self.map(taken)
        bags = take_bags(self.ids.numpy(), self.offsets.numpy(), len(self), order)
        ids, offsets = map(torch.from_numpy, bags)
        return Batch(ids, *self._each(taken), offsets)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed, moved to a device, say."""
        parts = [getattr(self, each.name) for each in fields(self)]
        return Batch(*(None if part is None else change(part) for part in parts))

    def _each(self, change: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        """What has an entry a row: labels, group and weight, changed."""
        return [None if part is None else change(part) for part in (self.labels, self.group, self.weight)]


def concat(batches: Sequence[Batch]) -> Batch:
    """The rows of one or more batches with the same columns, one after another; by NumPy, as ``take``."""
    if len(batches) == 1:
        return batches[0]
    parts = {each.name: [getattr(batch, each.name) for batch in batches] for each in fields(Batch)}
    offsets = parts.pop("offsets")
    whole = {name: None if part[0] is None else _joined(part) for name, part in parts.items()}
    return Batch(**whole, offsets=None if offsets[0] is None else concat_offsets(offsets))


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.from_numpy(np.concatenate([part.numpy() for part in parts]))


def rebatch(blocks: Iterable[Batch], batch_size: int, *, drop_last: bool) -> Iterator[Batch]:
    """Blocks of any sizes as batches of ``batch_size`` rows; the last may be short, or is left out."""
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
                pending, missing = [], batch_size
    if pending and not drop_last:
        yield concat(pending)
