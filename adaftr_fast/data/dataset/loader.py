"""A prepared folder as batches of tensors, streamed in bounded memory.

A split is read in windows of some row groups each, the next one by a thread while the batches of this one are used.
For training the row groups are drawn at random into windows and the rows of a window are permuted. All of it follows
from (seed, epoch), so a number of batches says where a run stands, and earlier windows need not be read to go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from adaftr_fast.data.dataset.batch import Batch, rebatch
from adaftr_fast.data.dataset.manifest import Manifest, read_manifest
from adaftr_fast.data.dataset.rows import ParquetRows, Rows, TensorRows
from adaftr_fast.errors import DataError

T = TypeVar("T")
SHUFFLE_ROWS = 1 << 20  # at 23 fields a window takes 100 MB, and two are held
READ_ROWS = 1 << 17  # of a window that is read in file order


@dataclass(frozen=True)
class Share:
    """One rank's rows of every batch: of ``run * size`` neighbouring rows the rank's ``run``, again and again."""

    rank: int
    size: int
    run: int

    def of(self, places: np.ndarray) -> np.ndarray:
        """Which of the rows at ``places`` [n] are the rank's, bool [n]."""
        return places // self.run % self.size == self.rank


class Split:
    """Rows to be passed over, in file order or shuffled.

    Args:
        rows: where they come from.
        chunks: those of its chunks that belong to the split, in file order; None for all.
    """

    def __init__(self, rows: Rows, chunks: Sequence[int] | None = None) -> None:
        self.rows = rows
        self.chunks = list(range(len(rows.sizes)) if chunks is None else chunks)

    @classmethod
    def of(cls, content: Batch) -> Split:
        """A split of rows that are tensors already."""
        return cls(TensorRows(content))

    def __len__(self) -> int:
        return sum(self.rows.sizes[chunk] for chunk in self.chunks)

    def shard(self, rank: int, world_size: int) -> Split:
        """The rows of one of ``world_size`` workers: parts are disjoint, cover all, and differ by a chunk at most.

        With fewer chunks than workers some parts are empty.

        Raises:
            ValueError: ``rank`` is not in [0, world_size).
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"Split.shard: rank must be in [0, {world_size}), got {rank}")
        return Split(self.rows, self.chunks[rank::world_size])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in file order; the last batch may be short."""
        windows = self._windows(self.chunks, READ_ROWS)
        blocks = (self.rows.read(window, None) for window in windows)
        return rebatch(_prefetch(blocks), batch_size, drop_last=False)

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
        """All rows but a short last batch in an order set by (seed, epoch, window) alone, from ``first_batch`` on.

        Args:
            window: rows that are permuted together, about; with no more rows in all, every order is possible.
            share: of every batch only one rank's rows, so that the ranks' rows together are the same batches whatever
                their number. Every rank decodes all rows and lays out its own.
        """
        order = np.random.default_rng([seed, epoch]).permutation(self.chunks)
        rows = range(first_batch * batch_size, len(self) // batch_size * batch_size)
        blocks = self._permuted(self._windows(order.tolist(), window), (seed, epoch), rows, share)
        return rebatch(_prefetch(blocks), batch_size // (share.size if share else 1), drop_last=True)

    def _permuted(
        self, windows: list[list[int]], seed: tuple[int, int], rows: range, share: Share | None
    ) -> Iterator[Batch]:
        """The windows' rows, each window in a random order; of them those at the places ``rows``, or a rank's share."""
        first = 0
        for number, window in enumerate(windows, start=1):
            size = sum(self.rows.sizes[chunk] for chunk in window)
            inside = slice(max(0, rows.start - first), max(0, rows.stop - first))
            if inside.start < min(size, inside.stop):
                order = np.random.default_rng([*seed, number]).permutation(size)[inside]
                if share is not None:
                    places = first + inside.start + np.arange(len(order))
                    order = order[share.of(places)]
                yield self.rows.read(window, order)
            first += size

    def _windows(self, chunks: list[int], rows: int) -> list[list[int]]:
        """Neighbouring chunks together, in windows of like size and about ``rows`` rows at most."""
        if not chunks:
            return []
        ends = np.cumsum([self.rows.sizes[chunk] for chunk in chunks])
        count = max(1, -(-int(ends[-1]) // rows))
        number = (ends - 1) * count // ends[-1]  # by the chunk's last row
        return [[chunks[each] for each in np.flatnonzero(number == window)] for window in np.unique(number)]


class PreparedData:
    """A folder written by ``prepare``.

    Raises:
        DataError: not a prepared folder, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)

    def load(self, name: str) -> Split:
        """Opens split ``name`` (train, validation or test).

        Raises:
            DataError: no such split, an unreadable file, or one that does not fit the manifest.
        """
        if name not in self.manifest.splits:
            raise DataError(f"{self.folder}: no split {name!r}; expected one of {', '.join(self.manifest.splits)}")
        return Split(ParquetRows(self.folder, name, self.manifest))


def _prefetch(items: Iterator[T]) -> Iterator[T]:
    """The items, the next one made by a thread while this one is used."""
    with ThreadPoolExecutor(1, "adaftr-fast-loader") as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item
