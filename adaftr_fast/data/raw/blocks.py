"""Reads text in blocks of whole lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import BinaryIO

import pyarrow as pa

from adaftr_fast._files import AnyPath
from adaftr_fast.errors import DataError, StoreError

BLOCK_BYTES = 16 << 20
LINE_BLOCKS = 4  # the longest line of a file, in blocks
PARSED = 8  # bytes of memory per byte of a block while it is parsed
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")  # suffixes from which Arrow detects the compression
LINE_END = b"\0"  # a line end in quotes
SEARCH_BYTES = 1 << 16  # read at a time when searching for a line end
WHOLE = slice(None)

RowDivider = Callable[[bytes, bool], tuple[bytes, bytes]]
"""Divides text into whole rows, one in each line, and the rest; if the second argument is true, the
text ends here, and there is no rest.
"""


def blocks(path: AnyPath, rows: RowDivider | None = None, part: slice = WHOLE) -> Iterator[bytes]:
    """Yields a text file, decompressed, in blocks of whole lines.

    Args:
        rows: divides text into rows where values in quotes may hold line ends, as
            ``Dialect.whole_rows`` does; None where every line is a row.
        part: the blocks to yield, of ``block_sizes``.

    Raises:
        DataError: the file cannot be read, or a line is longer than four blocks.
        StoreError: the store of the file fails.
    """
    try:
        if is_stream(path, rows):
            yield from _stream(path, rows or _lines)
        else:
            yield from _ranges(path, part)
    except StoreError:  # another attempt may succeed
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def is_stream(path: AnyPath, rows: RowDivider | None) -> bool:
    """Returns whether a file can only be read from its start: compressed text, and text with line
    ends in quotes.
    """
    return path.suffix in COMPRESSIONS or rows is not None


def block_sizes(path: AnyPath, rows: RowDivider | None) -> list[int]:
    """Returns the bytes of each block of a file that can be read from any, else those of the
    file.
    """
    size = path.stat().st_size
    if is_stream(path, rows):
        return [size]
    return [min(BLOCK_BYTES, size - start) for start in range(0, size, BLOCK_BYTES)]


def _stream(path: AnyPath, rows: RowDivider) -> Iterator[bytes]:
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


def text_stream(path: AnyPath) -> pa.NativeFile:
    """Opens a text file, which it decompresses."""
    return pa.input_stream(
        path.open("rb"), pa.Codec.detect(path.name).name if path.suffix in COMPRESSIONS else None
    )


def _lines(data: bytes, last: bool) -> tuple[bytes, bytes]:
    """Divides text after its last line end, or nowhere if the text ends here."""
    end = len(data) if last else data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _ranges(path: AnyPath, part: slice) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:  # a read of a file in a store is one request
        size = file.seek(0, os.SEEK_END)
        # the end of a block is the start of the next
        line_start = lru_cache(1)(partial(_line_start, path, file))
        for number in range(-(-size // BLOCK_BYTES))[part]:
            start = line_start(number * BLOCK_BYTES)
            end = (number + 1) * BLOCK_BYTES
            end = size if end >= size else line_start(end)
            if end > start:
                block = _read(file, start, end)
                _check_first_line(path, block)
                yield block


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _line_start(path: AnyPath, file: BinaryIO, position: int) -> int:
    """Returns the position after the last line end before ``position``; 0 if there is none."""
    for end in range(position, 0, -SEARCH_BYTES):
        start = max(0, end - SEARCH_BYTES)
        found = _read(file, start, end).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        if position - start > LINE_BLOCKS * BLOCK_BYTES:
            raise _long_line(path)
    return 0


def _check_first_line(path: AnyPath, block: bytes) -> None:
    """Raises DataError if the first line of a block is too long. Any other line is shorter than a
    block.
    """
    end = block.find(b"\n")
    if (len(block) if end < 0 else end) > LINE_BLOCKS * BLOCK_BYTES:
        raise _long_line(path)


def _long_line(path: AnyPath) -> DataError:
    return DataError(f"{path}: found no line end in {LINE_BLOCKS * BLOCK_BYTES:,} bytes")


def lines_of_file(block: bytes, rows: RowDivider | None) -> int:
    """Returns the number of lines of a file that a block holds."""
    return block.count(b"\n") + (block.count(LINE_END) if rows else 0)
