"""The rows of a log as typed columns in DuckDB: counts of values, and rows with their ids, by SQL.

Each shard has a file of its rows, which the process that merges their results reads as one table.
DuckDB keeps to a bound of memory: what does not fit is on disk.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data import hashing
from adaftr_fast.data.encode.encoders import Encoder, Vocabulary, one_array
from adaftr_fast.data.memory import BATCH_ROWS, Memory
from adaftr_fast.data.schema.types import SPLITS, Condition, Field, Schema, SplitRule
from adaftr_fast.engines import cores
from adaftr_fast.errors import ConfigError, first_line

ROW_STREAM = hashing.stream_key(0, "rows")  # key of the hash of row numbers
MOST_ROWS = 1 << 40  # of a shard
GROUP_ROWS = 122_880  # that DuckDB compresses and writes at once
INTEGER = r"^(?:0|-?[1-9][0-9]{0,18})$"  # text of an integer in canonical form
LARGEST = "9223372036854775807"  # of 19 digits, of int64
APART = 0.5  # of the memory of tables, for all vocabularies that are looked up together
ENTRY = 64  # bytes of a value in a hash table
KINDS = ("i", "t")  # integers and other text
WEIGHT = "weight"


Pair = tuple[str, str | None]
"""Of a value, the column of integers and that of other text, None if all are integers."""


class Columns:
    """The columns of the table of the rows of a log, and what fields read of them, in SQL.

    Args:
        integers: the columns of inputs that hold integers of int64 in every file, which are stored
            once.
        lists: those that hold lists of such integers.

    Attributes:
        types: the type of each column, under a name that needs no quotes.
        sources: the columns of inputs that are stored as they are, by the columns of the table.
        values: of each field of single values, the integers and the other text: at most one of the
            two has a value; None for text that no row has.
        numbers: of each field, the numbers or the lists.
        fields: columns of the fields in ``rows_with_ids``.
        labels: columns of the labels.
        number_of: columns of the numbers of the rows that meet ``where``, by split. Splits of equal
            roles and conditions share one.
        hashes: columns of the places of hashed columns in [0, 1), by hashed column.
        group: as ``values``.
        truth: columns of true probabilities, by name.
    """

    def __init__(self, schema: Schema, integers: Collection[str], lists: Collection[str]) -> None:
        self.schema = schema
        self.types: dict[str, pa.DataType] = {}
        self.sources: dict[str, str] = {}
        self.values: dict[str, Pair] = {}
        self.numbers: dict[str, str] = {}
        self.fields: dict[str, str] = {}
        for number, field in enumerate(schema.features):
            self.fields[field.name] = f"f{number}"
            column = field.columns[0]
            is_integer = field.kind != "cross" and column in integers
            if field.tokens == "all":
                kind = pa.int64() if column in lists else pa.string()
                self.numbers[field.name] = self._add(f"l{number}", pa.list_(kind))
            elif field.kind not in ("numeric", "dense"):
                is_plain = is_integer and field.tokens is None
                self.values[field.name] = self._pair(column if is_plain else None, str(number))
            elif is_integer and field.kind == "dense":
                stored = f"{self._stored(column)}::DOUBLE::FLOAT"
                self.numbers[field.name] = f"coalesce({stored}, 'nan'::FLOAT)"
            elif is_integer:
                self.numbers[field.name] = f"{self._stored(column)}::DOUBLE"
            else:
                kind = pa.float32() if field.kind == "dense" else pa.float64()
                self.numbers[field.name] = self._add(f"x{number}", kind)
        self.labels = {
            label.name: self._add(f"y{number}", pa.uint8())
            for number, label in enumerate(schema.labels)
        }
        conditions: list[tuple[str, Condition | None]] = []
        self.number_of: dict[str, str] = {}
        for split, rule in schema.split.items():
            if (rule.file, rule.where) not in conditions:
                conditions.append((rule.file, rule.where))
            number = conditions.index((rule.file, rule.where))
            self.number_of[split] = self._add(f"n{number}", pa.int64())
        hashed = [rule.hash.column for rule in schema.split.values() if rule.hash]
        named = dict.fromkeys(column for column in hashed if column is not None)
        self.hashes = {
            column: self._add(f"h{number}", pa.float64()) for number, column in enumerate(named)
        }
        self.group: Pair | None = None
        if schema.group:
            self.group = self._pair(schema.group if schema.group in integers else None, "g")
        if schema.weight:
            self._add(WEIGHT, pa.float32())
        self.truth = {
            name: self._add(f"q{number}", pa.float64()) for number, name in enumerate(schema.truth)
        }

    def _add(self, name: str, kind: pa.DataType) -> str:
        self.types[name] = kind
        return name

    def _stored(self, column: str) -> str:
        """Returns the column of the table that holds a column of integers."""
        for name, source in self.sources.items():
            if source == column:
                return name
        name = self._add(f"c{len(self.sources)}", pa.int64())
        self.sources[name] = column
        return name

    def _pair(self, column: str | None, suffix: str) -> Pair:
        if column is not None:
            return self._stored(column), None
        return self._add(f"i{suffix}", pa.int64()), self._add(f"t{suffix}", pa.string())


SQL_TYPES = {
    pa.int64(): "BIGINT",
    pa.string(): "VARCHAR",
    pa.uint8(): "UTINYINT",
    pa.bool_(): "BOOLEAN",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.list_(pa.int64()): "BIGINT[]",
    pa.list_(pa.string()): "VARCHAR[]",
}


def divided(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Divides values in their canonical form [n], integers or text, into integers and other text,
    each [n] with null for the others. An integer is one, whatever type carries it.
    """
    if pa.types.is_integer(values.type):
        return values, pa.nulls(len(values), pa.string())
    is_integer = _is_integer(values)
    if not is_integer.true_count:
        return pa.nulls(len(values), pa.int64()), values
    integers = pc.if_else(is_integer, values, None).cast(pa.int64())
    if is_integer.false_count == 0:
        return integers, pa.nulls(len(values), pa.string())
    return integers, pc.if_else(is_integer, None, values)


