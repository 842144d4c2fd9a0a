"""Tables in memory are read as files of the same rows."""

import datetime
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaftr_fast.data.memory import PROGRAM, Memory
from adaftr_fast.data.raw import tables
from adaftr_fast.data.raw.tables import input_files
from adaftr_fast.errors import BusyError, DataError

TIMES = [datetime.datetime(2020, 1, day) for day in (1, 2, 3)]
ODD = {
    "categories": pa.array(["a", None, "a"]).dictionary_encode(),
    "numbered": pa.array([7, 8, 7], pa.int64()).dictionary_encode(),
    "large": pa.array(["a", "b", None], pa.large_string()),
    "view": pa.array(["a", "b", None], pa.string_view()),
    "tiny": pa.array([1, None, 3], pa.int8()),
    "unsigned": pa.array([1, 2, 2**64 - 1], pa.uint64()),
    "truth": pa.array([True, None, False]),
    "half": pa.array(np.array([0.5, 1.0, 2.0], np.float16)),
    "time": pa.array(TIMES, pa.timestamp("ns")),
    "tags": pa.array([["a"], [], None], pa.large_list(pa.large_string())),
    "pair": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)),
    "nothing": pa.nulls(3),
}
PLAIN = {
    **{name: pa.string() for name in ("categories", "large", "view")},
    "numbered": pa.int64(),
    "half": pa.float32(),
    "tags": pa.list_(pa.string()),
    "pair": pa.list_(pa.int8()),
}


def stored(source, out):
    """Returns the content of the file that stands for a table."""
    with input_files(source, out) as (path,):
        assert path.name == "table.parquet"
        return pq.ParquetFile(path).read()


def test_odd_types_become_plain_ones_with_the_same_values(tmp_path):
    found = stored(pa.table(ODD), tmp_path / "out")
    assert found.to_pydict() == pa.table(ODD).to_pydict()
    assert {each.name: each.type for each in found.schema} == {
        name: each.type for name, each in ODD.items()
    } | PLAIN


def test_streams_and_paths_mix_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 1)  # a large batch is written in parts
    table = pa.table({"a": [1, 2, 3]})
    left = tmp_path / ".out.tables"
    left.mkdir()
    (left / "table-9.parquet").touch()  # of a process that was killed
    inputs = [table.to_reader(), "a.csv", tmp_path, table.to_batches()[0]]
    with input_files(iter(inputs), tmp_path / "out") as paths:
        assert [paths[0].name, *map(str, paths[1:3]), paths[3].name] == [
            "table.parquet",
            "a.csv",
            str(tmp_path),
            "table-4.parquet",
        ]
        assert sorted(left.iterdir()) == sorted([paths[0], paths[3]])
        assert all(pq.read_table(paths[number]).equals(table) for number in (0, 3))
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_wide_rows_is_written_in_row_groups_of_the_bound(tmp_path):
    memory = Memory(PROGRAM + 29 * (1 << 16))
    table = pa.table({"text": [f"{number:02000d}" for number in range(100)]})
    with input_files(table.to_reader(max_chunksize=1), tmp_path / "out", memory) as (path,):
        found = pq.read_metadata(path)
        sizes = [found.row_group(n).total_byte_size for n in range(found.num_row_groups)]
        assert max(sizes) < memory.batch


def test_one_process_at_a_time_writes_them(tmp_path):
    table = pa.table({"a": [1]})
    with (
        input_files(table, tmp_path / "out"),
        ThreadPoolExecutor() as pool,
        pytest.raises(BusyError, match="out: ano"),
    ):
        pool.submit(stored, table, tmp_path / "out").result()


def test_other_inputs_are_named(tmp_path):
    interval = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
    for source, error, message in (
        (5, TypeError, "files: expected paths, or tables with __arrow_c.* .*, got builtins.int"),
        ([{"a": [1]}], TypeError, "got builtins.dict"),
        (pa.table([[1], [2]], ["a", "a"]), DataError, "columns of distinct names, got 'a' twice"),
        (pa.table({"a": interval}), DataError, "files: the table .*nterval"),
    ):
        with pytest.raises(error, match=message):
            stored(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_tables_of_pandas_and_polars(tmp_path):
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    columns = {
        "tags": [["a", "b"], [], None],
        "float": [0.5, np.nan, 2.0],
        "time": pd.Series(TIMES),
    }
    frame = pd.DataFrame(columns).set_axis([5, 3, 4])
    found = stored(frame, tmp_path / "out")
    assert found.column_names == list(frame.columns)  # without the index
    assert found["tags"].to_pylist() == [["a", "b"], [], None]
    assert found["float"].to_pylist() == [0.5, None, 2.0]
    named = frame.set_index("float")  # whose index is not a range, which pandas does not export
    assert stored(named, tmp_path / "out")["float"].to_pylist() == [0.5, None, 2.0]
    twice = frame[["tags", "float"]].set_axis(["a", "a"], axis=1)
    for wrong, message in ((pd.DataFrame({"a": ["x", 1]}), "column a"), (twice, "[Dd]uplicate")):
        with pytest.raises(DataError, match=rf"files: the table cannot be read: .*{message}"):
            stored(wrong, tmp_path / "out")
    kinds = pl.Series(["x", "y", None], dtype=pl.Enum(["x", "y"]))
    frame = pl.DataFrame({"enum": kinds, "tags": [["a", "b"], [], None]})
    assert stored(frame, tmp_path / "out").to_pydict() == frame.to_dict(as_series=False)
    with pytest.raises(TypeError, match=r"got polars\..*LazyFrame"):
        stored(frame.lazy(), tmp_path / "out")
