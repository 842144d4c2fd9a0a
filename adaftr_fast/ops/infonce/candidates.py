"""Candidates gathered from all ranks.

Shapes: W ranks; rank r holds B_r rows (anchors) and N_r columns (candidates).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast.distributed.gather import gather_numbers, gather_rows
from adaftr_fast.ops.infonce.reference import IGNORE

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Candidates(NamedTuple):
    """The candidates of one direction's anchors [B, d]."""

    h: Tensor  # [N, d]
    positive: Tensor | None  # [B], default arange(B)
    group: Tensor | None  # [N]


class CrossRankBatch:
    """A batch whose rows are split over the ranks of a process group.

    All ranks must construct it, and call its methods in the same order.

    Args:
        op: the name of the op, for error messages.
        group: the process group.
        h_ctr: this rank's anchors [B_r, d].
        h_cvr: this rank's candidates [N_r, d].
        must_agree: settings that must be equal on all ranks, by their names in error messages. Where they differ, some
            ranks would wait in a collective that the others never enter.

    Raises:
        ValueError: the ranks differ in the width or dtype of the representations, or in a setting of ``must_agree``.
    """

    def __init__(
        self, op: str, group: dist.ProcessGroup, h_ctr: Tensor, h_cvr: Tensor, must_agree: dict[str, bool]
    ) -> None:
        self.group, self.rank, self.world_size = group, dist.get_rank(group), dist.get_world_size(group)
        settings = {"the width d": h_ctr.shape[1], "the dtype (by index)": DTYPES.index(h_ctr.dtype)} | must_agree
        own = torch.tensor([len(h_ctr), len(h_cvr), *settings.values()], device=h_ctr.device)
        self.rows, self.columns, *others = gather_numbers(own, group).T.tolist()
        for name, values in zip(settings, others):
            for rank, value in enumerate(values):
                if value != values[0]:
                    raise ValueError(
                        f"{op}: {name} must be the same on all ranks, got {values[0]} on rank 0 and {value} on rank "
                        f"{rank}"
                    )

    def gather(self, own: Candidates, sizes: list[int]) -> Candidates:
        """Concatenates the ranks' candidates, ``sizes[rank]`` each, in the order of ranks."""
        return Candidates(
            gather_rows(own.h, sizes, self.group),
            self._global_index(own.positive, sizes).to(own.h.device),
            None if own.group is None else gather_rows(own.group, sizes, self.group),
        )

    def total(self, x: Tensor) -> Tensor:
        """Sums a 0-dim tensor over the ranks."""
        return gather_rows(x[None], [1] * self.world_size, self.group).sum()

    def _global_index(self, index: Tensor | None, sizes: list[int]) -> Tensor:
        """Maps indices [B_r] of this rank's candidates to indices of all ranks' candidates."""
        first = sum(sizes[: self.rank])
        if index is None:
            return torch.arange(first, first + self.rows[self.rank])
        inside = (index >= 0) & (index < sizes[self.rank])
        # An index out of range must not become a valid index of another rank's candidate: the op refuses -1.
        return torch.where(inside, index + first, torch.where(index == IGNORE, IGNORE, -1))
