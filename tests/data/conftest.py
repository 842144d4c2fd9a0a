"""A log of 12 rows small enough to check by hand."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
