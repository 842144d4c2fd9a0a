"""Columns that a schema computes have the same values in preparation, files, requests and messages,
whatever types carry the columns that they read.
"""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import adaftr_fast
from adaftr_fast.config import ModelConfig
from adaftr_fast.data.dataset.loader import PreparedData
from adaftr_fast.data.encode.typed import read_column
from adaftr_fast.data.schema.columns import TYPES
from adaftr_fast.data.schema.parse import parse_schema, write_schema
from adaftr_fast.data.schema.types import PLAIN_TEXT
from adaftr_fast.errors import DataError
from adaftr_fast.extras.streaming.messages import RowReader
from adaftr_fast.serving.export import export_run
from adaftr_fast.serving.scorer import load_scorer
from tests.logs import by_hash

from .conftest import SIZES, save_run
from .test_same_rows import (
    CLOTHES,
    FEATURES,
    REQUESTS,
    ROWS,
    SOURCE,
    as_bytes,
    make_rows,
    parquet_of,
)

EXPRESSIONS = SOURCE | {
    "columns": {
        "hour": 'hour("when")',
        "dear": "price * 2 > 4.5 AND member",
        "letters": "length(city)",
        "week": '"user" % 7',
        "liked": "stars >= 3",
        "night": 'hour("when") = 3',
    },
    "types": {
        "when": "time",
        "price": "number",
        "member": "boolean",
        "user": "integer",
        "stars": "integer",
    },
    "labels": {"click": "liked", "conversion": "conversion"},
    "drop": [["night", "==", True]],
    "fields": SOURCE["fields"]
    | {
        "hour": "categorical",
        "dear": "categorical",
        "letters": {"kind": "numeric", "buckets": 3},
        "week_member": {"cross": ["week", "member"]},
    },
}


def make_log():
    random = np.random.default_rng(1)
    hours = random.integers(0, 24, ROWS).tolist()
    when = [f"2026-05-{1 + hour:02d} {hour:02d}:30:00" if hour else None for hour in hours]
    rows = make_rows().append_column("when", pa.array(when))
    return rows.append_column("stars", pa.array(random.integers(1, 6, ROWS)))


def times_in_bytes(table):
    """Times with a zone, and stars as decimals beside what ``as_bytes`` changes."""
    table = as_bytes(table)
    for name, kind in (("when", pa.timestamp("ms")), ("stars", pa.decimal128(22, 2))):
        values = table[name].cast(kind)
        if name == "when":
            values = pc.assume_timezone(values, "UTC")
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def messages(table, _):
    encoded = [json.dumps(row).encode() for row in table.to_pylist()]
    rows, reasons = RowReader(parse_schema(EXPRESSIONS)).read(encoded)
    assert not any(reasons)
    return rows


CARRIERS = CLOTHES | {
    "bytes, decimals, dictionaries": parquet_of(times_in_bytes),
    "messages of a topic": messages,
}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """The folder ``data`` of the rows as parquet, an exported ``model``, and its scores."""
    folder = tmp_path_factory.mktemp("computed")
    pq.write_table(make_log(), folder / "log.parquet")
    write_schema(folder / "computed.toml", EXPRESSIONS, "Written by the tests.")
    adaftr_fast.prepare(
        folder / "log.parquet", folder / "data", dataset=folder / "computed.toml", progress=False
    )
    save_run(folder / "run", PreparedData(folder / "data"), ModelConfig(**SIZES))
    export_run(folder / "run", folder / "model")
    adaftr_fast.predict(
        folder / "model", folder / "log.parquet", folder / "scores.parquet", progress=False
    )
    return folder


def test_the_ids_are_those_of_the_values(computed):
    data = PreparedData(computed / "data")
    log = make_log()
    kept = log.filter(pc.fill_null(pc.invert(pc.starts_with(log["when"], "2026-05-04")), True))
    assert sum(split.rows for split in data.manifest.splits.values()) == len(kept) < ROWS
    liked = sum(split.positives["click"] for split in data.manifest.splits.values())
    assert liked == pc.sum(pc.greater_equal(kept["stars"], 3)).as_py()
    hours = next(field for field in data.manifest.fields if field.name == "hour")
    assert hours.num_embeddings == 1 + len(pc.unique(kept["when"].drop_null()))


@pytest.mark.parametrize("name", CARRIERS)
def test_a_computed_column_is_the_same_whatever_carries_its_inputs(computed, tmp_path, name):
    log = CARRIERS[name](make_log(), tmp_path)
    adaftr_fast.predict(computed / "model", log, tmp_path / "scores.parquet", progress=False)
    expected = pq.read_table(computed / "scores.parquet")
    assert pq.read_table(tmp_path / "scores.parquet").equals(expected)
    adaftr_fast.prepare(log, tmp_path / "data", dataset=computed / "computed.toml", progress=False)
    for file in ("train", "validation", "test", "vocabulary"):
        found, known = (
            pq.read_table(folder / f"data/{file}.parquet") for folder in (tmp_path, computed)
        )
        assert found.equals(known), file


@pytest.mark.parametrize("name", ["dicts", "JSON", "dicts of several types", "Polars"])
def test_requests_compute_them(computed, name):
    scorer = load_scorer(computed / "model")
    log = make_log().select([*FEATURES, "when"])
    assert scorer.score(REQUESTS[name](log)).equals(pq.read_table(computed / "scores.parquet"))
    row = log.slice(3, 1).to_pylist()[0]
    with pytest.raises(DataError, match=r"when: expected type time, got 'noon'"):
        scorer.score({**row, "when": "noon"})


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


def test_a_column_of_the_log_with_the_name_of_a_computed_one_is_not_read(computed, tmp_path):
    log = make_log().append_column("hour", pa.array([99] * ROWS))
    adaftr_fast.predict(
        computed / "model",
        log,
        tmp_path / "scores.parquet",
        keep=["hour"],
        progress=False,
    )
    found = pq.read_table(tmp_path / "scores.parquet")
    assert found["hour"].to_pylist() == [99] * ROWS
    assert found.drop_columns("hour").equals(pq.read_table(computed / "scores.parquet"))
    data = adaftr_fast.prepare(
        log, tmp_path / "data", dataset=computed / "computed.toml", progress=False
    )
    assert data.manifest.fingerprint == PreparedData(computed / "data").manifest.fingerprint


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
