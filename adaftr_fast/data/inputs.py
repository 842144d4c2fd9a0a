"""Whatever the inputs are, to parquet: text is staged, Ali-CCP's raw files are joined, parquet is read in place."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from adaftr_fast.data import aliccp
from adaftr_fast.data.bad_rows import BadRows
from adaftr_fast.data.errors import DataError
from adaftr_fast.data.schema import COMMON
from adaftr_fast.data.schema_types import Condition, Schema
from adaftr_fast.data.source import check_columns
from adaftr_fast.data.staging import COMPRESSIONS, blocks, stage
from adaftr_fast.data.text import parse_block

TEXT = (".csv", ".tsv", ".txt")
DELIMITERS = ",\t;|"  # the one that a header holds most often

Stage = Callable[..., BadRows]


def as_parquet(
    schema: Schema, paths: dict[str, Path], work: Path, *, tolerance: float, progress: bool
) -> tuple[dict[str, Path], BadRows | None]:
    """Parquet files or folders by role for the schema's splits, and an account of bad rows if there was text.

    Args:
        work: a folder for staged parts; those of an interrupted run are used.
        tolerance: share of bad rows of a file above which an error is raised.

    Raises:
        DataError: unreadable text, a missing column, or too many bad rows.
    """
    text = [role for role, path in paths.items() if schema.format or is_text(path)]
    if not text:
        return paths, None
    size = sum(paths[role].stat().st_size for role in text)
    with tqdm(total=size, unit="B", unit_scale=True, desc="read", disable=not progress) as bar:
        run = partial(stage, tolerance=tolerance, bar=bar)
        accounts = _aliccp(schema, paths, work, run) if schema.format else _delimited(schema, paths, work, text, run)
    staged = {role: work / role for role in text if not (schema.format and role.startswith(COMMON))}
    read = {role: path for role, path in paths.items() if role not in text}
    return read | staged, sum(accounts, BadRows())


def is_text(path: Path) -> bool:
    """Whether a file's name says that it is delimited text, compressed or not."""
    name = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return name.suffix in TEXT


def _aliccp(schema: Schema, paths: dict[str, Path], work: Path, run: Stage) -> list[BadRows]:
    fields = field_columns(schema)
    fields += [schema.group] if schema.group and schema.group not in fields else []
    which = {"fields": fields, "lists": list_columns(schema)}
    accounts = []
    for role in paths:
        if role.startswith(COMMON):
            continue
        common = COMMON + role
        accounts.append(run(paths[common], work / common, partial(aliccp.parse_common, **which), header_lines=0))
        parse = partial(aliccp.parse_skeleton, common=aliccp.read_common(work / common, **which), **which)
        accounts.append(run(paths[role], work / role, parse, header_lines=0))
    return accounts


def field_columns(schema: Schema) -> list[str]:
    """Every column that fields read, each once."""
    return list(dict.fromkeys(column for field in schema.fields for column in field.columns))


def list_columns(schema: Schema) -> list[str]:
    """Those of them that hold several tokens."""
    return sorted({column for field in schema.fields if field.tokens for column in field.columns})


def _delimited(schema: Schema, paths: dict[str, Path], work: Path, roles: list[str], run: Stage) -> list[BadRows]:
    kinds = text_kinds(schema)
    required = [label.column for label in schema.labels if label.column is not None]
    accounts = []
    for role in roles:
        names, delimiter = read_header(paths[role])
        check_columns(schema, paths[role], names)
        parse = partial(parse_rows, names=names, delimiter=delimiter, kinds=kinds, required=required)
        accounts.append(run(paths[role], work / role, parse, header_lines=1))
    return accounts


def parse_rows(
    data: bytes, names: list[str], delimiter: str, kinds: dict[str, pa.DataType], required: list[str]
) -> tuple[pa.Table, BadRows]:
    """Lines without a header to the columns of ``kinds``; rows in which a ``required`` one is missing are bad."""
    block = parse_block(data, names, delimiter)
    for column in required:
        block.require(column)
    for column, kind in kinds.items():
        block.convert(column, kind)
    return block.table.select(list(kinds)), block.report()


def text_kinds(schema: Schema) -> dict[str, pa.DataType]:
    """The type of every column that the schema reads of a text file.

    Numbers are what numeric fields, 0/1 labels, weights and truths read, and what a condition compares with a number
    (whole ones where the column is a categorical field too); everything else is text, or what a condition says.
    """
    kinds: dict[str, pa.DataType] = dict.fromkeys(schema.columns(), pa.string())
    discrete = {column for field in schema.fields if field.kind != "numeric" for column in field.columns}
    conditions = [label.condition for label in schema.labels] + [rule.where for rule in schema.split.values()]
    for condition in (*conditions, schema.drop):
        for column, operand in _operands(condition or []):
            kinds[column] = _kind(operand, column in discrete)
    numbers = [field.columns[0] for field in schema.fields if field.kind == "numeric"]
    numbers += [label.column for label in schema.labels if label.column is not None]
    numbers += [*schema.truth.values(), *([schema.weight] if schema.weight else [])]
    return kinds | dict.fromkeys(numbers, pa.float64())


def _operands(condition: Condition) -> list[tuple[str, object]]:
    triples = [triple for part in condition for triple in ([part] if isinstance(part, tuple) else part)]
    return [(column, operand[0] if isinstance(operand, list) else operand) for column, _, operand in triples]


def _kind(operand: object, discrete: bool) -> pa.DataType:
    kinds = {  # subclasses first; a pandas Timestamp, which Arrow makes of nanoseconds, is a datetime
        bool: pa.bool_(),
        int: pa.int64() if discrete else pa.float64(),
        float: pa.float64(),
        datetime.datetime: pa.timestamp("us"),
        datetime.date: pa.date32(),
        datetime.time: pa.time64("us"),
    }
    return next((kind for known, kind in kinds.items() if isinstance(operand, known)), pa.string())


def read_header(path: Path) -> tuple[list[str], str]:
    """Column names and delimiter of a text file."""
    first = next(blocks(path), b"").split(b"\n", 1)[0]
    try:
        line = first.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1: the header is not UTF-8: {error}") from error
    delimiter = max(DELIMITERS, key=line.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    if not names or len(set(names)) != len(names):
        raise DataError(f"{path}:1: expected a header of distinct column names, got {line!r}")
    return names, delimiter
