from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from adaftr_fast.data.encode.encoders import count_values, field_values
from adaftr_fast.data.encode.moments import fit_dense
from adaftr_fast.data.schema.types import Field
from adaftr_fast.errors import DataError

LARGEST = float(np.finfo(np.float32).max)


def dense(encoding="standard", buckets=4):
    return Field("x", "dense", ("x",), min_count=1, buckets=buckets, encoding=encoding)


def batch(values, kind=None):
    return pa.record_batch({"x": pa.array(values, kind)})


def fitted(field, *batches):
    return fit_dense(
        field, count_values([field], [batch(each, pa.float64()) for each in batches])["x"]
    )


def test_numbers_are_float32_and_nan_where_they_are_missing_or_infinite():
    values = [1.5, None, float("nan"), float("inf"), float("-inf"), 1e300, -1e39, 0.1]
    out = field_values(dense(), batch(values))
    assert (out.type, out.null_count) == (pa.float32(), 0)
    expected = np.array([1.5, *[np.nan] * 4, LARGEST, -LARGEST, 0.1], np.float32)
    np.testing.assert_array_equal(out.to_numpy(), expected)
    assert field_values(dense(), batch([3, None], pa.int64())).to_pylist()[0] == 3.0
    with pytest.raises(DataError, match=r"field x: cannot read x \(string\) as dense: .*'old'"):
        field_values(dense(), batch(["1", "old"]))


@pytest.mark.parametrize("encoding", ["log", "piecewise"])
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


@pytest.mark.parametrize("kind", ["of all sizes", "whole", "whole and large"])
def test_batches_do_not_change_the_statistics(kind):
    """Sums are exact, so they are the same however they are divided, also where float64 would round
    them.
    """
    random = np.random.default_rng(2)
    values = random.choice([-1.0, 1.0], 600) * 10.0 ** random.uniform(-44, 38, 600)
    if kind != "of all sizes":
        largest = 2**24 if kind == "whole" else 2**31
        values = random.integers(-largest, largest, 600).astype(float)
    values[::7] = np.nan
    whole, divided = (
        count_values([dense()], [batch(part) for part in parts])["x"]
        for parts in ([values], [values[:1], values[1:300], values[300:]])
    )
    assert divided == whole
    kept = [Fraction(float(each)) for each in values.astype(np.float32) if each == each]
    assert (whole.total, whole.squares) == (sum(kept), sum(each * each for each in kept))


TINY = float(np.finfo(np.float32).tiny)


def test_statistics_by_hand():
    """Missing numbers, equal ones, huge ones, and a spread below the range of float32."""
    steps = [1e6, 1e6 + 0.0625, 1e6 + 0.125] * 1000
    present = [1.0, None, 3.0, float("nan"), float("inf"), 8.0]
    tiny = [0.0] * 9999 + [TINY]
    for encoding, values, expected in (
        ("standard", present, {"mean": 4.0, "low": 1.0, "high": 8.0}),
        ("standard", steps, {"std": np.float32(np.sqrt(0.0625**2 * 2 / 3))}),
        ("standard", [5.0, 5.0, None], {"std": 1.0, "mean": 5.0, "low": 5.0}),
        ("log", [5.0, 5.0], {"std": 1.0}),
        ("piecewise", [5.0, 5.0], {"edges": []}),
        ("piecewise", [0.0] * 98 + [1.0, 2.0], {"edges": [0.0, 2.0]}),
        ("piecewise", [-1e300, 0.0, 1e300], {"low": -LARGEST, "high": LARGEST}),
        ("standard", tiny, {"std": TINY}),
        ("log", tiny, {"std": TINY}),
    ):
        found = fitted(dense(encoding), values)
        assert {name: getattr(found, name) for name in expected} == expected
        assert found.missing == any(value is None for value in values)
        assert np.isfinite(found.std)


def test_a_column_without_numbers_raises():
    with pytest.raises(
        DataError, match="field x: expected numbers in the training split, got missing values only"
    ):
        fitted(dense(), [None, float("nan")])
