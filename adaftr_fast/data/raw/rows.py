"""Reads raw rows for scoring, in file order and bounded memory. Labels are not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.memory import DEFAULT, Memory
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.raw.inputs import (
    Chunk,
    InputFile,
    aliccp_columns,
    open_inputs,
    text_chunks,
)
from adaftr_fast.data.raw.source import check_columns
from adaftr_fast.data.raw.staging import blocks
from adaftr_fast.data.schema.columns import column_types
from adaftr_fast.data.schema.types import Schema
from adaftr_fast.errors import DataError


@dataclass(frozen=True)
class RawFile:
    """One input file.

    Attributes:
        size: size in bytes.
        types: types of the columns to keep.
        chunks: iterates over the rows in chunks.
    """

    path: Path
    size: int
    types: dict[str, pa.DataType]
    chunks: Callable[[], Iterator[Chunk]]


def raw_files(
    schema: Schema,
    files: Sequence[Path],
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
    if schema.format is None:
        inputs = open_inputs(files, schema.text)
        return [_raw_file(schema, file, keep, numbers, memory) for file in inputs]
    if len(files) % 2:
        raise DataError(
            f"data set {schema.name}: expected pairs SKELETON COMMON of files, got {len(files)} "
            "file(s)"
        )
    return [_aliccp(schema, *pair, keep, numbers) for pair in zip(files[::2], files[1::2])]


def _raw_file(
    schema: Schema, file: InputFile, keep: Sequence[str], numbers: Sequence[str], memory: Memory
) -> RawFile:
    known = column_types(schema)
    types = dict.fromkeys(numbers, pa.float64())
    types |= {column: known[column] for column in schema.field_columns()}
    file = replace(file, typed=frozenset(schema.types))
    file.check([*types, *keep])
    kept_types = {column: file.kept_type(column) for column in keep}
    return RawFile(file.path, file.size, kept_types, partial(file.chunks, types, keep, memory))


def _aliccp(
    schema: Schema, skeleton: Path, common: Path, keep: Sequence[str], numbers: Sequence[str]
) -> RawFile:
    columns = [*keep, *numbers]
    check_columns(skeleton, aliccp.SKELETON[:-1], columns)
    fields, lists = aliccp_columns(schema)

    def chunks() -> Iterator[Chunk]:
        # A bad line makes all skeleton rows of its user bad. They are counted there, not here.
        tables = [aliccp.parse_common(block, fields, lists)[0] for block in blocks(common)]
        if not tables:
            raise DataError(f"{common}: has no rows")
        users = pa.concat_tables(tables).combine_chunks()

        def parse(data: bytes) -> tuple[pa.Table, pa.Table, BadRows]:
            table, bad = aliccp.parse_skeleton(
                data, fields, lists, common=users, labels=(), keep=columns
            )
            return table, table.select(list(keep)), bad

        yield from text_chunks(skeleton, parse, header_lines=0)

    return RawFile(skeleton, skeleton.stat().st_size, dict.fromkeys(keep, pa.string()), chunks)
