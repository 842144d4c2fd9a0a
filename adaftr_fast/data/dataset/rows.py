"""Sources of the rows of a split: parquet files read in chunks, or tensors. Shapes: N rows, F
fields, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from adaftr_fast._files import AnyPath
from adaftr_fast.data.dataset.batch import Batch, concat, concat_offsets, interleave, take_bags
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.data.dataset.matrix import place, places_of, rows_for
from adaftr_fast.data.dataset.split_file import GROUP, WEIGHT
from adaftr_fast.data.encode.encoders import one_array
from adaftr_fast.data.parallel import prefetch
from adaftr_fast.data.raw.source import check_names, reading
from adaftr_fast.errors import DataError
from adaftr_fast.stores.parquet import Opened, open_parquet, row_groups


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
        folder: AnyPath,
        split: str,
        manifest: Manifest,
        present: AnyPath | None = None,
        checked: slice = slice(None),
    ) -> None:
        self.folder = folder
        self.name = f"{folder / split}"
        self.manifest = manifest
        self.fields = [field.name for field in manifest.fields]
        self.tasks = manifest.tasks
        self.dense = [encoding.name for encoding in manifest.dense]
        self.multiple = {field.name for field in manifest.fields if field.multiple}
        self.limits = {
            field.name: field.num_embeddings for field in manifest.fields
        } | dict.fromkeys(self.tasks, 2)
        self.grouped = bool(manifest.group)
        self.group = [GROUP] if self.grouped else []
        self.weight = [WEIGHT] if manifest.weight else []
        parts: dict[str, tuple[list[str], type[np.generic]]] = {
            "ids": (self.fields, np.int32),
            "labels": (self.tasks, np.float32),
            "dense": (self.dense, np.float32),
            "group": (self.group, np.int64),
            "weight": (self.weight, np.float32),
        }
        if self.multiple:  # whose ids are no matrix
            del parts["ids"]
        # columns and type of a batch's tensors
        self._parts = {name: part for name, part in parts.items() if part[0]}
        self.sizes: list[int] = []
        self.nbytes: list[int] = []
        self._row_groups: list[tuple[str, int]] = []  # file and index of each row group
        self._files: dict[str, Opened] = {}
        types = {
            field: pa.list_(pa.int32()) if field in self.multiple else pa.int32()
            for field in self.fields
        }
        types |= dict.fromkeys(self.tasks, pa.uint8()) | dict.fromkeys(self.dense, pa.float32())
        types |= dict.fromkeys(self.group, pa.int64()) | dict.fromkeys(self.weight, pa.float32())
        files = manifest.files(split)
        place = present or folder
        with manifest.naming_replacement(folder):
            for name in [*files][checked]:
                manifest.check_file(place / name)
            for name, rows in files.items():
                self._add(place / name, rows, types)
        if len([*files][checked]) < len(files):  # another process compares the other files
            manifest.check_folder(place)

    def _add(self, path: AnyPath, rows: int, types: dict[str, pa.DataType]) -> None:
        """Adds the row groups of a file after checking its columns and number of rows."""
        with reading(path, "not readable"):
            file = open_parquet(path)
            check_names(file.schema)
        metadata = file.footer
        found = dict(zip(file.schema.names, file.schema.types))
        for column, kind in types.items():
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
        self._files[path.name] = file
        self.sizes += sizes
        self.nbytes += [group.total_byte_size for group in groups]
        self._row_groups += [(path.name, number) for number in range(metadata.num_row_groups)]

    def read(self, chunks: Sequence[int], order: np.ndarray | None) -> Batch:
        count = sum(self.sizes[chunk] for chunk in chunks)
        places = None if order is None else places_of(order, count)
        whole = {
            name: rows_for(order, count, len(of), kind) for name, (of, kind) in self._parts.items()
        }
        bags = []
        first = 0
        with self.manifest.naming_replacement(self.folder):
            # the rows of one move to their places, the next is decoded
            for table in prefetch(self._tables(chunks)):
                here = slice(first, first + len(table))
                for name, rows in whole.items():
                    columns = [self._values(each, table[each]) for each in self._parts[name][0]]
                    place(
                        columns,
                        None if places is None else places[here],
                        rows[here] if places is None else rows,
                    )
                if self.multiple:
                    bags.append(interleave([self._bag(each, table[each]) for each in self.fields]))
                first = here.stop
                del table, columns  # before the next one but one is decoded
        parts = {
            name: rows[: count if order is None else len(order)] for name, rows in whole.items()
        }
        if bags:
            ids = np.concatenate([own for own, _ in bags])
            offsets = concat_offsets([own for _, own in bags])
            if order is not None:
                ids, offsets = take_bags(ids, offsets, count, order)
            parts |= {"ids": ids, "offsets": offsets}
        return _batch(parts)

    def _tables(self, chunks: Sequence[int]) -> Iterator[pa.Table]:
        """Yields the rows of the chunks, a row group at a time; from a store, all of a file, which
        it sends at once.
        """
        columns = [*self.fields, *self.dense, *self.tasks, *self.group, *self.weight]
        for name, own in groupby((self._row_groups[chunk] for chunk in chunks), key=itemgetter(0)):
            with reading(self.folder / name, "not readable"):
                yield from row_groups(
                    self.folder, name, self._files[name], [number for _, number in own], columns
                )

    def _bag(self, column: str, values: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the checked ids of a field, and the offsets [N + 1] from 0 of lists."""
        if column not in self.multiple:
            return self._values(column, values), None
        if values.null_count:
            raise DataError(
                f"{self.name}: column {column}: expected no missing values, got {values.null_count}"
            )
        lists = one_array(values)
        offsets = lists.offsets.to_numpy()
        return self._values(column, lists.flatten()), offsets - offsets[0]

    def _values(self, column: str, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Returns the checked values of a column."""
        if values.null_count:
            raise DataError(
                f"{self.name}: column {column}: expected no missing values, got {values.null_count}"
            )
        values, limit = values.to_numpy(), self.limits.get(column)
        if limit is not None and len(values) and not 0 <= values.min() <= values.max() < limit:
            bounds = f"values from {values.min()} to {values.max()}"
            raise DataError(
                f"{self.name}: column {column}: expected values in [0, {limit}), got {bounds}"
            )
        return values


def _batch(parts: dict[str, np.ndarray]) -> Batch:
    """Makes a batch of arrays, of which those with one number per row are [N, 1]."""
    tensors = {name: torch.from_numpy(part) for name, part in parts.items()}
    return Batch(
        **{
            name: part[:, 0] if name in ("group", "weight") else part
            for name, part in tensors.items()
        }
    )
