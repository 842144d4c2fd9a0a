"""Loads the rows of a shard: reads inputs in chunks, divides them into used and unused rows, and
stores what a prepared folder is made of.

Shapes: n rows.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast._files import AnyPath
from adaftr_fast.data import hashing
from adaftr_fast.data.encode.canonical import as_float64, canonical_values
from adaftr_fast.data.encode.encoders import field_values, one_array
from adaftr_fast.data.encode.groups import group_values
from adaftr_fast.data.encode.written import (
    SHOWN_LABELS,
    as_written,
    holds_text,
    is_label,
    label_numbers,
)
from adaftr_fast.data.memory import Memory
from adaftr_fast.data.parallel import Shard, ordered_map
from adaftr_fast.data.prepare.table import WEIGHT, Columns, Pair, RowWriter, divided
from adaftr_fast.data.raw import aliccp
from adaftr_fast.data.raw.bad_rows import EXAMPLES, BadRows
from adaftr_fast.data.raw.inputs import (
    AliccpFile,
    Chunk,
    InputFile,
    ParquetFile,
    Text,
    TextFile,
    aliccp_columns,
    is_text,
    open_input,
    text_files,
)
from adaftr_fast.data.raw.source import (
    NOT_PARQUET,
    Inputs,
    Unused,
    check_columns,
    check_files,
    data_files,
    listed,
    reading_input,
)
from adaftr_fast.data.raw.tables import is_list, shown
from adaftr_fast.data.schema.columns import column_types
from adaftr_fast.data.schema.parse import COMMON
from adaftr_fast.data.schema.types import Condition, Label, Schema, SplitRule
from adaftr_fast.engines import Advance
from adaftr_fast.errors import DataError

USED, WHERE, HAS, VALUE = "used", "where", "has", "value"  # prefixes of expressions
AnyFile = InputFile | AliccpFile
Files = dict[str, list[AnyFile]]  # by role


@dataclass
class Loaded:
    """What is known of the rows of a shard.

    Attributes:
        numbers: stored rows of each numbering, by its column.
        texts: the parts of files of text, in order.
        others: number of rows of parquet.
        rows: number of stored rows.
        width: mean bytes of the widest chunk of them.
        unlabelled: the rows that are not dropped and lack a label, by the first label that they
            lack and its value.
        unused: rows that are in no split, without those that a hash or a number leaves out.
        compared: rows by value of the columns that labels compare with text, by column.
    """

    numbers: dict[str, int]
    compared: dict[str, Counter[str]]
    texts: list[Text] = field(default_factory=list)
    others: int = 0
    rows: int = 0
    width: float = 0.0
    unlabelled: BadRows = field(default_factory=BadRows)
    unused: Unused = field(default_factory=Unused)


@dataclass
class _Rows:
    """The rows of a chunk.

    Attributes:
        stored: the columns of the stored rows [n], without their numbers.
        meets: whether they meet the condition of each numbering of the role, bool [n].
    """

    report: BadRows
    unlabelled: BadRows
    unused: Unused
    compared: dict[str, Counter[str]]
    count: int
    stored: dict[str, pa.Array]
    meets: dict[str, np.ndarray]


def open_files(schema: Schema, paths: Inputs) -> Files:
    """Opens the inputs of a schema.

    Raises:
        DataError: a file is missing or unreadable, a column is missing, or parquet files of a role
            have values of different kinds in a column.
    """
    if not schema.format:
        return {role: _opened(schema, each) for role, each in paths.items()}
    fields, lists = aliccp_columns(schema)
    return {
        role: [AliccpFile(path, schema.text, paths[COMMON + role][0], fields, lists)]
        for role, (path,) in paths.items()
        if not role.startswith(COMMON)
    }


def _opened(schema: Schema, paths: Sequence[AnyPath]) -> list[AnyFile]:
    names = schema.columns()
    found: list[AnyFile] = []
    for path in paths:
        texts = text_files(path)
        for file in texts if is_text(texts[0]) else data_files(path):
            with reading_input([file], NOT_PARQUET):
                found.append(open_input(file, schema.text))
    if not found:
        raise DataError(f"{listed(map(str, paths))}: no files")
    parquet = [each for each in found if isinstance(each, ParquetFile)]
    for each in found:
        if not isinstance(each, ParquetFile) or each is parquet[0]:
            check_columns(each.path, each.types.names, names, schema)
    if not parquet:
        return found
    with reading_input(paths, "cannot read the columns of its files"):
        check_files([each.dataset for each in parquet], names)
    return [_as_first(each, parquet[0].types) for each in found]


def _as_first(file: AnyFile, types: pa.Schema) -> AnyFile:
    """Returns parquet with the types of the first file, to which values are cast, and text as it
    is.
    """
    if not isinstance(file, ParquetFile):
        return file
    found = file.dataset
    return replace(
        file,
        dataset=ds.FileSystemDataset(
            [*found.get_fragments()], types, found.format, found.filesystem
        ),
    )


def parts(files: Files, shard: Shard) -> Iterator[tuple[str, AnyFile]]:
    """Yields the files of a shard with their roles, in order. Shards are ranges of consecutive
    blocks of text and row groups, so they begin and end with parts of files.
    """
    every = [(role, file, file.units()) for role, each in files.items() for file in each]
    total = max(1, sum(sum(units) for _, _, units in every))
    end = 0
    for role, file, units in every:
        ends = end + np.cumsum(units)
        end += sum(units)
        # the shard of the last byte of each unit
        places = np.flatnonzero((ends - 1) * shard.count // total + 1 == shard.number)
        if len(places):
            yield role, file.of_units(slice(int(places[0]), int(places[-1]) + 1))


def columns_of(schema: Schema, files: Files) -> Columns:
    """Returns the columns of the table of rows."""
    kinds = {name: _kinds(schema, files, name) for name in schema.columns()}
    integers = [name for name, each in kinds.items() if all(map(_always_fits, each))]
    lists = [
        name
        for name, each in kinds.items()
        if all(is_list(kind) and _always_fits(kind.value_type) for kind in each)
    ]
    return Columns(schema, {*integers}, {*lists})


def of_text(schema: Schema, files: Files) -> set[str]:
    """Returns the fields whose values are text, even if all of them are integers."""
    return {
        each.name
        for each in schema.fields
        if each.kind == "cross"
        or each.separator is not None
        or any(
            holds_text(kind.value_type if is_list(kind) else kind)
            for kind in _kinds(schema, files, each.columns[0])
        )
    }


def _kinds(schema: Schema, files: Files, column: str) -> list[pa.DataType]:
    """Returns the types of a column of each file once it is parsed."""
    every = [file for each in files.values() for file in each]
    of_text = column_types(schema)
    return [
        of_text[column] if isinstance(file, TextFile) else file.types.field(column).type
        for file in every
    ]


def _always_fits(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) and not pa.types.is_uint64(kind)


def load(
    files: Files,
    shard: Shard,
    writer: RowWriter,
    columns: Columns,
    *,
    tolerance: float,
    memory: Memory,
    advance: Advance,
) -> Loaded:
    """Stores the rows of a shard that meet the condition of a split.

    Args:
        tolerance: share of bad rows of text that is tolerated. If it is 0, the first one raises at
            once.
        memory: the bound of this process.
        advance: called with the bytes of the inputs that are read.

    Raises:
        ConfigError: rows do not fit the memory.
        DataError: an input is unreadable, a column cannot be read as the schema says, or a bad row
            is not tolerated.
    """
    schema = columns.schema
    loaded = Loaded(
        dict.fromkeys(columns.number_of.values(), 0),
        {column: Counter() for column in schema.compared()},
    )
    labels = [label.column for label in schema.labels if label.column is not None]
    labels = aliccp.LABELS if schema.format else labels
    types = column_types(schema)

    def chunks() -> Iterator[tuple[str, Text | None, Chunk]]:
        for role, file in parts(files, shard):
            text = None
            if not isinstance(file, ParquetFile):
                text = Text(str(file.path), not file.part.start)
                if isinstance(file, AliccpFile):
                    loaded.texts += [file.read_common()] if text.is_start else []
                loaded.texts.append(text)
            for chunk in file.chunks(types, memory=memory, labels=labels):
                yield role, text, chunk

    def convert(item: tuple[str, Text | None, Chunk]) -> tuple[Text | None, Chunk, _Rows]:
        role, text, chunk = item
        return text, chunk, _rows(columns, role, chunk)

    for text, chunk, rows in ordered_map(convert, chunks(), lambda item: item[2].memory, memory):
        if text is None:
            loaded.others += rows.report.rows
        else:
            text.bad_rows += rows.report.moved(chunk.first_line)
            text.lines += chunk.lines
            if tolerance == 0:  # more rows cannot make the share 0 again
                text.bad_rows.shifted(text.path, 0).check(tolerance)
        loaded.unlabelled += rows.unlabelled
        loaded.unused += rows.unused
        for column, counts in rows.compared.items():
            loaded.compared[column] += counts
        numbers = {}
        for column, seen in loaded.numbers.items():
            meets = rows.meets.get(column, np.zeros(rows.count, bool))
            numbers[column] = pa.array(seen + np.cumsum(meets) - 1, mask=~meets)
            loaded.numbers[column] += int(meets.sum())
        writer.append(rows.stored | numbers)
        loaded.rows += rows.count
        size = sum(each.nbytes for each in rows.stored.values())
        loaded.width = max(loaded.width, size / max(rows.count, 1))
        advance(chunk.size)
    return loaded


def _rows(columns: Columns, role: str, chunk: Chunk) -> _Rows:
    schema = columns.schema
    table, report = chunk.parse()
    if report.lines is not None:
        report.check_kept(chunk.path, table.num_rows)
    numberings = {
        columns.number_of[split]: rule for split, rule in schema.split.items() if rule.file == role
    }
    with reading_input([chunk.path], "cannot read the labels and the splits"):
        table = as_written(schema, table)
        found = _evaluated(schema, numberings, table)
        used = found[USED].to_numpy()
        dropped = table.num_rows - int(used.sum())
        lacking = _Lacking(chunk)
        for label in schema.labels:
            has_label = found[HAS + label.name].to_numpy()
            lacking.add(label, table, used & ~has_label)
            used = used & has_label
        compared = {}
        for column in schema.compared():
            texts = one_array(table[column].filter(used)).cast(pa.string())
            compared[column] = Counter(texts.drop_null().to_pylist())
        meets = {column: used & found[WHERE + column].to_numpy() for column in numberings}
        stored = functools.reduce(operator.or_, meets.values(), np.zeros(len(used), bool))
        kept = table if stored.all() else table.filter(stored)
        batch = pa.record_batch([one_array(each) for each in kept.columns], schema=kept.schema)
        labels = {
            columns.labels[label.name]: label_numbers(
                one_array(found[VALUE + label.name].filter(stored))
            )
            for label in schema.labels
        }
        hashes = {name: _places(column, batch[column]) for column, name in columns.hashes.items()}
    try:
        values = _values(columns, batch)
    except DataError as error:
        raise DataError(f"{chunk.path}: {error}") from error
    return _Rows(
        report=report,
        unlabelled=lacking.bad_rows(),
        unused=Unused(int((used & ~stored).sum()), dropped),
        compared=compared,
        count=int(stored.sum()),
        stored=values | hashes | {name: each.cast(pa.uint8()) for name, each in labels.items()},
        meets={column: each[stored] for column, each in meets.items()},
    )


def _evaluated(schema: Schema, numberings: Mapping[str, SplitRule], table: pa.Table) -> pa.Table:
    """Returns which rows are not dropped, have each label, and meet the condition of each
    numbering, and the labels.
    """
    read = {USED: pc.invert(_condition(schema.drop)) if schema.drop else pc.scalar(True)}
    read |= {WHERE + column: _condition(rule.where) for column, rule in numberings.items()}
    for label in schema.labels:
        read[HAS + label.name] = _has_label(label, table.schema)
        read[VALUE + label.name] = _label_expression(label)
    return ds.InMemoryDataset(table).scanner(columns=read, use_threads=False).to_table()


def _condition(where: Condition | None) -> pc.Expression:
    """Returns an expression that is true where a condition is met, and false where it is null."""
    if where is None:
        return pc.scalar(True)
    return pc.coalesce(pq.filters_to_expression(where), pc.scalar(False))


def _label_expression(label: Label) -> pc.Expression:
    if label.column is not None:
        return pc.field(label.column)
    return pq.filters_to_expression(label.condition)


def _has_label(label: Label, types: pa.Schema) -> pc.Expression:
    """Returns the condition of the rows that have a label."""
    if label.column is None:
        return pq.filters_to_expression(label.condition).is_valid()
    return is_label(label.column, types.field(label.column).type)


class _Lacking:
    """Rows of a chunk that lack a label, with the reason, which is the value that they have."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._reasons: Counter[str] = Counter()
        self._first: list[tuple[int, str]] = []

    def add(self, label: Label, table: pa.Table, lacks: np.ndarray) -> None:
        """Adds the rows of a table in which ``lacks`` [n] is true."""
        places = np.flatnonzero(lacks)
        values = pa.nulls(len(places), pa.string())
        if label.column is not None:
            values = one_array(table[label.column].take(places)).cast(pa.string())
        texts = values.to_pylist()
        for place, value in zip(places[:EXAMPLES].tolist(), texts):
            self._first.append((place, _reason(label, value)))
        others = f"label {label.name}: expected 0 or 1, got other text"
        shown: set[str] = set()
        for value, count in Counter(texts).items():
            if value is not None and len(shown) < SHOWN_LABELS:
                shown.add(value)
            is_shown = value is None or value in shown
            self._reasons[_reason(label, value) if is_shown else others] += count

    def bad_rows(self) -> BadRows:
        """Returns the rows, with the first ones by file and row, of text by file alone."""
        chunk = self._chunk
        examples = []
        for place, reason in sorted(self._first)[:EXAMPLES]:
            row = "" if chunk.lines else f": row {chunk.first_line + place}"
            examples.append(f"{shown(chunk.path)}{row}: {reason}")
        return BadRows(0, sum(self._reasons.values()), dict(self._reasons), examples)


