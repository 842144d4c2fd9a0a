"""A log as text, plain and compressed, and as parquet, its schema, and a comparison of prepared
folders.
"""

import dataclasses
import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.data.schema.types import SPLITS
from tests.logs import by_hash

ROWS = 2_000
BY_TIME = {
    "train": {"where": [["day", "<=", 20]]},
    "validation": {"where": [["day", ">", 20]], "rows": "even"},
    "test": {"where": [["day", ">", 20]], "rows": "odd"},
}
BY_USER = by_hash(0.6, 0.8, column="user")
BY_ROW = by_hash(0.6, 0.8)
SCHEMA = {
    "name": "shop",
    "labels": {"click": "click", "buy": [["paid", ">", 60.0]]},
    "funnel": ["click", "buy"],
    "group": "user",
    "weight": "weight",
    "split": BY_TIME,
    "drop": [["day", "==", 7]],
    "defaults": {"min_count": 4, "buckets": 9},
    "fields": {
        "user": "categorical",
        "item": "categorical",
        "price": "numeric",
        "seen": {"kind": "categorical", "tokens": "all", "separator": "|"},
        "last": {"kind": "categorical", "column": "seen", "tokens": "last", "separator": "|"},
        "two": {
            "kind": "categorical",
            "column": "seen",
            "tokens": "all",
            "length": 2,
            "separator": "|",
            "vocabulary": "last",
        },
        "item_day": {"cross": ["item", "day"]},
        "spread": {"kind": "categorical", "column": "item", "hashed": 50},
        "heat": {"kind": "dense", "encoding": "log"},
        "bins": {"kind": "dense", "column": "heat", "encoding": "piecewise"},
    },
}


def changed(changes):
    """Returns the schema with some keys replaced; None drops one."""
    source = SCHEMA | changes
    return parse_schema({key: value for key, value in source.items() if value is not None})


def write_log(folder):
    """Writes the files, parquet with many row groups and with one, and returns the folder."""
    random = np.random.default_rng(0)
    users = random.zipf(1.5, ROWS) % 400
    items = random.zipf(1.3, ROWS) % 900
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
        "heat": 10.0 ** (items % 60 - 30),
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


def assert_same(out, whole):
    """Checks that rows, ids, vocabulary and manifest are equal, except for the files that hold the
    rows.
    """
    ours = read_manifest(out)
    theirs = read_manifest(whole)
    for split in SPLITS:
        assert read_split(out, ours, split).equals(read_split(whole, theirs, split))
    assert (out / "vocabulary.parquet").read_bytes() == (whole / "vocabulary.parquet").read_bytes()
    splits = {split: dataclasses.replace(info, files={}) for split, info in ours.splits.items()}
    assert dataclasses.replace(ours, splits=splits, sha256={}) == dataclasses.replace(
        theirs, sha256={}
    )
    named = {
        "schema.json",
        "vocabulary.parquet",
        *(name for split in SPLITS for name in ours.files(split)),
    }
    assert {path.name for path in out.iterdir()} - {"report.html"} == named
    assert not list(out.parent.glob(f".{out.name}.*"))