def _is_integer(texts: pa.Array) -> pa.Array:
    """Returns whether each text is an integer of int64 in canonical form, bool [n]."""
    found = pc.match_substring_regex(texts, INTEGER)
    digits = pc.utf8_ltrim(texts, "-")
    fits = pc.or_(pc.less(pc.binary_length(digits), len(LARGEST)), pc.less_equal(digits, LARGEST))
    return pc.and_(found, fits)


@contextmanager
def connected(path: Path | None, limit: int, spill: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Provides a connection to a DuckDB file, or to a database in memory for None. What exceeds
    ``limit`` bytes is in the folder ``spill`` meanwhile.

    Raises:
        ConfigError: a query of the block needs more memory.
        KeyboardInterrupt: a query of the block is interrupted.
        OSError: DuckDB cannot write a file.
    """
    options: dict[str, str | bool | int | float | list[str]] = {
        "threads": cores(),
        "memory_limit": f"{limit}B",
        "temp_directory": str(spill),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        # which would change the order of rows
        "disabled_optimizers": "join_order,build_side_probe_side",
    }
    database = ":memory:" if path is None else str(path)
    try:
        with closing(duckdb.connect(database, config=options)) as connection:
            connection.execute("SET enable_progress_bar = false")
            yield connection
    except duckdb.OutOfMemoryException as error:
        raise ConfigError(
            f"memory: the tables of the rows need more than the {limit >> 20} MB that they have of "
            f"it: pass a larger bound: {first_line(error)}"
        ) from error
    except duckdb.IOException as error:
        raise OSError(first_line(error)) from error
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # by Ctrl-C
            raise KeyboardInterrupt from error
        raise


class RowWriter:
    """Appends rows to a new table of a DuckDB file.

    Args:
        types: the types of the columns by name.
        most: bytes of rows that are kept until they are as many as DuckDB writes at once.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        types: Mapping[str, pa.DataType],
        most: int = sys.maxsize,
    ) -> None:
        self._connection = connection
        self._name = name
        self._schema = pa.schema(list(types.items()))
        self._most = most
        self._pending: list[pa.Table] = []
        self._rows = 0
        columns = ", ".join(f"{name} {SQL_TYPES[kind]}" for name, kind in types.items())
        connection.execute(f"CREATE TABLE {name} ({columns}); BEGIN")

    def append(self, columns: Mapping[str, pa.Array]) -> None:
        """Appends rows, given all columns."""
        table = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        while table.num_rows:
            missing = GROUP_ROWS - self._rows
            self._pending.append(table.slice(0, missing))
            self._rows += self._pending[-1].num_rows
            if self._rows == GROUP_ROWS or sum(each.nbytes for each in self._pending) > self._most:
                self._write()
            table = table.slice(missing)

    def _write(self) -> None:
        self._connection.register("added", pa.concat_tables(self._pending))
        self._connection.execute(f"INSERT INTO {self._name} SELECT * FROM added")
        self._connection.unregister("added")
        self._pending = []
        self._rows = 0

    def finish(self) -> None:
        """Writes the rows to disk."""
        if self._pending:
            self._write()
        self._connection.execute("COMMIT")


