"""Types of a schema: fields, labels and split rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from adaftr_fast.nn.encoding import EncodingKind

if TYPE_CHECKING:
    import pyarrow as pa

    from adaftr_fast.data.synthetic.log import LogConfig

SPLITS = ("train", "validation", "test")
EQUALITIES = ("==", "!=", "in", "not in")  # operators of a condition

Condition = list[list[tuple[str, str, Any]]]
"""A disjunction of conjunctions of (column, op, value), as ``filters`` in pyarrow.parquet."""


@dataclass(frozen=True)
class Field:
    """One field: of embeddings, or a dense one, whose numbers a model reads themselves.

    Attributes:
        columns: the input column, or the columns combined by a ``cross``.
        min_count: training rows a value needs to get an id of its own (categorical, cross).
        hashed: number of ids of the hashing trick, which replaces the vocabulary (categorical,
            cross).
        buckets: number of quantile buckets, or of bins of a piecewise encoding, before equal
            quantiles are merged (numeric, dense).
        tokens: tokens read from a multi-valued column: the ``last`` or ``all``; None for a
            single-valued column.
        separator: separator of the tokens in a text column; None if the column holds lists.
        encoding: how numbers become components (dense), see ``NumericEncoding``; None for other
            kinds.
        length: number of tokens that are kept, the last ones of a row, if ``all`` are read; None
            for no limit.
        vocabulary: the field whose ids the values get (categorical); None for ids of its own.
    """

    name: str
    kind: Literal["categorical", "numeric", "cross", "dense"]
    columns: tuple[str, ...]
    min_count: int
    buckets: int
    tokens: Literal["last", "all"] | None = None
    separator: str | None = None
    hashed: int | None = None
    encoding: EncodingKind | None = None
    length: int | None = None
    vocabulary: str | None = None

    @property
    def counted(self) -> bool:
        """Whether the ids depend on counts of the field's training values."""
        return self.hashed is None and self.vocabulary is None


@dataclass(frozen=True)
class Label:
    """One task: either a 0/1 ``column`` or a ``condition``. Exactly one of them is set."""

    name: str
    column: str | None = None
    condition: Condition | None = None

    def columns(self) -> list[str]:
        """Returns the columns the label is computed from. None of them may be a feature."""
        return [self.column] if self.column is not None else condition_columns(self.condition or [])

    def texts(self) -> dict[str, set[str]]:
        """Returns the texts that the condition asks columns to be equal to, or to differ from, by
        column.
        """
        texts: dict[str, set[str]] = {}
        for column, op, operand in chain.from_iterable(self.condition or []):
            operands = operand if isinstance(operand, list) else [operand]
            found = {each for each in operands if isinstance(each, str)}
            if found and op in EQUALITIES:
                texts.setdefault(column, set()).update(found)
        return texts


@dataclass(frozen=True)
class Expression:
    """A column that is computed from columns of the input, see ``parse_expression``.

    Attributes:
        sql: as the schema has it.
        columns: the columns that it reads.
        query: what DuckDB evaluates.
    """

    sql: str
    columns: tuple[str, ...]
    query: str


ColumnType = Literal["text", "integer", "number", "boolean", "time"]


@dataclass(frozen=True)
class HashRange:
    """Selects rows whose hash, mapped to [0, 1), lies in [start, stop).

    Attributes:
        column: column whose text is hashed; None to hash the row number.
    """

    start: float
    stop: float
    column: str | None = None


@dataclass(frozen=True)
class TimeRange:
    """Selects rows by their place in the order of time: from the share ``start`` of the rows up to
    ``stop``.

    Attributes:
        column: column that orders the rows. Rows of the same time are in the same range.
        kind: the type of the column in a log; None where no log is known.
    """

    start: float
    stop: float
    column: str
    kind: pa.DataType | None = None


@dataclass(frozen=True)
class SplitRule:
    """Selects the rows of a split from one input file.

    Attributes:
        where: condition the rows meet; None for all rows.
        rows: ``all`` of these rows, or the ``even`` or ``odd`` ones, counted from 0.
        hash: range of hashes; None for no selection by hash.
        time: range of shares of the rows in the order of time, which preparation turns into
            ``where`` by the times of the log; None for no selection by time.
    """

    file: str
    where: Condition | None = None
    rows: Literal["all", "even", "odd"] = "all"
    hash: HashRange | None = None
    time: TimeRange | None = None

    def columns(self) -> list[str]:
        """Returns the columns that the rule reads."""
        ranges = [each for each in (self.hash, self.time) if each]
        named = [each.column for each in ranges if each.column is not None]
        return condition_columns(self.where or []) + named


