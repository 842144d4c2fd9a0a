import pyarrow as pa

from adaftr_fast.data.encode.counts import ValueCounts


def test_a_file_holds_the_counts_of_many_columns(tmp_path):
    columns = [pa.array([3, 1, 3]), pa.array(["b", None, "a"]), pa.array([], pa.float64())]
    with (tmp_path / "counts.arrow").open("wb") as file:
        for values in columns:
            counts_of_column = ValueCounts(values.type)
            counts_of_column.update(values)
            counts_of_column.write(file)
    with (
        (tmp_path / "counts.arrow").open("rb") as first,
        (tmp_path / "counts.arrow").open("rb") as second,
    ):
        tables = [ValueCounts.read([first, second]).table() for _ in columns]
        assert not first.read()
    assert [table.schema.field("value").type for table in tables] == [
        values.type for values in columns
    ]
    assert [table.to_pydict() for table in tables] == [
        {"value": [1, 3], "count": [2, 4]},
        {"value": ["a", "b"], "count": [2, 2]},
        {"value": [], "count": []},
    ]
