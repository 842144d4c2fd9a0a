"""The values of the columns that labels compare with text: a variant of such a text makes a row a negative one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.schema.types import Schema

SHOWN = 20  # values of a column


def most_telling(schema: Schema, counts: Mapping[str, ValueCounts]) -> dict[str, dict[str, int]]:
    """Returns the rows of at most ``SHOWN`` values by column, the most frequent ones; variants come first."""
    found = {}
    for column, each in counts.items():
        table = each.table().to_pydict()
        rows = dict(zip(table["value"], table["count"]))
        variants = {value for label in schema.labels for value in _variants(rows, label.texts().get(column, set()))}
        values = sorted(rows, key=lambda value: (value not in variants, -rows[value], value))
        found[column] = {value: rows[value] for value in values[:SHOWN]}
    return found


def warn_of_variants(schema: Schema, compared: Mapping[str, Mapping[str, int]]) -> None:
    """Warns of values that differ from a text which a label compares in case or spaces alone."""
    for label in schema.labels:
        for column, texts in label.texts().items():
            for value, text in _variants(compared[column], texts).items():
                warnings.warn(
                    f"label {label.name}: {value!r} in {compared[column][value]:,} rows of {column} differs from "
                    f"{text!r} in case or spaces alone, and is another value; a condition takes several values: "
                    f"{[column, 'in', [text, value]]}",
                    stacklevel=2,
                )


def _variants(values: Iterable[str], texts: set[str]) -> dict[str, str]:
    """Returns the values that differ from one of ``texts`` in case or spaces alone, and that text."""
    plain = {_plain(text): text for text in sorted(texts)}
    return {value: plain[_plain(value)] for value in values if value not in texts and _plain(value) in plain}


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