@dataclass(frozen=True)
class TextFormat:
    """How text holds values, in files of delimited text and in columns of text.

    Attributes:
        null: words for a missing value. Empty text is always missing.
        thousands: the character between groups of three digits of a number; "" for none.
        decimal: the character before the fraction of a number.
        dates: forms of the times by which rows are split or compared, as ``datetime.strptime``
            reads them; the first one that fits a value reads it. () for ISO 8601.
        line_ends: whether values in quotes may hold line ends; None asks the first lines of each
            file.
    """

    null: tuple[str, ...] = ()
    thousands: str = ""
    decimal: str = "."
    dates: tuple[str, ...] = ()
    line_ends: bool | None = None


PLAIN_TEXT = TextFormat()


@dataclass(frozen=True)
class Schema:
    """A data set as described by its TOML file.

    Attributes:
        files: roles of the input files.
        format: ``aliccp`` for Ali-CCP's raw layout; None for parquet, delimited text or JSON lines.
        drop: condition of the rows left out of every split.
        weight: column of the sample weights.
        shipped: file in the package that is read if no input file is given.
        funnel: labels of which each can be positive only where the one before it is; () if there
            are none.
        generate: synthetic log that is generated if no input file is given.
        fields: fields of embeddings.
        dense: dense fields.
        text: how text holds values.
        preset: ``paper`` or ``fitted``, where the options of runs on these data come from if the
            user does not say; None if the data set does not say either.
        expressions: columns that are computed from columns of the input, by name.
        types: types of columns that expressions read.
        ignore: columns that no field reads, which rows to score may have nevertheless.
        truth: columns stored next to the ids, by name: true probabilities of a task, or other known
            quantities.
        source: content of the TOML file, merged into its base.
    """

    name: str
    labels: tuple[Label, ...]
    split: dict[str, SplitRule]
    fields: tuple[Field, ...]
    dense: tuple[Field, ...]
    funnel: tuple[str, ...]
    source: dict[str, Any]
    files: tuple[str, ...]
    attribution: str = ""
    format: Literal["aliccp"] | None = None
    drop: Condition | None = None
    weight: str | None = None
    shipped: str | None = None
    generate: LogConfig | None = None
    group: str | None = None
    truth: dict[str, str] = field(default_factory=dict)
    text: TextFormat = PLAIN_TEXT
    preset: str | None = None
    expressions: dict[str, Expression] = field(default_factory=dict)
    types: dict[str, ColumnType] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[Field, ...]:
        """Every field, of embeddings or dense."""
        return self.fields + self.dense

    def compared(self) -> list[str]:
        """Returns the columns that labels compare with text, without duplicates."""
        return list(dict.fromkeys(column for label in self.labels for column in label.texts()))

    def numbers(self) -> list[str]:
        """Returns the columns that numeric and dense fields, the weight and truths read."""
        names = [field.columns[0] for field in self.features if field.kind in ("numeric", "dense")]
        return [*names, *self.truth.values(), *([self.weight] if self.weight else [])]

    def field_columns(self) -> list[str]:
        """Returns every input column that fields read, without duplicates."""
        return self.inputs(column for each in self.features for column in each.columns)

    def named_columns(self) -> list[str]:
        """Returns every column that the schema reads or computes and reads, without duplicates."""
        names = [column for each in self.features for column in each.columns]
        names += [column for label in self.labels for column in label.columns()]
        names += [column for rule in self.split.values() for column in rule.columns()]
        names += [*condition_columns(self.drop or []), *self.truth.values()]
        return list(dict.fromkeys(names + [each for each in (self.group, self.weight) if each]))

    def columns(self) -> list[str]:
        """Returns every input column the schema reads, without duplicates."""
        return self.inputs(self.named_columns())

    def inputs(self, names: Iterable[str]) -> list[str]:
        """Returns the input columns that columns are or are computed from, without duplicates."""
        found: dict[str, None] = {}
        for name in names:
            computed = self.expressions.get(name)
            found |= dict.fromkeys(computed.columns if computed else [name])
        return list(found)

    def meaning(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Returns what computed columns among ``names`` mean: their expressions and the types of
        the columns that these read, where the schema says them.
        """
        return {
            name: {
                "sql": each.sql,
                "types": {column: self.types.get(column) for column in each.columns},
            }
            for name, each in sorted(self.expressions.items())
            if name in {*names}
        }

    def splits_of_inputs(self) -> list[list[str]]:
        """Returns the splits of each input that has any."""
        return [
            splits
            for role in self.files
            if (splits := [name for name, rule in self.split.items() if rule.file == role])
        ]


def condition_columns(condition: Condition) -> list[str]:
    """Returns the columns a condition reads."""
    return [column for each in condition for column, _, _ in each]


def shown_condition(condition: Condition) -> str:
    """Returns a condition as people read it."""
    return " or ".join(
        " and ".join(f"{column} {op} {operand}" for column, op, operand in each)
        for each in condition
    )
