"""Converts text inputs to parquet once: in bounded memory, on all cores.

Each block of lines becomes one file, which is written to a temporary name and renamed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice, takewhile
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast.data.arrow import one_array, shown
from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.memory import DEFAULT, Memory
from adaftr_fast.data.parallel import UNSHARDED, Shard, ordered_map
from adaftr_fast.data.raw.batches import PARQUET
from adaftr_fast.engines import Advance
from adaftr_fast.errors import DataError
from adaftr_fast.files.whole import replacing

BLOCK_BYTES = 16 << 20
LINE_BLOCKS = 4  # the longest line of a file, in blocks
PARSED = 8  # bytes of memory per byte of a block while it is parsed
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")  # suffixes from which Arrow detects the compression
LINE_END = b"\0"  # a line end in quotes
SEARCH_BYTES = 1 << 16  # read at a time when searching for a line end
POLL_SECONDS = 0.5
FILE = b"file"  # metadata key of a staged block: the name of the text file
IS_TEXT = b"text"  # and of its columns
Parse = Callable[..., tuple[pa.Table, BadRows]]
"""Parses a block of whole lines to rows and a report of bad rows, lines counted from 1."""
RowDivider = Callable[[bytes, bool], tuple[bytes, bytes]]
"""Divides text into whole rows, one in each line, and the rest; if the second argument is true, the
text ends here, and there is no rest.
"""


@dataclass(frozen=True)
class TextInput:
    """A text file to be staged as parquet.

    Attributes:
        folder: folder of the staged blocks.
        parse: parses a block.
        header_lines: number of header lines, 0 or 1.
        rows: divides text into rows where values in quotes may hold line ends, as
            ``Dialect.whole_rows`` does; None where every line is a row.
        discrete: columns of text that are read in their canonical form alone.
        common: folder of staged rows that ``parse`` joins with those of a block, its argument
            ``common``; None if there are none.
    """

    path: Path
    folder: Path
    parse: Parse
    header_lines: int
    rows: RowDivider | None = None
    discrete: frozenset[str] = frozenset()
    common: Path | None = None

    def absolute(self) -> TextInput:
        """Returns the same input for a process with another current folder; the folder of the blocks
        is absolute already.
        """
        return replace(self, path=self.path.absolute())


@dataclass(frozen=True)
class Staged:
    """What is known of a staged block of a text file.

    Attributes:
        number: its place among the blocks.
        lines: the lines of the file that it has, without a header.
        rows: the rows that are staged.
        bad_rows: the others, with lines counted from 1.
    """

    number: int
    lines: int
    rows: int
    bad_rows: BadRows


def blocks(path: Path, rows: RowDivider | None = None) -> Iterator[bytes]:
    """Yields the blocks of a text file. Raises DataError as ``numbered_blocks`` does."""
    return (block for _, block in numbered_blocks(path, rows=rows))


def numbered_blocks(
    path: Path, shard: Shard = UNSHARDED, rows: RowDivider | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yields a text file, decompressed, in blocks of whole lines: those of a shard, with their
    numbers.

    Every shard reads compressed text, and text with line ends in quotes, as a whole.

    Args:
        rows: see ``TextInput``.

    Raises:
        DataError: the file cannot be read, or a line is longer than four blocks.
    """
    try:
        if path.suffix in COMPRESSIONS or rows:
            yield from islice(
                enumerate(_stream(path, rows or _lines)), shard.number - 1, None, shard.count
            )
        else:
            yield from _ranges(path, shard)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _stream(path: Path, rows: RowDivider) -> Iterator[bytes]:
    rest = b""
    with text_stream(path) as stream:
        while data := stream.read(BLOCK_BYTES):
            if rows is not _lines and LINE_END in data:
                raise DataError(
                    f"{path}: expected text, got the character NUL in a file with line ends in "
                    "quotes"
                )
            rest += data
            _check_first_line(path, rest)
            whole, rest = rows(rest, False)
            if whole:
                yield whole
    if rest:
        yield rows(rest, True)[0]


def text_stream(path: Path) -> pa.NativeFile:
    """Opens a text file, which it decompresses."""
    return pa.input_stream(
        path.open("rb"), pa.Codec.detect(path.name).name if path.suffix in COMPRESSIONS else None
    )


