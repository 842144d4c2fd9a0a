"""Sources of the rows of a split: parquet files read in chunks, or tensors. Shapes: N rows, F fields, T tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from adaftr_fast.data.dataset.bags import interleave, take_bags
from adaftr_fast.data.dataset.batch import Batch, concat
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.data.dataset.matrix import matrix
from adaftr_fast.data.dataset.split_file import GROUP, WEIGHT
from adaftr_fast.data.raw.source import READ_ERRORS, check_names
from adaftr_fast.errors import DataError
from adaftr_fast.stores import AnyPath, StorePath, read_version
from adaftr_fast.stores.parquet import parquet_source, read_row_groups
from adaftr_fast.stores.path import Stat


class Rows(Protocol):
    """Rows in chunks that can be read in any order.

    Attributes:
        sizes: number of rows of each chunk.
    """

    sizes: list[int]

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        """Reads the rows of ``chunks``, concatenated; with ``order`` [n], only these distinct rows, in that order."""


class TensorRows:
    """Rows in memory, in chunks of equal size except the last.

    Args:
        content: all rows.
        chunk_rows: rows per chunk.
    """

    def __init__(self, content: Batch, chunk_rows: int = 1 << 16) -> None:
        self.chunks = [content[start : start + chunk_rows] for start in range(0, len(content), chunk_rows)]
        self.sizes = [len(chunk) for chunk in self.chunks]

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        rows = concat([self.chunks[chunk] for chunk in chunks])
        return rows if order is None else rows.take(order)


class ParquetRows:
    """One split of a prepared folder, read by row groups, file after file.

    Args:
        folder: the prepared folder.
        present: where the folder is now, if a writer has moved it aside. Later reads look at both places again.
        checked: the files of which this process compares the sha256.

    Raises:
        DataError: a file is unreadable or does not match the manifest. ``read`` raises it for corrupt pages, missing
            values, and ids or labels out of range.
    """

    def __init__(
        self,
        folder: AnyPath,
        split: str,
        manifest: Manifest,
        present: AnyPath | None = None,
        checked: slice = slice(None),
    ) -> None:
        self.folder, self.name, self.manifest = folder, f"{folder / split}", manifest
        self.fields, self.tasks = [field.name for field in manifest.fields], manifest.tasks
        self.dense = [encoding.name for encoding in manifest.dense]
        self.multiple = {field.name for field in manifest.fields if field.multiple}
        self.limits = {field.name: field.num_embeddings for field in manifest.fields} | dict.fromkeys(self.tasks, 2)
        self.group = [GROUP] if manifest.group else []
        self.weight = [WEIGHT] if manifest.weight else []
        self.sizes: list[int] = []
        self._row_groups: list[tuple[str, int]] = []  # file and index of each row group
        self._footers: dict[str, pq.FileMetaData] = {}  # of each file
        self._stats: dict[str, Stat] = {}  # of each file in a store
        types = {field: pa.list_(pa.int32()) if field in self.multiple else pa.int32() for field in self.fields}
        types |= dict.fromkeys(self.tasks, pa.uint8()) | dict.fromkeys(self.dense, pa.float32())
        types |= dict.fromkeys(self.group, pa.int64()) | dict.fromkeys(self.weight, pa.float32())
        files = manifest.files(split)
        own = set([*files][checked])
        for name, rows in files.items():
            path = (present or folder) / name
            with self._replacement_named():
                if name in own or isinstance(path, StorePath):  # which is quick in a store
                    manifest.check_file(path)
                else:
                    manifest.check_folder(path.parent)
                self._add(path, rows, types)

    def _add(self, path: AnyPath, rows: int, types: dict[str, pa.DataType]) -> None:
        """Adds the row groups of a file after checking its columns and number of rows."""
        if isinstance(path, StorePath):
            self._stats[path.name] = path.stat()
        with _open(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        found = dict(zip(schema.names, schema.types))
        for column, kind in types.items():
            if column not in found:
                raise DataError(f"{path}: no column {column}")
            if found[column] != kind:
                raise DataError(f"{path}: column {column}: expected {kind}, got {found[column]}")
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        if not metadata.num_rows == sum(sizes) == rows:
            raise DataError(f"{path}: expected {rows} rows, got {metadata.num_rows} in row groups of {sum(sizes)}")
        self._footers[path.name] = metadata
        self.sizes += sizes
        self._row_groups += [(path.name, number) for number in range(metadata.num_row_groups)]

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        columns = [*self.fields, *self.dense, *self.tasks, *self.group, *self.weight]
        with self._replacement_named():
            table = read_version(self.folder, lambda present: self._table(present, chunks, columns))
        values = {column: self._values(column, table[column]) for column in columns if column not in self.multiple}

        def stacked(names: list[str], kind: type[np.generic]) -> Tensor:
            return torch.from_numpy(matrix([values[name] for name in names], kind, order))

        def single(names: list[str]) -> Tensor | None:
            if not names:
                return None
            column = values[names[0]]
            return torch.from_numpy(column.copy() if order is None else column[order])

        labels, group, weight = stacked(self.tasks, np.float32), single(self.group), single(self.weight)
        dense = stacked(self.dense, np.float32) if self.dense else None
        if not self.multiple:
            return Batch(stacked(self.fields, np.int32), labels, group, weight, dense=dense)
        bags = [self._lists(each, table) if each in self.multiple else (values[each], None) for each in self.fields]
        ids, offsets = interleave(bags)
        if order is not None:
            ids, offsets = take_bags(ids, offsets, len(table), order)
        return Batch(torch.from_numpy(ids), labels, group, weight, torch.from_numpy(offsets), dense=dense)

    def _table(self, folder: AnyPath, chunks: Sequence[int], columns: list[str]) -> pa.Table:
        row_groups = groupby((self._row_groups[chunk] for chunk in chunks), key=itemgetter(0))
        return pa.concat_tables(
            self._read(folder / name, [number for _, number in own], columns) for name, own in row_groups
        )

    @contextmanager
    def _replacement_named(self) -> Iterator[None]:
        """Raises an error of the block, or the one that the folder in a store was replaced, if that is the reason."""
        try:
            yield
        except DataError:
            if isinstance(self.folder, StorePath):
                self.manifest.check_folder(self.folder)
            raise

    def _read(self, path: AnyPath, row_groups: list[int], columns: list[str]) -> pa.Table:
        """Reads row groups of a file that must still be the one it was when the split was opened."""
        footer = self._footers[path.name]
        try:
            if isinstance(path, StorePath):
                return read_row_groups(path, self._stats[path.name], footer, row_groups, columns)
            with _open(path) as file:
                if not file.metadata.equals(footer):
                    raise DataError(f"{path}: was replaced since it was opened; start again with the new one")
                return file.read_row_groups(row_groups, columns=columns)
        except READ_ERRORS as error:
            raise DataError(f"{path}: not readable: {str(error).splitlines()[0]}") from error

    def _lists(self, column: str, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Returns the checked ids of a column of lists, and their offsets [N + 1] from 0."""
        if table[column].null_count:
            raise DataError(f"{self.name}: column {column}: expected no missing values, got {table[column].null_count}")
        lists = table[column].combine_chunks()
        lists = lists if isinstance(lists, pa.Array) else pa.concat_arrays(lists.chunks)
        offsets = lists.offsets.to_numpy()
        return self._values(column, lists.flatten()), offsets - offsets[0]

    def _values(self, column: str, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Returns the checked values of a column."""
        if values.null_count:
            raise DataError(f"{self.name}: column {column}: expected no missing values, got {values.null_count}")
        values, limit = values.to_numpy(), self.limits.get(column)
        if limit is not None and len(values) and not 0 <= values.min() <= values.max() < limit:
            bounds = f"values from {values.min()} to {values.max()}"
            raise DataError(f"{self.name}: column {column}: expected values in [0, {limit}), got {bounds}")
        return values


def _open(path: AnyPath) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(parquet_source(path), page_checksum_verification=True)
        check_names(file.schema_arrow)
        return file
    except READ_ERRORS as error:
        raise DataError(f"{path}: not readable: {str(error).splitlines()[0]}") from error