def _reason(label: Label, value: str | None) -> str:
    if value is None:
        return f"{label.column or f'label {label.name}'} is missing"
    return f"label {label.name}: expected 0 or 1, got {value!r}"


def _places(column: str, values: pa.Array) -> pa.Array:
    """Returns the places of the hashes of values [n] in [0, 1)."""
    try:
        return pa.array(hashing.fraction(hashing.text_hash(canonical_values(values))))
    except pa.ArrowException as error:
        expected = "expected text or numbers, got values of type"
        raise pa.ArrowTypeError(f"hash of {column}: {expected} {values.type}") from error


def _values(columns: Columns, batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """Returns the stored values of rows [n]: of fields, the group, the weight and truths."""
    schema = columns.schema
    found = {name: batch[column].cast(pa.int64()) for name, column in columns.sources.items()}
    for each in schema.features:
        pair = columns.values.get(each.name)
        name = pair[0] if pair else columns.numbers[each.name]
        if name in columns.sources or name not in columns.types:
            continue  # a column of integers, which is stored as it is
        values = field_values(each, batch)
        if pair:
            found |= _divided(pair, values)
        else:
            found[name] = values.cast(columns.types[name])
    if columns.group and columns.group[0] not in columns.sources:
        groups = group_values(schema.group or "", batch[schema.group])
        found |= _divided(columns.group, groups)
    if schema.weight:
        found[WEIGHT] = _weights(schema.weight, batch[schema.weight])
    for name, column in schema.truth.items():
        found[columns.truth[name]] = _numbers(f"truth {name}", batch[column])
    return found


def _divided(pair: Pair, values: pa.Array) -> dict[str, pa.Array]:
    integers, texts = divided(values)
    return {pair[0]: integers} | ({pair[1]: texts} if pair[1] is not None else {})


def _weights(name: str, values: pa.Array) -> pa.Array:
    """Casts raw weights [n] to float32 [n]."""
    numbers = _numbers(f"weight {name}", values).cast(pa.float32())
    plain = numbers.fill_null(np.nan).to_numpy()
    wrong = ~(np.isfinite(plain) & (plain >= 0))
    if wrong.any():
        raise DataError(f"weight {name}: expected finite numbers >= 0, got {plain[wrong][0]:g}")
    return numbers


def _numbers(what: str, values: pa.Array) -> pa.Array:
    try:
        return as_float64(values)
    except pa.ArrowException as error:
        raise DataError(f"{what}: expected numbers, got values of type {values.type}") from error
