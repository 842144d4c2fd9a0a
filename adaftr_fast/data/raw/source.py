"""Reads input files as streams of record batches: one scan per split, which computes the labels."""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from itertools import chain, compress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from adaftr_fast.data import hashing
from adaftr_fast.data.arrow import check_names, reading, shown
from adaftr_fast.data.bad_rows import EXAMPLES, BadRows, Unused
from adaftr_fast.data.encode.canonical import canonical_values
from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.groups import Groups
from adaftr_fast.data.encode.typed import as_written, rewrites
from adaftr_fast.data.encode.written import SHOWN_LABELS, holds_text, label_numbers
from adaftr_fast.data.memory import DEFAULT, Memory
from adaftr_fast.data.parallel import UNSHARDED, Shard
from adaftr_fast.data.raw.batches import PARQUET, Read, coalesced, fragment_rows, read_tables
from adaftr_fast.data.raw.staging import is_text, shown_source
from adaftr_fast.data.raw.tables import is_list
from adaftr_fast.data.schema.types import (
    SPLITS,
    Condition,
    Label,
    Schema,
    SplitRule,
    condition_columns,
)
from adaftr_fast.errors import DataError

SHIPPED = resources.files("adaftr_fast.data") / "files"
ROW_STREAM = hashing.stream_key(0, "rows")  # key of the hash of row numbers
LISTED = 50  # columns that an error names
NOT_PARQUET = "not a readable parquet file"
_ONE_FOLDER = "the files of a log must have the same columns"
Inputs = Mapping[str, Sequence[Path]]  # files and folders of files, by role


@dataclass(frozen=True)
class Scanned:
    """Rows of a scan [n]. A log may name its columns as it likes, so the others are held apart.

    Attributes:
        columns: every column that the schema reads.
        labels: a column per task, uint8, 0 or 1; null where a row lacks the label.
        splits: a column per split, whether it has the row, or whether the row meets its condition.
        kept: the rows that ``drop`` leaves, bool [n].
    """

    columns: pa.RecordBatch
    labels: pa.RecordBatch
    splits: pa.RecordBatch
    kept: np.ndarray

    def __len__(self) -> int:
        return self.columns.num_rows

    @property
    def used(self) -> np.ndarray:
        """The rows that are kept and have all labels, bool [n]."""
        return functools.reduce(operator.and_, map(_valid, self.labels.columns), self.kept)

    def filter(self, mask: np.ndarray) -> Scanned:
        """Returns the rows of ``mask`` [n]."""
        has = pa.array(mask)
        labels, splits = self.labels.filter(has), self.splits.filter(has)
        return Scanned(self.columns.filter(has), labels, splits, self.kept[mask])


class Account:
    """What is known of the rows of some files.

    Attributes:
        unused: rows that are in no split.
        unlabelled: the rows that are not dropped and lack a label, by the first label that they
            lack and its value.
        texts: the values of the columns that labels compare with text, by column.
        groups: the groups of each split; {} if the schema has none.
    """

    def __init__(self, schema: Schema) -> None:
        self.unused = Unused()
        self.unlabelled = BadRows()
        self.texts = {column: ValueCounts(pa.string()) for column in schema.compared()}
        self.groups = {split: Groups(schema.group) for split in SPLITS if schema.group}


class _Lacking:
    """Rows that lack a label.

    Attributes:
        reasons: their numbers by reason, which is the value that they have.
        first: the numbers of the first ones, with the reasons.
    """

    def __init__(self, label: Label) -> None:
        self.label = label
        self.reasons: Counter[str] = Counter()
        self.first: list[tuple[int, str]] = []

    def add(self, rows: Scanned, lacks: np.ndarray, first_row: int) -> None:
        """Adds the rows in which ``lacks`` [n] is true."""
        places = np.flatnonzero(lacks)
        if not len(places):
            return
        values = pa.nulls(len(places), pa.string())
        if self.label.column is not None:
            values = rows.columns[self.label.column].take(places).cast(pa.string())
        texts = values.to_pylist()
        for place, value in zip(places[:EXAMPLES].tolist(), texts):
            self.first.append((first_row + place, self._reason(value)))
        del self.first[EXAMPLES:]
        for value, count in Counter(texts).items():
            reason = self._reason(value)
            is_new = value is not None and reason not in self.reasons
            if is_new and len(self.reasons.keys() - {self._reason(None)}) >= SHOWN_LABELS:
                reason = f"label {self.label.name}: expected 0 or 1, got other text"
            self.reasons[reason] += count

    def _reason(self, value: str | None) -> str:
        if value is None:
            return f"{self.label.column or f'label {self.label.name}'} is missing"
        return f"label {self.label.name}: expected 0 or 1, got {value!r}"


