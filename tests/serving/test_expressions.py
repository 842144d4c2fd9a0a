"""Values of the types that a schema gives to columns."""

import datetime

import pyarrow as pa
import pytest

import adaftr_fast
from adaftr_fast.data.encode.typed import read_column
from adaftr_fast.data.schema.columns import TYPES
from adaftr_fast.data.schema.parse import write_schema
from adaftr_fast.data.schema.types import PLAIN_TEXT
from adaftr_fast.errors import DataError
from tests.logs import by_hash


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("number", ["nan", "7"], [None, 7.0]),
        ("number", [float("nan"), 7.0], [None, 7.0]),
        ("integer", ["1e3", "+7", "9007199254740993.0"], [1000, 7, 2**53 + 1]),
        ("integer", ["0x10"], None),
        ("boolean", [2**53 + 1], None),
        ("text", [b"\xff"], None),
        ("time", pa.array([0, 2**50], pa.timestamp("s")), None),
        ("time", pa.array([1999], pa.timestamp("ns")), [datetime.datetime(1970, 1, 1, 0, 0, 0, 1)]),
        ("time", pa.array([1], pa.date32()), [datetime.datetime(1970, 1, 2)]),
    ],
)
def test_values_are_those_of_their_type(kind, values, expected):
    values = values if isinstance(values, pa.Array) else pa.array(values)
    if expected is None:  # of times, a year beyond the type's
        with pytest.raises(pa.ArrowInvalid, match=f"x: (expected type {kind}, got|Invalid UTF8)"):
            read_column("x", values, TYPES[kind], PLAIN_TEXT)
        return
    assert read_column("x", values, TYPES[kind], PLAIN_TEXT).to_pylist() == expected


def test_a_value_of_another_type_is_a_bad_row_of_a_log(tmp_path):
    rows = ["item,when,click"]
    rows += [f"{n % 5},2026-01-02 {n % 24:02d}:00:00,{n % 2}" for n in range(100)]
    rows[7] = "1,at noon,0"
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    source = {
        "name": "times",
        "labels": {"click": "click"},
        "split": by_hash(0.7, 0.85),
        "columns": {"hour": 'hour("when")'},
        "types": {"when": "time"},
        "fields": {"item": "categorical", "hour": "categorical"},
    }
    write_schema(tmp_path / "times.toml", source, "Written by the tests.")
    options = {"dataset": tmp_path / "times.toml", "progress": False}
    with pytest.raises(DataError, match=r"log.csv:8: .*when.*'at noon'"):
        adaftr_fast.prepare(tmp_path / "log.csv", tmp_path / "data", **options)
    kept = adaftr_fast.prepare(tmp_path / "log.csv", tmp_path / "data", bad_rows=0.05, **options)
    assert kept.manifest.bad_rows.bad == 1
