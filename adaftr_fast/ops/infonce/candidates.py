"""Every rank's representations as candidates for every rank's rows.

W ranks; rank r holds B_r rows and N_r columns.
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
    """What the anchors [B, d] of one direction are contrasted with."""

    h: Tensor  # [N, d]
    positive: Tensor | None  # [B], None: 0, 1, ...
    group: Tensor | None  # [N]


class Shared:
    """What the ranks of a group hold together.

    All ranks must make it, and then call its methods, alike.

    Args:
        name: of the op, for errors.
        a, b: this rank's rows [B_r, d] and columns [N_r, d].
        alike: what must be the same on all ranks, by its name in errors: without it some would wait for others in vain.

    Raises:
        ValueError: the ranks differ in the width or type of a and b, or in something of ``alike``.
    """

    def __init__(self, name: str, group: dist.ProcessGroup, a: Tensor, b: Tensor, alike: dict[str, bool]) -> None:
        self.group, self.rank, self.world_size = group, dist.get_rank(group), dist.get_world_size(group)
        same = {"the width d": a.shape[1], "the dtype (by number)": DTYPES.index(a.dtype)} | alike
        mine = torch.tensor([len(a), len(b), *same.values()], device=a.device)
        self.rows, self.columns, *others = gather_numbers(mine, group).T.tolist()
        for what, values in zip(same, others):
            for rank, value in enumerate(values):
                if value != values[0]:
                    raise ValueError(
                        f"{name}: {what} must be the same on all ranks, got {values[0]} on rank 0 and {value} on rank "
                        f"{rank}"
                    )

    def gather(self, own: Candidates, sizes: list[int]) -> Candidates:
        """This rank's candidates, ``sizes[rank]`` of them, after those of the ranks before it and so on."""
        return Candidates(
            gather_rows(own.h, sizes, self.group),
            self._placed(own.positive, sizes).to(own.h.device),
            None if own.group is None else gather_rows(own.group, sizes, self.group),
        )

    def total(self, x: Tensor) -> Tensor:
        """Sum of a 0-dim tensor over the ranks."""
        return gather_rows(x[None], [1] * self.world_size, self.group).sum()

    def _placed(self, index: Tensor | None, sizes: list[int]) -> Tensor:
        """Numbers [B_r] of this rank's candidates among those of all ranks."""
        first = sum(sizes[: self.rank])
        if index is None:
            return torch.arange(first, first + self.rows[self.rank])
        inside = (index >= 0) & (index < sizes[self.rank])
        # What is out of range must not come to lie in another rank's range: the op refuses -1.
        return torch.where(inside, index + first, torch.where(index == IGNORE, IGNORE, -1))
