"""Opens inputs, and provides every one as parquet: text is staged, Ali-CCP's raw files are joined,
parquet is read in place.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePath
from typing import ClassVar, TypeVar

import pyarrow as pa
import pyarrow.dataset as ds

from adaftr_fast.data.arrow import reading
from adaftr_fast.data.bad_rows import TEXT, BadRows
from adaftr_fast.data.memory import DEFAULT, GB, Memory, encoding
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.raw.batches import coalesced, read_tables
from adaftr_fast.data.raw.json_lines import LISTS, first_types, parse_lines, stored_type
from adaftr_fast.data.raw.source import (
    NOT_PARQUET,
    Inputs,
    check_columns,
    check_files,
    data_files,
    open_dataset,
)
from adaftr_fast.data.raw.staging import (
    COMPRESSIONS,
    LINE_END,
    PARSED,
    RowDivider,
    TextInput,
    blocks,
    lines_of_file,
    text_stream,
)
from adaftr_fast.data.raw.text import OPEN_LINE, Dialect, TextBlock, parse_block
from adaftr_fast.data.schema.columns import column_types, discrete_columns
from adaftr_fast.data.schema.parse import COMMON
from adaftr_fast.data.schema.types import Schema, TextFormat
from adaftr_fast.errors import DataError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", *JSON_SUFFIXES)
SAMPLE_BYTES = 2 << 20  # first lines of text that tell its layout and its types
SAMPLE_ROWS = 10_000  # first rows of a log, which tell how it is read
SAMPLE = Memory(GB)  # bounds them whatever the bound of the process is, on which no result depends
DELIMITERS = ",\t;|"  # the delimiter is the one that occurs most often in the header


def text_files(path: Path) -> list[Path]:
    """Returns the files of a folder of text, and any other input itself.

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


def is_text(path: Path) -> bool:
    """Returns whether the file name ends as delimited text or JSON lines, compressed or not."""
    return _suffix(path) in TEXT_SUFFIXES


def is_json(path: Path) -> bool:
    """Returns whether the file name ends as JSON lines, compressed or not."""
    return _suffix(path) in JSON_SUFFIXES


def _suffix(path: Path) -> str:
    """Returns how the file name ends before the suffix of a compression."""
    name = PurePath(path.name)
    return (name.with_suffix("") if name.suffix in COMPRESSIONS else name).suffix


@dataclass(frozen=True)
class Chunk:
    """Rows of a file that are not yet parsed. Chunks can be parsed in any thread.

    Attributes:
        parse: returns the rows, those of their columns to keep as they are written, and the bad
            rows with lines counted from 1.
        first_line: number of lines of the file before the chunk.
        size: approximate share of the file in bytes.
        memory: approximate bytes of memory that it takes to parse and encode.
    """

    path: Path
    parse: Callable[[], tuple[pa.Table, pa.Table, BadRows]]
    first_line: int
    size: int
    memory: int


@dataclass(frozen=True)
class _File:
    """An input.

    Attributes:
        form: how text holds values; ``line_ends`` is known.
        typed: the columns whose types the schema declares.
    """

    path: Path
    form: TextFormat
    typed: frozenset[str] = field(default=frozenset(), kw_only=True)

    @property
    def size(self) -> int:
        """Bytes of the file, or of all files of a folder."""
        return sum(file.stat().st_size for file in data_files(self.path))


