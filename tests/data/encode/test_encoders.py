import io
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from adaftr_fast.data.encode import groups
from adaftr_fast.data.encode.counts import ValueCounts, merged
from adaftr_fast.data.encode.encoders import Buckets, Vocabulary
from adaftr_fast.data.encode.groups import Groups


def counts_of(*batches):
    arrays = [pa.array(batch) for batch in batches]
    counts = ValueCounts(arrays[0].type)
    for array in arrays:
        counts.update(array)
    return counts


def test_vocabulary_orders_by_count_then_value():
    vocabulary = Vocabulary.fit(counts_of(["b", "a", "c", "c", None, "d"]), min_count=1)
    assert vocabulary.values.to_pylist() == ["c", "a", "b", "d"]
    assert vocabulary.num_embeddings == 5
    assert vocabulary.encode(pa.array(["d", None, "c", "new"])).to_pylist() == [4, 0, 1, 0]
    frequent = Vocabulary.fit(counts_of([7, 7, 8, 9, 9]), min_count=2)
    assert frequent.encode(pa.array([7, 8, 9])).to_pylist() == [1, 0, 2]


def test_every_group_is_missing():
    column = pa.nulls(3)
    files = []
    for part in (column, column[:0]):
        found = Groups("user")
        found.add(part)
        files.append(io.BytesIO(pickle.dumps(found)))
    assert merged(files).encode(column).to_pylist() == [-1, -1, -1]


@pytest.mark.parametrize("kind", [pa.int64(), pa.int8(), pa.string()])
def test_groups_are_numbered_in_order_of_appearance(kind, monkeypatch):
    """Over many batches and merges, of integers that an array finds too."""
    monkeypatch.setattr(groups, "COMPACT_ROWS", 20)
    random = np.random.default_rng(0)
    batches = [pa.array(random.integers(-40, 40, rows)).cast(kind) for rows in (0, 1, 60, 0, 90)]
    parts = [Groups("user"), Groups("user")]
    for place, batch in enumerate(batches):
        parts[place > 2].add(batch)
    whole = merged([io.BytesIO(pickle.dumps(each)) for each in parts])
    known = list(dict.fromkeys(value for batch in batches for value in batch.to_pylist()))
    for batch in batches:
        assert whole.encode(batch).to_pylist() == [*map(known.index, batch.to_pylist())]


def test_buckets_beyond_the_values_have_the_same_edges():
    """Memory is bounded by the values, so edges are those of all quantiles without
    computing them.
    """
    random = np.random.default_rng(0)
    for rows in (1, 7, 300):
        values = np.sort(random.integers(0, 25, rows).astype(float))
        counts = counts_of(values)
        for buckets in (2, 11, 26, 97, 30_011):
            quantiles = np.arange(1, buckets) / buckets * len(values)
            edges = np.unique(values[np.ceil(quantiles).astype(int) - 1])
            assert Buckets.fit(counts, buckets).edges.tolist() == edges[edges < values[-1]].tolist()


INF = np.inf


@pytest.mark.parametrize(
    ("values", "buckets", "asked", "ids"),
    [
        (
            [0.0] * 93 + [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
            20,
            [-1.0, 0.0, 0.1, 0.2, 0.3, None],
            [1, 1, 2, 2, 3, 0],
        ),
        (
            [-INF] * 10 + [0.0, 1.0, 2.0, 3.0] + [INF] * 3,
            4,
            [-INF, 0.0, 2.0, 3.0, INF],
            [1, 2, 2, 3, 3],
        ),
        (pa.array([None, None], pa.float64()), 5, [1.0, None], [1, 0]),
        ([3.0, 3.0], 5, [3.0, 4.0, None], [1, 1, 0]),
        # in memory bounded by the values
        ([3.0, 1.0, 2.0, 2.0], 2**62, [1.0, 1.5, 2.0, 9.0], [1, 2, 2, 3]),
    ],
)
def test_buckets_by_hand(values, buckets, asked, ids):
    tracemalloc.start()
    found = Buckets.fit(counts_of(values), buckets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert found.encode(pa.array(asked)).to_pylist() == ids
    assert found.num_embeddings == max(*ids, 1) + 1


@pytest.mark.parametrize("known", [[3, 5, 4, 9], [2**63 - 1, 2**63 - 3], [-(2**63), 7 - 2**63], []])
def test_values_outside_of_dense_integers_are_unknown(known):
    vocabulary = Vocabulary(pa.array(known, pa.int64()), pa.array([1] * len(known), pa.int64()))
    ends = [-(2**63), 7 - 2**63, -1, 0, 3, 4, 9, 10, 2**63 - 3, 2**63 - 1, None]
    expected = [known.index(value) + 1 if value in known else 0 for value in ends]
    ids = vocabulary.encode(pa.array(ends, pa.int64()))
    assert ids.type == pa.int32()
    assert ids.to_pylist() == expected


@pytest.mark.parametrize("values", [[5, 3, 5, None, 4], [-(2**63), 2 - 2**63] * 2, [0, 2**63 - 1]])
def test_dense_integers_are_counted_as_any_others(values):
    expected = sorted({value: values.count(value) for value in values if value is not None}.items())
    found = counts_of(values).table().to_pydict()
    assert [*zip(found["value"], found["count"])] == expected
