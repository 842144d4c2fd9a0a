"""Parses blocks of delimited text into typed columns with Arrow's CSV parser. Bad rows are dropped
and reported.

Every line is a row, a bad row or blank. Arrow's parser reads on beyond a line end inside quotes, so
one stray quote would make a single row of all lines up to the next one. A block that has not as
many rows as lines is therefore parsed again without the lines that end inside quotes, which are bad
rows. Where values may hold line ends, ``LINE_END`` stands for them in a block, so that each row is
one line there too.

Shapes: n rows.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from adaftr_fast.data.arrow import one_array
from adaftr_fast.data.bad_rows import EXAMPLES, TEXT, BadLine, BadRows
from adaftr_fast.data.encode.canonical import canonical_text
from adaftr_fast.data.encode.typed import present, read_as
from adaftr_fast.data.encode.written import (
    SHOWN_LABELS,
    cast,
    label_numbers,
    plain_numbers,
    times,
    without_words,
)
from adaftr_fast.data.raw.staging import LINE_END
from adaftr_fast.data.schema.columns import TYPES
from adaftr_fast.data.schema.types import PLAIN_TEXT, TextFormat

# what others write for it
MISSING = ("-", "?", "\\n", "#n/a", "<na>", "n/a", "na", "nan", "nat", "none", "null")
MARKED = r"^[+-]?[0-9]+(?:[., '][0-9]+)+$"  # a number with marks
READ = (TYPES["integer"], TYPES["boolean"], TYPES["time"])
LONGEST_VALUE = 1 << 20  # bytes of a value with line ends
REPEATED_HEADER = "the line repeats the header"
OPEN_LINE = "the line ends inside quotes"


@dataclass(frozen=True)
class Dialect:
    """How text is divided into rows and values.

    Attributes:
        names: the columns, in the order of the text.
        quoted: whether values may be quoted.
    """

    names: list[str]
    delimiter: str = ","
    quoted: bool = True

    @cached_property
    def line(self) -> re.Pattern[bytes]:
        """The pattern of a line, without its end, that Arrow's parser reads as one row."""
        return re.compile(rb"%b\r*" % self._values if self.quoted else rb"[^\r]*+\r*")

    @cached_property
    def _row(self) -> re.Pattern[bytes]:
        """The pattern of a row: one line, or several ones with line ends in quotes; or of a line
        that is no row.
        """
        mark = re.escape(self.delimiter.encode())
        value = rb'(?:"(?:[^"]|""){0,%d}+"|(?!")[^%b\r\n]*+)' % (LONGEST_VALUE, mark)
        several = rb"%b(?:%b%b){%d}" % (value, mark, value, len(self.names) - 1)
        return re.compile(rb"(?:%b\r*|%b\r*|(?P<line>[^\n]*+))\n" % (self._values, several))

    @property
    def _values(self) -> bytes:
        """The pattern of the values of a line."""
        mark = re.escape(self.delimiter.encode())
        plain = rb"[^%b\r\n]*+" % mark
        # quotes count only at the start of a value
        value = rb'(?:"(?:[^"\n]|"")*+"%b|(?!")%b)' % (plain, plain)
        return rb"%b(?:%b%b)*+" % (value, mark, value)

    def whole_rows(self, data: bytes, last: bool) -> tuple[bytes, bytes]:
        """Returns the rows of text with ``LINE_END`` for line ends inside quotes, and the rest,
        where no row ends.

        Lines are one row only if all quotes of its values close before a delimiter or at its end,
        and it has as many values as there are columns. So a stray quote costs the line that it is
        in, and not those up to the next quote.

        Args:
            last: whether the text ends here, so that there is no rest.
        """
        data = data + b"\n" if last and not data.endswith(b"\n") else data
        whole = []
        end = 0
        for row in self._row.finditer(data):
            if row["line"] is not None and not last and len(data) - row.start() < LONGEST_VALUE:
                break  # its quotes may close in what follows
            whole.append(row[0][:-1].replace(b"\n", LINE_END) + b"\n")
            end = row.end()
        return b"".join(whole), data[end:]

    def parse(self, data: bytes) -> tuple[pa.Table, list[BadLine]]:
        """Returns the rows that have as many columns as ``names``, those of blank lines included,
        and the other rows.
        """
        # Arrow cannot report a row with too many or too few columns that is not UTF-8
        if not is_utf8(data):
            bad = self.read(data.decode(errors="backslashreplace").encode())[1]
            if bad:
                table = self.read(data.decode("latin-1").encode())[0]
                return pa.table([_from_latin(each) for each in table.columns], self.names), bad
        return self.read(data)

    def read(
        self, data: bytes, convert: csv.ConvertOptions | None = None
    ) -> tuple[pa.Table, list[BadLine]]:
        """Returns the rows, as columns of bytes unless ``convert`` says otherwise, and those of
        another number of columns.

        All threads of Arrow are done when it returns: one that outlives this process's interpreter
        ends it with an abort.
        """
        bad: list[BadLine] = []

        def skip(row: csv.InvalidRow) -> str:
            reason = f"expected {row.expected_columns} columns, got {row.actual_columns}"
            bad.append(BadLine(row.number, reason, row.text))
            return "skip"

        table = csv.read_csv(
            io.BytesIO(data),
            # Arrow reports line numbers only in one thread. One block per call.
            read_options=csv.ReadOptions(
                column_names=self.names, use_threads=False, block_size=len(data) + 1
            ),
            parse_options=csv.ParseOptions(
                delimiter=self.delimiter,
                quote_char='"' if self.quoted else False,
                ignore_empty_lines=False,  # blank lines count as lines
                invalid_row_handler=skip,
            ),
            convert_options=convert
            or csv.ConvertOptions(
                column_types=dict.fromkeys(self.names, pa.binary()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
        return table, bad


@dataclass
class TextBlock:
    """Rows of a block of lines, untyped at first.

    Attributes:
        columns: columns [n] of the rows that are not bad so far, by name. Empty text is null.
        line: line of each row in the block, int64 [n], counted from 1.
        lines: number of lines of the block.
        blank: number of lines without any value.
        total: number of rows of the block, including bad ones.
        bad: rows that were dropped.
        form: how the text holds values.
        kept: columns [n] of the same rows that are text as it is written, by name.
    """

    columns: dict[str, pa.Array]
    line: np.ndarray
    lines: int
    blank: int
    total: int
    bad: list[BadLine] = field(default_factory=list)
    form: TextFormat = PLAIN_TEXT
    kept: dict[str, pa.Array] = field(default_factory=dict)

    @property
    def table(self) -> pa.Table:
        """The columns as a table."""
        return pa.table(self.columns)

    def drop(self, mask: pa.Array | np.ndarray, reason: str, text: pa.Array) -> None:
        """Drops the rows of ``mask`` [n] and records them as bad.

        Args:
            mask: the rows.
            reason: the reason.
            text: what the report shows of each row [n].
        """
        mask = np.asarray(mask)
        if not mask.any():
            return
        shown = text.filter(mask).to_pylist()
        for line, value in zip(self.line[mask].tolist(), shown):
            self.bad.append(BadLine(line, reason, _readable(value)))
        self.columns = _columns(self.table.filter(~mask))
        self.kept = {name: values.filter(pa.array(~mask)) for name, values in self.kept.items()}
        self.line = self.line[~mask]

    def keep(self, column: str, kind: pa.DataType) -> None:
        """Adds an untyped column to ``kept`` as text or lists of text, and drops the rows where it
        is not UTF-8.
        """
        self.kept[column] = self._read(column, kind)

    def convert(self, column: str, kind: pa.DataType, typed: bool = False) -> None:
        """Casts a column to a type and drops rows whose value cannot be cast.

        Args:
            typed: whether the schema declares the type: true is no number then.
        """
        if pa.types.is_binary(self.columns[column].type) and kind != pa.string():
            self.convert(column, pa.string())  # Arrow cannot cast bytes to every type
        read = self._read(column, kind, typed)
        self.columns[column] = without_words(read, self.form) if kind == pa.string() else read

    def convert_label(self, column: str) -> None:
        """Converts a column of labels to numbers, and drops the rows in which it is missing or
        neither 0 nor 1.
        """
        self.convert(column, pa.string())
        self.require(column)
        expected = f"label {column}: expected 0 or 1, got"
        values = self.columns[column]
        wrong = pc.unique(values.filter(label_numbers(values).is_null()))
        for value in wrong[:SHOWN_LABELS].to_pylist():
            values = self.columns[column]
            self.drop(pc.equal(values, value), f"{expected} {value!r}", values)
        values = self.columns[column]
        self.drop(label_numbers(values).is_null(), f"{expected} other text", values)
        self.columns[column] = label_numbers(self.columns[column])

    def _read(self, column: str, kind: pa.DataType, typed: bool = False) -> pa.Array:
        """Returns a column as a type: text as the format says. Drops the rows in which it is none."""
        present, read = _present_and_read(self.columns[column], kind, self.form, typed)
        lost = pc.and_(present.is_valid(), read.is_null()).to_numpy(zero_copy_only=False)
        if not lost.any():
            return read
        self._drop_lost(column, kind, lost)
        return read.filter(pa.array(~lost))

    def _drop_lost(self, column: str, kind: pa.DataType, mask: np.ndarray) -> None:
        values = self.columns[column]
        what = "UTF-8" if kind == pa.string() else f"of type {kind}"
        if pa.types.is_temporal(kind):
            what = f"{what} in the forms that are read (--dates)"
        reason = f"{column} is not {what}"
        if pa.types.is_string(values.type):
            missing = mask & _means_missing(values)
            self.drop(
                missing,
                f"{reason}, and not among the words for missing (--null, in Python null=)",
                values,
            )
            mask = mask[~missing]
            values = self.columns[column]
            numbers = pc.match_substring_regex(values, MARKED).fill_null(False)
            marked = mask & numbers.to_numpy(zero_copy_only=False)
            self.drop(marked, f"{reason}, and has marks (--decimal, --thousands)", values)
            mask = mask[~marked]
            values = self.columns[column]
        self.drop(mask, reason, values)

    def require(self, column: str) -> None:
        """Drops the rows in which a column is missing."""
        values = self.columns[column]
        self.drop(values.is_null(), f"{column} is missing", values)

    def report(self) -> BadRows:
        """Returns the numbers of lines and bad rows, and the reasons."""
        bad = sorted(self.bad, key=lambda each: each.line)
        reasons = dict(Counter(each.reason for each in bad))
        examples = []
        for each in bad[:EXAMPLES]:
            # a missing value may be written as one of several words
            text = f": {each.text[:TEXT]!r}" if each.text else ""
            examples.append(f"{each.line}: {each.reason}{text}")
        return BadRows(self.total, len(bad), reasons, examples, self.lines, self.blank)


def _present_and_read(
    values: pa.Array, kind: pa.DataType, form: TextFormat, typed: bool = False
) -> tuple[pa.Array, pa.Array]:
    """Returns values [n], null where they are missing, and the same as a type, null where they are
    none of it.
    """
    is_text = pa.types.is_string(values.type)
    is_number = pa.types.is_floating(kind)
    if (kind in READ or (typed and is_number)) and not pa.types.is_nested(values.type):
        values = present(values, form)
        return values, read_as(values, kind, form)
    if is_text and pa.types.is_temporal(kind) and form.dates:
        return values, times(values, form, kind)
    if pa.types.is_list(kind) and pa.types.is_list(values.type):
        _, texts = _present_and_read(values.values, kind.value_type, form)
        return values, pa.ListArray.from_arrays(values.offsets, texts, mask=values.is_null())
    if pa.types.is_floating(values.type) and pa.types.is_string(kind):
        return values, canonical_text(values)  # 0 of -0.0, as other files of numbers are read
    if is_text and (is_number or pa.types.is_integer(kind)):
        values = plain_numbers(values, form)
    # the nearest of an integer beyond 2^53
    return values, cast(values, kind, allow_float_truncate=is_number)


def parse_block(data: bytes, dialect: Dialect, form: TextFormat = PLAIN_TEXT) -> TextBlock:
    """Parses whole lines without a header to columns of bytes.

    Rows with too many or too few columns are dropped, and so are lines that end inside quotes.

    Args:
        data: the lines. With ``form.line_ends``, ``LINE_END`` stands for those inside quotes.
        form: how the text holds values.
    """
    lines = count_lines(data)
    data = b"\n" if data in (b"", codecs.BOM_UTF8) else data  # Arrow rejects an empty file
    table, bad = dialect.parse(data)
    unread: list[BadLine] = []
    if table.num_rows + len(bad) != lines or _is_doubtful(data, dialect):
        data, unread = _whole_lines(data, dialect)
        table, bad = dialect.parse(data)
    numbers = _line_numbers(data if form.line_ends else b"", table.num_rows + len(bad))
    line = np.delete(numbers, [row.line - 1 for row in bad])
    bad = [replace(row, line=int(numbers[row.line - 1])) for row in bad + unread]
    empty = np.ones(table.num_rows, bool)
    for column in table.columns:
        if column.null_count and empty.any():
            empty &= column.is_null().to_numpy()
        else:
            empty[:] = False
            break
    blank = min(int(empty.sum()) - len(unread), lines)  # 0 for an empty block
    table = table.filter(~empty) if empty.any() else table
    columns = _columns(table)
    if form.line_ends:
        columns = {
            name: pc.replace_substring(values, LINE_END, b"\n") for name, values in columns.items()
        }
    block = TextBlock(columns, line[~empty], lines, blank, table.num_rows + len(bad), bad, form)
    block.drop(_is_header(block.columns), REPEATED_HEADER, one_array(table.column(0)))
    return block


def _is_header(columns: Mapping[str, pa.Array]) -> np.ndarray:
    """Returns whether each row is a header, as files have that others were appended to, bool [n]."""
    found = np.full(1, True)
    for name, values in columns.items():
        written = pa.array([name.encode(), codecs.BOM_UTF8 + name.encode()], values.type)
        found = found & pc.is_in(values, value_set=written).to_numpy(zero_copy_only=False)
        if not found.any():
            break
    return found


def _line_numbers(data: bytes, rows: int) -> np.ndarray:
    """Returns on which line of the file, counted from the first one of the block, each line of a
    block begins.
    """
    if LINE_END not in data:
        return np.arange(1, rows + 1)
    ends = np.frombuffer(data, np.uint8)
    is_end = ends == ord("\n")
    lines = np.cumsum(is_end | (ends == ord(LINE_END)))
    return np.append(1, 1 + lines[is_end])[:rows]


def typed(texts: pa.Table, form: TextFormat = PLAIN_TEXT) -> pa.Table:
    """Returns columns of text with the types that Arrow finds in them; a column without any value
    stays text.

    Numbers with marks of thousands are text to it.
    """
    written = io.BytesIO()
    csv.write_csv(texts, written, csv.WriteOptions(include_header=False))
    convert = csv.ConvertOptions(
        decimal_point=form.decimal, null_values=["", *form.null], strings_can_be_null=True
    )
    table, _ = Dialect(texts.column_names).read(written.getvalue() or b"\n", convert)
    kinds = [pa.string() if pa.types.is_null(kind) else kind for kind in table.schema.types]
    return table.cast(pa.schema(list(zip(texts.column_names, kinds))))


def is_utf8(data: bytes) -> bool:
    """Returns whether a text is UTF-8."""
    try:
        pa.array([data], pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid:
        return False
    return True


def _from_latin(column: pa.ChunkedArray) -> pa.Array:
    """Undoes a conversion from Latin-1 to UTF-8, which gives every byte a character of its own."""
    return pa.array(
        [value and value.decode().encode("latin-1") for value in column.to_pylist()], pa.binary()
    )


def _columns(table: pa.Table) -> dict[str, pa.Array]:
    """Returns the columns of a table by name, each as one array."""
    return {name: one_array(column) for name, column in zip(table.column_names, table.columns)}


def count_lines(data: bytes) -> int:
    """Returns the number of lines. The last one need not have a line end."""
    return data.count(b"\n") + (bool(data) and not data.endswith(b"\n"))


def _is_doubtful(data: bytes, dialect: Dialect) -> bool:
    """Returns whether equal numbers of rows and lines can hide lines that are not rows.

    Quotes that are open at the end of the block join no lines, and a carriage return in a line ends
    a row.
    """
    last = data[data.rfind(b"\n", 0, len(data) - 1) + 1 :]
    if not dialect.line.fullmatch(last.rstrip(b"\n")):
        return True
    return b"\r" in data and data.count(b"\r") != data.count(b"\r\n")


def _whole_lines(data: bytes, dialect: Dialect) -> tuple[bytes, list[BadLine]]:
    """Replaces every line that is not one row by a blank one, and returns these lines."""
    lines = data.removesuffix(b"\n").split(b"\n")
    bad = []
    for position, line in enumerate(lines):
        if b'"' in line or b"\r" in line:
            row = line.rstrip(b"\r")
            if not dialect.line.fullmatch(row):
                reason = "carriage return within the line" if b"\r" in row else OPEN_LINE
                bad.append(BadLine(position + 1, reason, _readable(row)))
                row = b""
            lines[position] = row
    return b"\n".join([*lines, b""]), bad


def are_numbers(texts: pa.Array, form: TextFormat) -> bool:
    """Returns whether there are texts, and all are numbers with the marks of a format."""
    numbers = plain_numbers(texts, form)
    return len(numbers) > numbers.null_count == cast(numbers, pa.float64()).null_count


def _means_missing(values: pa.Array) -> np.ndarray:
    """Returns whether each text is one that other programs read as missing, bool [n]."""
    words = pc.utf8_lower(pc.utf8_trim_whitespace(values))
    return pc.is_in(words, value_set=pa.array(MISSING)).to_numpy(zero_copy_only=False)


def _readable(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return "" if value is None else str(value)
