"""The same rows of a log as text, plain and compressed, and as parquet."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tests.data.prepare.shards import ROWS


def write_log(folder):
    """Writes the files, parquet with many row groups and with one, and returns the folder."""
    random = np.random.default_rng(0)
    users, items = random.zipf(1.5, ROWS) % 400, random.zipf(1.3, ROWS) % 900
    columns = {
        "day": np.sort(random.integers(1, 31, ROWS)),
        "user": [None if user == 0 else f"u{user}" for user in users],
        "item": items,
        "price": np.round(random.gamma(2.0, 20.0, ROWS), 1),
        "seen": [
            "|".join(map(str, random.zipf(1.5, n) % 60)) or None
            for n in random.integers(0, 5, ROWS)
        ],
        "click": random.integers(0, 2, ROWS),
        "paid": random.integers(0, 120, ROWS),
        "weight": np.round(random.random(ROWS), 3),
    }
    table = pa.table(columns)
    pa.csv.write_csv(table, folder / "log.csv")
    (folder / "log.csv.gz").write_bytes(gzip.compress((folder / "log.csv").read_bytes()))
    pq.write_table(table, folder / "log.parquet", row_group_size=170)
    pq.write_table(table, folder / "whole.parquet")
    (folder / "files").mkdir()
    for number, start in enumerate(range(0, ROWS, 800)):
        pq.write_table(
            table.slice(start, 800), folder / f"files/{number}.parquet", row_group_size=300
        )
    return folder
