"""Candidates gathered from all ranks.

Shapes: W ranks; rank r holds B_r rows (anchors) and N_r columns (candidates).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo

from adaftr_fast.distributed.gather import gather_numbers, gather_rows
from adaftr_fast.ops.infonce.reference import IGNORE

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OF_COLUMNS = ("candidates", "column_group", "column_label")


class Direction(NamedTuple):
    """The tensors of one direction of a contrast, by the names of an op's arguments."""

    anchors: Tensor  # [B, d]
    candidates: Tensor  # [N, d]
    positive: Tensor | None = None  # [B], default arange(B)
    tau: Tensor | None = None  # [B]
    row_group: Tensor | None = None  # [B]
    column_group: Tensor | None = None  # [N]
    row_label: Tensor | None = None  # [B], the anchors' positive groups
    column_label: Tensor | None = None  # [N], those of the candidates
    candidate_mask: Tensor | None = None  # [B, N] bool, False where excluded


class CrossRankBatch:
    """A batch whose rows are split over the ranks of a process group.

    All ranks must construct it, and call its methods in the same order.

    Args:
        op: the name of the op, for error messages.
        group: the process group.
        h_ctr: this rank's anchors [B_r, d].
        h_cvr: this rank's candidates [N_r, d].
        must_agree: settings that must be equal on all ranks, by their names in error messages.
            Where they differ, some ranks would wait in a collective that the others never enter.

    Raises:
        ValueError: the ranks differ in the width or dtype of the representations, or in a setting
            of ``must_agree``.
    """

    def __init__(
        self,
        op: str,
        group: dist.ProcessGroup,
        h_ctr: Tensor,
        h_cvr: Tensor,
        must_agree: dict[str, bool],
    ) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        settings = {
            "the width d": h_ctr.shape[1],
            "the dtype (by index)": DTYPES.index(h_ctr.dtype),
        } | must_agree
        own = torch.tensor([len(h_ctr), len(h_cvr), *settings.values()], device=h_ctr.device)
        self.rows, self.columns, *others = gather_numbers(own, group).T.tolist()
        for name, values in zip(settings, others):
            for rank, value in enumerate(values):
                if value != values[0]:
                    raise ValueError(
                        f"{op}: {name} must be the same on all ranks, got {values[0]} on rank 0 "
                        f"and {value} on rank "
                        f"{rank}"
                    )

    def gather(self, own: Direction, sizes: list[int]) -> Direction:
        """Replaces the candidates by those of all ranks, ``sizes[rank]`` each: this rank's, then
        the next ranks', in a ring.

        A positive keeps its index, because this rank's candidates come first. Row r's thus stays at
        r where it is by default, and the kernels need masks on the diagonal alone.
        """
        columns = {name: getattr(own, name) for name in OF_COLUMNS}
        gathered = {
            name: self._gather_rows(x, sizes) for name, x in columns.items() if x is not None
        }
        if own.positive is not None:
            gathered["positive"] = _own_index(own.positive, sizes[self.rank])
        return own._replace(**gathered)

    def total(self, x: Tensor) -> Tensor:
        """Sums a 0-dim tensor over the ranks."""
        return gather_rows(x[None], [1] * self.world_size, self.group).sum()

    def _gather_rows(self, x: Tensor, sizes: list[int]) -> Tensor:
        first = sum(sizes[: self.rank])  # of this rank's rows in the order of ranks
        rows = gather_rows(x, sizes, self.group)
        return rows.roll(-first, 0) if first > 0 else rows


@_disable_dynamo  # torch.compiler.disable, without importing the compiler until it is needed
def across_ranks(*arguments: Any) -> CrossRankBatch:
    """Returns ``CrossRankBatch(*arguments)``, which exchanges the batch sizes and checks that
    whatever decides on a collective, in backward too, agrees on all ranks.
    """
    return CrossRankBatch(*arguments)


def _own_index(index: Tensor, size: int) -> Tensor:
    """Replaces indices that are not of this rank's ``size`` candidates by -1, which the op refuses,
    but keeps IGNORE.

    Such an index must not select a candidate of another rank.
    """
    return torch.where(((index >= 0) & (index < size)) | (index == IGNORE), index, -1)
