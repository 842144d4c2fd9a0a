"""Shards give the rows, ids and manifest of one process."""

import dataclasses

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.prepare import steps
from adaftr_fast.data.prepare.run import prepare
from adaftr_fast.data.raw import inputs
from adaftr_fast.data.schema.parse import load_schema, parse_schema
from adaftr_fast.errors import ConfigError, DataError
from tests.data.prepare.shards import BY_ROW, BY_TIME, BY_USER, SCHEMA, assert_same

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [("log.csv", BY_TIME, (2, 8)), ("log.csv", BY_USER, (3,)), ("log.parquet", BY_TIME, (3,)),
     ("log.parquet", BY_ROW, (2,)), ("files", BY_USER, (3, 8)), ("whole.parquet", BY_TIME, (2,))],
)  # fmt: skip
def test_shards_equal_one_process(log, tmp_path, name, split, counts):
    """The parquet file is read without a condition, so its rows are numbered by the sizes of its
    row groups.
    """
    source = SCHEMA | {"split": split}
    if name == "log.parquet":
        del source["drop"]
    whole = prepare(parse_schema(source), [log / name], tmp_path / "whole")
    assert min(info.rows for info in whole.splits.values()) > 100
    assert whole.splits["train"].outside_funnel["buy"] > 0
    assert len(whole.fields[2].edges) == 8
    for count in counts:
        manifest = prepare(
            parse_schema(source), [log / name], tmp_path / f"by{count}", shards=count
        )
        assert_same(tmp_path / f"by{count}", tmp_path / "whole")
        # a row group is never split between shards
        assert len(manifest.files("train")) == 1 or name != "whole.parquet"


def test_shards_grow_another_folder(log, tmp_path):
    schema = parse_schema(SCHEMA)
    prepare(schema, [log / "files"], tmp_path / "first")
    half = pq.read_table(log / "log.parquet").slice(0, 1_500).replace_schema_metadata(None)
    half = half.set_column(2, "item", pa.compute.add(half["item"], 300))
    pq.write_table(half, tmp_path / "later.parquet", row_group_size=170)
    prepare(schema, [tmp_path / "later.parquet"], tmp_path / "whole", grow=tmp_path / "first")
    prepare(
        schema, [tmp_path / "later.parquet"], tmp_path / "by3", shards=3, grow=tmp_path / "first"
    )
    assert_same(tmp_path / "by3", tmp_path / "whole")


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_bad_rows_are_summed_over_shards(log, tmp_path, monkeypatch):
    lines = (log / "log.csv").read_text().splitlines()
    for line in (3, 900, 1_900):
        lines[line] = lines[line].replace(",", ";", 1)
    (tmp_path / "log.csv").write_text("\n".join(lines))
    schema = parse_schema(SCHEMA)
    prepare(schema, [tmp_path / "log.csv"], tmp_path / "whole", bad_rows=0.01)
    manifest = prepare(schema, [tmp_path / "log.csv"], tmp_path / "by2", shards=2, bad_rows=0.01)
    assert manifest.bad_rows.bad == 3
    assert_same(tmp_path / "by2", tmp_path / "whole")
    with pytest.raises(DataError, match=r"3 of 2,000 rows cannot be read .*--bad_rows 0\.002 "):
        prepare(schema, [tmp_path / "log.csv"], tmp_path / "few", shards=2, bad_rows=0.0005)
    with monkeypatch.context() as patched:
        patched.setattr(steps, "encode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(schema, [tmp_path / "log.csv"], tmp_path / "later", bad_rows=0.01)
    # what was prepared with more, and what was begun
    for name, shown in (("by2", "by2"), ("later", ".later.work")):
        left_out = (
            rf"/{shown}: more rows were left out than bad_rows 0 allows: 3 of .*; pass --bad_rows "
            r"0\.002 "
        )
        with pytest.raises(ConfigError, match=left_out):
            prepare(schema, [tmp_path / "log.csv"], tmp_path / name)
    assert_same(tmp_path / "by2", tmp_path / "whole")
    assert (tmp_path / ".later.work").exists()


def test_a_generated_log_needs_no_file(tmp_path):
    schema = load_schema("synthetic")
    schema = dataclasses.replace(
        schema, generate=dataclasses.replace(schema.generate, rows=2_000, users=80, items=30)
    )
    manifest = prepare(schema, None, tmp_path / "whole")
    assert {name: info.rows for name, info in manifest.splits.items()} == {
        "train": 1_600,
        "validation": 200,
        "test": 200,
    }
    prepare(schema, None, tmp_path / "out", shards=2)
    assert_same(tmp_path / "out", tmp_path / "whole")


def test_the_number_of_shards_is_checked(log, tmp_path):
    for shards in (0, 1001):
        with pytest.raises(DataError, match=f"shards: expected 1 to 1000, got {shards}"):
            prepare(parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out", shards=shards)


def test_empty_split_is_an_error_in_shards(log, tmp_path):
    schema = parse_schema(SCHEMA | {"split": BY_TIME | {"test": {"where": [["day", ">", 90]]}}})
    files = [log / "files"]
    with pytest.raises(DataError, match="split test has no rows"):
        prepare(schema, files, tmp_path / "out", shards=3)


def test_the_layout_of_a_text_file_is_read_once_for_all_shards(log, tmp_path, monkeypatch):
    read, seen = inputs.read_layout, []
    monkeypatch.setattr(inputs, "read_layout", lambda *given: seen.append(given[0]) or read(*given))
    prepare(parse_schema(SCHEMA), [log / "log.csv"], tmp_path / "out", shards=3)
    assert seen == [log / "log.csv"]
