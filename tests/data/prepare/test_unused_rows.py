"""Rows that are in no split are counted, in one process and in shards."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.api.prepared import Prepared
from adaftr_fast.data import hashing
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw.source import ROW_STREAM, Unused
from adaftr_fast.data.schema.parse import parse_schema
from tests.data.conftest import ROWS


@pytest.mark.parametrize(("count", "text"), [(1, False), (3, True)])
def test_rows_in_no_split_are_counted(source, write, tmp_path, count, text):
    """Days 7 and 11 are in no range; user v of day 2 is dropped; of days 9 and 10, only odd rows
    are in a split.
    """
    source["drop"] = [["user", "==", "v"], ["day", "==", 2]]
    source["split"] = {
        "train": {"where": [["day", "<=", 6]]},
        "validation": {"where": [["day", ">=", 8], ["day", "<=", 10]], "rows": "odd"},
        "test": {"where": [["day", "==", 12]]},
    }
    path = write()
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    if text:
        path = tmp_path / "log.csv"
        pyarrow.csv.write_csv(pq.read_table(tmp_path / "log.parquet"), path)
    manifest = prepare(parse_schema(source), [path], tmp_path / "out", shards=count)
    rows = sum(split.rows for split in manifest.splits.values())
    assert (rows, manifest.unused) == (7, Unused(unmatched=4, dropped=1))
    note = "In no split: 4 rows match none, 1 are dropped by the schema"
    assert note in Prepared(tmp_path / "out").notes()


def test_rows_outside_ranges_of_hashes_are_counted(source, write, tmp_path):
    by_user = {"column": "user"}
    source["split"] = {
        "train": {"hash": by_user | {"start": 0.0, "stop": 0.6}},
        "validation": {"hash": by_user | {"start": 0.5, "stop": 0.7}},
        "test": {"hash": {"start": 0.0, "stop": 0.4}},
    }
    rows = {name: columns * 50 for name, columns in ROWS.items() if isinstance(columns, list)}
    rows |= {name: pa.array(ROWS[name].to_pylist() * 50, pa.int32()) for name in ("day", "size")}
    rows["user"] = [f"u{number % 97}" for number in range(600)]
    manifest = prepare(parse_schema(source), [write(**rows)], tmp_path / "out")
    position = hashing.fraction(hashing.text_hash(pa.array(rows["user"])))
    by_row = hashing.fraction(hashing.bits(ROW_STREAM, np.arange(600)))
    assert manifest.unused == Unused(int((~((position < 0.7) | (by_row < 0.4))).sum()))
    assert manifest.unused.unmatched > 50
