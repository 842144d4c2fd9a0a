"""What a loader hands to a model. B rows, F fields, T tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B rows of a prepared split.

    Attributes:
        ids: int32 [B, F], the embedding id of each field, 0 = unknown or missing.
        labels: float32 [B, T], 0 or 1.
        group: int64 [B], the group (user) of each row for GAUC, -1 = none; None without a group column.
        weight: float32 [B], sample weights; None = all one.
    """

    ids: Tensor
    labels: Tensor
    group: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: slice) -> Batch:
        """A range of rows, as views."""
        return self.map(lambda part: part[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed."""
        parts = [getattr(self, each.name) for each in fields(self)]
        return Batch(*(None if part is None else change(part) for part in parts))


def concat(batches: Sequence[Batch]) -> Batch:
    """The rows of one or more batches with the same columns, one after another."""
    if len(batches) == 1:
        return batches[0]
    parts = [[getattr(batch, each.name) for batch in batches] for each in fields(Batch)]
    return Batch(*(None if part[0] is None else torch.cat(part) for part in parts))


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
