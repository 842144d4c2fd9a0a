"""Shards give the rows, ids and manifest of one process."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import inputs
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.errors import ConfigError, DataError
from tests.data.prepare.shards import BY_ROW, BY_TIME, BY_USER, assert_same

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("log.csv", BY_TIME, 8),
        ("log.parquet", BY_ROW, 2),
        ("files", BY_USER, 3),
        ("whole.parquet", BY_TIME, 2),
    ],
)
def test_shards_equal_one_process(shop, is_whole, name, split, count):
    """The parquet file is read without a condition, so its rows are numbered by the sizes of its
    row groups.
    """
    changes = {"split": split} | ({"drop": None} if name == "log.parquet" else {})
    manifest = shop("out", name, changes, shards=count)
    is_whole("out", name, **changes)
    # a row group is never split between shards
    assert len(manifest.files("train")) == 1 or name != "whole.parquet"
    assert min(info.rows for info in manifest.splits.values()) > 100
    assert manifest.splits["train"].outside_funnel["buy"] > 0
    assert len(manifest.fields[2].edges) == 8


def test_shards_grow_another_folder(log, shop, tmp_path):
    shop("first", "files")
    half = pq.read_table(log / "log.parquet").slice(0, 1_500).replace_schema_metadata(None)
    half = half.set_column(2, "item", pa.compute.add(half["item"], 300))
    pq.write_table(half, tmp_path / "later.parquet", row_group_size=170)
    for out, shards in (("whole", 1), ("by3", 3)):
        shop(out, tmp_path / "later.parquet", shards=shards, grow=tmp_path / "first")
    assert_same(tmp_path / "by3", tmp_path / "whole")


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_bad_rows_are_summed_over_shards(log, shop, tmp_path):
    lines = (log / "log.csv").read_text().splitlines()
    for line in (3, 900, 1_900):
        lines[line] = lines[line].replace(",", ";", 1)
    file = tmp_path / "log.csv"
    file.write_text("\n".join(lines))
    shop("whole", file, bad_rows=0.01)
    assert shop("by2", file, shards=2, bad_rows=0.01).bad_rows.bad == 3
    assert_same(tmp_path / "by2", tmp_path / "whole")
    with pytest.raises(DataError, match=r"3 of 2,000 rows cannot be read .*--bad_rows 0\.002 "):
        shop("few", file, shards=2, bad_rows=0.0005)
    left_out = (
        r"/by2: more rows were left out than bad_rows 0 allows: 3 of .*; pass --bad_rows 0\.002 "
    )
    with pytest.raises(ConfigError, match=left_out):  # what was prepared with more
        shop("by2", file)
    assert_same(tmp_path / "by2", tmp_path / "whole")


def test_a_generated_log_needs_no_file(tmp_path):
    schema = load_schema("synthetic")
    schema = dataclasses.replace(
        schema, generate=dataclasses.replace(schema.generate, rows=2_000, users=80, items=30)
    )
    for out, shards in (("whole", 1), ("out", 2)):
        manifest = prepare(schema, None, tmp_path / out, shards=shards)
    assert_same(tmp_path / "out", tmp_path / "whole")
    assert [info.rows for info in manifest.splits.values()] == [1_600, 200, 200]


def test_the_number_of_shards_is_checked(shop):
    for shards in (0, 1001):
        with pytest.raises(DataError, match=f"shards: expected 1 to 1000, got {shards}"):
            shop(shards=shards)


def test_the_layout_of_a_text_file_is_read_once_for_all_shards(log, shop, monkeypatch):
    read = inputs.read_layout
    seen = []
    monkeypatch.setattr(inputs, "read_layout", lambda *given: seen.append(given[0]) or read(*given))
    shop(shards=3)
    assert seen == [log / "log.csv"]
