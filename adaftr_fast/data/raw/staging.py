"""Text inputs to parquet files, once, whatever is read of them later: in bounded memory, on all cores, resumable.

Each block of lines becomes one file, written to a temporary name and renamed; its bad_rows of bad rows lies in the
file's own metadata, so that it is either there with its bad_rows or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from adaftr_fast._json import dumps, from_json
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.shard import UNSHARDED, Shard
from adaftr_fast.errors import DataError

BLOCK_BYTES = 16 << 20
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")  # that Arrow tells by a file's ending
SEARCH_BYTES = 1 << 16  # read at a time in search of the end of a line
BAD_ROWS, LINES = b"bad_rows", b"lines"  # keys of a staged block's metadata
Parse = Callable[[bytes], tuple[pa.Table, BadRows]]
"""A block of whole lines to rows and an account of the bad ones, its lines counted from 1."""


def blocks(path: Path) -> Iterator[bytes]:
    """A text file, decompressed, in blocks of whole lines.

    Raises:
        DataError: it cannot be read, or a line is longer than a block.
    """
    rest = b""
    try:
        with pa.input_stream(str(path)) as stream:
            while data := stream.read(BLOCK_BYTES):
                data = rest + data
                end = data.rfind(b"\n") + 1
                if not end and len(data) > 4 * BLOCK_BYTES:
                    raise DataError(f"{path}: found no line end in {len(data):,} bytes")
                rest = data[end:]
                if end:
                    yield data[:end]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if rest:
        yield rest


def numbered_blocks(path: Path, shard: Shard = UNSHARDED) -> Iterator[tuple[int, bytes]]:
    """A shard's share of a file's blocks, with their numbers. Of compressed text the others must be read too.

    Raises:
        DataError: as ``blocks``.
    """
    if path.suffix in COMPRESSIONS:
        yield from islice(enumerate(blocks(path)), shard.number - 1, None, shard.count)
        return
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for number in range(-(-size // BLOCK_BYTES))[shard.stride]:
                end = (number + 1) * BLOCK_BYTES
                start, end = (_line_start(file, number * BLOCK_BYTES), size if end >= size else _line_start(file, end))
                if end > start:
                    yield number, _read(file, start, end)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    if end - start > 4 * BLOCK_BYTES:
        raise DataError(f"{file.name}: found no line end in {end - start:,} bytes")
    file.seek(start)
    return file.read(end - start)


def _line_start(file: BinaryIO, position: int) -> int:
    """The position after the last end of a line preceding ``position``; 0 = there is none."""
    for end in range(position, 0, -SEARCH_BYTES):
        start = max(0, end - SEARCH_BYTES)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        if position - start > 4 * BLOCK_BYTES:
            raise DataError(f"{file.name}: found no line end in {position - start:,} bytes")
    return 0


def stage(
    path: Path,
    folder: Path,
    parse: Parse,
    *,
    header_lines: int,
    tolerance: float,
    shard: Shard,
    check: Callable[[], None],
    bar: tqdm,
) -> int:
    """Writes a shard's share of ``path`` as ``folder/part-*.parquet``; files already there are kept.

    Args:
        header_lines: lines at the start that are no rows, 0 or 1.
        tolerance: where it is 0, the first bad row is an error at once.
        check: raises an error if ``path`` has changed, preceding a block that was read of it is kept.
        bar: advances by bytes of text.

    Returns:
        The number of its files.

    Raises:
        DataError: unreadable, or a bad row that is not tolerated.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(numbered: tuple[int, bytes]) -> tuple[int, int, BadRows]:
        number, block = numbered
        if number == 0 and header_lines:
            block = block.partition(b"\n")[2]
        staged = folder / f"part-{number:07d}.parquet"
        if not staged.exists():
            _write_block(staged, *parse(block), lines=block.count(b"\n"), check=check)
        return number, len(numbered[1]), read_block_info(staged)[0]

    count = 0
    for number, size, block_bad_rows in ordered_map(write, numbered_blocks(path, shard)):
        count += 1
        if block_bad_rows.bad and tolerance == 0:  # nothing that follows can mend it
            block_bad_rows.shifted(path, _lines_before(path, number) or header_lines).check(tolerance)
        bar.update(size)
    return count


def _lines_before(path: Path, number: int) -> int:
    preceding = takewhile(lambda numbered: numbered[0] < number, numbered_blocks(path))
    return sum(block.count(b"\n") for _, block in preceding)


def check_staged(folder: Path, blocks: int) -> None:
    """Raises OSError if not all blocks of a text are to be found: a shared file system may show them late."""
    found = len(list(folder.glob("part-*.parquet")))
    if found != blocks:
        raise OSError(f"{folder}: expected {blocks} staged files, found {found}")


def staged_bad_rows(path: Path, folder: Path, *, header_lines: int, tolerance: float) -> BadRows:
    """The bad_rows of a file of which all parts are staged.

    Raises:
        DataError: a larger share of bad rows than ``tolerance``.
    """
    bad_rows, line = BadRows(), header_lines
    for staged in sorted(folder.glob("part-*.parquet")):
        block_bad_rows, lines = read_block_info(staged)
        bad_rows += block_bad_rows.shifted(path, line)
        line += lines
    bad_rows.check(tolerance)
    return bad_rows


def _write_block(path: Path, table: pa.Table, bad_rows: BadRows, lines: int, check: Callable[[], None]) -> None:
    metadata = {BAD_ROWS: dumps(dataclasses.asdict(bad_rows)), LINES: str(lines)}
    new = path.with_name(f".{path.name}.new")
    pq.write_table(
        table.replace_schema_metadata(metadata), new, compression="lz4"
    )  # a temporary file: fast rather than small
    check()
    os.replace(new, path)


def read_block_info(staged: Path) -> tuple[BadRows, int]:
    """The bad_rows of bad rows in a staged block's metadata, and the lines that it had."""
    metadata = pq.read_schema(staged).metadata
    return from_json(BadRows, json.loads(metadata[BAD_ROWS])), int(metadata[LINES])