def select_rows(
    connection: duckdb.DuckDBPyConnection, columns: Columns, rows: Path, before: Mapping[str, int]
) -> None:
    """Writes the table ``picked`` with one row for each of those of a shard: whether each split has
    it.

    Args:
        rows: the file of the shard.
        before: rows of the preceding shards, by column of numbers.
    """
    connection.execute(f"ATTACH {_quoted(rows)} AS shard (READ_ONLY)")
    named = ", ".join([*before, *columns.hashes.values()])
    reader = connection.cursor().sql(f"SELECT {named} FROM shard.rows")
    writer = RowWriter(connection, "picked", dict.fromkeys(SPLITS, pa.bool_()))
    for batch in reader.to_arrow_reader(BATCH_ROWS):
        picked = {}
        for split, rule in columns.schema.split.items():
            number = columns.number_of[split]
            places = None
            if rule.hash and rule.hash.column is not None:
                places = batch[columns.hashes[rule.hash.column]].to_numpy()
            numbers = batch[number].fill_null(0).to_numpy() + before[number]
            selected = pa.array(_selects(rule, numbers, places))
            picked[split] = pc.and_(batch[number].is_valid(), selected)
        writer.append(picked)
    writer.finish()


def _selects(rule: SplitRule, numbers: np.ndarray, places: np.ndarray | None) -> np.ndarray:
    """Returns whether a rule selects each row that meets ``where``, bool [n].

    Args:
        numbers: the numbers of the rows among those that meet ``where`` [n].
        places: the places of the hashed column [n]; None to hash the numbers.
    """
    if rule.hash:
        if places is None:
            places = hashing.fraction(hashing.bits(ROW_STREAM, numbers))
        return (places >= rule.hash.start) & (places < rule.hash.stop)
    if rule.rows == "all":
        return np.full(len(numbers), True)
    return numbers % 2 == (rule.rows == "odd")


