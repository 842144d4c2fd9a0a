"""Reads parquet files of stores by row groups, which are kept on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaftr_fast.stores.cache import Pieces, short_digest
from adaftr_fast.stores.path import AnyPath, StorePath
from adaftr_fast.stores.ranges import RangeFile

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

_pieces: dict[Path, Pieces] = {}  # by the folder of the cache


def parquet_source(path: AnyPath, footer: FileMetaData | None = None) -> Any:
    """Returns what ``pyarrow.parquet.ParquetFile`` reads a file from.

    Args:
        path: a local file, or one of a store that does not change.
        footer: the footer of the file; with it, each row group is one request, and stays in the cache.

    Raises:
        FileNotFoundError, StoreError: there is no such file in the store, or it cannot be read.
    """
    if isinstance(path, Path):
        return path
    stat = path.stat()
    if footer is None:
        return RangeFile(path.read_range, stat.st_size)
    key = short_digest(f"{path.place} {path.key} {stat.st_size} {stat.st_mtime_ns}")
    return RangeFile(partial(_kept, path, key), stat.st_size, row_group_bounds(footer))


def _kept(path: StorePath, key: str, start: int, end: int) -> bytes:
    fresh = Pieces()
    pieces = _pieces.setdefault(fresh.folder, fresh)
    return pieces.get(f"{key}-{start}-{end}", partial(path.read_range, start, end))


def row_group_bounds(footer: FileMetaData) -> list[int]:
    """Returns where the row groups of a parquet file begin, and where the last one ends."""
    bounds, end = [], 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        columns = [group.column(column) for column in range(group.num_columns)]
        starts = [each.dictionary_page_offset or each.data_page_offset for each in columns]
        bounds.append(min(starts))
        end = max(start + each.total_compressed_size for start, each in zip(starts, columns))
    return [*bounds, end]