class Source:
    """Input files of a schema by role, or one shard of their rows, a range of consecutive row
    groups.

    Args:
        paths: parquet files and folders of parquet files, by role (``input_paths``).
        shard: which rows.
        named: the inputs as the user knows them; None for ``paths``.
        memory: the bound of this process.

    Raises:
        DataError: a file is missing or not readable as parquet, or a column is missing.
    """

    def __init__(
        self,
        schema: Schema,
        paths: Inputs,
        shard: Shard = UNSHARDED,
        *,
        named: Inputs | None = None,
        memory: Memory = DEFAULT,
    ) -> None:
        self.schema = schema
        self.memory = memory
        self.named = named or paths
        read: Read | None = partial(as_written, schema) if rewrites(schema) else None
        self._read_tables = partial(read_tables, read=read, memory=memory)
        self.paths = paths
        self._datasets: dict[str, ds.Dataset] = {}
        # rows of the preceding shards, which row numbers count
        self._preceding: dict[str, ds.Dataset] = {}
        for role in paths:
            with self._reading(role, NOT_PARQUET):
                whole = open_datasets(paths[role])
                self._datasets[role], self._preceding[role] = _shard_row_groups(whole, shard)
            check_columns(paths[role][0], whole.schema.names, schema.columns(), schema)
            with self._reading(role, "cannot read the columns of its files"):
                check_files(whole, schema.columns())

    def _reading(self, role: str, what: str) -> AbstractContextManager[None]:
        return reading(listed(map(shown, self.named[role])), what)

    def count_rows(self) -> int:
        """Returns the number of rows of all files."""
        files = self._datasets.values()
        return sum(map(fragment_rows, chain(*(each.get_fragments() for each in files))))

    def scan(
        self, splits: Sequence[str], advance: Callable[[int], object] = int
    ) -> Iterator[Scanned]:
        """Yields the rows of splits of one input that have all labels, in file order.

        Args:
            advance: called with the number of rows read, as counted by ``count_rows()``.

        Raises:
            DataError: the file is corrupt, or a condition does not fit a column's type.
        """
        rules = {name: self.schema.split[name] for name in splits}
        (role,) = {rule.file for rule in rules.values()}
        names = self.schema.named_columns()
        for rows, has in self._selected(role, rules, names, f"cannot read split {listed(splits)}"):
            in_any = functools.reduce(operator.or_, has.values())
            selected = replace(rows, splits=pa.record_batch(has))
            if in_any.any():
                yield selected if in_any.all() else selected.filter(in_any)
            advance(len(rows))

    def used_values(
        self, role: str, name: str, advance: Callable[[int], object] = int
    ) -> Iterator[pa.Array]:
        """Yields the values of a column of an input in the rows that are kept and have all labels.

        Args:
            advance: called with the number of rows read, as counted by ``count_rows()``.

        Raises:
            DataError: the file is corrupt, or a condition does not fit a column's type.
        """
        every = {"": SplitRule(role)}
        names = [name, *self._deciding(every)]
        for rows, has in self._selected(role, every, names, f"cannot read {name}"):
            yield rows.columns[name].filter(pa.array(has[""]))
            advance(len(rows))

    def _selected(
        self,
        role: str,
        rules: Mapping[str, SplitRule],
        names: Iterable[str],
        what: str,
    ) -> Iterator[tuple[Scanned, dict[str, np.ndarray]]]:
        """Yields the rows of an input, and whether each rule selects them.

        Args:
            what: the problem in errors.
        """
        found = self._rows(self._datasets[role], rules, names)
        numbering = None
        while True:
            # covers the read only, not the caller's code
            with self._reading(role, what):
                numbering = numbering or self._numbering(role, rules)
                rows = next(found, None)
                if rows is None:
                    return
                # parquet of other programs may hold text that is not UTF-8
                rows.columns.validate(full=True)
                has = numbering.select(rows)
            yield rows, has

    def _rows(
        self,
        dataset: ds.Dataset,
        rules: Mapping[str, SplitRule],
        names: Iterable[str],
    ) -> Iterator[Scanned]:
        """Yields all rows with the columns ``names`` and the conditions of rules."""
        labels = self.schema.labels
        parts = {
            "columns": _struct({name: pc.field(name) for name in names}),
            "labels": _struct({each.name: label_expression(each) for each in labels}),
            "splits": _struct({name: _condition(rule.where) for name, rule in rules.items()}),
            # a condition that is null does not drop a row
            "kept": ~_condition(self.schema.drop) if self.schema.drop else pc.scalar(True),
        }
        tables = self._read_tables(dataset, self.schema.inputs(names), parts)
        for batch in coalesced(tables, self.memory):
            *structs, kept = batch.columns
            columns, values, splits = map(pa.RecordBatch.from_struct_array, structs)
            found = {each.name: _label(each, values[each.name]) for each in labels}
            yield Scanned(columns, pa.record_batch(found), splits, _mask(kept))

    def count(
        self, account: Account, advance: Callable[[int], object] = int
    ) -> Iterator[pa.RecordBatch]:
        """Yields the columns of the training rows in file order, and counts all rows of all files.

        Args:
            account: what is known of the rows, once all batches are read.
            advance: called with the number of rows read, as counted by ``count_rows()``.
        """
        for role in self._datasets:
            rules = {name: each for name, each in self.schema.split.items() if each.file == role}
            names = self._deciding(rules) + ([self.schema.group] if self.schema.group else [])
            names = self.schema.named_columns() if "train" in rules else names
            lacking = [_Lacking(label) for label in self.schema.labels]
            count = 0
            what = f"cannot read split {listed(rules)}"
            for rows, has in self._selected(role, rules, names, what):
                with self._reading(role, "cannot count its rows"):
                    self._add(account, rows, has, lacking, count)
                count += len(rows)
                in_train = has.get("train", np.zeros(1, bool))
                if in_train.any():
                    yield (
                        rows.columns if in_train.all() else rows.columns.filter(pa.array(in_train))
                    )
                advance(len(rows))
            reasons = dict(sum((each.reasons for each in lacking), Counter()))
            first = sorted(example for each in lacking for example in each.first)[:EXAMPLES]
            with self._reading(role, "cannot count its rows"):
                examples = self._examples(role, first) if first else []
            account.unlabelled += BadRows(count, sum(reasons.values()), reasons, examples)

    def _add(
        self,
        account: Account,
        rows: Scanned,
        has: Mapping[str, np.ndarray],
        lacking: Sequence[_Lacking],
        first_row: int,
    ) -> None:
        """Counts rows, of which each split has those where its mask is true."""
        used = rows.kept
        for each in lacking:
            has_label = _valid(rows.labels[each.label.name])
            each.add(rows, used & ~has_label, first_row)
            used = used & has_label
        for name, groups in account.groups.items():
            if name in has:
                groups.add(rows.columns[self.schema.group].filter(pa.array(has[name])))
        in_any = functools.reduce(operator.or_, has.values(), np.zeros(len(rows), bool))
        account.unused += Unused(int((used & ~in_any).sum()), int((~rows.kept).sum()))
        for column, counts in account.texts.items():
            counts.update(rows.columns[column].filter(pa.array(used)).cast(pa.string()))

    def _deciding(self, rules: Mapping[str, SplitRule]) -> list[str]:
        """Returns the columns that tell whether rules select a row."""
        names = condition_columns(self.schema.drop or [])
        names += [column for label in self.schema.labels for column in label.columns()]
        return names + [column for rule in rules.values() for column in rule.columns()]

    def _numbering(self, role: str, rules: Mapping[str, SplitRule]) -> _Numbering:
        """Returns the numbering of rows after those of the preceding shards."""
        numbering = _Numbering(rules)
        if any(
            rule.rows != "all" or (rule.hash and rule.hash.column is None)
            for rule in rules.values()
        ):
            for rows in self._rows(self._preceding[role], rules, self._deciding(rules)):
                numbering.select(rows)
        return numbering

    def _examples(self, role: str, first: Sequence[tuple[int, str]]) -> list[str]:
        """Returns rows of this shard and their reasons, under the file of each row and its number
        there, counted from 0; of staged text, under the inputs.
        """
        inputs = {str(file): file for path in self.named[role] for file in data_files(path)}
        examples = []
        for row, reason in first:
            before: Counter[str] = Counter()
            for fragment in self._preceding[role].get_fragments():
                before[fragment.path] += fragment_rows(fragment)
            for fragment in self._datasets[role].get_fragments():
                count = fragment_rows(fragment)
                if row < count:
                    break
                row -= count
                before[fragment.path] += count
            place = listed(map(shown, self.named[role]))
            if fragment.path in inputs:
                place = f"{shown(inputs[fragment.path])}: row {before[fragment.path] + row}"
            examples.append(f"{place}: {reason}")
        return examples