def _lines(data: bytes, last: bool) -> tuple[bytes, bytes]:
    """Divides text after its last line end, or nowhere if the text ends here."""
    end = len(data) if last else data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _ranges(path: Path, shard: Shard) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        # the end of a block is the start of the next
        line_start = lru_cache(1)(partial(_line_start, path, file))
        for number in range(-(-size // BLOCK_BYTES))[shard.stride]:
            start = line_start(number * BLOCK_BYTES)
            end = (number + 1) * BLOCK_BYTES
            end = size if end >= size else line_start(end)
            if end > start:
                block = _read(file, start, end)
                _check_first_line(path, block)
                yield number, block


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _line_start(path: Path, file: BinaryIO, position: int) -> int:
    """Returns the position after the last line end before ``position``; 0 if there is none."""
    for end in range(position, 0, -SEARCH_BYTES):
        start = max(0, end - SEARCH_BYTES)
        found = _read(file, start, end).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        if position - start > LINE_BLOCKS * BLOCK_BYTES:
            raise _long_line(path)
    return 0


def _check_first_line(path: Path, block: bytes) -> None:
    """Raises DataError if the first line of a block is too long. Any other line is shorter than a
    block.
    """
    end = block.find(b"\n")
    if (len(block) if end < 0 else end) > LINE_BLOCKS * BLOCK_BYTES:
        raise _long_line(path)


def _long_line(path: Path) -> DataError:
    return DataError(f"{path}: found no line end in {LINE_BLOCKS * BLOCK_BYTES:,} bytes")


def stage(
    text: TextInput,
    shard: Shard,
    *,
    tolerance: float,
    check: Callable[[], None],
    advance: Advance,
    memory: Memory = DEFAULT,
) -> list[Staged]:
    """Writes the blocks of a shard of a text file as ``part-*.parquet`` in its folder.

    The folder must exist. What the files hold depends on the text input only, so several
    processes may write them.

    Args:
        tolerance: share of bad rows that is tolerated. If it is 0, the first bad row raises at
            once.
        check: raises an error if the file has changed. Called before a block is published.
        advance: called with the bytes of text that are staged.
        memory: the bound of this process.

    Raises:
        ConfigError: a block does not fit the memory.
        DataError: the file is unreadable, or a bad row is not tolerated.
    """

    parse = text.parse
    if text.common is not None:
        parse = partial(parse, common=staged_rows(text.common))

    def write(numbered: tuple[int, bytes]) -> tuple[Staged, int]:
        number, block = numbered
        size = len(block)
        if number == 0 and text.header_lines:
            block = block.partition(b"\n")[2]
        table, bad_rows = parse(block)
        path = text.folder / f"part-{number:07d}.parquet"
        _write_block(path, _integers(table, text.discrete), {FILE: str(text.path)}, check)
        lines = lines_of_file(block, text.rows)
        return Staged(number, lines, table.num_rows, bad_rows), size

    found = []
    numbered = numbered_blocks(text.path, shard, text.rows)
    for staged, size in ordered_map(write, numbered, lambda each: PARSED * len(each[1]), memory):
        found.append(staged)
        if staged.bad_rows.bad and tolerance == 0:  # more rows cannot make the share 0 again
            before = _first_line(text, staged.number)
            staged.bad_rows.shifted(text.path, before).check(tolerance)
        advance(size)
    return found


def _first_line(text: TextInput, number: int) -> int:
    """Returns the number of lines before a block, or the header before the first one."""
    before = takewhile(lambda each: each[0] < number, numbered_blocks(text.path, rows=text.rows))
    return sum(lines_of_file(block, text.rows) for _, block in before) or text.header_lines


def lines_of_file(block: bytes, rows: RowDivider | None) -> int:
    """Returns the number of lines of a file that a block holds."""
    return block.count(b"\n") + (block.count(LINE_END) if rows else 0)


def staged_rows(folder: Path) -> pa.Table:
    """Reads all rows of a staged file into memory, each column as one chunk."""
    return ds.dataset(folder, format=PARQUET).to_table().combine_chunks()


def check_staged(folder: Path, blocks: int, patience: float = 0.0) -> None:
    """Raises OSError unless all blocks of a text file are visible.

    Args:
        patience: seconds to wait for them: a shared file system may show late what another machine
            has written.
    """
    end = time.monotonic() + patience
    while (found := len(list(folder.glob("part-*.parquet")))) < blocks and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    if found != blocks:
        raise OSError(f"{folder}: expected {blocks} staged files, found {found}")


def bad_rows_of(text: TextInput, blocks: Iterable[Staged]) -> BadRows:
    """Returns the bad rows of a file, given its blocks.

    Raises:
        DataError: a line is neither a staged nor a bad row, nor blank.
    """
    bad_rows = BadRows()
    line = text.header_lines
    kept = 0
    for block in sorted(blocks, key=attrgetter("number")):
        bad_rows += block.bad_rows.shifted(text.path, line)
        line += block.lines
        kept += block.rows
    bad_rows.check_kept(text.path, kept)
    return bad_rows


def _integers(table: pa.Table, discrete: frozenset[str]) -> pa.Table:
    """Returns a table in which those discrete columns are int64 of which all values are integers in
    their canonical form. All of them are marked as text.

    Integers take half of the time of text to write, read, count and encode.
    """
    for place, name in enumerate(table.column_names):
        if name in discrete:
            values = one_array(table[name])
            with suppress(pa.ArrowInvalid):
                integers = values.cast(pa.int64())
                values = integers if _is_canonical(values, integers) else values
            field = pa.field(name, values.type, metadata={IS_TEXT: b""})
            table = table.set_column(place, field, values)
    return table


def _is_canonical(text: pa.Array, integers: pa.Array) -> bool:
    """Returns whether text [n] holds ``integers`` [n] in their shortest form.

    Every other decimal form is longer. Text made of the integers takes five times as long to
    compare with.
    """
    if text.type != pa.string():
        return False
    content = text.buffers()[2]
    data = content.to_pybytes() if content else b""
    if b"x" in data or b"X" in data:  # a hexadecimal form may be shorter
        return False
    numbers = integers.drop_null().to_numpy()
    sizes = np.abs(numbers).view(np.uint64)
    ends = (np.uint64(10**digits) for digits in range(1, len(str(sizes.max(initial=0)))))
    characters = len(numbers) + np.count_nonzero(numbers < 0)
    characters += sum(np.count_nonzero(sizes >= end) for end in ends)
    return characters == (pc.sum(pc.binary_length(text)).as_py() or 0)


def _write_block(
    path: Path, table: pa.Table, metadata: dict[bytes, str], check: Callable[[], None]
) -> None:
    with replacing(path) as new:
        pq.write_table(
            table.replace_schema_metadata(metadata),
            new,
            compression="lz4",  # a temporary file: fast rather than small
            write_page_checksum=True,
        )
        check()


def is_text(column: pa.Field) -> bool:
    """Returns whether a column of a file is one of staged text, which may hold integers."""
    return IS_TEXT in (column.metadata or {})


def shown_source(file: ds.ParquetFileFragment) -> str:
    """Returns the name of a file in messages; of a staged block, that of its text file."""
    name = (file.physical_schema.metadata or {}).get(FILE)
    return shown(file.path) if name is None else name.decode()
