"""Blocks of delimited text to typed columns, by Arrow's CSV parser; rows that do not fit are set apart. n rows."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv

from adaftr_fast.data.raw.bad_rows import BadLine, BadRows, bad_rows


@dataclass
class TextBlock:
    """Rows of a block of lines, as text at first.

    Attributes:
        table: columns [n] of the rows that are good so far; an empty text is missing.
        line: int64 [n], where in the block each row stands, from 1.
        total: rows of the block, bad ones too.
    """

    table: pa.Table
    line: np.ndarray
    total: int
    bad: list[BadLine] = field(default_factory=list)

    def drop(self, mask: np.ndarray, reason: str, text: pa.Array) -> None:
        """Sets apart the rows of the mask ``mask`` [n]; ``text`` [n] is what is shown of them."""
        if not mask.any():
            return
        rows = np.flatnonzero(mask)
        shown = text.take(pa.array(rows)).to_pylist()
        self.bad += [BadLine(int(self.line[row]), reason, _readable(value)) for row, value in zip(rows, shown)]
        self.table = self.table.filter(pa.array(~mask))
        self.line = self.line[~mask]

    def convert(self, column: str, kind: pa.DataType) -> None:
        """Gives a column its type; rows whose value does not fit are set apart."""
        values = self.column(column)
        if pa.types.is_binary(values.type) and kind != pa.string():
            self.convert(column, pa.string())  # not every type can be read of bytes
            values = self.column(column)
        try:
            converted = values.cast(kind)
        except pa.ArrowException:
            self.drop(~castable(values, kind), f"{column} is no {kind}", values)
            converted = self.column(column).cast(kind)
        self.table = self.table.set_column(self.table.column_names.index(column), column, converted)

    def require(self, column: str) -> None:
        """Sets apart the rows in which a column is missing."""
        values = self.column(column)
        self.drop(values.is_null().to_numpy(zero_copy_only=False), f"{column} is missing", values)

    def column(self, name: str) -> pa.Array:
        """A column [n] in one piece."""
        chunks = self.table[name].chunks
        return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], pa.binary())

    def report(self) -> BadRows:
        """How many rows are bad, and why."""
        return bad_rows(self.total, self.bad)


def parse_block(data: bytes, names: list[str], delimiter: str, *, quoted: bool = True) -> TextBlock:
    """Whole lines without a header to columns of bytes; rows with too many or few columns are set apart."""
    bad: list[BadLine] = []

    def skip(row: csv.InvalidRow) -> str:
        reason = f"expected {row.expected_columns} columns, got {row.actual_columns}"
        bad.append(BadLine(row.number, reason, row.text))
        return "skip"

    table = csv.read_csv(
        io.BytesIO(data or b"\n"),  # Arrow refuses an empty file; a blank line is no row
        # In one thread, since rows have numbers only then; a whole block at once.
        read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
        parse_options=csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            ignore_empty_lines=False,  # they count as lines
            invalid_row_handler=skip,
        ),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), null_values=[""], strings_can_be_null=True
        ),
    )
    line = np.delete(np.arange(1, table.num_rows + len(bad) + 1), [row.line - 1 for row in bad])
    block = TextBlock(table, line, total=len(line) + len(bad), bad=bad)
    empty = np.logical_and.reduce([table[name].is_null().to_numpy() for name in names])
    block.table, block.line = block.table.filter(pa.array(~empty)), block.line[~empty]  # blank lines are no rows
    block.total -= int(empty.sum())
    return block


def castable(values: pa.Array, kind: pa.DataType) -> np.ndarray:
    """Which values [n] Arrow can cast to ``kind``, found by halving, since it says that one cannot but not which."""
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
