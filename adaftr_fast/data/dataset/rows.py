"""Sources of the rows of a split: parquet files read in chunks, or tensors. Shapes: N rows, F
fields, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from adaftr_fast.data.arrow import check_names, one_array, reading
from adaftr_fast.data.dataset.batch import Batch, concat, concat_offsets, interleave, take_bags
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.data.dataset.matrix import place, places_of
from adaftr_fast.data.dataset.split_file import GROUP, stored_columns
from adaftr_fast.data.parallel import prefetch
from adaftr_fast.errors import DataError
from adaftr_fast.files.publish import read_published

KINDS = {  # of the tensors of a batch
    "ids": np.int32,
    "dense": np.float32,
    "labels": np.float32,
    "group": np.int64,
    "weight": np.float32,
}


class Rows(Protocol):
    """Rows in chunks that can be read in any order.

    Attributes:
        sizes: number of rows of each chunk.
        nbytes: approximate number of bytes of each chunk that are to be read; 0 in memory.
        grouped: whether rows have groups.
    """

    sizes: list[int]
    nbytes: list[int]
    grouped: bool

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        """Reads the rows of ``chunks``, concatenated; with ``order`` [n], only these distinct rows,
        in that order.
        """


class TensorRows:
    """Rows in memory, in chunks of equal size except the last.

    Args:
        content: all rows.
        chunk_rows: rows per chunk.
    """

    def __init__(self, content: Batch, chunk_rows: int = 1 << 16) -> None:
        self.chunks = [
            content[start : start + chunk_rows] for start in range(0, len(content), chunk_rows)
        ]
        self.sizes = [len(chunk) for chunk in self.chunks]
        self.nbytes = [0] * len(self.chunks)
        self.grouped = content.group is not None

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        rows = concat([self.chunks[chunk] for chunk in chunks])
        return rows if order is None else rows.take(order)


class ParquetRows:
    """One split of a prepared folder, read by row groups, file after file.

    Args:
        folder: the prepared folder.
        present: where the folder is now, if a writer has moved it aside. Later reads look at both
            places again.
        checked: the files of which this process compares the sha256.

    Raises:
        DataError: a file is unreadable or does not match the manifest. ``read`` raises it for
            corrupt pages, missing values, and ids or labels out of range.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        manifest: Manifest,
        present: Path | None = None,
        checked: slice = slice(None),
    ) -> None:
        self.folder = folder
        self.name = f"{folder / split}"
        self.manifest = manifest
        self._columns = stored_columns(manifest.parsed)
        self._types: dict[str, pa.DataType] = {}
        for types in self._columns.values():
            self._types |= types
        self._limits = dict(zip(self._columns["ids"], manifest.num_embeddings))
        self._limits |= dict.fromkeys(self._columns["labels"], 2)
        self._has_lists = any(map(pa.types.is_list, self._types.values()))
        self.grouped = GROUP in self._types
        self.sizes: list[int] = []
        self.nbytes: list[int] = []
        self._row_groups: list[tuple[str, int]] = []  # file and index of each row group
        self._files: dict[str, pq.FileMetaData] = {}
        files = manifest.files(split)
        place = present or folder
        with manifest.naming_replacement(folder):
            for name in [*files][checked]:
                manifest.check_file(place / name)
            for name, rows in files.items():
                self._add(place / name, rows)
        if len([*files][checked]) < len(files):  # another process compares the other files
            manifest.check_folder(place)

    def _add(self, path: Path, rows: int) -> None:
        """Adds the row groups of a file after checking its columns and number of rows."""
        with reading(path, "not readable"):
            with pq.ParquetFile(path) as file:
                metadata = file.metadata
                schema = file.schema_arrow
            check_names(schema)
        found = dict(zip(schema.names, schema.types))
        for column, kind in self._types.items():
            if column not in found:
                raise DataError(f"{path}: no column {column}")
            if found[column] != kind:
                raise DataError(f"{path}: column {column}: expected {kind}, got {found[column]}")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [group.num_rows for group in groups]
        if not metadata.num_rows == sum(sizes) == rows:
            raise DataError(
                f"{path}: expected {rows} rows, got {metadata.num_rows} in row groups of "
                f"{sum(sizes)}"
            )
        self._files[path.name] = metadata
        self.sizes += sizes
        self.nbytes += [group.total_byte_size for group in groups]
        self._row_groups += [(path.name, number) for number in range(metadata.num_row_groups)]

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        count = sum(self.sizes[chunk] for chunk in chunks)
        size = count if order is None else len(order)
        places = None if order is None else places_of(order, count)
        # the last row takes those that are in no place
        whole = {
            part: np.empty((size + 1, len(columns)), KINDS[part])
            for part, columns in self._columns.items()
            if columns and not (part == "ids" and self._has_lists)
        }
        bags = []
        first = 0
        with self.manifest.naming_replacement(self.folder):
            # the rows of one move to their places, the next is decoded
            for table in prefetch(self._tables(chunks)):
                here = slice(first, first + len(table))
                for part, rows in whole.items():
                    values = [self._values(name, table[name]) for name in self._columns[part]]
                    if places is None:
                        place(values, None, rows[here])
                    else:
                        place(values, places[here], rows)
                if self._has_lists:
                    bags.append(
                        interleave([self._bag(name, table[name]) for name in self._columns["ids"]])
                    )
                first = here.stop
                del table, values  # before the next one but one is decoded
        parts = {part: rows[:size] for part, rows in whole.items()}
        for part in parts.keys() & {"group", "weight"}:
            parts[part] = parts[part][:, 0]
        if bags:
            ids = np.concatenate([own for own, _ in bags])
            offsets = concat_offsets([own for _, own in bags])
            if order is not None:
                ids, offsets = take_bags(ids, offsets, count, order)
            parts |= {"ids": ids, "offsets": offsets}
        return Batch(**{part: torch.from_numpy(rows) for part, rows in parts.items()})

    def _tables(self, chunks: Sequence[int]) -> Iterator[pa.Table]:
        """Yields the rows of the chunks, a row group at a time."""
        for name, own in groupby((self._row_groups[chunk] for chunk in chunks), key=itemgetter(0)):
            unchanged = partial(self._unchanged, name)
            # what is open can be read to the end, even if the folder is replaced
            with (
                reading(self.folder / name, "not readable"),
                read_published(self.folder, unchanged) as file,
            ):
                for _, number in own:
                    yield file.read_row_group(number, columns=list(self._types))

    def _unchanged(self, name: str, present: Path) -> pq.ParquetFile:
        """Opens a file. Raises DataError if it was replaced."""
        file = pq.ParquetFile(present / name, page_checksum_verification=True)
        if not file.metadata.equals(self._files[name]):
            file.close()
            raise DataError(
                f"{present / name}: was replaced since it was opened; start again with the new one"
            )
        return file

    def _bag(self, column: str, values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the checked ids of a field, and the offsets [N + 1] from 0 of lists."""
        if not pa.types.is_list(values.type):
            return self._values(column, values), None
        self._check_present(column, values)
        lists = one_array(values)
        offsets = lists.offsets.to_numpy()
        return self._values(column, lists.flatten()), offsets - offsets[0]

    def _values(self, column: str, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Returns the checked values of a column."""
        self._check_present(column, values)
        values = values.to_numpy()
        limit = self._limits.get(column)
        if limit is not None and len(values) and not 0 <= values.min() <= values.max() < limit:
            bounds = f"values from {values.min()} to {values.max()}"
            raise DataError(
                f"{self.name}: column {column}: expected values in [0, {limit}), got {bounds}"
            )
        return values

    def _check_present(self, column: str, values: pa.Array | pa.ChunkedArray) -> None:
        if values.null_count:
            raise DataError(
                f"{self.name}: column {column}: expected no missing values, got {values.null_count}"
            )
