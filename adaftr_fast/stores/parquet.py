"""Reads parquet files of stores by row groups, which are kept on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaftr_fast.errors import StoreError
from adaftr_fast.stores.cache import Pieces, short_digest
from adaftr_fast.stores.path import AnyPath, Stat, StorePath
from adaftr_fast.stores.ranges import BLOCK, RangeFile

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import FileMetaData

TAIL = 1 << 16  # bytes that pyarrow reads first, from the end
READERS = 8  # row groups that are read at a time
_pieces: dict[tuple[int, Path], Pieces] = {}  # by the process, whose locks a fork must not share, and the folder


def parquet_source(path: AnyPath) -> Any:
    """Returns what ``pyarrow.parquet.ParquetFile`` reads the footer of a file from; all of it if it is local.

    Raises:
        FileNotFoundError, StoreError: there is no such file in the store, or it cannot be read.
    """
    if isinstance(path, Path):
        return path
    size = path.stat().st_size
    return RangeFile(path.read_range, size, sorted([*range(BLOCK, size, BLOCK), size - TAIL]))


def read_parquet(path: AnyPath, columns: list[str] | None = None) -> Table:
    """Reads a whole file into memory; one in a store as ``read_row_groups``.

    Args:
        path: a file.
        columns: names of columns; None for all.

    Raises:
        FileNotFoundError, StoreError: as ``read_row_groups``.
        pyarrow.ArrowException, OSError: the file cannot be read, or a page is damaged.
    """
    from pyarrow.parquet import ParquetFile

    if isinstance(path, Path):
        with ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns)
    opened = path.stat()
    footer = ParquetFile(parquet_source(path)).metadata
    return read_row_groups(path, opened, footer, range(footer.num_row_groups), columns)


def read_row_groups(
    path: StorePath, opened: Stat, footer: FileMetaData, numbers: Sequence[int], columns: list[str] | None
) -> Table:
    """Reads row groups, several at a time, each by one request, or from the cache. Page checksums are compared.

    Args:
        path: a file with the footer ``footer``.
        opened: its size and time when the footer was read.
        numbers: the row groups.
        columns: names of columns; None for all.

    Raises:
        FileNotFoundError, StoreError: the file is gone, was replaced since it was opened, or cannot be read.
        pyarrow.ArrowException, OSError: a page is damaged.
    """
    from pyarrow import concat_tables

    with ThreadPoolExecutor(READERS, "adaftr-fast-store") as pool:
        tables = list(pool.map(partial(_row_group, path, opened, footer, columns), numbers))
    return concat_tables(tables or [footer.schema.to_arrow_schema().empty_table()])


def _row_group(path: StorePath, opened: Stat, footer: FileMetaData, columns: list[str] | None, number: int) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    fresh = Pieces()
    pieces = _pieces.setdefault((os.getpid(), fresh.folder), fresh)
    name = short_digest(f"{path.place} {path.key} {opened.st_size} {opened.st_mtime_ns}")
    bounds = row_group_range(footer, number)

    def piece(start: int, end: int) -> bytes:
        return pieces.get(f"{name}-{start}-{end}", partial(_unchanged_range, path, opened, start, end))

    def read() -> Table:
        source = RangeFile(piece, opened.st_size, bounds)
        file = ParquetFile(source, metadata=footer, page_checksum_verification=True)
        return file.read_row_group(number, columns=columns)

    try:
        return read()
    except (FileNotFoundError, StoreError):
        raise
    except (ArrowException, OSError):  # damaged on the way, perhaps, and kept
        with suppress(OSError):
            pieces.forget(f"{name}-{bounds[0]}-{bounds[1]}")
        return read()


def _unchanged_range(path: StorePath, opened: Stat, start: int, end: int) -> bytes:
    content = path.read_range(start, end)
    if path.stat() != opened:
        raise StoreError(f"{path}: was replaced since it was opened; start again with the new one")
    return content


def row_group_range(footer: FileMetaData, number: int) -> tuple[int, int]:
    """Returns where a row group of a parquet file begins and ends."""
    group = footer.row_group(number)
    columns = [group.column(column) for column in range(group.num_columns)]
    starts = [each.dictionary_page_offset or each.data_page_offset for each in columns]
    return min(starts), max(start + each.total_compressed_size for start, each in zip(starts, columns))
