"""Provides every input as parquet: text is staged, Ali-CCP's raw files are joined, parquet is read in place."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import pyarrow as pa

from adaftr_fast._files import AnyPath
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.raw.bad_rows import TEXT, BadRows
from adaftr_fast.data.raw.source import check_columns
from adaftr_fast.data.raw.staging import COMPRESSIONS, Parse, blocks
from adaftr_fast.data.raw.text import parse_block
from adaftr_fast.data.schema.parse import COMMON
from adaftr_fast.data.schema.types import Condition, Schema
from adaftr_fast.errors import DataError

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
DELIMITERS = ",\t;|"  # the delimiter is the one that occurs most often in the header


@dataclass(frozen=True)
class TextInput:
    """A text file to be staged as parquet.

    Attributes:
        folder: folder of the staged blocks.
        parse: returns the function that parses a block.
    """

    path: AnyPath
    folder: Path
    parse: Callable[[], Parse]
    header_lines: int


def text_inputs(schema: Schema, paths: Mapping[str, AnyPath], work: Path) -> list[list[TextInput]]:
    """Returns the text files to stage in ``work``, in rounds. A round may read what earlier rounds staged.

    Raises:
        DataError: a header is unreadable or a column is missing.
    """
    if schema.format:
        return _aliccp(schema, paths, work)
    texts = [_delimited(schema, path, work / role) for role, path in paths.items() if is_text(path)]
    return [texts] if texts else []


def parquet_inputs(schema: Schema, paths: Mapping[str, AnyPath], work: Path) -> dict[str, AnyPath]:
    """Returns a parquet file or folder per role, once all text files are staged in ``work``."""
    roles = {role: path for role, path in paths.items() if not (schema.format and role.startswith(COMMON))}
    return {role: work / role if schema.format or is_text(path) else path for role, path in roles.items()}


def is_text(path: AnyPath) -> bool:
    """Returns whether the file name ends as delimited text, compressed or not."""
    name = PurePath(path.name)
    return (name.with_suffix("") if name.suffix in COMPRESSIONS else name).suffix in TEXT_SUFFIXES


def _aliccp(schema: Schema, paths: Mapping[str, AnyPath], work: Path) -> list[list[TextInput]]:
    fields = field_columns(schema)
    fields += [schema.group] if schema.group and schema.group not in fields else []
    lists = list_columns(schema)

    def parse(role: str) -> Parse:
        if role.startswith(COMMON):
            return partial(aliccp.parse_common, fields=fields, lists=lists)
        common = aliccp.read_common(work / (COMMON + role))
        return partial(aliccp.parse_skeleton, fields=fields, common=common, lists=lists)

    texts = {role: TextInput(path, work / role, partial(parse, role), header_lines=0) for role, path in paths.items()}
    common = [text for role, text in texts.items() if role.startswith(COMMON)]
    return [common, [text for text in texts.values() if text not in common]]


def field_columns(schema: Schema) -> list[str]:
    """Returns every column that fields read, without duplicates."""
    return list(dict.fromkeys(column for field in schema.features for column in field.columns))


def list_columns(schema: Schema) -> list[str]:
    """Returns the multi-valued columns that fields read."""
    return sorted({column for field in schema.fields if field.tokens for column in field.columns})


def _delimited(schema: Schema, path: AnyPath, folder: Path) -> TextInput:
    labels = [label.column for label in schema.labels if label.column is not None]
    parse = text_parser(path, column_types(schema), labels, schema)
    return TextInput(path, folder, lambda: parse, header_lines=1)


def text_parser(
    path: AnyPath, types: dict[str, pa.DataType], labels: Sequence[str] = (), schema: Schema | None = None
) -> Parse:
    """Reads the header of a text file, and returns the function that parses its blocks as ``parse_rows`` does.

    Raises:
        DataError: as ``read_header``, or the file lacks a column of ``types``, which ``schema`` reads, if given.
    """
    names, delimiter = read_header(path)
    check_columns(path, names, types, schema)
    return partial(parse_rows, names=names, delimiter=delimiter, types=types, labels=labels)


def parse_rows(
    data: bytes, names: list[str], delimiter: str, types: dict[str, pa.DataType], labels: Sequence[str]
) -> tuple[pa.Table, BadRows]:
    """Parses lines without a header to the columns of ``types``. Rows without a number for a label are bad."""
    block = parse_block(data, names, delimiter)
    for column in labels:
        block.require(column)
    for column, type_ in types.items():
        block.convert(column, type_, f"label {column}: expected 0 or 1, got text" if column in labels else None)
    return pa.table({column: block.columns[column] for column in types}), block.report()


def column_types(schema: Schema) -> dict[str, pa.DataType]:
    """Returns the type of every column that the schema reads from a text file.

    A column is float64 if a numeric or dense field, a 0/1 label, a weight or a truth reads it. A column that a
    condition compares with a number is float64 too, or int64 if the number is an integer and a categorical field reads
    the column. Any other column has the type of the operand it is compared with, and is text by default.
    """
    types: dict[str, pa.DataType] = dict.fromkeys(schema.columns(), pa.string())
    discrete = {column for field in schema.fields if field.kind != "numeric" for column in field.columns}
    conditions = [label.condition for label in schema.labels] + [rule.where for rule in schema.split.values()]
    for condition in (*conditions, schema.drop):
        for column, operand in _operands(condition or []):
            types[column] = _operand_type(operand, column in discrete)
    numbers = [field.columns[0] for field in schema.features if field.kind in ("numeric", "dense")]
    numbers += [label.column for label in schema.labels if label.column is not None]
    numbers += [*schema.truth.values(), *([schema.weight] if schema.weight else [])]
    return types | dict.fromkeys(numbers, pa.float64())


def _operands(condition: Condition) -> list[tuple[str, object]]:
    triples = [triple for item in condition for triple in ([item] if isinstance(item, tuple) else item)]
    return [(column, operand[0] if isinstance(operand, list) else operand) for column, _, operand in triples]


def _operand_type(operand: object, discrete: bool) -> pa.DataType:
    zone = "UTC" if isinstance(operand, datetime.datetime) and operand.tzinfo else None
    types = {  # subclasses first; Arrow returns nanoseconds as a pandas Timestamp, a subclass of datetime
        bool: pa.bool_(),
        int: pa.int64() if discrete else pa.float64(),
        float: pa.float64(),
        datetime.datetime: pa.timestamp("us", zone),
        datetime.date: pa.date32(),
        datetime.time: pa.time64("us"),
    }
    return next((type_ for python_type, type_ in types.items() if isinstance(operand, python_type)), pa.string())


def read_header(path: AnyPath) -> tuple[list[str], str]:
    """Reads the column names and the delimiter of a text file.

    Raises:
        DataError: the first line is not a header in one line of distinct column names.
    """
    first = next(blocks(path), b"").split(b"\n", 1)[0]
    try:
        line = first.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1: the header is not UTF-8: {error.reason} at byte {error.start}") from error
    shown = repr(line if len(line) <= TEXT else line[:TEXT] + " ...")
    if "\r" in line:
        raise DataError(f"{path}:1: expected lines that end in LF or CR LF, got a carriage return within {shown}")
    delimiter = max(DELIMITERS, key=line.count)
    try:
        names = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error as error:  # such as a quote that is not closed, or a name of more than 131,072 characters
        raise DataError(f"{path}:1: expected a header in one line, got {shown}: {error}") from error
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}:1: expected a header of distinct column names, got {shown}")
    return names, delimiter
