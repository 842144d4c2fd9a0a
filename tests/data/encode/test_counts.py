from contextlib import ExitStack

import pyarrow as pa

from adaftr_fast.data.encode import counts
from adaftr_fast.data.encode.counts import ValueCounts


def test_read_merges_one_file_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "COMPACT_ROWS", 10_000)
    values = pa.array(range(20_000))
    paths = [tmp_path / f"{number}.arrow" for number in range(12)]
    for path in paths:
        counts_of_shard = ValueCounts(pa.int64())
        counts_of_shard.update(values)
        with path.open("wb") as file:
            counts_of_shard.write(file)
    table = counts_of_shard.table()
    held = []
    append = ValueCounts._append

    def measured(self, table):
        held.append(pa.total_allocated_bytes())
        append(self, table)

    monkeypatch.setattr(ValueCounts, "_append", measured)
    with ExitStack() as stack:
        merged = ValueCounts.read([stack.enter_context(path.open("rb")) for path in paths]).table()
    assert merged["value"].equals(table["value"])
    assert set(merged["count"].to_pylist()) == {12}
    assert max(held) - held[0] < 3 * table.nbytes


def test_a_file_holds_the_counts_of_many_columns(tmp_path):
    columns = [pa.array([3, 1, 3]), pa.array(["b", None, "a"]), pa.array([], pa.float64())]
    with (tmp_path / "counts.arrow").open("wb") as file:
        for values in columns:
            counts_of_column = ValueCounts(values.type)
            counts_of_column.update(values)
            counts_of_column.write(file)
    with (tmp_path / "counts.arrow").open("rb") as first, (tmp_path / "counts.arrow").open("rb") as second:
        tables = [ValueCounts.read([first, second]).table() for _ in columns]
        assert not first.read()
    assert [table.schema.field("value").type for table in tables] == [values.type for values in columns]
    assert [table.to_pydict() for table in tables] == [
        {"value": [1, 3], "count": [2, 4]},
        {"value": ["a", "b"], "count": [2, 2]},
        {"value": [], "count": []},
    ]
