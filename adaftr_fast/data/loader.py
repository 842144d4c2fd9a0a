"""A prepared folder as batches of tensors. N rows, F fields, T tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from adaftr_fast.data.batch import Batch
from adaftr_fast.data.errors import DataError
from adaftr_fast.data.manifest import Manifest, read_manifest
from adaftr_fast.data.prepare import GROUP


@dataclass(frozen=True)
class Split:
    """One split in memory.

    Attributes:
        ids: int32 [N, F], row-major, so that a batch is one row gather.
        labels: float32 [N, T].
        group: int64 [N] or None.
    """

    ids: Tensor
    labels: Tensor
    group: Tensor | None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All rows in file order; the last batch may be short."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield Batch(self.ids[rows], self.labels[rows], None if self.group is None else self.group[rows])

    def shuffled(self, batch_size: int, *, seed: int, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """All rows but a short last batch in an order set by (seed, epoch) alone, from batch ``first_batch`` on."""
        state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        order = torch.randperm(len(self), generator=generator)
        for start in range(first_batch * batch_size, len(self) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            group = None if self.group is None else self.group.index_select(0, rows)
            yield Batch(self.ids.index_select(0, rows), self.labels.index_select(0, rows), group)


class PreparedData:
    """A folder written by ``prepare``.

    Raises:
        DataError: not a prepared folder, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)

    def load(self, name: str) -> Split:
        """Reads split ``name`` (train, validation or test) into memory.

        Raises:
            DataError: no such split, an unreadable file, or content that does not fit the manifest.
        """
        if name not in self.manifest.splits:
            raise DataError(f"{self.folder}: no split {name!r}; expected one of {', '.join(self.manifest.splits)}")
        path = self.folder / f"{name}.parquet"
        fields = [field.name for field in self.manifest.fields]
        columns = fields + self.manifest.tasks + ([GROUP] if self.manifest.group else [])
        try:
            table = pq.read_table(path, columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not readable: {str(error).splitlines()[0]}") from error
        self._check(path, name, table, columns)
        return Split(
            ids=torch.from_numpy(_matrix(table, fields, np.int32)),
            labels=torch.from_numpy(_matrix(table, self.manifest.tasks, np.float32)),
            group=torch.from_numpy(table[GROUP].to_numpy().copy()) if self.manifest.group else None,
        )

    def _check(self, path: Path, name: str, table: pa.Table, columns: list[str]) -> None:
        absent = [column for column in columns if column not in table.column_names]
        if absent:
            raise DataError(f"{path}: no column {', '.join(absent)}")
        if table.num_rows != self.manifest.splits[name].rows:
            raise DataError(f"{path}: {table.num_rows} rows, expected {self.manifest.splits[name].rows}")
        limits = {field.name: field.num_embeddings for field in self.manifest.fields}
        limits |= dict.fromkeys(self.manifest.tasks, 2)
        for column, limit in limits.items():
            values = table[column].to_numpy()
            if values.min() < 0 or values.max() >= limit:
                raise DataError(f"{path}: column {column}: [{values.min()}, {values.max()}] leaves [0, {limit})")


def _matrix(table: pa.Table, columns: list[str], kind: type[np.generic]) -> np.ndarray:
    matrix = np.empty((table.num_rows, len(columns)), kind)
    for position, column in enumerate(columns):
        matrix[:, position] = table[column].to_numpy()
    return matrix
