"""A schema of the log, and a comparison of prepared folders."""

import dataclasses

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.schema.types import SPLITS
from tests.logs import by_hash

ROWS = 2_000
BY_TIME = {
    "train": {"where": [["day", "<=", 20]]},
    "validation": {"where": [["day", ">", 20]], "rows": "even"},
    "test": {"where": [["day", ">", 20]], "rows": "odd"},
}
BY_USER, BY_ROW = by_hash(0.6, 0.8, column="user"), by_hash(0.6, 0.8)
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
    },
}


def assert_same(out, whole):
    """Checks that rows, ids, vocabulary and manifest are equal, except for the files that hold the
    rows.
    """
    ours, theirs = read_manifest(out), read_manifest(whole)
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
    assert not (out.parent / f".{out.name}.work").exists()
