"""Splits by shares of time: turns them into conditions by the times of a log, so that a schema
serves each log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.arrow import one_array, reading, shown
from adaftr_fast.data.encode.canonical import without_nan
from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.typed import read_column
from adaftr_fast.data.encode.written import holds_text, read_times, times, without_words
from adaftr_fast.data.memory import DEFAULT, Memory
from adaftr_fast.data.parallel import ordered_map
from adaftr_fast.data.raw.inputs import (
    Chunk,
    InputFile,
    JsonFile,
    TextFile,
    open_inputs,
)
from adaftr_fast.data.raw.source import NOT_PARQUET, Inputs, check_columns, listed
from adaftr_fast.data.raw.text import are_numbers, typed
from adaftr_fast.data.schema.columns import EXACT_INTEGERS, operand_type, read_types
from adaftr_fast.data.schema.types import Condition, Schema, TextFormat, TimeRange
from adaftr_fast.display.progress import progress_bar
from adaftr_fast.errors import DataError

DATES = pa.timestamp("us")  # of text that the forms of dates read
CLOCK = r"[T ][0-9]{2}(?::?[0-9]{2}){0,2}"
ISO_8601 = rf"^(?P<time>[0-9]{{4}}-?[0-9]{{2}}(?:-?[0-9]{{2}}(?:{CLOCK})?)?)(?:[.,][0-9]+)?(?P<zone>Z|[+-][0-9:]+)?$"


def with_times(
    schema: Schema, paths: Inputs, memory: Memory = DEFAULT, *, progress: bool = False
) -> Schema:
    """Returns a schema whose shares of time are conditions, which compare with times of these
    inputs.

    A split begins and ends at exact quantiles of its column. Rows of the same time are in the same
    split.

    Args:
        paths: the inputs by role, text or parquet.
        memory: the bound of this process.
        progress: whether to show a progress bar.

    Raises:
        DataError: an input cannot be read, its times are text that does not sort by time, or there
            are fewer different times than splits.
    """
    split = dict(schema.split)
    columns = dict.fromkeys((rule.file, rule.time.column) for rule in split.values() if rule.time)
    for role, column in columns:
        ours = {
            name: rule.time
            for name, rule in split.items()
            if rule.time and (rule.file, rule.time.column) == (role, column)
        }
        shares = sorted(
            {share for time in ours.values() for share in (time.start, time.stop)} - {0.0, 1.0}
        )
        kind = read_types(schema).get(column)
        found = _quantiles(paths[role], column, kind, schema.text, shares, memory, progress)
        bounds = dict(zip(shares, map(_bound, found["value"].to_pylist())))
        split |= {
            name: replace(split[name], where=_condition(time, bounds))
            for name, time in ours.items()
        }
    return replace(schema, split=split)


def _condition(time: TimeRange, bounds: dict[float, object]) -> Condition | None:
    found = [(time.column, ">=", bounds[time.start])] if time.start > 0 else []
    found += [(time.column, "<", bounds[time.stop])] if time.stop < 1 else []
    return [found] if found else None


def _quantiles(
    paths: Sequence[Path],
    time: str,
    kind: pa.DataType | None,
    form: TextFormat,
    shares: Sequence[float],
    memory: Memory,
    progress: bool,
) -> pa.Table:
    """Returns as ``value`` the times before which these shares of the rows are, ascending, each
    another one.

    Args:
        kind: the type of the times where an expression reads them too; None for that of the files.
    """
    inputs = open_inputs(paths, form)
    for each in inputs:
        check_columns(each.path, each.types.names, [time])
    typed = None if kind is None else partial(read_column, time, kind=kind, form=form)
    kind = kind or _type(next((each for each in inputs if _has(each, time)), inputs[0]), time)
    counts = ValueCounts(kind)
    size = sum(each.size for each in inputs)

    def values(chunk: Chunk) -> tuple[pa.Array, int]:
        table, *_ = chunk.parse()
        values = one_array(table[time])
        return typed(values) if typed else _times(values, time, kind, form), chunk.size

    with progress_bar(
        total=size, unit="B", unit_scale=True, desc="times", disable=not progress
    ) as bar:
        for each in inputs:
            chunks = each.chunks({time: kind}, memory=memory)
            with reading(each.path, f"cannot read {time}"):
                for found, read in ordered_map(values, chunks, attrgetter("memory"), memory):
                    counts.update(without_nan(found) if pa.types.is_floating(kind) else found)
                    bar.update(read)
    table = counts.table()
    named = listed(shown(each.path) for each in inputs)
    if holds_text(kind):
        check_times(named, time, one_array(table["value"]))
    if table.num_rows <= len(shares):
        expected = f"expected at least {len(shares) + 1} different times, got {table.num_rows}"
        raise DataError(f"{named}: {time}: {expected}")
    cumulative = pc.cumulative_sum(table["count"]).to_numpy() / pc.sum(table["count"]).as_py()
    places: list[int] = [0]
    for number, share in enumerate(shares):
        place = max(int((cumulative <= share).sum()), places[-1] + 1)
        places.append(min(place, table.num_rows - len(shares) + number))
    return table.take(places[1:])


def _bound(value: Any) -> object:
    """Returns a time as people write it: a whole number without a fraction."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INTEGERS
    return int(value) if is_whole else value


