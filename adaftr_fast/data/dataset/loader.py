"""Reads a prepared folder as batches of tensors, in bounded memory.

A split is read in windows of several row groups. A thread reads the next window while the batches
of the current one are used. For training, row groups are assigned to windows at random, and the
rows of a window are permuted. The order is a function of (seed, epoch), so a run resumes from a
batch number without reading earlier windows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adaftr_fast.data.dataset.manifest import Manifest, read_manifest
from adaftr_fast.data.parallel import prefetch
from adaftr_fast.errors import DataError
from adaftr_fast.files.publish import read_published

if TYPE_CHECKING:  # with torch, which takes seconds and which prepare needs not
    from adaftr_fast.data.dataset.batch import Batch
    from adaftr_fast.data.dataset.rows import Rows

SHUFFLE_ROWS = 1 << 20  # 100 MB per window at 23 fields; two windows are held
READ_ROWS, READ_BYTES = 1 << 17, 32 << 20  # of a window read in file order


@dataclass(frozen=True)
class Share:
    """Rows of every batch that belong to one rank.

    Out of every ``run * size`` consecutive rows, the rank has ``run`` consecutive rows.
    """

    rank: int
    size: int
    run: int

    def of(self, positions: np.ndarray) -> np.ndarray:
        """Returns whether the rows at ``positions`` [n] belong to the rank, bool [n]."""
        return positions // self.run % self.size == self.rank


class Split:
    """Rows of a split, read in file order or shuffled.

    Args:
        rows: source of the rows.
        chunks: chunks of ``rows`` that belong to the split, in file order; None for all.
        funnel: tasks of which each can be positive only where the one before it is; () if there are
            none. None if the source of the rows does not tell.
    """

    def __init__(
        self, rows: Rows, chunks: Sequence[int] | None = None, funnel: tuple[str, ...] | None = None
    ) -> None:
        self.rows = rows
        self.funnel = funnel
        self.chunks = list(range(len(rows.sizes)) if chunks is None else chunks)

    @classmethod
    def of(cls, content: Batch) -> Split:
        """Returns a split of rows in memory."""
        from adaftr_fast.data.dataset.rows import TensorRows

        return cls(TensorRows(content))

    def __len__(self) -> int:
        return sum(self.rows.sizes[chunk] for chunk in self.chunks)

    def shard(self, rank: int, world_size: int) -> Split:
        """Returns the rows of one of ``world_size`` workers.

        Shards are disjoint, cover all rows and differ by at most one chunk. Some are empty if there
        are fewer chunks than workers.

        Raises:
            ValueError: ``rank`` is not in [0, world_size).
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"Split.shard: rank must be in [0, {world_size}), got {rank}")
        return Split(self.rows, self.chunks[rank::world_size], self.funnel)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields all rows in file order. The last batch may be short."""
        from adaftr_fast.data.dataset.batch import rebatch

        windows = self._windows(self.chunks, READ_ROWS, READ_BYTES)
        blocks = (self.rows.read(window, None) for window in windows)
        return rebatch(prefetch(blocks), batch_size, drop_last=False)

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        first_batch: int = 0,
        window: int = SHUFFLE_ROWS,
        share: Share | None = None,
    ) -> Iterator[Batch]:
        """Yields shuffled batches from batch ``first_batch`` on. A short last batch is dropped.

        The order is a function of (seed, epoch, window) only.

        Args:
            window: approximate number of rows that are permuted together. If the split has no more
                rows, every order is possible.
            share: yields only one rank's rows of every batch. The rows of all ranks together are
                the same batches for any number of ranks. Every rank decodes all rows but copies
                only its own.
        """
        from adaftr_fast.data.dataset.batch import rebatch

        order = np.random.default_rng([seed, epoch]).permutation(self.chunks)
        rows = range(first_batch * batch_size, len(self) // batch_size * batch_size)
        blocks = self._permuted(self._windows(order.tolist(), window), (seed, epoch), rows, share)
        return rebatch(prefetch(blocks), batch_size // (share.size if share else 1), drop_last=True)

    def _permuted(
        self, windows: list[list[int]], seed: tuple[int, int], rows: range, share: Share | None
    ) -> Iterator[Batch]:
        """Yields the rows of each window in random order: those at the positions ``rows``, or the
        share of a rank.
        """
        first = 0
        for number, window in enumerate(windows, start=1):
            size = sum(self.rows.sizes[chunk] for chunk in window)
            inside = slice(max(0, rows.start - first), max(0, rows.stop - first))
            if inside.start < min(size, inside.stop):
                order = np.random.default_rng([*seed, number]).permutation(size)[inside]
                if share is not None:
                    positions = first + inside.start + np.arange(len(order))
                    order = order[share.of(positions)]
                yield self.rows.read(window, order)
            first += size

    def _windows(self, chunks: list[int], rows: int, most: int = sys.maxsize) -> list[list[int]]:
        """Groups adjacent chunks into windows of similar size, with at most about ``rows`` rows and
        ``most`` bytes.
        """
        if not chunks:
            return []
        ends = np.cumsum([self.rows.sizes[chunk] for chunk in chunks])
        size = sum(self.rows.nbytes[chunk] for chunk in chunks)
        count = max(1, -(-int(ends[-1]) // rows), -(-size // most))
        number = (ends - 1) * count // ends[-1]  # by the last row of each chunk
        return [
            [chunks[each] for each in np.flatnonzero(number == window)]
            for window in np.unique(number)
        ]


class PreparedData:
    """A folder written by ``prepare``.

    Args:
        folder: the path.
        name: the text by which runs record the folder; None for its path.

    Attributes:
        folder: the path.
        manifest: its manifest.

    Raises:
        DataError: the folder is not a prepared folder, or has another format.
    """

    def __init__(self, folder: str | Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = str(self.folder) if name is None else name
        self.manifest: Manifest = read_published(self.folder, read_manifest)

    def load(self, name: str, checked: slice = slice(None)) -> Split:
        """Opens split ``name`` (train, validation or test).

        Args:
            name: the split.
            checked: the files of the split of which this process compares the sha256; by default
                all.

        Raises:
            DataError: there is no such split, or a file is unreadable or does not match the
                manifest.
        """
        from adaftr_fast.data.dataset.rows import ParquetRows

        if name not in self.manifest.splits:
            raise DataError(
                f"{self.folder}: no split {name!r}; expected one of "
                f"{', '.join(self.manifest.splits)}"
            )
        rows = read_published(
            self.folder,
            lambda present: ParquetRows(self.folder, name, self.manifest, present, checked),
        )
        return Split(rows, funnel=self.manifest.funnel)