@dataclass(frozen=True)
class LinesFile(_File, ABC):
    """A file of text, whose lines are rows but for its header."""

    header_lines: ClassVar[int]

    @property
    @abstractmethod
    def types(self) -> pa.Schema:
        """The types of the columns as they are written."""

    @property
    def rows(self) -> RowDivider | None:
        """The function that divides text into rows where values may hold line ends, else None."""
        return None

    @abstractmethod
    def block(self, data: bytes, columns: Iterable[str]) -> TextBlock:
        """Parses lines without a header to these columns, untyped, and maybe others."""

    @abstractmethod
    def kept_type(self, column: str) -> pa.DataType:
        """Returns the type of a column that is kept as it is written."""

    def check(self, columns: Iterable[str], schema: Schema | None = None) -> None:
        """Raises DataError if a column is missing, which a schema reads if there is one."""
        check_columns(self.path, self.types.names, columns, schema)

    def parse(
        self, data: bytes, types: Mapping[str, pa.DataType], labels: Sequence[str] = ()
    ) -> tuple[pa.Table, BadRows]:
        """Parses lines without a header to the columns of ``types``, lists as lists of text. Rows
        without a label are bad.
        """
        table, _, bad = self._parse(data, types, labels)
        return table, bad

    def _parse(
        self,
        data: bytes,
        types: Mapping[str, pa.DataType],
        labels: Sequence[str] = (),
        keep: Sequence[str] = (),
    ) -> tuple[pa.Table, pa.Table, BadRows]:
        block = self.block(data, dict.fromkeys([*types, *keep]))
        for column in keep:
            block.keep(column, self.kept_type(column))
        for column, type_ in types.items():
            if column in labels:
                block.convert_label(column)
            else:
                kind = self.kept_type(column) if type_ == pa.string() else type_
                block.convert(column, kind, column in self.typed)
        return block.table.select([*types]), pa.table(block.kept), block.report()

    def chunks(
        self, types: Mapping[str, pa.DataType], keep: Sequence[str] = (), memory: Memory = DEFAULT
    ) -> Iterator[Chunk]:
        """Yields the rows, which have the columns of ``types`` once they are parsed, and those of
        ``keep`` to keep.
        """
        parse = partial(self._parse, types=types, keep=keep)
        return text_chunks(self.path, parse, header_lines=self.header_lines, rows=self.rows)


@dataclass(frozen=True)
class TextFile(LinesFile):
    """A file of delimited text.

    Attributes:
        dialect: how it is divided into rows and values.
    """

    header_lines: ClassVar[int] = 1
    dialect: Dialect

    @property
    def delimiter(self) -> str:
        """What separates the columns."""
        return self.dialect.delimiter

    @property
    def types(self) -> pa.Schema:
        """The types of the columns as they are written."""
        return pa.schema(dict.fromkeys(self.dialect.names, pa.string()))

    @property
    def rows(self) -> RowDivider | None:
        """The function that divides text into rows where values may hold line ends, else None."""
        return self.dialect.whole_rows if self.form.line_ends else None

    def block(self, data: bytes, columns: Iterable[str]) -> TextBlock:
        """Parses lines without a header to all columns."""
        return parse_block(data, self.dialect, self.form)

    def kept_type(self, column: str) -> pa.DataType:
        """Returns text."""
        return pa.string()

    def first(self, columns: Sequence[str]) -> pa.Table:
        """Returns columns of the first rows as text, without rows that are not UTF-8 there."""
        lines = first_lines(self.path)
        lines = self.rows(lines, False)[0] if self.rows else lines
        block = self.block(lines, columns)
        for name in columns:
            block.convert(name, pa.string())
        return block.table.select(columns)


@dataclass(frozen=True)
class JsonFile(LinesFile):
    """A file of JSON lines.

    Attributes:
        found: the types of the columns in the first rows.
        delimiter: of the columns: nothing separates them.
    """

    header_lines: ClassVar[int] = 0
    found: pa.Schema
    delimiter: str = ""

    @property
    def types(self) -> pa.Schema:
        """The types of the columns in the first rows."""
        return self.found

    def block(self, data: bytes, columns: Iterable[str]) -> TextBlock:
        """Parses lines to these columns."""
        return parse_lines(data, {name: self.types.field(name).type for name in columns}, self.form)

    def kept_type(self, column: str) -> pa.DataType:
        """Returns lists of text or text."""
        return LISTS if pa.types.is_list(self.types.field(column).type) else pa.string()

    def first(self, columns: Sequence[str]) -> pa.Table:
        """Returns columns of the first rows in their types."""
        table = self.block(_head(self.path), columns).table.select(columns)
        return table.cast(
            pa.schema([(name, stored_type(self.found.field(name).type)) for name in columns])
        )


