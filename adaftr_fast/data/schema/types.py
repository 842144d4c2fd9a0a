"""A data set's schema as types: fields, labels, group and split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from adaftr_fast.data.synthetic.log import LogConfig

SPLITS = ("train", "validation", "test")

Condition = list[tuple[str, str, Any]] | list[list[tuple[str, str, Any]]]
"""A conjunction of (column, op, value), or a list of these of which one must hold, as in pyarrow.parquet."""


@dataclass(frozen=True)
class Field:
    """One embedding field.

    Attributes:
        columns: one column, or the columns whose combination a ``cross`` looks up.
        min_count: least number of training rows with a value for it to get its own id (categorical, cross).
        hashed: number of ids among which values are spread by a hash instead of a vocabulary (categorical, cross).
        buckets: number of training-quantile buckets before equal quantiles collapse (numeric).
        tokens: of several tokens, which are read: the ``last``, or ``all``; None = a column of single values.
        separator: between the tokens of a text; None = tokens stand in a column of lists.
    """

    name: str
    kind: Literal["categorical", "numeric", "cross"]
    columns: tuple[str, ...]
    min_count: int
    buckets: int
    tokens: Literal["last", "all"] | None = None
    separator: str | None = None
    hashed: int | None = None


@dataclass(frozen=True)
class Label:
    """One task: a 0/1 ``column``, or a ``condition``; exactly one of them is set."""

    name: str
    column: str | None = None
    condition: Condition | None = None

    def columns(self) -> list[str]:
        """The columns the label is made from, none of which may be a feature."""
        return [self.column] if self.column is not None else condition_columns(self.condition or [])


@dataclass(frozen=True)
class HashRange:
    """Rows whose hash, spread over [0, 1), lies in [start, stop): of a column's text, or of the row's number (None)."""

    start: float
    stop: float
    column: str | None = None


@dataclass(frozen=True)
class SplitRule:
    """Rows of an input file: those that meet ``where``, of these all, the even or the odd ones (from 0), or a range."""

    file: str
    where: Condition | None = None
    rows: Literal["all", "even", "odd"] = "all"
    hash: HashRange | None = None


@dataclass(frozen=True)
class Schema:
    """A data set as its TOML file describes it.

    Attributes:
        files: roles of the input files.
        format: ``aliccp`` for Ali-CCP's raw layout; None = parquet or delimited text.
        drop: rows to leave out of every split.
        weight: the column of sample weights.
        shipped: the package's file to read where none is named.
        generate: the synthetic log to read where no file is named.
        truth: columns kept beside the ids, of true probabilities (where named as a task) or other known quantities.
        source: the file's content, laid over its base.
    """

    name: str
    attribution: str
    files: tuple[str, ...]
    format: Literal["aliccp"] | None
    drop: Condition | None
    weight: str | None
    shipped: str | None
    generate: LogConfig | None
    group: str | None
    labels: tuple[Label, ...]
    truth: dict[str, str]
    split: dict[str, SplitRule]
    fields: tuple[Field, ...]
    source: dict[str, Any]

    def columns(self) -> list[str]:
        """Every input column that is read, each once."""
        names = [column for field in self.fields for column in field.columns]
        names += [column for label in self.labels for column in label.columns()]
        names += [column for rule in self.split.values() for column in condition_columns(rule.where or [])]
        names += [rule.hash.column for rule in self.split.values() if rule.hash and rule.hash.column]
        names += [*condition_columns(self.drop or []), *self.truth.values()]
        return list(dict.fromkeys(names + [each for each in (self.group, self.weight) if each]))


def condition_columns(condition: Condition) -> list[str]:
    """The columns a condition reads."""
    return [column for column, _, _ in _triples(condition)]


def _triples(condition: Condition) -> Iterator[tuple[str, str, Any]]:
    for part in condition:
        yield from (part,) if isinstance(part, tuple) else part
