"""Reads parquet files: those of this machine, and those of stores by row groups, which are kept on
this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaftr_fast._files import AnyPath
from adaftr_fast.errors import DataError, StoreError
from adaftr_fast.stores.cache import Pieces, cache_folder, short_digest
from adaftr_fast.stores.path import RangeFile, Stat, StorePath
from adaftr_fast.stores.published import read_version

if TYPE_CHECKING:
    from pyarrow import Schema, Table
    from pyarrow.parquet import FileMetaData, ParquetFile

READERS = 8  # row groups that are read at a time


@cache
def _pieces(process: int, folder: Path) -> Pieces:
    """Returns the pieces of a process, whose lock a fork must not share."""
    return Pieces(folder)


@dataclass(frozen=True)
class Opened:
    """A parquet file when it was opened.

    Attributes:
        footer: its footer.
        schema: the names and types of its columns.
        stat: size and time of a file in a store; None on this machine.
    """

    footer: FileMetaData
    schema: Schema
    stat: Stat | None


def open_parquet(path: AnyPath) -> Opened:
    """Reads the footer of a file.

    Raises:
        FileNotFoundError, StoreError: there is no such file, or its store cannot be read.
        pyarrow.ArrowException, OSError: it cannot be read.
    """
    from pyarrow.parquet import ParquetFile

    source: Any = path
    stat = None
    if isinstance(path, StorePath):
        stat = path.stat()
        source = RangeFile(path.read_range, stat.st_size)
    with ParquetFile(source) as file:
        return Opened(file.metadata, file.schema_arrow, stat)


def read_parquet(path: AnyPath, columns: list[str] | None = None) -> Table:
    """Reads a whole file into memory, or the columns ``columns`` of it. Page checksums are
    compared.

    Raises:
        FileNotFoundError, StoreError, pyarrow.ArrowException, OSError: as ``row_groups``.
    """
    from pyarrow.parquet import ParquetFile

    if isinstance(path, StorePath):
        opened = open_parquet(path)
        return _read_at_once(path, opened, range(opened.footer.num_row_groups), columns)
    with ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns)


def row_groups(
    folder: AnyPath, name: str, opened: Opened, numbers: Sequence[int], columns: list[str] | None
) -> Iterator[Table]:
    """Yields row groups one at a time; from a store, all in one table, read several at a time.

    Page checksums are compared.

    Args:
        folder: the folder of the file, which may be replaced meanwhile.
        name: the name of the file.
        opened: the file when it was opened.
        numbers: the row groups.
        columns: names of columns; None for all.

    Raises:
        DataError, StoreError: the file was replaced since it was opened, or the store cannot be
            read.
        FileNotFoundError: the file is gone.
        pyarrow.ArrowException, OSError: a page is damaged.
    """
    path = folder / name
    if isinstance(path, StorePath):
        yield _read_at_once(path, opened, numbers, columns)
        return
    # What is open can be read to the end, even if the folder is replaced.
    with read_version(folder, lambda present: _unchanged(present / name, opened)) as file:
        for number in numbers:
            yield file.read_row_group(number, columns=columns)


def _unchanged(path: AnyPath, opened: Opened) -> ParquetFile:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path, page_checksum_verification=True)
    if not file.metadata.equals(opened.footer):
        file.close()
        raise DataError(f"{path}: was replaced since it was opened; start again with the new one")
    return file


def _read_at_once(
    path: StorePath, opened: Opened, numbers: Sequence[int], columns: list[str] | None
) -> Table:
    """Reads row groups of a store, each by one request, or from the cache."""
    from pyarrow import concat_tables

    with ThreadPoolExecutor(READERS, "adaftr-fast-store") as pool:
        # others have no pages
        filled = [number for number in numbers if opened.footer.row_group(number).num_rows]
        tables = list(pool.map(partial(_row_group, path, opened, columns), filled))
    names = [name for name in opened.schema.names if columns is None or name in columns]
    return concat_tables(tables or [opened.schema.empty_table().select(names)])


def _row_group(path: StorePath, opened: Opened, columns: list[str] | None, number: int) -> Table:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    assert opened.stat is not None  # of a file in a store
    pieces = _pieces(os.getpid(), cache_folder())
    start, end = row_group_range(opened.footer, number)
    stat = opened.stat
    key = f"{short_digest(f'{path.place} {path.key} {stat.st_size} {stat.st_mtime_ns}')}-{start}-{end}"

    def read() -> Table:
        content = pieces.get(key, partial(_unchanged_range, path, stat, start, end))

        def part(first: int, last: int) -> bytes:
            if not start <= first <= last <= end:
                raise OSError(f"damaged: row group {number} has columns outside of it")
            return content[first - start : last - start]

        source = RangeFile(part, stat.st_size)
        file = ParquetFile(source, metadata=opened.footer, page_checksum_verification=True)
        return file.read_row_group(number, columns=columns)

    try:
        return read()
    except (FileNotFoundError, StoreError):
        raise
    except (ArrowException, OSError):  # damaged on the way, perhaps, and kept
        with suppress(OSError):
            pieces.forget(key)
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
    return min(starts), max(
        start + each.total_compressed_size for start, each in zip(starts, columns)
    )
