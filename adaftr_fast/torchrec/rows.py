"""A tensor whose rows are sharded over ranks. Each rank reads and writes the rows that it holds.

Shapes: R rows in all, which the shards hold one after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from adaftr_fast._tensor_file import Readable

CHUNK = 1 << 22  # numbers per message or read


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

    All ranks must construct it with the same arguments and call ``fill`` in the same order.

    Args:
        shards: the shards in the order of rows.
        rest: the shape of a row.
    """

    def __init__(self, shards: Iterable[Shard], rest: Sequence[int]) -> None:
        self.shards = list(shards)
        self.shape = torch.Size([sum(shard.rows for shard in self.shards), *rest])

    def local(self) -> Iterator[tuple[int, Tensor]]:
        """Yields the first row and the rows of each shard on this rank, without empty ones. Needs
        no other rank.
        """
        first = 0
        for shard in self.shards:
            if shard.local is not None and shard.rows:
                yield first, shard.local
            first += shard.rows

    @torch.no_grad()
    def read(self, source: Readable) -> None:
        """Writes the rows of ``source`` [R, ...] to the shards on this rank, in chunks. Needs no
        other rank.
        """
        for first, rows in self.local():
            for start in range(0, len(rows), self._step):
                stop = min(start + self._step, len(rows))
                rows[start:stop] = source[first + start : first + stop].to(rows.device)

    @torch.no_grad()
    def take(self, source: Readable, sources: Tensor) -> None:
        """Copies rows of another tensor to the shards on this rank, in chunks. Needs no other rank.

        Args:
            source: the other tensor [S, ...], of which only ranges between rows to copy are read.
            sources: the row of ``source`` for each row, int64 [R]; a negative number leaves the row
                as it is.
        """
        for first, rows in self.local():
            wanted, order = sources[first : first + len(rows)].sort()
            start = int(torch.searchsorted(wanted, 0))
            while start < len(wanted):
                low = int(wanted[start])
                stop = int(torch.searchsorted(wanted, low + self._step))
                chunk = source[low : int(wanted[stop - 1]) + 1]
                rows[order[start:stop].to(rows.device)] = chunk[wanted[start:stop] - low].to(
                    rows.device
                )
                start = stop

    @torch.no_grad()
    def fill(self, source: Readable | None) -> None:
        """Writes rank 0's rows ``source`` [R, ...] to the ranks that own them; the other ranks pass
        None.
        """
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

    @property
    def _step(self) -> int:
        """The number of rows that are read or sent at once."""
        return max(1, CHUNK // max(1, self.shape[1:].numel()))

    def _ranges(self) -> Iterator[tuple[Shard, int, int]]:
        """Yields (shard, start, stop) for each message."""
        for shard in self.shards:
            for start in range(0, shard.rows, self._step):
                yield shard, start, min(start + self._step, shard.rows)
