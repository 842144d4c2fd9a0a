"""A prepared folder as an object that prints what it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence

from adaftr_fast.api.places import Place, local, place_of
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.dataset.manifest import Manifest
from adaftr_fast.data.schema.types import Field
from adaftr_fast.display.tables import Shown, Table

ALMOST_ALL = 0.95  # of the rows
UNIQUE, FEWEST = 0.9, 100  # distinct values per row, in as many rows
CHANCE = 1e-6  # with which independent labels look like a funnel


class Prepared(Shown, PreparedData):
    """A prepared folder. It prints as two tables: its fields, and its splits with their rows and
    positive rates.

    ``load("train")`` opens a split, whose ``batches(1024)`` yields tensors.

    Args:
        folder: the path or URL of a folder that ``prepare`` wrote.

    Raises:
        DataError: the folder is not a prepared one, or has another format.
        StoreError, BusyError, MissingPackageError: a URL cannot be copied to this machine.
    """

    def __init__(self, folder: Place) -> None:
        super().__init__(local(folder), str(place_of(folder)))

    def fields(self) -> Table:
        """Returns a table with one row per field: how it is read, its ids ("-" for a dense field),
        and unknown values.

        The last column is the share of training rows whose value is missing, or too rare for an id
        of its own.
        """
        train = self.manifest.splits["train"]
        ids = {field.name: f"{field.num_embeddings:,}" for field in self.manifest.fields}
        rows = []
        for field in self.manifest.parsed.features:
            unknown = f"{100 * train.unknown[field.name] / train.rows:.2f} %"
            rows.append([field.name, _read_as(field), ids.get(field.name, "-"), unknown])
        return Table(["field", "read as", "ids", "missing or rare"], rows, text_columns=2)

    def table(self) -> Table:
        """Returns a table with one row per split."""
        tasks = self.manifest.tasks
        rows = [
            [
                name,
                f"{split.rows:,}",
                *(f"{100 * split.positives[task] / split.rows:.2f} %" for task in tasks),
            ]
            for name, split in self.manifest.splits.items()
        ]
        return Table(["split", "rows", *tasks], rows)

    def summary(self) -> str:
        """Returns one line with the data set and the numbers of fields and ids."""
        manifest = self.manifest
        ids = sum(manifest.num_embeddings)
        fields = len(manifest.features)
        return f"{self.name}: {manifest.dataset}, {fields} fields, {ids:,} ids"

    def useless(self) -> list[str]:
        """Returns a sentence about each field that tells little as it is read, with the option that
        changes it.
        """
        return [
            sentence for field in self.manifest.parsed.fields if (sentence := self._useless(field))
        ]

    def _useless(self, field: Field) -> str | None:
        values = self.manifest.values.get(field.name)
        train = self.manifest.splits["train"]
        if values is None or field.tokens is not None or field.kind == "cross":
            return None
        column = field.columns[0]
        missing = train.unknown[field.name] - values.rare
        present = train.rows - missing
        leave_out = f"--ignore {column} (in Python ignore=[{column!r}]) leaves it out"
        if missing >= ALMOST_ALL * train.rows:
            return (
                f"{field.name} is missing in {100 * missing / train.rows:.1f} % of the training "
                f"rows; {leave_out}"
            )
        if values.distinct == 1 and not missing:
            return f"{field.name} has one value in all training rows; {leave_out}"
        if field.kind == "numeric":
            return None
        if values.decimals:
            dense = f"--dense {column} (in Python dense=[{column!r}]) reads the numbers"
            comma = 'with --decimal , (decimal=",") where a comma is the decimal mark'
            return (
                f"{field.name} holds numbers as text, each with an id of its own; {dense}, {comma}"
            )
        if values.distinct >= UNIQUE * present and present >= FEWEST:
            time = f"--time {column} (time={column!r}) if it is the time"
            others = f"{time}, --hash {column}=N (hash={{{column!r}: N}}) bounds the ids"
            count = f"{values.distinct:,} values in {present:,} training rows, nearly one in each"
            return f"{field.name} has {count}; {leave_out}, {others}"
        return None

    def notes(self) -> list[str]:
        """Returns one line each about lines of text, rows left out or in no split, values of
        labels, and the source.
        """
        manifest = self.manifest
        notes = []
        if manifest.bad_rows and manifest.bad_rows.lines is not None:
            notes.append(f"Read: {manifest.bad_rows.account()}")
        if manifest.bad_rows and manifest.bad_rows.bad:
            notes.append(f"Left out: {manifest.bad_rows.summary()}")
        if text := manifest.schema.get("text"):
            notes.append(f"Text: {', '.join(f'{key} {value!r}' for key, value in text.items())}")
        if manifest.bounds:
            notes.append(
                "Split by time: "
                f"{'; '.join(f'{split}: {where}' for split, where in manifest.bounds.items())}"
            )
        unused = manifest.unused
        if unused.unmatched or unused.dropped:
            dropped = f", {unused.dropped:,} are dropped by the schema" if unused.dropped else ""
            notes.append(f"In no split: {unused.unmatched:,} rows match none{dropped}")
        for column, values in manifest.compared.items():
            counts = ", ".join(f"{value!r} {rows:,}" for value, rows in values.items())
            notes.append(f"Compared by labels: {column}: {counts}")
        if len(manifest.tasks) > 1:
            notes.append(f"Labels: {_taken(manifest)}")
        for stage in manifest.parsed.funnel[1:]:
            outside = manifest.total.outside_funnel.get(stage, 0)
            if outside:
                notes.append(
                    f"Outside the funnel: {outside:,} rows are positive in {stage} but not in the "
                    "stage before"
                )
        notes += [f"Useless as it is read: {each}" for each in self.useless()]
        if manifest.attribution:
            notes.append(f"Source: {manifest.attribution}")
        return notes

    def _parts(self) -> list[str | Table]:
        return [self.summary(), self.fields(), "", self.table(), *self.notes()]


def _taken(manifest: Manifest) -> str:
    """Returns how the labels are read, and the option for the other way."""
    funnel = manifest.funnel
    if not funnel:
        stages = likely_funnel(manifest) or manifest.tasks
        return (
            f"{', '.join(manifest.tasks)} are independent; {declared_funnel(stages)} reads them as "
            "a funnel"
        )
    others = [task for task in manifest.tasks if task not in funnel]
    rest = f", and {', '.join(others)} independent of it" if others else ""
    other = "funnel = [] (--funnel alone) reads them as independent"
    return f"{', '.join(funnel)} are a funnel, each stage only after the one before{rest}; {other}"


def declared_funnel(stages: Sequence[str]) -> str:
    """Returns the option, which is also the argument and the key of a schema, that declares a
    funnel.
    """
    return f"funnel = {list(stages)} (--funnel {' '.join(stages)})"


def likely_funnel(manifest: Manifest) -> list[str]:
    """Returns tasks of which each is positive only where the one before it is, by the rows of all
    splits; [] if none.

    That is said only where it would hardly happen by chance.
    """
    rows = manifest.total.rows
    positives = manifest.total.positives
    order = sorted(positives, key=lambda task: -positives[task])
    stages = order[:1]
    for task in order[1:]:
        pair = sorted((stages[-1], task), key=manifest.tasks.index)
        both = manifest.total.both.get(pair[0], {}).get(pair[1], 0)
        by_chance = (positives[stages[-1]] / rows) ** positives[task]
        if both == positives[task] < positives[stages[-1]] and by_chance < CHANCE:
            stages.append(task)
    return stages if len(stages) > 1 else []


def open_data(data: PreparedData | Place) -> PreparedData:
    """Opens a prepared folder that is given by its path.

    Raises:
        DataError: the folder is not a prepared one.
        TypeError: ``data`` is neither a prepared folder nor a path.
    """
    if isinstance(data, PreparedData):
        return data
    if not isinstance(data, str | os.PathLike):
        raise TypeError(f"data: expected a prepared folder or its path, got {type(data).__name__}")
    return Prepared(data)


def _read_as(field: Field) -> str:
    """Returns the kind of a field and what else the schema says about it, as text."""
    kind = f"cross of {' and '.join(field.columns)}" if field.kind == "cross" else field.kind
    parts = [kind]
    if field.tokens is not None:
        separated = "" if field.separator is None else f" separated by {field.separator!r}"
        kept = (
            "last of "
            if field.tokens == "last"
            else f"last {field.length} of "
            if field.length
            else ""
        )
        parts.append(f"{kept}lists{separated}")
    if field.encoding is not None:
        parts.append(field.encoding)
    if field.hashed:
        parts.append("hashed")
    if field.vocabulary is not None:
        parts.append(f"ids of {field.vocabulary}")
    if field.kind != "cross" and field.columns != (field.name,):
        parts.append(f"column {field.columns[0]}")
    return ", ".join(parts)
