"""Parquet is read in bounded memory, in the batches that Arrow's scanner would make of it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.memory import PROGRAM, Memory
from adaftr_fast.data.raw import batches
from adaftr_fast.data.raw.batches import coalesced, read_tables
from adaftr_fast.data.raw.source import open_dataset
from tests.forks import Script

PEAK = """
import sys, time
from pathlib import Path
from adaftr_fast.api.prepare import prepare
from adaftr_fast.data.raw import batches
from adaftr_fast.data.raw.rows import raw_files
from adaftr_fast.data.schema.parse import load_schema
from tests.data.peaks import anonymous, watch_peak

log, schema, out = sys.argv[1:]
batches.BATCH_ROWS = 1 << 13
before = anonymous()
peak = watch_peak()
for chunk in raw_files(load_schema(schema), [Path(log)])[0].chunks():  # as predict reads it
    time.sleep(0.005)
prepare(log, out, dataset=schema, progress=False)
print((peak() - before) / 2**20)
"""
SCHEMA = """
name = "lists"
group = "user"
labels = { click = "click" }
fields = { user = "categorical", seen = { kind = "categorical", tokens = "last" } }
[split]
train = { where = [["day", "<", 8]] }
validation = { where = [["day", "==", 8]] }
test = { where = [["day", "==", 9]] }
"""


def write_lists(path, rows, group_rows=1 << 13):
    """Writes lists of 64 items, 512 bytes of each row, of which a file has 64."""
    rng = np.random.default_rng(0)
    names = ["day", "click", "user", "seen"]
    offsets = pa.array(np.arange(group_rows + 1, dtype=np.int32) * 64)
    items = pa.array(rng.integers(0, 200, 64 * group_rows))
    lists = pa.ListArray.from_arrays(offsets, items)
    numbers = [rng.integers(0, most, group_rows) for most in (10, 2, 1000)]
    table = pa.table([*numbers, lists], names=names)
    with pq.ParquetWriter(path, table.schema) as writer:
        for _ in range(rows // group_rows):
            writer.write_table(table)


def test_memory_does_not_grow_with_the_log(tmp_path):
    (tmp_path / "schema.toml").write_text(SCHEMA)
    peaks = []
    for rows in (1 << 16, 1 << 18):  # 32 MB and 128 MB of lists
        write_lists(tmp_path / f"{rows}.parquet", rows)
        script = Script(
            PEAK, tmp_path / f"{rows}.parquet", tmp_path / "schema.toml", tmp_path / f"out{rows}"
        )
        peaks.append(float(script.end()[0]))
    small, large = peaks
    assert large < small + 50, "MB"


def write_log(folder, sizes=(3000, 700, 1), group_rows=700):
    """Writes files whose second has another integer type; returns their dataset."""
    rng = np.random.default_rng(1)
    for number, rows in enumerate(sizes):
        user = pa.array(rng.integers(0, 50, rows), pa.int32() if number == 1 else pa.int64())
        day = np.sort(rng.integers(0, 20, rows))
        text = [None if each == 3 else f"t{each}" for each in rng.integers(0, 9, rows)]
        lists = [[*range(each)] for each in rng.integers(0, 5, rows)]
        table = pa.table({"day": day, "user": user, "text": text, "lists": lists})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=group_rows)
    return open_dataset(folder)


def test_batches_are_those_of_a_scanner(tmp_path, monkeypatch):
    """Batches of raw rows end where those of a scanner of Arrow do, if they are not wide."""
    monkeypatch.setattr(batches, "BATCH_ROWS", 512)
    monkeypatch.setattr(batches, "STEP_ROWS", 128)
    dataset = write_log(tmp_path)
    columns = {"user": pc.field("user"), "late": pc.field("day") > 3, "lists": pc.field("lists")}
    scanned = dataset.scanner(columns=columns, batch_size=512).to_batches()
    expected = list(coalesced(pa.Table.from_batches([batch]) for batch in scanned))
    tables = read_tables(dataset, ["user", "day", "lists"], columns)
    assert list(coalesced(tables)) == expected


READS_DAMAGED = """
import sys
import pyarrow as pa
from adaftr_fast.data.raw.batches import read_tables
from adaftr_fast.data.raw.source import open_dataset

try:
    list(read_tables(open_dataset(sys.argv[1]), ["number"]))
except (OSError, pa.ArrowException):
    print(pa.default_memory_pool().max_memory())
"""


def test_a_damaged_page_is_given_no_room(tmp_path):
    """The header of a page of 8 KB claims 2 GB, which a stream of pages makes room for."""
    path = tmp_path / "log.parquet"
    kind = pa.schema([pa.field("number", pa.int64(), nullable=False)])
    log = pa.table([np.arange(1000)], kind)
    pq.write_table(log, path, use_dictionary=False, compression="none")
    content = path.read_bytes()
    sizes = b"\x15" + varint(8000) + b"\x15" + varint(8000)  # unpacked, and in the file
    damaged = b"\x15" + varint(8000) + b"\x15" + varint(2**31 - 1)
    assert sizes in content
    path.write_bytes(content.replace(sizes, damaged, 1))
    peak, _ = Script(READS_DAMAGED, path).end()
    assert int(peak) < 1 << 27


def varint(number):
    """Returns a number as Thrift's compact protocol writes it: zigzag, seven bits a byte."""
    number *= 2
    parts = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])


def test_wide_rows_make_short_tables(tmp_path, monkeypatch):
    memory = Memory(PROGRAM + 29 * (1 << 18))
    monkeypatch.setattr(batches, "STEP_BYTES", 1 << 14)
    few = ["x" * 2000]
    many = [f"{number:02000d}" for number in range(1000)]
    pq.write_table(pa.table({"repeated": few * 1000, "distinct": many}), tmp_path / "log.parquet")
    dataset = open_dataset(tmp_path / "log.parquet")
    # the first has one byte per row in the file; its rows are measured
    for name in ("repeated", "distinct"):
        tables = list(read_tables(dataset, [name], memory=memory))
        assert len(tables) > 4
        assert max(table.nbytes for table in tables) < (1 << 18) + (1 << 14) + 2100
        assert sum(batch.num_rows for batch in coalesced(tables, memory)) == 1000


def test_rows_that_grow_wider_within_a_row_group_make_short_tables(tmp_path):
    """Lists in order of length, of one value: 40 MB in one row group, of which the file has a
    hundredth.
    """
    memory = Memory(PROGRAM + 29 * (1 << 20))
    ends = np.cumsum(np.arange(4500) // 2)
    lists = pa.ListArray.from_arrays(
        pa.array([0, *ends], pa.int32()), pa.array(np.full(ends[-1], 7))
    )
    log = pa.table({"row": np.arange(4500), "seen": lists})
    pq.write_table(log, tmp_path / "log.parquet")
    tables = [*read_tables(open_dataset(tmp_path / "log.parquet"), log.schema.names, memory=memory)]
    assert max(table.nbytes for table in tables) < 3 * memory.batch
    assert pa.concat_tables(tables).equals(log)


def test_a_column_that_occurs_twice_in_a_later_file_is_named(tmp_path):
    write_log(tmp_path)
    twice = pa.table([[1], [2]], names=["user", "user"])
    pq.write_table(twice, tmp_path / "9.parquet")
    with pytest.raises(pa.ArrowInvalid, match="expected one column 'user', got 2"):
        list(read_tables(open_dataset(tmp_path), ["user"]))
