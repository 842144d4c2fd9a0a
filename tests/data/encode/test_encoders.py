import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from adaftr_fast.data.encode.counts import ValueCounts
from adaftr_fast.data.encode.encoders import Buckets, Vocabulary, count_values, fit_encoder
from adaftr_fast.data.encode.groups import Groups
from adaftr_fast.data.schema.parse import Field
from adaftr_fast.errors import DataError


def counts_of(*batches):
    arrays = [pa.array(batch) for batch in batches]
    counts = ValueCounts(arrays[0].type)
    for array in arrays:
        counts.update(array)
    return counts


def fit_encoders(fields, batches):
    counts = count_values(fields, batches)
    return {field.name: fit_encoder(field, counts.get(field.name)) for field in fields}


def test_counts_add_up_over_batches_and_merges(monkeypatch):
    whole = counts_of(["a", "b", None, "a"], ["b", "b", "c"])
    part = counts_of(["a", "b", None, "a"])
    part.merge(counts_of(["b", "b", "c"]))
    expected = {"value": ["a", "b", "c"], "count": [2, 3, 1]}
    assert whole.table().to_pydict() == part.table().to_pydict() == expected
    monkeypatch.setattr("adaftr_fast.data.encode.counts.COMPACT_ROWS", 1)  # merge after every batch
    assert counts_of(["a", "b", None, "a"], ["b", "b", "c"]).table().to_pydict() == expected


def test_vocabulary_orders_by_count_then_value():
    vocabulary = Vocabulary.fit(counts_of(["b", "a", "c", "c", None, "d"]), min_count=1)
    assert vocabulary.values.to_pylist() == ["c", "a", "b", "d"]
    assert vocabulary.num_embeddings == 5
    assert vocabulary.encode(pa.array(["d", None, "c", "new"])).to_pylist() == [4, 0, 1, 0]


def test_vocabulary_min_count_sends_rare_values_to_unknown():
    vocabulary = Vocabulary.fit(counts_of([7, 7, 8, 9, 9]), min_count=2)
    assert vocabulary.encode(pa.array([7, 8, 9])).to_pylist() == [1, 0, 2]


def test_numbers_and_their_texts_are_the_same_values():
    values = [7, -3, 20, None, 5]
    numbers = pa.array(values, pa.int64())
    text = pa.array([None if value is None else str(value) for value in values])
    for known in (Vocabulary.fit(counts_of([7, 7, -3]), 1), Vocabulary.fit(counts_of(["7", "7", "-3"]), 1)):
        assert known.encode(numbers).to_pylist() == known.encode(text).to_pylist() == [1, 2, 0, 0, 0]
    mixed = Vocabulary.fit(counts_of(["7", "07", "x"]), 1)  # only "7" is the canonical text of an integer
    assert mixed.encode(numbers).to_pylist() == mixed.encode(text).to_pylist()
    assert mixed.encode(pa.array(["07", "x", "7"])).to_pylist() == [1, 3, 2]


def test_binary_search_equals_hash_lookup():
    known = np.random.default_rng(0).permutation(500)[:400] - 200
    vocabulary = Vocabulary(pa.array(known), pa.array(np.ones(400, np.int64)))
    asked = pa.array([*range(-210, 310), None], pa.int64())
    every = vocabulary.encode(asked)
    few = [vocabulary.encode(asked.slice(start, 13)) for start in range(0, len(asked), 13)]
    assert pa.concat_arrays(few).equals(every)
    assert every.to_pylist()[:3] == [0, 0, 0]
    assert pc.sum(pc.greater(every, 0)).as_py() == 400


def test_a_grown_vocabulary_keeps_its_ids():
    known = Vocabulary.fit(counts_of([5, 5, 3]), 1)
    grown = known.grown(Vocabulary.fit(counts_of([9, 9, 9, 3, 1]), 1))
    assert grown.values.to_pylist() == ["5", "3", "9", "1"]
    assert grown.counts.to_pylist() == [2, 2, 3, 1]
    assert known.grown(Vocabulary.fit(counts_of(["a"]), 1)).encode(pa.array(["a", "5"])).to_pylist() == [3, 1]


def test_buckets_collapse_equal_quantiles():
    rain = [0.0] * 93 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    buckets = Buckets.fit(counts_of(rain), buckets=20)
    assert buckets.edges.tolist() == [0.0, 0.2]
    assert buckets.num_embeddings == 4
    assert buckets.encode(pa.array([-1.0, 0.0, 0.1, 0.2, 0.3, 99.0, None])).to_pylist() == [
        1,
        1,
        2,
        2,
        3,
        3,
        0,
    ]


