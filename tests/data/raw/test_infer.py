import datetime

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.infer import infer_schema
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError


@pytest.fixture
def log(tmp_path):
    rows = 100
    table = pa.table(
        {
            "at": [datetime.datetime(2020, 1, 1) + datetime.timedelta(hours=n // 2) for n in range(rows)],
            "user": [f"u{n % 30}" for n in range(rows)],
            "item": [n % 7 for n in range(rows)],
            "price": [0.5 * n for n in range(rows)],
            "new": [n % 3 == 0 for n in range(rows)],
            "click": [n % 2 for n in range(rows)],
            "buy": [int(n % 4 == 1) for n in range(rows)],
            "w": [1.0 + n % 2 for n in range(rows)],
            "note": ["x"] * rows,
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    csv.write_csv(table, tmp_path / "log.csv")
    return tmp_path


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_fields_and_a_split_by_time(log, name):
    source = infer_schema(log / name, ["click", "buy"], group="user", time="at", weight="w", ignore=["note"])
    assert source["name"] == "log"
    assert source["fields"] == {"user": "categorical", "item": "categorical", "price": "numeric", "new": "categorical"}
    manifest = prepare(parse_schema(source), [log / name], log / "out")
    assert {split: info.rows for split, info in manifest.splits.items()} == {"train": 80, "validation": 10, "test": 10}
    assert (manifest.tasks, manifest.group, manifest.weight) == (["click", "buy"], "user", "w")


def test_without_a_time_users_are_kept_together(log):
    source = infer_schema(log / "log.csv", ["click"], group="user", ignore=["buy", "w", "note"])
    assert "at" not in source["fields"]
    assert source["split"]["validation"] == {"hash": {"column": "user", "start": 0.8, "stop": 0.9}}
    assert infer_schema(log / "log.csv", ["click"])["split"]["train"] == {"hash": {"start": 0.0, "stop": 0.8}}


def test_lists_are_read_by_all_tokens(tmp_path):
    pq.write_table(pa.table({"seen": [[1], [2]], "y": [0, 1]}), tmp_path / "log.parquet")
    fields = infer_schema(tmp_path / "log.parquet", ["y"])["fields"]
    assert fields == {"seen": {"kind": "categorical", "tokens": "all"}}


def test_invalid_values_are_named(log):
    with pytest.raises(DataError, match=r"log\.csv: no column 'clik'; the file has at, user"):
        infer_schema(log / "log.csv", ["clik"])
    with pytest.raises(DataError, match="no such file"):
        infer_schema(log / "absent.csv", ["click"])
    with pytest.raises(DataError, match="new: expected at least three different times, got 2"):
        infer_schema(log / "log.parquet", ["click"], time="new")