class _Numbering:
    """Selects rows by rules, which number those that meet their conditions from batch to batch."""

    def __init__(self, rules: Mapping[str, SplitRule]) -> None:
        self.rules = rules
        self.seen = dict.fromkeys(rules, 0)

    def select(self, rows: Scanned) -> dict[str, np.ndarray]:
        """Returns whether each rule selects each of the next rows, bool [n]."""
        hashes = _hashes(rows.columns, self.rules.values())
        used = rows.used
        masks = {}
        for name, rule in self.rules.items():
            places = np.flatnonzero(used & _mask(rows.splits[name]))
            numbers = np.arange(self.seen[name], self.seen[name] + len(places))
            self.seen[name] += len(places)
            of_places = {column: each[places] for column, each in hashes.items()}
            masks[name] = np.zeros(len(rows), bool)
            masks[name][places[_selects(rule, numbers, of_places)]] = True
        return masks


def check_columns(
    path: Path, names: Iterable[str], wanted: Iterable[str], schema: Schema | None = None
) -> None:
    """Raises DataError if ``names``, the columns of a file, lack one of those that are wanted, by a
    schema if any.
    """
    found = dict.fromkeys(names)
    if missing := [column for column in wanted if column not in found]:
        reader = "" if schema is None else f", which {_reader(schema, missing)} reads"
        raise DataError(
            f"{shown(path)}: no column {listed(map(repr, missing))}{reader}; the file has {listed(found)}"
        )


