"""Parses blocks of delimited text into typed columns with Arrow's CSV parser. Bad rows are dropped and reported.

Shapes: n rows.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from adaftr_fast.data.raw.bad_rows import BadLine, BadRows, bad_rows


@dataclass
class TextBlock:
    """Rows of a block of lines, untyped at first.

    Attributes:
        table: columns [n] of the rows that are not bad so far. Empty text is null.
        line: line of each row in the block, int64 [n], counted from 1.
        total: number of rows of the block, including bad ones.
        bad: rows that were dropped.
    """

    table: pa.Table
    line: np.ndarray
    total: int
    bad: list[BadLine] = field(default_factory=list)

    def drop(self, mask: np.ndarray, reason: str, text: pa.Array) -> None:
        """Drops the rows of ``mask`` [n] and records them as bad. ``text`` [n] is shown in the report."""
        if not mask.any():
            return
        rows = np.flatnonzero(mask)
        shown = text.take(pa.array(rows)).to_pylist()
        self.bad += [BadLine(int(self.line[row]), reason, _readable(value)) for row, value in zip(rows, shown)]
        self.table = self.table.filter(pa.array(~mask))
        self.line = self.line[~mask]

    def convert(self, column: str, kind: pa.DataType) -> None:
        """Casts a column to a type and drops rows whose value cannot be cast."""
        values = self.column(column)
        if pa.types.is_binary(values.type) and kind != pa.string():
            self.convert(column, pa.string())  # Arrow cannot cast bytes to every type
            values = self.column(column)
        try:
            converted = values.cast(kind)
        except pa.ArrowException:
            self.drop(~castable(values, kind), f"{column} is not of type {kind}", values)
            converted = self.column(column).cast(kind)
        self.table = self.table.set_column(self.table.column_names.index(column), column, converted)

    def require(self, column: str) -> None:
        """Drops the rows in which a column is missing."""
        values = self.column(column)
        self.drop(values.is_null().to_numpy(zero_copy_only=False), f"{column} is missing", values)

    def column(self, name: str) -> pa.Array:
        """Returns a column [n] as one array."""
        chunks = self.table[name].chunks
        return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], pa.binary())

    def report(self) -> BadRows:
        """Returns the number of bad rows and the reasons."""
        return bad_rows(self.total, self.bad)


def parse_block(data: bytes, names: list[str], delimiter: str, *, quoted: bool = True) -> TextBlock:
    """Parses whole lines without a header to columns of bytes. Rows with too many or too few columns are dropped."""
    bad: list[BadLine] = []

    def skip(row: csv.InvalidRow) -> str:
        reason = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        bad.append(BadLine(row.number, reason, row.text))
        return "skip"

    table = csv.read_csv(
        io.BytesIO(data or b"\n"),  # Arrow rejects an empty file; a blank line is not a row
        # Arrow reports line numbers only in one thread. One block per call.
        read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
        parse_options=csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            ignore_empty_lines=False,  # blank lines count as lines
            invalid_row_handler=skip,
        ),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), null_values=[""], strings_can_be_null=True
        ),
    )
    line = np.delete(np.arange(1, table.num_rows + len(bad) + 1), [row.line - 1 for row in bad])
    block = TextBlock(table, line, total=len(line) + len(bad), bad=bad)
    empty = np.logical_and.reduce([table[name].is_null().to_numpy() for name in names])
    block.table, block.line = block.table.filter(pa.array(~empty)), block.line[~empty]  # blank lines are not rows
    block.total -= int(empty.sum())
    return block


def castable(values: pa.Array, kind: pa.DataType) -> np.ndarray:
    """Returns whether Arrow can cast each value to ``kind``, bool [n].

    Arrow reports only that some value cannot be cast, so bisection finds which.
    """
    try:
        values.cast(kind)
    except pa.ArrowException:
        if len(values) == 1:
            return np.zeros(1, bool)
        half = len(values) // 2
        return np.concatenate([castable(values[:half], kind), castable(values[half:], kind)])
    return np.ones(len(values), bool)


def _readable(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)
