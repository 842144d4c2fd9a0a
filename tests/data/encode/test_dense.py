import numpy as np
import pyarrow as pa
import pytest

from adaftr_fast.data.encode.dense import fit_dense
from adaftr_fast.data.encode.encoders import count_values, field_values
from adaftr_fast.data.schema.types import Field
from adaftr_fast.errors import DataError

LARGEST = float(np.finfo(np.float32).max)


def dense(encoding="standard", buckets=4):
    return Field("x", "dense", ("x",), min_count=1, buckets=buckets, encoding=encoding)


def batch(values, kind=None):
    return pa.record_batch({"x": pa.array(values, kind)})


def fitted(field, *batches):
    return fit_dense(field, count_values([field], [batch(each, pa.float64()) for each in batches])["x"])


def test_numbers_are_float32_and_nan_where_they_are_missing_or_infinite():
    values = [1.5, None, float("nan"), float("inf"), float("-inf"), 1e300, -1e39, 0.1]
    out = field_values(dense(), batch(values))
    assert out.type == pa.float32()
    assert out.null_count == 0
    expected = np.array([1.5, np.nan, np.nan, np.nan, np.nan, LARGEST, -LARGEST, 0.1], np.float32)
    np.testing.assert_array_equal(out.to_numpy(), expected)
    assert field_values(dense(), batch([3, None], pa.int64())).to_pylist()[0] == 3.0
    with pytest.raises(DataError, match=r"field x: cannot read x \(string\) as dense: .*'old'"):
        field_values(dense(), batch(["1", "old"]))


@pytest.mark.parametrize("encoding", ["standard", "log", "piecewise"])
def test_statistics_are_those_of_the_present_values(encoding):
    random = np.random.default_rng(0)
    values = (random.normal(3, 50, 1000).round(1)).astype(np.float32).astype(np.float64)
    field = dense(encoding, buckets=10)
    found = fitted(field, values[:400], values[400:])
    u = np.sign(values) * np.log1p(np.abs(values)) if encoding == "log" else values
    assert (found.name, found.kind, found.missing) == ("x", encoding, False)
    np.testing.assert_allclose([found.mean, found.std], [u.mean(), u.std()], rtol=1e-6)
    np.testing.assert_allclose([found.low, found.high], [u.min(), u.max()], rtol=1e-6)
    if encoding != "piecewise":
        assert found.edges == []
        return
    inner = np.quantile(values, np.arange(1, 10) / 10, method="inverted_cdf")
    np.testing.assert_array_equal(found.edges, [values.min(), *inner, values.max()])


def test_missing_numbers_are_counted_but_not_averaged():
    whole = fitted(dense(), [1.0, 3.0], [None, float("nan")], [float("inf"), 8.0])
    assert whole.missing
    assert (whole.mean, whole.low, whole.high) == (4.0, 1.0, 8.0)
    assert not fitted(dense(), [1.0, 3.0, 8.0]).missing


def test_the_order_of_the_rows_does_not_change_the_statistics():
    values = np.random.default_rng(1).normal(0, 1e3, 500).tolist()
    assert fitted(dense("log"), values) == fitted(dense("log"), values[:7:-1], values[7::-1])


def test_equal_values():
    for encoding in ("standard", "log"):
        found = fitted(dense(encoding), [5.0, 5.0, None])
        assert (found.std, found.low) == (1.0, found.mean)
    assert fitted(dense("piecewise"), [5.0, 5.0]).edges == []
    assert fitted(dense("piecewise"), [0.0] * 98 + [1.0, 2.0]).edges == [0.0, 2.0]


def test_huge_values():
    found = fitted(dense("piecewise"), [-1e300, 0.0, 1e300])
    assert (found.low, found.high) == (-LARGEST, LARGEST)
    assert np.isfinite(found.std)


@pytest.mark.parametrize("encoding", ["standard", "log", "piecewise"])
def test_a_spread_below_the_range_of_float32(encoding):
    smallest = float(np.finfo(np.float32).tiny)
    assert fitted(dense(encoding), [0.0] * 9999 + [smallest]).std == smallest  # the deviation is a hundredth of it


def test_a_column_without_numbers_raises():
    with pytest.raises(DataError, match="field x: expected numbers in the training split, got missing values only"):
        fitted(dense(), [None, float("nan")])