def _reader(schema: Schema, columns: Sequence[str]) -> str:
    keys = [
        f"columns.{name} of "
        for name, each in schema.expressions.items()
        if not set(columns).isdisjoint(each.columns)
    ]
    return f"{keys[0] if keys else ''}schema {schema.name}"


def check_files(dataset: ds.Dataset, columns: Iterable[str]) -> None:
    """Raises DataError if a file of a folder lacks one of ``columns``, or has values of another
    kind there.

    Arrow reads such a file as the first one: a column that it lacks as missing, the text "007" as
    the integer 7.
    """
    columns = list(columns)
    first, *others = [*dataset.get_fragments()] or [None]
    for file in others:
        found = file.physical_schema
        for column in columns:
            kind = dataset.schema.field(column).type
            if column not in found.names:
                raise DataError(
                    f"{shown_source(file)}: no column {column!r}, which {shown_source(first)} has; "
                    f"{_ONE_FOLDER}"
                )
            if not _reads_as(found.field(column).type, kind):
                got = f"column {column!r} is {found.field(column).type}"
                raise DataError(
                    f"{shown_source(file)}: {got}, in {shown_source(first)} it is {kind}; "
                    f"{_ONE_FOLDER}"
                )


def _reads_as(found: pa.DataType, kind: pa.DataType) -> bool:
    """Returns whether the values of one type keep their meaning when Arrow casts them to another
    one.
    """
    found, kind = (
        each.value_type if pa.types.is_dictionary(each) else each for each in (found, kind)
    )
    if is_list(found) and is_list(kind):
        return _reads_as(found.value_type, kind.value_type)
    names = _kind(found), _kind(kind)
    is_plain = names[0] in ("number", "boolean") and not pa.types.is_decimal(found)
    is_wider = names[1] == "text" or names == ("boolean", "number")
    return pa.types.is_null(found) or names[0] == names[1] or (is_plain and is_wider)


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_boolean(kind):
        return "boolean"
    if holds_text(kind):
        return "text"
    return "timestamp" if pa.types.is_timestamp(kind) else str(kind).removeprefix("large_")


def listed(names: Iterable[str]) -> str:
    """Returns the names as text, at most ``LISTED`` of them."""
    names = list(names)
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def label_expression(label: Label) -> pc.Expression:
    """Returns the expression of the values of a label."""
    return (
        pc.field(label.column)
        if label.column is not None
        else pq.filters_to_expression(label.condition)
    )


