"""Rows that are in no split are counted, in one process and in shards."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adaftr_fast.api.prepared import Prepared
from adaftr_fast.data import hashing
from adaftr_fast.data.bad_rows import Unused
from adaftr_fast.data.raw.source import ROW_STREAM
from tests.data.conftest import ROWS


def test_rows_in_no_split_are_counted(source, prepared, write, tmp_path):
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
    manifest = prepared(files=["log.parquet"], options={"shards": 3})
    assert sum(split.rows for split in manifest.splits.values()) == 7
    assert manifest.unused == Unused(unmatched=4, dropped=1)
    note = "In no split: 4 rows match none, 1 are dropped by the schema"
    assert note in Prepared(tmp_path / "out").notes()


def test_rows_outside_ranges_of_hashes_are_counted(source, prepared):
    by_user = {"column": "user"}
    source["split"] = {
        "train": {"hash": by_user | {"start": 0.0, "stop": 0.6}},
        "validation": {"hash": by_user | {"start": 0.5, "stop": 0.7}},
        "test": {"hash": {"start": 0.0, "stop": 0.4}},
    }
    table = pa.concat_tables([pa.table(ROWS)] * 50).combine_chunks().to_pydict()
    users = [f"u{number % 97}" for number in range(600)]
    manifest = prepared(**table | {"user": users})
    position = hashing.fraction(hashing.text_hash(pa.array(users)))
    by_row = hashing.fraction(hashing.bits(ROW_STREAM, np.arange(600)))
    assert manifest.unused == Unused(int((~((position < 0.7) | (by_row < 0.4))).sum()))
    assert manifest.unused.unmatched > 50
