"""``memory`` bounds every process that prepares, and a bound that is too small says
what is needed.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.memory import GB, Memory
from adaftr_fast.data.prepare import split_writer
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from adaftr_fast.errors import ConfigError
from tests.logs import by_day

SCHEMA = {
    "name": "lists",
    "labels": {"click": "click"},
    "fields": {"seen": {"kind": "categorical", "tokens": "all", "separator": "|"}},
    "split": by_day(8),
}
PEAK = """
import json, sys
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import parse_schema
from tests.data.peaks import watch_peak

schema, memory, *logs = sys.argv[1:]
peak = watch_peak()
for log in logs:
    prepare(parse_schema(json.loads(schema)), [log], log + "-out", memory=float(memory))
print(peak())
"""
BOUND = 0.6  # GB: a block of text takes 0.13


def write(path, rows, tokens):
    """Writes rows of lists as text in which few values repeat: most bytes of a log, few of a
    parquet file.
    """
    rng = np.random.default_rng(0)
    words = np.array([f"value-{number:05d}" for number in range(100)])
    lists = ["|".join(words[rng.integers(0, 100, tokens)]) for _ in range(64)]
    table = pa.table(
        {
            "day": np.arange(rows) % 10,
            "click": rng.integers(0, 2, rows),
            "seen": pa.array(lists).take(pa.array(rng.integers(0, 64, rows))),
        }
    )
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        pa.csv.write_csv(table, path)
    return path


def test_the_peak_keeps_to_the_bound(tmp_path):
    """One row group of 100 MB, of which the file has 1; and as much text."""
    logs = [write(tmp_path / name, 1 << 15, 256) for name in ("log.parquet", "log.csv")]
    command = [sys.executable, "-c", PEAK, json.dumps(SCHEMA), str(BOUND), *logs]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < BOUND * GB


def test_a_bound_that_is_too_small_names_one_that_suffices(tmp_path):
    path = write(tmp_path / "log.csv", 40, 5_000)
    schema = parse_schema(SCHEMA)
    with pytest.raises(
        ConfigError, match=r"^memory: expected at least \S+ GB, .* got 0.3751$"
    ) as error:
        prepare(schema, [path], tmp_path / "out", memory=0.3751)
    least = float(re.search(r"at least (\S+) GB", str(error.value))[1])
    while least < 1:  # encoding needs more than parsing, or the next step as much
        try:
            manifest = prepare(schema, [path], tmp_path / "out", memory=least)
            break
        except ConfigError as error:
            least, before = float(re.search(r"at least (\S+) GB", str(error))[1]), least
            assert least > before
    assert sum(split.rows for split in manifest.splits.values()) == 40


def test_a_bound_below_what_the_program_takes_is_refused():
    for wrong in (0, 0.375, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"^memory: expected more than 0.375 GB"):
            Memory.of(wrong)


def test_a_prepared_folder_does_not_depend_on_the_bound(tmp_path, monkeypatch):
    """Row groups included, which training shuffles: these end at a number of bytes, and those at a
    number of rows.
    """
    for limit, value in {"ROW_GROUP_BYTES": 1 << 16, "ROW_GROUP_ROWS": 300}.items():
        with monkeypatch.context() as patch:
            patch.setattr(split_writer, limit, value)
            path = write(tmp_path / "log.parquet", 2_000, 40)
            for name, memory in (("small", 0.3755), ("large", None)):
                prepare(parse_schema(SCHEMA), [path], tmp_path / limit / name, memory=memory)
        small, large = (sorted((tmp_path / limit / name).iterdir()) for name in ("small", "large"))
        assert [file.read_bytes() for file in small] == [file.read_bytes() for file in large]
        assert pq.read_metadata(tmp_path / limit / "small/train.parquet").num_row_groups > 2