def _selects(rule: SplitRule, numbers: np.ndarray, hashes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns whether a rule selects each row that meets ``where``, bool [n].

    Args:
        numbers: the numbers of the rows, among those of the file that meet ``where`` [n].
        hashes: ``_hashes`` of the rows.
    """
    if rule.hash:
        column = rule.hash.column
        found = hashing.bits(ROW_STREAM, numbers) if column is None else hashes[column]
        position = hashing.fraction(found)
        return (position >= rule.hash.start) & (position < rule.hash.stop)
    return (
        np.full(len(numbers), True) if rule.rows == "all" else numbers % 2 == (rule.rows == "odd")
    )


def _hashes(rows: pa.RecordBatch, rules: Iterable[SplitRule]) -> dict[str, np.ndarray]:
    """Returns the hashes of the columns that rules select by, uint64 [n] each."""
    hashes = {}
    for column in {rule.hash.column for rule in rules if rule.hash and rule.hash.column}:
        try:
            hashes[column] = hashing.text_hash(canonical_values(rows[column]))
        except pa.ArrowException as error:
            expected = "expected text or numbers, got values of type"
            raise pa.ArrowTypeError(f"hash of {column}: {expected} {rows[column].type}") from error
    return hashes


def _label(label: Label, values: pa.Array) -> pa.Array:
    """Returns the values of a label as uint8 [n], null where a row lacks it."""
    try:
        return label_numbers(values).cast(pa.uint8())
    except pa.ArrowException as error:
        raise pa.ArrowTypeError(
            f"label {label.name}: expected 0 or 1, got values of type {values.type}"
        ) from error


def _valid(values: pa.Array) -> np.ndarray:
    return _mask(values.is_valid())


def _mask(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False)


def _struct(columns: Mapping[str, pc.Expression]) -> pc.Expression:
    return pc.make_struct(*columns.values(), field_names=[*columns])


def _condition(where: Condition | None) -> pc.Expression:
    """Returns an expression that is true where a condition is met, and false where it is null."""
    return (
        pc.scalar(True)
        if where is None
        else pc.coalesce(pq.filters_to_expression(where), pc.scalar(False))
    )


def input_paths(schema: Schema, files: Sequence[str | Path]) -> dict[str, tuple[Path, ...]]:
    """Returns the input files by role, or the file in the package if none is given. A single role
    takes all files.

    Raises:
        DataError: the number of files does not match the schema.
    """
    if not files and schema.shipped is not None:
        files = [str(SHIPPED / schema.shipped)]
    if files and len(schema.files) == 1 and schema.format is None:
        return {schema.files[0]: tuple(map(Path, files))}
    if len(files) != len(schema.files):
        roles = " ".join(role.upper() for role in schema.files)
        raise DataError(
            f"data set {schema.name}: expected {len(schema.files)} file(s) ({roles}), got "
            f"{len(files)}"
        )
    return {role: (Path(file),) for role, file in zip(schema.files, files)}


def data_files(path: Path) -> list[Path]:
    """Returns the file itself, or all files of a folder in reading order, except hidden ones."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_dir():
        return [path]
    with reading(path, NOT_PARQUET):
        found = ds.dataset(path, schema=pa.schema([]), format="parquet")  # reads no file
        return [Path(file) for file in found.files]


def open_datasets(paths: Sequence[Path]) -> ds.Dataset:
    """Opens files and folders of files as one data set, with the types of the first one.

    A column of text that is staged as integers is text again if a file has other values there. One
    of booleans, such as a label, has the type of the first file that has numbers there.

    Raises:
        pyarrow.ArrowException, OSError: as ``open_dataset``.
    """
    first, *others = map(open_dataset, paths)
    files = [file for each in (first, *others) for file in each.get_fragments()]
    schema = first.schema
    for place, field in enumerate(schema):
        found = [
            file.physical_schema.field(field.name)
            for file in (files if _kind(field.type) in ("number", "boolean") else ())
            if file.physical_schema.names.count(field.name) == 1
        ]
        if pa.types.is_boolean(field.type):
            numbers = [each for each in found if _kind(each.type) == "number"]
            schema = schema.set(place, numbers[0] if numbers else field)
        if any(map(is_text, found)) and any(each.type != pa.int64() for each in found):
            schema = schema.set(place, pa.field(field.name, pa.string()))
    return ds.FileSystemDataset(files, schema, first.format, first.filesystem)


def open_dataset(path: Path) -> ds.Dataset:
    """Opens a file or a folder of files for scans. Raises one of ``READ_ERRORS``."""
    dataset = ds.dataset(path, format=PARQUET)
    check_names(dataset.schema)
    return dataset


def _shard_row_groups(whole: ds.Dataset, shard: Shard) -> tuple[ds.Dataset, ds.Dataset]:
    """Returns the row groups of a shard, and those of all shards before it."""

    def dataset(row_groups: Iterable[ds.Fragment]) -> ds.Dataset:
        return ds.FileSystemDataset(list(row_groups), whole.schema, whole.format, whole.filesystem)

    row_groups = [
        row_group
        for fragment in whole.get_fragments()
        for row_group in fragment.split_by_row_group()
    ]
    ends = np.cumsum([fragment_rows(row_group) for row_group in row_groups])
    rows = max([1, *ends])
    number = (ends - 1) * shard.count // rows + 1  # the shard of each row group's last row
    return dataset(compress(row_groups, number == shard.number)), dataset(
        compress(row_groups, number < shard.number)
    )
