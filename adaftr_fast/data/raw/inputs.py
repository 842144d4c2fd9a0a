"""Provides every input as parquet: text is staged, Ali-CCP's raw files are joined, parquet is read
in place.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath

import pyarrow as pa

from adaftr_fast._files import AnyPath
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.raw.bad_rows import TEXT, BadRows
from adaftr_fast.data.raw.source import Inputs, check_columns, data_files, os_error, reading
from adaftr_fast.data.raw.staging import (
    COMPRESSIONS,
    LINE_END,
    Parse,
    RowDivider,
    blocks,
    text_stream,
)
from adaftr_fast.data.raw.text import KEPT, OPEN_LINE, TextBlock, parse_block, whole_rows
from adaftr_fast.data.schema.columns import column_types
from adaftr_fast.data.schema.parse import COMMON
from adaftr_fast.data.schema.types import Schema, TextFormat
from adaftr_fast.errors import DataError

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
SAMPLE_BYTES = 2 << 20  # first lines of text that tell its layout and its types
DELIMITERS = ",\t;|"  # the delimiter is the one that occurs most often in the header


@dataclass(frozen=True)
class TextInput:
    """A text file to be staged as parquet.

    Attributes:
        folder: folder of the staged blocks.
        parse: returns the function that parses a block.
        rows: divides text into rows where values may hold line ends.
    """

    path: AnyPath
    folder: Path
    parse: Callable[[], Parse]
    header_lines: int
    rows: RowDivider | None = None


def read_layouts(schema: Schema, paths: Inputs, work: Path) -> list[Layout]:
    """Returns how each text file is divided, in the order of ``text_inputs``; [] for Ali-CCP's.

    Raises:
        DataError: a header is unreadable or a column is missing.
    """
    layouts = []
    for path, _ in _texts(schema, paths, work):
        layouts.append(read_layout(path, schema.text))
        check_columns(path, layouts[-1].names, column_types(schema), schema)
    return layouts


def text_inputs(
    schema: Schema, paths: Inputs, work: Path, layouts: Sequence[Layout]
) -> list[list[TextInput]]:
    """Returns the text files to stage in ``work``, in rounds. A round may read what earlier rounds
    staged.

    Args:
        layouts: those of ``read_layouts``.
    """
    if schema.format:
        return _aliccp(schema, paths, work)
    texts = [
        _delimited(schema, *text, layout)
        for text, layout in zip(_texts(schema, paths, work), layouts)
    ]
    return [texts] if texts else []


def _texts(schema: Schema, paths: Inputs, work: Path) -> list[tuple[AnyPath, Path]]:
    """Returns the files of delimited text, each with the folder in ``work`` for its rows."""
    staged = (
        []
        if schema.format
        else [each for role in paths for each in _staged(work, role, paths[role])]
    )
    return [(path, folder) for path, folder in staged if folder is not None]


def parquet_inputs(schema: Schema, paths: Inputs, work: Path) -> dict[str, list[AnyPath]]:
    """Returns parquet files and folders per role, once all text files are staged in ``work``."""
    if schema.format:
        return {role: [work / role] for role in paths if not role.startswith(COMMON)}
    return {
        role: [folder or path for path, folder in _staged(work, role, each)]
        for role, each in paths.items()
    }


def _staged(work: Path, role: str, paths: Sequence[AnyPath]) -> list[tuple[AnyPath, Path | None]]:
    """Returns the inputs of a role, each text file with the folder in ``work`` that holds its rows
    as parquet.
    """
    inputs = [file for path in paths for file in text_files(path)]
    return [
        (path, work / f"{role}-{n:05d}" if is_text(path) else None) for n, path in enumerate(inputs)
    ]


def text_files(path: AnyPath) -> list[AnyPath]:
    """Returns the files of a folder of delimited text, and any other input itself.

    Raises:
        DataError: the input is missing, or only some files of a folder are text.
    """
    files = data_files(path)
    texts = [file for file in files if is_text(file)]
    if path.is_dir() and texts and len(texts) < len(files):
        other = next(file for file in files if not is_text(file))
        raise DataError(
            f"{path}: expected a folder of text or of parquet, got {texts[0].name} beside "
            f"{other.name}"
        )
    return texts or [path]


def is_text(path: AnyPath) -> bool:
    """Returns whether the file name ends as delimited text, compressed or not."""
    name = PurePath(path.name)
    return (name.with_suffix("") if name.suffix in COMPRESSIONS else name).suffix in TEXT_SUFFIXES


def _aliccp(schema: Schema, paths: Inputs, work: Path) -> list[list[TextInput]]:
    fields = field_columns(schema)
    fields += [schema.group] if schema.group and schema.group not in fields else []
    lists = list_columns(schema)

    def parse(role: str) -> Parse:
        if role.startswith(COMMON):
            return partial(aliccp.parse_common, fields=fields, lists=lists)
        common = aliccp.read_common(work / (COMMON + role))
        return partial(aliccp.parse_skeleton, fields=fields, common=common, lists=lists)

    texts = {
        role: TextInput(path, work / role, partial(parse, role), header_lines=0)
        for role, (path,) in paths.items()
    }
    common = [text for role, text in texts.items() if role.startswith(COMMON)]
    return [common, [text for text in texts.values() if text not in common]]


def field_columns(schema: Schema) -> list[str]:
    """Returns every column that fields read, without duplicates."""
    return list(dict.fromkeys(column for field in schema.features for column in field.columns))


def list_columns(schema: Schema) -> list[str]:
    """Returns the multi-valued columns that fields read."""
    return sorted({column for field in schema.fields if field.tokens for column in field.columns})


def _delimited(schema: Schema, path: AnyPath, folder: Path, layout: Layout) -> TextInput:
    labels = [label.column for label in schema.labels if label.column is not None]
    parse = partial(layout.parse, types=column_types(schema), labels=labels)
    return TextInput(path, folder, lambda: parse, header_lines=1, rows=layout.rows)


@dataclass(frozen=True)
class Layout:
    """How a text file is divided into rows and values.

    Attributes:
        names: the columns, in the order of the file.
        form: how the text holds values; ``line_ends`` is known.
    """

    names: list[str]
    delimiter: str
    form: TextFormat

    @property
    def rows(self) -> RowDivider | None:
        """The function that divides text into rows where values may hold line ends, else None."""
        if not self.form.line_ends:
            return None
        return partial(whole_rows, delimiter=self.delimiter, columns=len(self.names))

    def block(self, data: bytes, keep: Sequence[str] = ()) -> TextBlock:
        """Parses lines without a header."""
        return parse_block(data, self.names, self.delimiter, self.form, keep=keep)

    def first(self, path: AnyPath) -> bytes:
        """Returns the first lines of a file below its header, as ``block`` reads them."""
        lines = first_lines(path)
        return self.rows(lines, last=False)[0] if self.rows else lines

    def parse(
        self,
        data: bytes,
        types: Mapping[str, pa.DataType],
        labels: Sequence[str] = (),
        keep: Sequence[str] = (),
    ) -> tuple[pa.Table, BadRows]:
        """Parses lines without a header to the columns of ``types``, and those of ``keep`` as
        ``parse_block`` does.

        Rows without a label are bad.
        """
        types = {**types, **{KEPT + column: pa.string() for column in keep}}
        block = self.block(data, keep)
        for column, type_ in types.items():
            if column in labels:
                block.convert_label(column)
            else:
                block.convert(column, type_)
        return pa.table({column: block.columns[column] for column in types}), block.report()


def read_layout(path: AnyPath, form: TextFormat) -> Layout:
    """Reads how a text file is divided: its header, and from its first lines whether values hold
    line ends.

    Raises:
        DataError: the file cannot be read, or its first line is not a header of distinct column
            names.
    """
    head = _head(path)
    names, delimiter = _header(path, head)
    line_ends = form.line_ends
    if line_ends is None:
        line_ends = _has_line_ends(head.partition(b"\n")[2], names, delimiter)
    return Layout(names, delimiter, replace(form, line_ends=line_ends))


def _has_line_ends(data: bytes, names: list[str], delimiter: str) -> bool:
    """Returns whether lines end inside quotes, and are rows of the right number of columns if they
    are joined.
    """
    if b'"' not in data or LINE_END in data:
        return False
    if all(each.reason != OPEN_LINE for each in parse_block(data, names, delimiter).bad):
        return False
    rows, _ = whole_rows(data, delimiter, len(names), last=False)
    return (
        LINE_END in rows and not parse_block(rows, names, delimiter, TextFormat(line_ends=True)).bad
    )


def first_lines(path: AnyPath) -> bytes:
    """Returns the first lines of a text file below its header."""
    return _head(path).partition(b"\n")[2]


def first_with_rows(files: Sequence[AnyPath]) -> AnyPath:
    """Returns the first input that is not a text file of a header alone; the first one
    if all are.
    """
    return next((file for file in files if not is_text(file) or first_lines(file)), files[0])


def _head(path: AnyPath) -> bytes:
    """Returns the first lines of a text file, at most ``SAMPLE_BYTES`` unless the first line is
    longer.
    """
    with reading(path, "cannot be read", os_error(path)), text_stream(path) as stream:
        data = stream.read(SAMPLE_BYTES)
    end = len(data) if len(data) < SAMPLE_BYTES else data.rfind(b"\n") + 1
    return data[:end] or next(blocks(path), b"")


def _header(path: AnyPath, head: bytes) -> tuple[list[str], str]:
    """Returns the column names and the delimiter of a text file, given its first lines.

    Raises:
        DataError: the first line is not a header in one line of distinct column names.
    """
    first = head.split(b"\n", 1)[0]
    try:
        line = first.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:1: the header is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
    shown = repr(line if len(line) <= TEXT else line[:TEXT] + " ...")
    if "\r" in line:
        raise DataError(
            f"{path}:1: expected lines that end in LF or CR LF, got a carriage return within "
            f"{shown}"
        )
    delimiter = max(DELIMITERS, key=line.count)
    try:
        names = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    # such as a quote that is not closed, or a name of more than 131,072 characters
    except csv.Error as error:
        raise DataError(f"{path}:1: expected a header in one line, got {shown}: {error}") from error
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}:1: expected a header of distinct column names, got {shown}")
    return names, delimiter
