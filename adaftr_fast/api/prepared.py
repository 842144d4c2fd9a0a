"""A prepared folder as an object that prints what it holds."""

from __future__ import annotations

from adaftr_fast._files import AnyPath
from adaftr_fast._tables import Table, paragraphs
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.schema.types import Field


class Prepared(PreparedData):
    """A prepared folder. It prints as two tables: its fields, and its splits with their rows and positive rates.

    ``load("train")`` opens a split, whose ``batches(1024)`` yields tensors.

    Args:
        folder: the path or URL of a folder that ``prepare`` wrote.

    Raises:
        DataError: the folder is not a prepared one, or has another format.
    """

    def fields(self) -> Table:
        """Returns a table with one row per field: how it is read, its ids ("-" for a dense field), and unknown values.

        The last column is the share of training rows whose value is missing, or too rare for an id of its own.
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
            [name, f"{split.rows:,}", *(f"{100 * split.positives[task] / split.rows:.2f} %" for task in tasks)]
            for name, split in self.manifest.splits.items()
        ]
        return Table(["split", "rows", *tasks], rows)

    def summary(self) -> str:
        """Returns one line with the data set and the numbers of fields and ids."""
        manifest = self.manifest
        ids = sum(manifest.num_embeddings)
        return f"{self.folder}: {manifest.dataset}, {len(manifest.fields) + len(manifest.dense)} fields, {ids:,} ids"

    def notes(self) -> list[str]:
        """Returns one line each about lines of text, rows left out or in no split, values of labels, and the source."""
        manifest = self.manifest
        notes = []
        if manifest.bad_rows and manifest.bad_rows.lines is not None:
            notes.append(f"Read: {manifest.bad_rows.account()}")
        if manifest.bad_rows and manifest.bad_rows.bad:
            notes.append(f"Left out: {manifest.bad_rows.summary()}")
        if text := manifest.schema.get("text"):
            notes.append(f"Text: {', '.join(f'{key} {value!r}' for key, value in text.items())}")
        unused = manifest.unused
        if unused.unmatched or unused.dropped:
            dropped = f", {unused.dropped:,} are dropped by the schema" if unused.dropped else ""
            notes.append(f"In no split: {unused.unmatched:,} rows match none{dropped}")
        for column, values in manifest.compared.items():
            counts = ", ".join(f"{value!r} {rows:,}" for value, rows in values.items())
            notes.append(f"Compared by labels: {column}: {counts}")
        if manifest.attribution:
            notes.append(f"Source: {manifest.attribution}")
        return notes

    def __repr__(self) -> str:
        return "\n".join([self.summary(), self.fields().markdown(), "", self.table().markdown(), *self.notes()])

    def _repr_html_(self) -> str:
        return "".join(
            [paragraphs(self.summary()), self.fields().html(), self.table().html(), paragraphs(*self.notes())]
        )


def open_data(data: PreparedData | str | AnyPath) -> PreparedData:
    """Opens a prepared folder that is given by its path.

    Raises:
        DataError: the folder is not a prepared one.
        TypeError: ``data`` is neither a prepared folder nor a path.
    """
    if isinstance(data, PreparedData):
        return data
    if not isinstance(data, str | AnyPath):
        raise TypeError(f"data: expected a prepared folder or its path, got {type(data).__name__}")
    return Prepared(data)


def _read_as(field: Field) -> str:
    """Returns the kind of a field and what else the schema says about it, as text."""
    kind = f"cross of {' and '.join(field.columns)}" if field.kind == "cross" else field.kind
    parts = [kind]
    if field.tokens is not None:
        separated = "" if field.separator is None else f" separated by {field.separator!r}"
        kept = "last of " if field.tokens == "last" else f"last {field.length} of " if field.length else ""
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
