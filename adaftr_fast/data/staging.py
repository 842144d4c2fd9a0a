"""Text inputs to parquet parts, once, whatever is read of them later: in bounded memory, on all cores, resumable.

Each block of lines becomes one part, written to a temporary name and renamed; its account of bad rows lies in the
part's own metadata, so that a part is either there with its account or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from adaftr_fast._json import dumps, from_json
from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.errors import DataError
from adaftr_fast.data.parallel import ordered_map

BLOCK_BYTES = 16 << 20
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")  # that Arrow tells by a file's ending
ACCOUNT = b"bad_rows"  # key of a part's metadata
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
                    raise DataError(f"{path}: no end of line in {len(data):,} bytes")
                rest = data[end:]
                if end:
                    yield data[:end]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if rest:
        yield rest


def stage(path: Path, folder: Path, parse: Parse, *, header_lines: int, tolerance: float, bar: tqdm) -> BadRows:
    """Writes ``path`` as ``folder/part-*.parquet``; parts already there are kept.

    Args:
        header_lines: lines at the start that are no rows, 0 or 1.
        bar: advances by bytes of text.

    Returns:
        The account of the whole file.

    Raises:
        DataError: unreadable, or a larger share of bad rows than ``tolerance``.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def write(numbered: tuple[int, bytes]) -> tuple[int, int, BadRows]:
        number, block = numbered
        if number == 0 and header_lines:
            block = block.partition(b"\n")[2]
        part = folder / f"part-{number:05d}.parquet"
        if not part.exists():
            _write_part(part, *parse(block))
        return len(numbered[1]), block.count(b"\n"), read_account(part)

    account, line = BadRows(), header_lines
    for size, lines, of_part in ordered_map(write, enumerate(blocks(path))):
        account += of_part.shifted(path, line)
        line += lines
        bar.update(size)
        if tolerance == 0:
            account.check(tolerance)  # nothing that follows can mend it
    account.check(tolerance)
    return account


def _write_part(path: Path, table: pa.Table, account: BadRows) -> None:
    table = table.replace_schema_metadata({ACCOUNT: dumps(dataclasses.asdict(account))})
    new = path.with_name(f".{path.name}.new")
    pq.write_table(table, new, compression="lz4")  # read twice and removed: speed before size
    os.replace(new, path)


def read_account(part: Path) -> BadRows:
    """The account of bad rows in a part's metadata."""
    return from_json(BadRows, json.loads(pq.read_schema(part).metadata[ACCOUNT]))
