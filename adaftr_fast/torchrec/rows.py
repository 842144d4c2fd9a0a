"""A tensor whose rows are sharded over ranks; rank 0 reads and writes it in chunks.

Shapes: R rows in all, which the shards hold one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast._tensor_file import Readable

CHUNK = 1 << 22  # numbers per message


@dataclass(frozen=True)
class Shard:
    """A range of consecutive rows on one rank.

    Attributes:
        owner: the rank that holds the rows.
        rows: the number of rows.
        local: the rows [rows, ...] on the owner, None elsewhere.
    """

    owner: int
    rows: int
    local: Tensor | None

    @property
    def held(self) -> Tensor:
        """Returns ``local`` on the owner."""
        assert self.local is not None, f"rank {self.owner} holds these rows"
        return self.local


class ShardedRows:
    """A float32 tensor [R, ...] sharded over ranks.

    All ranks must construct it with the same arguments and call its methods in the same order.

    Args:
        shards: the shards in the order of rows.
        rest: the shape of a row.
    """

    dtype = torch.float32

    def __init__(self, shards: Iterable[Shard], rest: Sequence[int]) -> None:
        self.shards = list(shards)
        self.shape = torch.Size([sum(shard.rows for shard in self.shards), *rest])

    def chunks(self) -> Iterator[Tensor]:
        """Yields all rows in order, in chunks on the CPU of rank 0. The other ranks send theirs and yield nothing."""
        me = dist.get_rank()
        for shard, start, stop in self._ranges():
            if me == shard.owner:
                chunk = shard.held[start:stop].detach().cpu().contiguous()
                if me == 0:
                    yield chunk
                else:
                    dist.send(chunk, 0)
            elif me == 0:
                chunk = torch.empty(stop - start, *self.shape[1:])
                dist.recv(chunk, shard.owner)
                yield chunk

    @torch.no_grad()
    def fill(self, source: Readable | None) -> None:
        """Writes rank 0's rows ``source`` [R, ...] to the ranks that own them; the other ranks pass None."""
        me, first = dist.get_rank(), 0
        for shard, start, stop in self._ranges():
            rows = stop - start
            if me == 0:
                assert source is not None  # rank 0 passes it
                chunk = source[first : first + rows]
                if shard.owner == 0:
                    shard.held[start:stop] = chunk.to(shard.held.device)
                else:
                    dist.send(chunk.float().contiguous(), shard.owner)
            elif me == shard.owner:
                chunk = torch.empty(rows, *self.shape[1:])
                dist.recv(chunk, 0)
                shard.held[start:stop] = chunk.to(shard.held.device)
            first += rows

    def send(self) -> None:
        """Sends this rank's rows while rank 0 iterates over ``chunks``."""
        for _ in self.chunks():
            raise AssertionError("ShardedRows.send: must not be called on rank 0, which reads chunks()")

    def _ranges(self) -> Iterator[tuple[Shard, int, int]]:
        """Yields (shard, start, stop) for each message."""
        step = max(1, CHUNK // max(1, self.shape[1:].numel()))
        for shard in self.shards:
            for start in range(0, shard.rows, step):
                yield shard, start, min(start + step, shard.rows)
