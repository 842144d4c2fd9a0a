"""A value of a declared type is the same, or none, whatever carries it: drawn values, every way in."""

import datetime
import json
from functools import partial
from itertools import product

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaftr_fast.data.arrow import one_array
from adaftr_fast.data.encode.typed import as_written, read_as
from adaftr_fast.data.raw.rows import raw_files
from adaftr_fast.data.raw.tables import input_files
from adaftr_fast.data.schema.columns import TYPES
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError
from adaftr_fast.extras.streaming.messages import RowReader
from adaftr_fast.serving.rows import read_rows
from tests.logs import by_hash

VALUES = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, 1.0, 1e15, -2.5]),
    pa.bool_(): st.booleans(),
    pa.timestamp("us"): st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
    pa.string(): st.text("019.-+eExTtruefalsnoy: ", max_size=8)
    | st.sampled_from(["1.0", "1e3", "0x10", "007", "TRUE", "nan", "2026-01-02", "2026-01-02T03Z"]),
}
CARRIERS = {  # the types of parquet and of tables that hold the values of a type
    pa.int64(): [pa.int64(), pa.decimal128(22, 2), pa.string(), pa.binary()],
    pa.float64(): [pa.float64(), pa.string(), pa.dictionary(pa.int32(), pa.float64())],
    pa.bool_(): [pa.bool_()],
    pa.timestamp("us"): [pa.timestamp("us"), pa.timestamp("us", "UTC")],
    pa.string(): [pa.string(), pa.large_string(), pa.string_view(), pa.binary()],
}


def schema_of(kind):
    source = {
        "name": "one",
        "labels": {"click": "click"},
        "split": by_hash(0.7, 0.85),
        "columns": {"x": "c"},
        "types": {"c": kind},
        "fields": {"x": "categorical", "row": "categorical"},
    }
    return parse_schema(source)


def of_files(schema, files):
    """Returns the rows of files as (row, value), without the rejected ones."""
    found = []
    for file in raw_files(schema, files):
        for chunk in file.chunks():
            table, _, account = chunk.parse()
            assert account.rows - account.bad == len(table)
            found += of_table(schema, table)
    return found


def of_table(schema, table):
    columns = [*map(one_array, table.columns)]
    rows = as_written(schema, pa.record_batch(columns, table.column_names))
    return [*zip(rows["row"].cast(pa.int64()).to_pylist(), rows["x"].to_pylist())]


def of_request(schema, request):
    return of_table(schema, pa.table(read_rows(schema, [], request, "ignore")))


def plain(value):
    return str(value) if isinstance(value, datetime.datetime) else value


@pytest.mark.parametrize(
    ("own", "kind"),
    # the text of a time has many forms
    [pair for pair in product(VALUES, TYPES) if pair != (pa.timestamp("us"), "text")],
    ids=str,
)
def test_a_value_is_the_same_whatever_carries_it(own, kind, tmp_path_factory):
    schema = schema_of(kind)
    folder = tmp_path_factory.mktemp("carried")

    @settings(max_examples=10, deadline=None, derandomize=True)
    @given(
        st.lists(st.none() | VALUES[own], min_size=1, max_size=4), st.sampled_from(CARRIERS[own])
    )
    def check(values, carrier):
        table = pa.table(
            {"c": pa.array(values, own), "row": range(len(values)), "click": [0] * len(values)}
        )
        expected = of_array(table["c"].combine_chunks(), TYPES[kind])
        kept = [(row, value) for row, value in enumerate(expected) if value != "none of the type"]
        fits = len(kept) == len(values)

        csv.write_csv(table, folder / "log.csv")
        assert of_files(schema, [folder / "log.csv"]) == kept
        rows = [{name: plain(value) for name, value in row.items()} for row in table.to_pylist()]
        lines = [json.dumps(row) for row in rows]
        (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
        assert of_files(schema, [folder / "log.jsonl"]) == kept
        messages, reasons = RowReader(schema).read([line.encode() for line in lines])
        assert [row for row, reason in enumerate(reasons) if not reason] == [row for row, _ in kept]
        if kept:
            if "c" not in messages.column_names:  # missing in all of them
                messages = messages.append_column("c", pa.nulls(len(messages), own))
            assert of_table(schema, messages) == kept

        worn = carried(table, carrier)
        requests = [table.to_pylist(), [*map(json.loads, lines)], pl.from_arrow(table), worn]
        with input_files(worn, folder / "out") as files:
            ways = [partial(of_request, schema, each) for each in requests]
            ways.append(partial(of_files, schema, files))
            for way in ways:
                if fits:
                    assert way() == kept
                else:
                    with pytest.raises((DataError, pa.ArrowInvalid), match="expected"):
                        way()

    check()


def of_array(values, kind):
    """Returns the values of a type, None for missing ones and a word for those that are none."""
    missing = values.is_null().to_pylist()
    if values.type == pa.string():
        missing = [value in (None, "") for value in values.to_pylist()]
    found = read_as(values, kind).to_pylist()
    return [
        None if is_missing or value != value else "none of the type" if value is None else value
        for value, is_missing in zip(found, missing)
    ]


def carried(table, kind):
    values = table["c"]
    if pa.types.is_dictionary(kind):
        values = values.dictionary_encode()
    elif pa.types.is_decimal(kind):
        values = values.cast(pa.string()).cast(kind)
    elif pa.types.is_timestamp(kind) and kind.tz:
        values = pc.assume_timezone(values, kind.tz)
    else:
        values = values.cast(pa.string()).cast(kind) if kind == pa.binary() else values.cast(kind)
    return table.set_column(0, "c", values)