class Log:
    """The rows of all shards, in their order.

    Args:
        connection: a connection of its own.
        shards: the files of the rows and of ``select_rows`` of each shard, in order.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: Columns,
        shards: Sequence[tuple[Path, Path]],
    ) -> None:
        self._connection = connection
        self.columns = columns
        parts = []
        for number, (rows, picked) in enumerate(shards):
            connection.execute(f"ATTACH {_quoted(rows)} AS rows{number} (READ_ONLY)")
            connection.execute(f"ATTACH {_quoted(picked)} AS picked{number} (READ_ONLY)")
            parts.append(
                f"SELECT {number} AS shard, r.rowid AS place, r.*, p.* FROM rows{number}.rows r "
                f"POSITIONAL JOIN picked{number}.picked p"
            )
        connection.execute(f"CREATE VIEW log AS {' UNION ALL '.join(parts)}")

    def unmatched(self) -> int:
        """Returns the number of rows that no split selects."""
        selected = " OR ".join(SPLITS)
        return self._one(f"SELECT count(*) FROM log WHERE NOT ({selected})")

    def training_rows(self) -> int:
        """Returns the number of training rows."""
        return self._one("SELECT count(*) FROM log WHERE train")

    def _one(self, query: str) -> int:
        ((found,),) = self._connection.sql(query).fetchall()
        return int(found)

    def counts(self, field: Field, is_text: bool) -> pa.Table:
        """Returns columns ``value`` and ``count`` (int64) of the training values of a field, in
        ascending order of value.

        Args:
            is_text: whether values are text even if all are integers.
        """
        if field.name in self.columns.values:
            integer, text = self.columns.values[field.name]
            found = self._counted(f"{integer} AS i, {text or 'NULL::VARCHAR'} AS t", "log")
            values = joined(one_array(found["i"]), one_array(found["t"]), is_text)
        elif field.tokens == "all":
            tokens = f"(SELECT train, unnest({self.columns.numbers[field.name]}) AS t FROM log)"
            found = self._counted("t", tokens)
            values = one_array(found["t"])
            if not is_text and pa.types.is_string(values.type):
                values = joined(*divided(values), is_text)
        else:
            found = self._counted(f"{self.columns.numbers[field.name]} AS x", "log")
            found = found.filter(pc.invert(pc.is_nan(found["x"])))
            values = one_array(found["x"])
        return pa.table({"value": values, "count": found["count"]}).sort_by("value")

    def _counted(self, values: str, source: str) -> pa.Table:
        """Returns the training rows of each distinct value that is not null, and ``count``."""
        query = f"SELECT {values}, count(*) AS count FROM {source} WHERE train GROUP BY ALL"
        found = self._connection.sql(query).to_arrow_table()
        known = [column.is_valid() for column in found.columns[:-1]]
        return found.filter(functools.reduce(pc.or_, known))

    def numbers(self, field: Field) -> Iterator[pa.Array]:
        """Yields the training numbers of a dense field in arrays of at most ``BATCH_ROWS``."""
        query = f"SELECT {self.columns.numbers[field.name]} AS x FROM log WHERE train"
        for batch in self._connection.sql(query).to_arrow_reader(BATCH_ROWS):
            yield batch.column(0)

    def write_groups(self) -> None:
        """Writes the groups of each split with their numbers, in order of appearance from 0."""
        assert self.columns.group is not None
        integer, text = self.columns.group
        for split in SPLITS:
            self._connection.execute(
                f"CREATE TABLE groups_{split} AS SELECT i, t, "
                "(row_number() OVER (ORDER BY first) - 1)::BIGINT AS id FROM "
                f"(SELECT {integer} AS i, {text or 'NULL::VARCHAR'} AS t, "
                f"min(shard * {MOST_ROWS} + place) AS first FROM log WHERE {split} GROUP BY ALL) "
                "WHERE i IS NOT NULL OR t IS NOT NULL"
            )


def joined(integers: pa.Array, texts: pa.Array, is_text: bool) -> pa.Array:
    """Returns what ``divided`` divides: int64 if all values are integers and they are not text."""
    if not is_text and texts.null_count == len(texts):
        return integers
    return pc.coalesce(integers.cast(pa.string()), texts)


def write_ids(
    connection: duckdb.DuckDBPyConnection, columns: Columns, encoders: Mapping[str, Encoder]
) -> None:
    """Writes two tables of values and ids for each vocabulary that single values read, of integers
    and of text.
    """
    for number, vocabulary in enumerate(_vocabularies(columns, encoders)):
        ids = pa.array(np.arange(1, len(vocabulary.values) + 1, dtype=np.int32))
        for kind, values in zip(KINDS, divided(vocabulary.values)):
            known = values.is_valid()
            found = pa.table({"value": values.filter(known), "id": ids.filter(known)})
            connection.register("found", found)
            connection.execute(f"CREATE TABLE {kind}{number} AS SELECT * FROM found")
            connection.unregister("found")


def _vocabularies(columns: Columns, encoders: Mapping[str, Encoder]) -> list[Vocabulary]:
    """Returns the distinct vocabularies that single values read."""
    found = [encoders[name] for name in columns.values]
    return list({id(each): each for each in found if isinstance(each, Vocabulary)}.values())


def rows_with_ids(
    connection: duckdb.DuckDBPyConnection,
    columns: Columns,
    encoders: Mapping[str, Encoder],
    shard: tuple[Path, Path],
    ids: Path,
    memory: Memory,
    width: float,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a shard in their order, in batches.

    They have a column of booleans for each split; ``columns.fields``: ids (int32) of single values
    in a vocabulary, text of hashed ones, numbers and lists; the labels, the weight and truths; and
    ``group_SPLIT``, the numbers of the groups in each split.

    Args:
        connection: to a database in memory.
        shard: the files of its rows and of ``select_rows``.
        ids: the file of ``write_ids`` and ``Log.write_groups``.
        memory: the bound of this process.
        width: mean bytes of the widest rows.

    Raises:
        RuntimeError: DuckDB has changed the order of the rows.
    """
    for path, name in zip((*shard, ids), ("shard", "picks", "ids")):
        connection.execute(f"ATTACH {_quoted(path)} AS {name} (READ_ONLY)")
    vocabularies = {
        id(each): number for number, each in enumerate(_vocabularies(columns, encoders))
    }
    picked = ["rows.rowid AS place", "picked.*"]
    joins = ["shard.rows AS rows", "POSITIONAL JOIN picks.picked AS picked"]
    budget = APART * memory.tables
    for number, field in enumerate(columns.schema.features):
        encoder = encoders.get(field.name)
        if field.name not in columns.values:
            found = columns.numbers[field.name]
        elif isinstance(encoder, Vocabulary):
            own = [
                f"LEFT JOIN ids.{kind}{vocabularies[id(encoder)]} AS {kind}{number} ON "
                f"{kind}{number}.value = rows.{column}"
                for kind, column in zip(KINDS, columns.values[field.name])
                if column is not None
            ]
            ids_of = [f"{kind}{number}.id" for kind, _ in zip(KINDS, own)]
            found = f"coalesce({', '.join(ids_of)}, 0)"
            needed = ENTRY * len(encoder.values)
            if needed > budget:  # joins that do not fit the memory do not keep the order
                connection.execute(
                    f"CREATE TEMP TABLE apart{number} AS SELECT {found} AS id FROM shard.rows AS rows "
                    f"{' '.join(own)} ORDER BY rows.rowid"
                )
                joins.insert(1, f"POSITIONAL JOIN apart{number}")
                found = f"apart{number}.id"
            else:
                budget -= needed
                joins += own
        else:
            integer, text = columns.values[field.name]
            found = f"coalesce({integer}::VARCHAR, {text or 'NULL'})"
        picked.append(f"{found} AS {columns.fields[field.name]}")
    others = [*columns.labels.values(), *columns.truth.values()]
    others += [WEIGHT] if columns.schema.weight else []
    picked += [f"rows.{column}" for column in others]
    for split in SPLITS if columns.group else ():
        numbers = []
        for kind, column in zip(KINDS, columns.group or ()):
            if column is not None:
                name = f"{kind}_{split}"
                joins.append(
                    f"LEFT JOIN ids.groups_{split} AS {name} ON {name}.{kind} = rows.{column} AND "
                    f"picked.{split}"
                )
                numbers.append(f"{name}.id")
        picked.append(f"coalesce({', '.join(numbers)}, -1) AS group_{split}")
    query = f"SELECT {', '.join(picked)} FROM {' '.join(joins)}"
    next_place = 0
    for batch in connection.sql(query).to_arrow_reader(memory.rows(width)):
        places = batch.column(0).to_numpy()
        if not np.array_equal(places, np.arange(next_place, next_place + len(places))):
            raise RuntimeError("adaftr_fast: DuckDB changed the order of rows")
        next_place += len(places)
        yield batch


def _quoted(path: Path) -> str:
    """Returns a path as a string of SQL."""
    return "'" + str(path).replace("'", "''") + "'"