def test_buckets_split_training_values_evenly():
    values = np.random.default_rng(0).normal(size=10_000)
    ids = Buckets.fit(counts_of(values), buckets=10).encode(pa.array(values)).to_numpy()
    assert (np.bincount(ids) == [0] + [1000] * 10).all()
    edges = Buckets.fit(counts_of(values), buckets=10).edges
    quantiles = pc.quantile(pa.array(values), q=np.arange(1, 10) / 10, interpolation="lower").to_numpy()
    assert (edges == quantiles).all()


def test_edges_are_finite():
    values = [-np.inf] * 10 + [0.0, 1.0, 2.0, 3.0] + [np.inf] * 3
    buckets = Buckets.fit(counts_of(values), 4)
    assert np.isfinite(buckets.edges).all()
    assert buckets.encode(pa.array([-np.inf, 0.0, 2.0, 3.0, np.inf])).to_pylist() == [1, 2, 2, 3, 3]


def test_buckets_of_an_empty_or_constant_column():
    assert Buckets.fit(counts_of(pa.array([None, None], pa.float64())), 5).num_embeddings == 2
    constant = Buckets.fit(counts_of([3.0, 3.0]), 5)
    assert constant.encode(pa.array([3.0, 4.0, None])).to_pylist() == [1, 1, 0]


def test_groups_are_numbered_across_batches():
    columns = [pa.array(["u", "v", None, "u"]), pa.array(["w", "v", "w"])]
    groups = Groups.from_columns("user", columns)
    assert [groups.encode(values).to_pylist() for values in columns] == [[0, 1, -1, 0], [2, 1, 2]]


def test_groups_of_shards_equal_groups_of_all_rows(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    columns = [pa.array(random.integers(0, 300, 100)) for _ in range(9)]
    parts = [columns[:4], [], columns[4:]]
    for number, part in enumerate(parts):
        Groups.from_columns("user", part).write(tmp_path / f"{number}")
    monkeypatch.setattr("adaftr_fast.data.encode.groups.COMPACT_ROWS", 50)
    whole = Groups.from_columns("user", columns).values.to_pylist()
    assert Groups.read("user", [tmp_path / f"{number}" for number in range(3)]).values.to_pylist() == whole
    assert whole == list(dict.fromkeys(value for column in columns for value in column.to_pylist()))


@pytest.mark.parametrize("kind", [pa.null(), pa.float64()], ids=str)
def test_every_group_is_missing(tmp_path, kind):
    column = pa.nulls(3, kind)
    for number, part in enumerate([[column], []]):
        Groups.from_columns("user", part).write(tmp_path / f"{number}")
    groups = Groups.read("user", [tmp_path / "0", tmp_path / "1"])
    assert groups.encode(column).to_pylist() == [-1, -1, -1]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["1", "2", None]),
        pa.array(["1", "2", None]).dictionary_encode(),
        pa.array([1, 2, None], pa.uint8()),
    ],
)
def test_column_types_that_mean_the_same(column):
    field = Field("x", "categorical", ("x",), 1, 2)
    encoder = fit_encoders([field], [pa.record_batch({"x": column})])["x"]
    assert [str(value) for value in encoder.values.to_pylist()] == ["1", "2"]


def test_missing_values_are_nulls_and_nans():
    batch = pa.record_batch({"x": [1.5, float("nan"), None, 1.5], "y": ["a", None, "a", "b"]})
    fields = [Field("x", "categorical", ("x",), 1, 2), Field("xy", "cross", ("x", "y"), 1, 2)]
    encoders = fit_encoders(fields, [batch])
    assert encoders["x"].values.to_pylist() == ["1.5"]
    assert encoders["xy"].values.to_pylist() == ["1.5\x1fa", "1.5\x1fb"]


def test_text_in_a_numeric_field_is_named():
    with pytest.raises(DataError, match=r"field x: cannot read x \(string\) as numeric"):
        fit_encoders([Field("x", "numeric", ("x",), 1, 2)], [pa.record_batch({"x": ["many"]})])


def test_buckets_beyond_the_values_have_the_same_edges():
    """Memory is bounded by the values, so edges are those of all quantiles without computing them."""
    random = np.random.default_rng(0)
    for rows in (1, 2, 7, 40, 300):
        values = np.sort(random.integers(0, 25, rows).astype(float))
        counts = counts_of(values)
        for buckets in (2, 3, 11, 26, 64, 97, 1000, 30_011):
            quantiles = np.arange(1, buckets) / buckets * len(values)
            edges = np.unique(values[np.ceil(quantiles).astype(int) - 1])
            assert Buckets.fit(counts, buckets).edges.tolist() == edges[edges < values[-1]].tolist()


@pytest.mark.parametrize("buckets", [10**9, 2**62])
def test_a_billion_buckets_need_no_memory(buckets):
    tracemalloc.start()
    edges = Buckets.fit(counts_of([3.0, 1.0, 2.0, 2.0]), buckets).edges
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert edges.tolist() == [1.0, 2.0]
    assert peak < 1_000_000
