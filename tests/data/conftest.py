"""A log of 12 rows small enough to check by hand."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import DataError

SOURCE = {
    "name": "tiny",
    "labels": {"click": "clicked", "late": [["delay", ">=", 15]]},
    "group": "user",
    "split": {
        "train": {"where": [["day", "<=", 6]]},
        "validation": {"where": [["day", ">", 6]], "rows": "even"},
        "test": {"where": [["day", ">", 6]], "rows": "odd"},
    },
    "defaults": {"buckets": 2},
    "fields": {
        "city": "categorical",
        "size": "categorical",
        "rain": "numeric",
        "city_size": {"cross": ["city", "size"]},
    },
}

ROWS = {
    "day": pa.array(range(1, 13), pa.int32()),
    "user": ["u", "v", "u", "w", "v", None, "x", "u", "x", "u", "x", "y"],
    "city": ["a", "b", "a", None, "c", "a", "a", "z", "b", None, "c", "a"],
    "size": pa.array([1, 1, 2, 2, 2, 1, 1, 1, 9, 2, 2, 2], pa.int32()),
    "rain": [0.0, 0.0, 0.0, 2.0, None, 5.0, 0.0, 3.0, float("nan"), 9.0, -1.0, 2.0],
    "clicked": [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    "delay": [0, 20, 3, 15, 14, 30, 1, 16, 1, 40, 2, 99],
}


@pytest.fixture
def source():
    """The schema as a dictionary, to change and parse."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in SOURCE.items()}


@pytest.fixture
def write(tmp_path):
    """Writes the rows, with some columns replaced (None drops one), and returns the file's path."""

    def write(name="log.parquet", **changes):
        columns = {key: value for key, value in (ROWS | changes).items() if value is not None}
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def prepared(source, write, tmp_path):
    """Prepares ``files``, or the rows with some columns replaced, in the folder ``out``; returns
    the manifest.
    """

    def prepared(out="out", files=None, options=None, **changes):
        files = [write(**changes)] if files is None else [tmp_path / each for each in files]
        return prepare(parse_schema(source), files, tmp_path / out, **(options or {}))

    return prepared


@pytest.fixture
def refused(prepared):
    """Expects that these rows or files cannot be prepared."""

    def refused(message, **given):
        with pytest.raises(DataError, match=message):
            prepared(**given)

    return refused


@pytest.fixture
def rows(tmp_path):
    """Returns the columns of a split that was prepared."""

    def rows(split="train", out="out"):
        return pq.read_table(tmp_path / out / f"{split}.parquet").to_pydict()

    return rows
