"""A tensor whose rows lie on several ranks, read and written by rank 0, the chief, a piece at a time.

R rows in all, which shards hold one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast._tensor_file import Readable

PIECE = 1 << 22  # numbers that travel at once


@dataclass(frozen=True)
class Shard:
    """Some neighbouring rows.

    Attributes:
        owner: the rank that has them.
        rows: how many.
        local: [rows, ...] on the owner, None elsewhere.
    """

    owner: int
    rows: int
    local: Tensor | None


class ShardedRows:
    """float32 [R, ...] on several ranks; all must make it alike, and call its methods in the same order.

    Args:
        shards: in the order of rows.
        rest: the shape of a row.
    """

    dtype = torch.float32

    def __init__(self, shards: Iterable[Shard], rest: Sequence[int]) -> None:
        self.shards = list(shards)
        self.shape = torch.Size([sum(shard.rows for shard in self.shards), *rest])

    def pieces(self) -> Iterator[Tensor]:
        """All rows in their order, some at a time, on the chief's CPU; the others yield nothing and send theirs."""
        me = dist.get_rank()
        for shard, start, stop in self._runs():
            if me == shard.owner:
                piece = shard.local[start:stop].detach().cpu().contiguous()
                if me == 0:
                    yield piece
                else:
                    dist.send(piece, 0)
            elif me == 0:
                piece = torch.empty(stop - start, *self.shape[1:])
                dist.recv(piece, shard.owner)
                yield piece

    @torch.no_grad()
    def fill(self, source: Readable | None) -> None:
        """Puts the chief's rows ``source`` [R, ...] where they belong; the others give None."""
        me, first = dist.get_rank(), 0
        for shard, start, stop in self._runs():
            rows = stop - start
            if me == 0:
                piece = source[first : first + rows]
                if shard.owner == 0:
                    shard.local[start:stop] = piece.to(shard.local.device)
                else:
                    dist.send(piece.float().contiguous(), shard.owner)
            elif me == shard.owner:
                piece = torch.empty(rows, *self.shape[1:])
                dist.recv(piece, 0)
                shard.local[start:stop] = piece.to(shard.local.device)
            first += rows

    def send(self) -> None:
        """What every rank but the chief does while the chief reads ``pieces``."""
        for _ in self.pieces():
            raise AssertionError("ShardedRows.send: called by the chief, which reads pieces()")

    def _runs(self) -> Iterator[tuple[Shard, int, int]]:
        """Shards cut into runs of rows that travel at once."""
        step = max(1, PIECE // max(1, self.shape[1:].numel()))
        for shard in self.shards:
            for start in range(0, shard.rows, step):
                yield shard, start, min(start + step, shard.rows)
