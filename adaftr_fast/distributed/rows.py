"""A tensor whose rows are sharded over ranks. Each rank reads and writes the rows that it holds.

Shapes: R rows in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from adaftr_fast.files.tensors import Readable

CHUNK = 1 << 22  # numbers per read


class ShardedRows:
    """A float32 tensor [R, ...] sharded over ranks. No method needs another rank.

    Args:
        shape: the shape of the whole tensor.
        local: the first row and the rows [rows, ...] of each shard on this rank, in order.

    Attributes:
        local: those shards that are not empty.
    """

    def __init__(self, shape: Sequence[int], local: Iterable[tuple[int, Tensor]]) -> None:
        self.shape = torch.Size(shape)
        self.local = [(first, rows) for first, rows in local if len(rows)]

    @torch.no_grad()
    def read(self, source: Readable) -> None:
        """Writes the rows of ``source`` [R, ...] to the shards on this rank, in chunks."""
        for first, rows in self.local:
            for start in range(0, len(rows), self._step):
                stop = min(start + self._step, len(rows))
                rows[start:stop] = source[first + start : first + stop].to(rows.device)

    @torch.no_grad()
    def take(self, source: Readable, sources: Tensor) -> None:
        """Copies rows of another tensor to the shards on this rank, in chunks.

        Args:
            source: the other tensor [S, ...], of which only ranges between rows to copy are read.
            sources: the row of ``source`` for each row, int64 [R]; a negative number leaves the row
                as it is.
        """
        for first, rows in self.local:
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

    @property
    def _step(self) -> int:
        """The number of rows that are read at once."""
        return max(1, CHUNK // max(1, self.shape[1:].numel()))
