"""Splits by shares of time: turns them into conditions by the times of a log, so that a schema
serves each log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.arrow import one_array, reading, shown
from adaftr_fast.data.encode.canonical import without_nan
from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.written import holds_text, times, without_words
from adaftr_fast.data.raw.inputs import InputFile, JsonFile, TextFile, open_inputs
from adaftr_fast.data.raw.source import NOT_PARQUET, Inputs, Source, check_columns, listed
from adaftr_fast.data.raw.text import are_numbers, typed
from adaftr_fast.data.schema.columns import EXACT_INTEGERS, operand_type
from adaftr_fast.data.schema.types import Condition, Schema, TextFormat, TimeRange
from adaftr_fast.display.progress import progress_bar
from adaftr_fast.errors import DataError

DATES = pa.timestamp("us")  # of text that the forms of dates read
CLOCK = r"[T ][0-9]{2}(?::?[0-9]{2}){0,2}"
ISO_8601 = rf"^(?P<time>[0-9]{{4}}-?[0-9]{{2}}(?:-?[0-9]{{2}}(?:{CLOCK})?)?)(?:[.,][0-9]+)?(?P<zone>Z|[+-][0-9:]+)?$"


def with_time_types(schema: Schema, paths: Inputs) -> Schema:
    """Returns a schema whose shares of time have the type of the times of these inputs, as their
    first rows tell it.

    Args:
        paths: the inputs by role, text or parquet.

    Raises:
        DataError: an input cannot be read, or lacks the column.
    """
    split = dict(schema.split)
    for role, column in _columns(schema):
        kind = _first_type(paths[role], column, schema.text)
        split |= {
            name: replace(split[name], time=replace(time, kind=kind))
            for name, time in _shares(schema, role, column).items()
        }
    return replace(schema, split=split)


def with_times(source: Source, *, progress: bool = False) -> Schema:
    """Returns the schema of a source in which shares of time are conditions, which compare with
    times of its rows.

    A split begins and ends at exact quantiles of its column in the rows that are kept and have all
    labels. Rows of the same time are in the same split.

    Args:
        source: all rows, with the schema of ``with_time_types``.
        progress: whether to show a progress bar.

    Raises:
        DataError: an input cannot be read, its times are text that does not sort by time, or there
            are fewer different times than splits.
    """
    split = dict(source.schema.split)
    for role, column in _columns(source.schema):
        ours = _shares(source.schema, role, column)
        shares = sorted(
            {share for time in ours.values() for share in (time.start, time.stop)} - {0.0, 1.0}
        )
        found = _quantiles(source, role, column, shares, progress)
        bounds = dict(zip(shares, map(_bound, found["value"].to_pylist())))
        split |= {
            name: replace(split[name], where=_condition(time, bounds))
            for name, time in ours.items()
        }
    return replace(source.schema, split=split)


def _columns(schema: Schema) -> list[tuple[str, str]]:
    """Returns the role and the column of every order of which splits are shares."""
    rules = schema.split.values()
    return [*dict.fromkeys((rule.file, rule.time.column) for rule in rules if rule.time)]


def _shares(schema: Schema, role: str, column: str) -> dict[str, TimeRange]:
    """Returns the shares of a column, by split."""
    return {
        name: rule.time
        for name, rule in schema.split.items()
        if rule.time and (rule.file, rule.time.column) == (role, column)
    }


def _condition(time: TimeRange, bounds: dict[float, object]) -> Condition | None:
    found = [(time.column, ">=", bounds[time.start])] if time.start > 0 else []
    found += [(time.column, "<", bounds[time.stop])] if time.stop < 1 else []
    return [found] if found else None


def _quantiles(
    source: Source, role: str, time: str, shares: Sequence[float], progress: bool
) -> pa.Table:
    """Returns as ``value`` the times before which these shares of the rows are, ascending, each
    another one.
    """
    counts = None
    rows = source.count_rows() if progress else 0
    named = listed(map(shown, source.named[role]))
    with (
        reading(named, f"cannot read {time}"),
        progress_bar(
            total=rows, unit=" rows", unit_scale=True, desc="times", disable=not progress
        ) as bar,
    ):
        for values in source.used_values(role, time, bar.update):
            values = _comparable(values, source.schema.text)
            counts = counts or ValueCounts(values.type)
            counts.update(values)
    table = (counts or ValueCounts(pa.string())).table()
    if holds_text(table["value"].type):
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


def _comparable(values: pa.Array, form: TextFormat) -> pa.Array:
    """Returns times [n] of one type without those that are missing.

    Raises:
        pa.ArrowInvalid: an integer is beyond int64, which conditions compare with.
    """
    if holds_text(values.type):
        return without_words(values, form)
    if pa.types.is_integer(values.type):
        return values.cast(pa.int64())
    return without_nan(values) if pa.types.is_floating(values.type) else values


def _bound(value: Any) -> object:
    """Returns a time as people write it: a whole number without a fraction."""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT_INTEGERS
    return int(value) if is_whole else value


def _first_type(paths: Sequence[Path], time: str, form: TextFormat) -> pa.DataType:
    """Returns the type of the times of the first input that has any in its first rows."""
    inputs = open_inputs(paths, form)
    for each in inputs:
        check_columns(each.path, each.types.names, [time])
    found = (_type(each, time) for each in inputs)
    return next((kind for kind in found if kind is not None), pa.string())


def _type(file: InputFile, time: str) -> pa.DataType | None:
    """Returns the type of times, as the first rows of an input have them; None if they have none.

    It is that of a parquet column. Text that none of the forms of dates fits is a number, or sorts
    as it is if there are such forms.
    """
    form = file.form
    is_text = isinstance(file, TextFile)
    with reading(file.path, NOT_PARQUET):
        values = one_array(file.first([time])[time]).drop_null()
        if not len(values):
            return None
        if isinstance(file, JsonFile) and not holds_text(values.type):
            return operand_type(pc.max(values).as_py())
        if not holds_text(values.type):
            return _wide(values.type)
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


def _wide(kind: pa.DataType) -> pa.DataType:
    """Returns the type of text that is compared with values of a parquet column of type ``kind``."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")
    if pa.types.is_integer(kind):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(kind) else kind


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