@dataclass(frozen=True)
class ParquetFile(_File):
    """A file of parquet, or a folder of such files.

    Attributes:
        dataset: the rows.
        delimiter: of the columns: nothing separates them.
    """

    dataset: ds.Dataset
    delimiter: str = ""

    @property
    def types(self) -> pa.Schema:
        """The types of the columns."""
        return self.dataset.schema

    def kept_type(self, column: str) -> pa.DataType:
        """Returns the type of a column."""
        return self.types.field(column).type

    def check(self, columns: Iterable[str]) -> None:
        """Raises DataError if a column is missing, or files differ in it."""
        check_columns(self.path, self.types.names, columns)
        with reading(self.path, "cannot be read"):
            check_files(self.dataset, columns)

    def first(self, columns: Sequence[str]) -> pa.Table:
        """Returns columns of the first ``SAMPLE_ROWS`` rows, fewer of wide ones.

        Raises one of ``READ_ERRORS``.
        """
        tables = [self.types.empty_table().select(columns)]
        rows = size = 0
        for table in read_tables(self.dataset, columns, memory=SAMPLE) if columns else ():
            tables.append(table)
            rows += table.num_rows
            size += table.nbytes
            if rows >= SAMPLE_ROWS or size >= SAMPLE.batch:
                break
        found = pa.concat_tables(tables).slice(0, SAMPLE_ROWS)
        found.validate(full=True)  # parquet of other programs may hold text that is not UTF-8
        return found

    def chunks(
        self, types: Mapping[str, pa.DataType], keep: Sequence[str] = (), memory: Memory = DEFAULT
    ) -> Iterator[Chunk]:
        """Yields the rows with the columns of ``types``, in their own types, and those of ``keep``
        to keep.
        """
        with reading(self.path, "cannot be read"):
            rows = max(1, self.dataset.count_rows())
            size = self.size
            tables = read_tables(self.dataset, [*types, *keep], memory=memory)
            for batch in coalesced(tables, memory):
                batch.validate(full=True)
                yield self._chunk(batch, keep, size * batch.num_rows // rows)

    def _chunk(self, batch: pa.RecordBatch, keep: Sequence[str], size: int) -> Chunk:
        table = pa.Table.from_batches([batch])
        rows = table, table.select(list(keep)), BadRows(rows=batch.num_rows)
        return Chunk(self.path, lambda: rows, 0, size, encoding(batch))


InputFile = TextFile | JsonFile | ParquetFile
OneFile = TypeVar("OneFile", bound=_File)


def open_inputs(paths: Iterable[Path], form: TextFormat) -> list[InputFile]:
    """Opens files, and the files of folders of text, of one log. Raises DataError as
    ``open_input``.
    """
    files = chain(*map(text_files, paths))
    return share_keys([open_input(path, form) for path in files])


def open_input(path: Path, form: TextFormat) -> InputFile:
    """Opens a text file, or parquet.

    Raises:
        DataError: as ``read_layout``, or another file is not parquet.
    """
    if is_text(path):
        return read_layout(path, form)
    with reading(path, NOT_PARQUET):
        return ParquetFile(path, replace(form, line_ends=False), open_dataset(path))


def read_layout(path: Path, form: TextFormat) -> TextFile | JsonFile:
    """Reads how a text file is divided: its header, and from its first lines whether values hold
    line ends. Of JSON lines, reads the keys and the types of their values in the first lines.

    Raises:
        DataError: the file cannot be read, or its first line is not a header of distinct column
            names; or none of the first lines is a JSON object.
    """
    head = _head(path)
    if is_json(path):
        types = first_types(head)
        if head.strip() and not types:
            shown = repr(head[:TEXT].partition(b"\n")[0].decode(errors="backslashreplace"))
            raise DataError(f"{path}:1: expected JSON lines, an object in each, got {shown}")
        return JsonFile(path, replace(form, line_ends=False), pa.schema(types))
    dialect = _header(path, head)
    line_ends = form.line_ends
    if line_ends is None:
        line_ends = _has_line_ends(head.partition(b"\n")[2], dialect)
    return TextFile(path, replace(form, line_ends=line_ends), dialect)


def share_keys(files: Sequence[OneFile]) -> list[OneFile]:
    """Returns the files of a log, in which those of JSON lines have the keys of one another: a key
    that a file lacks, or has as null alone, is missing in all of its rows.
    """
    keys: dict[str, pa.DataType] = {}
    for file in files:
        if isinstance(file, JsonFile):
            keys |= _types(file) | _not_null(keys)
    return [
        replace(file, found=pa.schema(keys | _not_null(_types(file))))
        if isinstance(file, JsonFile)
        else file
        for file in files
    ]


def _types(file: JsonFile) -> dict[str, pa.DataType]:
    return {each.name: each.type for each in file.found}


def _not_null(types: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    return {name: kind for name, kind in types.items() if not pa.types.is_null(kind)}


def text_chunks(
    path: Path,
    parse: Callable[[bytes], tuple[pa.Table, pa.Table, BadRows]],
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


def _has_line_ends(data: bytes, dialect: Dialect) -> bool:
    """Returns whether lines end inside quotes, and are rows of the right number of columns if they
    are joined.
    """
    if b'"' not in data or LINE_END in data:
        return False
    if all(each.reason != OPEN_LINE for each in parse_block(data, dialect).bad):
        return False
    rows, _ = dialect.whole_rows(data, False)
    return LINE_END in rows and not parse_block(rows, dialect, TextFormat(line_ends=True)).bad


def first_lines(path: Path) -> bytes:
    """Returns the first lines of a text file below its header."""
    return _head(path).partition(b"\n")[2]


def has_rows(file: Path) -> bool:
    """Returns whether an input is not a text file of a header alone."""
    return not is_text(file) or bool(_head(file) if is_json(file) else first_lines(file))


def first_with_rows(files: Sequence[Path]) -> Path:
    """Returns the first input that has rows, or else the first one."""
    return next(filter(has_rows, files), files[0])


def _head(path: Path) -> bytes:
    """Returns the first lines of a text file, at most ``SAMPLE_BYTES`` unless the first line is
    longer.
    """
    with reading(path, "cannot be read"), text_stream(path) as stream:
        data = stream.read(SAMPLE_BYTES)
    end = len(data) if len(data) < SAMPLE_BYTES else data.rfind(b"\n") + 1
    return data[:end] or next(blocks(path), b"")


def _header(path: Path, head: bytes) -> Dialect:
    """Returns how a text file is divided, given its first lines.

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
    return Dialect(names, delimiter)


def staged_inputs(
    schema: Schema, paths: Inputs, work: Path
) -> tuple[list[list[TextInput]], dict[str, list[Path]]]:
    """Returns the text files to stage in folders of ``work``, in rounds, and the parquet files and
    folders by role that hold all rows once they are staged. A round may read what earlier rounds
    staged.

    Raises:
        DataError: a header is unreadable or a column is missing.
    """
    if schema.format:
        return _aliccp(schema, paths, work)
    files = {role: [*chain(*map(text_files, each))] for role, each in paths.items()}
    layouts = [read_layout(path, schema.text) for path in chain(*files.values()) if is_text(path)]
    typed = frozenset(schema.types)
    texts = [
        _lines(schema, replace(layout, typed=typed), work / f"{number:05d}")
        for number, layout in enumerate(share_keys(layouts))
    ]
    folders = (text.folder for text in texts)
    rows = {
        role: [next(folders) if is_text(path) else path for path in each]
        for role, each in files.items()
    }
    return [texts] if texts else [], rows


def _lines(schema: Schema, layout: LinesFile, folder: Path) -> TextInput:
    types = column_types(schema)
    layout.check(types, schema)
    labels = [label.column for label in schema.labels if label.column is not None]
    return TextInput(
        layout.path,
        folder,
        partial(layout.parse, types=types, labels=labels),
        header_lines=layout.header_lines,
        rows=layout.rows,
        discrete=frozenset(
            name for name in discrete_columns(schema) if layout.kept_type(name) == pa.string()
        ),
    )


def _aliccp(
    schema: Schema, paths: Inputs, work: Path
) -> tuple[list[list[TextInput]], dict[str, list[Path]]]:
    fields, lists = aliccp_columns(schema)
    folders = {role: work / f"{number:05d}" for number, role in enumerate(paths)}
    common = []
    skeletons = {}
    for role, (path,) in paths.items():
        if role.startswith(COMMON):
            parse = partial(aliccp.parse_common, fields=fields, lists=lists)
            common.append(TextInput(path, folders[role], parse, header_lines=0))
        else:
            join = partial(aliccp.parse_skeleton, fields=fields, lists=lists)
            skeletons[role] = TextInput(
                path, folders[role], join, header_lines=0, common=folders[COMMON + role]
            )
    rows = {role: [text.folder] for role, text in skeletons.items()}
    return [common, [*skeletons.values()]], rows


def aliccp_columns(schema: Schema) -> tuple[list[str], list[str]]:
    """Returns the fields that are read from Ali-CCP's files, and those with all tokens."""
    group = [schema.group] if schema.group else []
    lists = [column for field in schema.fields if field.tokens for column in field.columns]
    return list(dict.fromkeys(schema.field_columns() + group)), lists
