"""Shards give the rows, ids and manifest of one process."""

import dataclasses

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.dataset.manifest import read_manifest
from adaftr_fast.data.dataset.split_file import read_split
from adaftr_fast.data.prepare import table
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.schema.parse import load_schema
from adaftr_fast.data.schema.types import SPLITS
from adaftr_fast.errors import ConfigError, DataError
from tests.data.prepare.shards import BY_ROW, BY_TIME, BY_USER, assert_same, changed

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


def test_bad_rows_are_summed_over_shards(log, shop, tmp_path, monkeypatch):
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


def test_ids_of_vocabularies_that_do_not_fit_the_memory(shop, is_whole, monkeypatch):
    monkeypatch.setattr(table, "APART", 0.0)  # each is looked up by itself
    shop(shards=2)
    is_whole()


def test_text_and_parquet_of_one_log(log, tmp_path):
    """A value has one id in both, and rows are numbered through."""
    rows = pq.read_table(log / "log.parquet")
    csv.write_csv(rows[:700], tmp_path / "first.csv")
    pq.write_table(rows[700:], tmp_path / "last.parquet")
    files = [tmp_path / "first.csv", tmp_path / "last.parquet"]
    for name, given in (("both", files), ("text", [log / "log.csv"])):
        prepare(changed({"split": BY_ROW}), given, tmp_path / name)
    both, text = (read_manifest(tmp_path / name) for name in ("both", "text"))
    for split in SPLITS:
        found = read_split(tmp_path / "both", both, split)
        assert found.equals(read_split(tmp_path / "text", text, split))
    assert both.fingerprint == text.fingerprint
