"""From a table in memory to scores: ``prepare`` and ``predict`` read it as the file of the same
rows.
"""

import pyarrow.parquet as pq
import pytest

import adaftr_fast as af
from adaftr_fast.errors import DataError
from tests.logs import shop_log

from .conftest import ROLES


@pytest.fixture(scope="module")
def log():
    return shop_log(1200, users=30)


def test_a_table_is_prepared_as_its_file(log, tmp_path):
    pq.write_table(log, tmp_path / "table.parquet")
    file = af.prepare(tmp_path / "table.parquet", tmp_path / "file", **ROLES)
    data = af.prepare(log, tmp_path / "data", **ROLES)
    assert (data.manifest.dataset, data.manifest.fingerprint) == (
        "table",
        file.manifest.fingerprint,
    )
    assert data.manifest.splits == file.manifest.splits
    before = (data.folder / "schema.json").stat().st_ino
    assert af.prepare(log, tmp_path / "data", **ROLES).manifest == data.manifest
    assert (data.folder / "schema.json").stat().st_ino == before  # left as it is
    assert {each.name for each in tmp_path.iterdir()} == {"table.parquet", "file", "data"}


def test_wrong_columns_of_a_table_are_named(log, tmp_path):
    with pytest.raises(DataError, match=r"^the table: no column 'clik'; the file has time, user"):
        af.prepare(log, tmp_path / "data", labels="clik")
    with pytest.raises(
        DataError,
        match=r"^1,190 of 1,200 rows .*first: the table: row 0: label price: expected 0 or "
        r"1, got '",
    ):
        af.prepare(log, tmp_path / "data", labels=["click", "price"])
    with pytest.raises(DataError, match=r"^the table 2: no column 'user', which the table has;"):
        af.prepare([log, log.drop(["user"])], tmp_path / "data", labels="click")
    with pytest.raises(DataError, match=r"^the table: time: expected at least 3 different times"):
        af.prepare(log[:2], tmp_path / "data", labels="click", time="time")
    with pytest.raises(DataError, match="split train has no rows"):
        af.prepare(log[:0], tmp_path / "data", labels="click")
    assert list(tmp_path.iterdir()) == []


def test_frames_of_other_libraries_give_the_same_scores(log, model, tmp_path):
    expected = af.predict(model, log, tmp_path / "arrow.parquet", keep="user").read()
    assert expected.num_rows == log.num_rows
    pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    frames = {
        "pandas": log.to_pandas().astype({"user": "category", "item": "Int16"}),
        "polars": polars.from_arrow(log).with_columns(polars.col("user").cast(polars.Categorical)),
    }
    for name, frame in frames.items():
        scores = af.predict(model, frame, tmp_path / f"{name}.parquet", keep="user")
        assert scores.read().equals(expected)
        data = af.prepare(frame, tmp_path / name, **ROLES)
        assert data.fields().rows[0][:3] == ["user", "categorical", "31"]
    files = {"arrow.parquet", "pandas.parquet", "polars.parquet", "pandas", "polars"}
    assert {each.name for each in tmp_path.iterdir()} == files


def test_a_row_of_pandas_is_scored_as_a_dict(log, model):
    pytest.importorskip("pandas")
    frame = log.to_pandas()
    scorer = af.load_scorer(model)
    with pytest.raises(
        DataError, match=r"rows: expected a table, got a Series; of a row, pass \.to_dict\(\)"
    ):
        scorer.score(frame.iloc[0])
    assert scorer.score(frame.iloc[0].to_dict()).equals(scorer.score(frame[:1]))
