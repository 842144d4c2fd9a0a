"""Reads raw rows for scoring, in file order and bounded memory. Labels are not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from adaftr_fast._files import AnyPath
from adaftr_fast.data.memory import DEFAULT, Memory, encoding
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.raw.bad_rows import BadRows
from adaftr_fast.data.raw.batches import coalesced, read_tables
from adaftr_fast.data.raw.inputs import (
    field_columns,
    is_text,
    list_columns,
    read_layout,
    text_files,
)
from adaftr_fast.data.raw.source import (
    check_columns,
    check_files,
    data_files,
    open_dataset,
    reading,
)
from adaftr_fast.data.raw.staging import PARSED, RowDivider, blocks, lines_of_file
from adaftr_fast.data.raw.text import KEPT
from adaftr_fast.data.schema.columns import column_types
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import DataError

Parse = Callable[[], tuple[pa.Table, BadRows]]


@dataclass(frozen=True)
class Chunk:
    """Rows of a file that are not yet parsed. Chunks can be parsed in any thread.

    Attributes:
        parse: returns the columns of the fields and of numbers, and those to keep (``kept``); and
            the bad rows with lines counted from 1.
        first_line: number of lines of the file before the chunk.
        size: approximate share of the file in bytes.
        memory: approximate bytes of memory that it takes to parse and encode.
    """

    path: AnyPath
    parse: Parse
    first_line: int
    size: int
    memory: int


@dataclass(frozen=True)
class RawFile:
    """One input file.

    Attributes:
        size: size in bytes.
        types: types of the columns to keep.
        chunks: iterates over the rows in chunks.
    """

    path: AnyPath
    size: int
    types: dict[str, pa.DataType]
    chunks: Callable[[], Iterator[Chunk]]


def raw_files(
    schema: Schema,
    files: Sequence[AnyPath],
    keep: Sequence[str] = (),
    numbers: Sequence[str] = (),
    memory: Memory = DEFAULT,
) -> list[RawFile]:
    """Opens the inputs of a schema: files of parquet or of text, and folders of such files.

    For format ``aliccp``, the files are pairs SKELETON COMMON.

    Args:
        keep: columns to return in addition to those that fields read; those of text files as they
            are written.
        numbers: columns of numbers to return.
        memory: the bound of this process.

    Raises:
        DataError: a file is missing or unreadable, or a column is missing. Iterating over chunks
            raises it too.
    """
    inputs = [each for path in files for each in text_files(path)]
    if schema.format is None:
        return [
            _text(schema, path, keep, numbers)
            if is_text(path)
            else _parquet(schema, path, [*keep, *numbers], memory)
            for path in inputs
        ]
    if len(files) % 2:
        raise DataError(
            f"data set {schema.name}: expected pairs SKELETON COMMON of files, got {len(files)} "
            "file(s)"
        )
    return [_aliccp(schema, *pair, [*keep, *numbers]) for pair in zip(files[::2], files[1::2])]


def kept(rows: pa.RecordBatch, column: str) -> pa.Array:
    """Returns a column to keep of parsed rows [n]."""
    return rows[KEPT + column if KEPT + column in rows.schema.names else column]


def _parquet(schema: Schema, path: AnyPath, keep: Sequence[str], memory: Memory) -> RawFile:
    with reading(path, "cannot be read"):
        dataset = open_dataset(path)
        rows = max(1, dataset.count_rows())
        size = sum(file.stat().st_size for file in data_files(path))
    columns = list(dict.fromkeys([*field_columns(schema), *keep]))
    check_columns(path, dataset.schema.names, columns)
    with reading(path, "cannot be read"):
        check_files(dataset, columns)

    def chunks() -> Iterator[Chunk]:
        with reading(path, "cannot be read"):
            for batch in coalesced(read_tables(dataset, columns, memory=memory), memory):
                # parquet of other programs may hold text that is not UTF-8
                batch.validate(full=True)
                table = pa.Table.from_batches([batch])
                yield Chunk(
                    path,
                    partial(_parsed_table, table),
                    0,
                    size * batch.num_rows // rows,
                    encoding(batch),
                )

    return RawFile(
        path, size, {column: dataset.schema.field(column).type for column in keep}, chunks
    )


def _parsed_table(table: pa.Table) -> tuple[pa.Table, BadRows]:
    return table, BadRows(rows=table.num_rows)


def _text(schema: Schema, path: AnyPath, keep: Sequence[str], numbers: Sequence[str]) -> RawFile:
    known = column_types(schema)
    types = dict.fromkeys(numbers, pa.float64()) | {
        column: known[column] for column in field_columns(schema)
    }
    layout = read_layout(path, schema.text)
    check_columns(path, layout.names, [*types, *keep])
    parse = partial(layout.parse, types=types, keep=keep)
    chunks = partial(text_chunks, path, parse, header_lines=1, rows=layout.rows)
    return RawFile(path, path.stat().st_size, dict.fromkeys(keep, pa.string()), chunks)


def _aliccp(schema: Schema, skeleton: AnyPath, common: AnyPath, keep: Sequence[str]) -> RawFile:
    for column in keep:
        if column not in aliccp.SKELETON[:-1]:
            raise DataError(
                f"{skeleton}: no column {column!r}; expected one of "
                f"{', '.join(aliccp.SKELETON[:-1])}"
            )
    fields, lists = field_columns(schema), list_columns(schema)

    def chunks() -> Iterator[Chunk]:
        # A bad line makes all skeleton rows of its user bad. They are counted there, not here.
        tables = [aliccp.parse_common(block, fields, lists)[0] for block in blocks(common)]
        if not tables:
            raise DataError(f"{common}: has no rows")
        users = pa.concat_tables(tables).combine_chunks()
        parse = partial(
            aliccp.parse_skeleton, fields=fields, common=users, lists=lists, labels=(), keep=keep
        )
        yield from text_chunks(skeleton, parse, header_lines=0)

    return RawFile(skeleton, skeleton.stat().st_size, dict.fromkeys(keep, pa.string()), chunks)


def text_chunks(
    path: AnyPath,
    parse: Callable[[bytes], tuple[pa.Table, BadRows]],
    *,
    header_lines: int,
    rows: RowDivider | None = None,
) -> Iterator[Chunk]:
    """Yields the rows of a text file in chunks of whole lines, which ``parse`` reads.
    ``numbered_blocks`` says more.
    """
    line = 0
    for block in blocks(path, rows):
        header = header_lines if line == 0 else 0
        if data := block.partition(b"\n")[2] if header else block:
            yield Chunk(path, partial(parse, data), line + header, len(block), PARSED * len(block))
        line += lines_of_file(block, rows)
