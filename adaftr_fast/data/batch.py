"""What a loader hands to a model. B rows, F fields, T tasks."""

from __future__ import annotations

from dataclasses import dataclass

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