def _has(file: InputFile, time: str) -> bool:
    """Returns whether one of the first rows of a file has a time."""
    with reading(file.path, NOT_PARQUET):
        return bool(one_array(file.first([time])[time]).is_valid().true_count)


def _type(file: InputFile, time: str) -> pa.DataType:
    """Returns the type of times, as the first rows of an input have them; of text, that in which it
    is staged.

    Text that none of the forms of dates fits is a number, or sorts as it is if there are such
    forms.
    """
    form = file.form
    is_text = isinstance(file, TextFile)
    with reading(file.path, NOT_PARQUET):
        values = one_array(file.first([time])[time])
        if not holds_text(values.type):
            is_staged = isinstance(file, JsonFile)
            return operand_type(pc.max(values).as_py()) if is_staged else values.type
        texts = without_words(values, form)
        if form.dates and times(texts, form, DATES).null_count < len(texts):
            return DATES
        found = typed(pa.table({time: texts}), form)[time] if is_text else texts
        if holds_text(found.type):
            is_number = is_text and form.thousands and are_numbers(texts, form)
            return pa.float64() if is_number else pa.string()
        if form.dates and pa.types.is_temporal(found.type):
            return pa.string()  # which staging would read by these forms
        return operand_type(pc.max(found).as_py())


def _times(values: pa.Array, time: str, kind: pa.DataType, form: TextFormat) -> pa.Array:
    """Returns times of a file in a type, into which those of text files are parsed already."""
    if holds_text(values.type):
        values = without_words(values, form)
        values = read_times(time, values, form, kind) if pa.types.is_temporal(kind) else values
    return values.cast(kind)


def check_times(path: Path | str, time: str, values: pa.Array) -> None:
    """Raises DataError if text does not sort by time."""
    if unsorted := unsorted_times(values):
        expected = (
            "expected numbers, timestamps, or text of one form of ISO 8601, which sorts by time"
        )
        how = (
            "--dates (in Python dates=) names forms, such as '%Y-%m-%d %H:%M:%S' and "
            "'%Y-%m-%dT%H:%M:%SZ'"
        )
        raise DataError(
            f"{shown(path)}: time {time}: {expected}; got {' and '.join(map(repr, unsorted))}; "
            f"{how}"
        )


def unsorted_times(values: pa.Array) -> list[str]:
    """Returns an example of text that does not sort by time, or two that do not sort together; []
    if all text does.

    Text sorts by time if it is ISO 8601 in one form, such as "2026-05-01 10:00", and of one zone.
    """
    values = values.drop_null()
    found = pc.extract_regex(values, ISO_8601)
    if found.null_count:
        return [values.filter(found.is_null())[0].as_py()]
    forms = pc.binary_join_element_wise(
        pc.replace_substring_regex(pc.struct_field(found, "time"), "[0-9]", "0"),
        pc.struct_field(found, "zone"),
        "",
    )
    examples = [values[forms.index(form).as_py()].as_py() for form in forms.unique()[:2]]
    return examples if len(examples) > 1 else []
